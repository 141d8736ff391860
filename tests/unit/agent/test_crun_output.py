"""crun's own words on a process's standard error, as runc says them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from runvm.agent.crun_output import Filter, Hooks

if TYPE_CHECKING:
    from pathlib import Path


def record(message: str) -> bytes:
    """As crun writes it."""
    return b'{"msg":"%s","level":"error","time":"2026-11-28T21:40:22.680945Z"}\n' % message.encode()


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (record("exec container process `/x`: Exec format error"), b"exec /x: exec format error\n"),
        (
            record("exec container process (missing dynamic library?) `/x y`: No such file or directory"),
            b"exec /x y: no such file or directory\n",
        ),
        (b"\x1b[31m" + record("exec container process `/x`: Permission denied")[:-1] + b"\x1b[0m\r\n",
         b"exec /x: permission denied\r\n"),
        (b"exec: Exec format error\n", b"exec prog: exec format error\n"),
        (record("Something new"), b"something new\n"),
        (b"exec: a program's own words\n", None),
        (b"hello\n", None),
        (b"\n", None),
        (b'{"level":"error","msg":"a program\'s log","time":"2026-11-28T21:40:22Z"}\n', None),
        (record("exec container process `/x`: Exec format error") + b"and more\n", None),
    ],
)  # fmt: skip
def test_what_crun_writes_is_what_runc_writes(written: bytes, wanted: bytes | None) -> None:
    """Each form of crun's errors; what isn't one is left alone."""
    assert Filter("prog", None)(written) == ((written, False) if wanted is None else (wanted, True))


def test_what_comes_in_parts_is_put_together() -> None:
    """As a terminal gives it: byte for byte, with colours; and a program's own that began alike."""
    words = Filter("prog", None)
    whole = b"\x1b[1;31m" + record("exec container process `/x`: Exec format error")[:-1] + b"\x1b[0m\r\n"
    for number in range(len(whole) - 1):
        assert words(whole[number : number + 1]) == (b"", True)
    assert words(whole[-1:]) == (b"exec /x: exec format error\r\n", True)
    assert words(b'{"ms') == (b"", True)
    assert words(b"x") == (b'{"msx', False)
    words = Filter("prog", None)
    assert words(b'{"msg":"') == (b"", True)
    assert words(b"") == (b'{"msg":"', False)


def test_a_program_that_runs_may_write_what_it_likes() -> None:
    """The same words by a process that isn't crun any more are its own."""
    words = Filter("prog", None)
    words.pid = os.getpid()
    own = record("exec container process `/x`: Exec format error")
    assert words(own) == (own, False)


def test_hooks_are_told_by_number_and_with_their_output(tmp_path: Path) -> None:
    """The failing one of several with the same path; its output, its time, its absence."""
    spec: dict[str, Any] = {
        "hooks": {
            "startContainer": [
                {"path": "/bin/sh", "args": ["sh", "-c", "true"]},
                {"path": "/bin/sh"},
                {"path": "/bin/sleep", "args": ["nap"], "timeout": 2},
                {"path": "/no/such"},
            ]
        }
    }
    hooks = Hooks(spec, str(tmp_path))
    given = spec["hooks"]["startContainer"]
    assert [hook["args"][0] for hook in given] == ["sh", "/bin/sh", "nap", "/no/such"]
    assert [os.path.realpath(hook["path"]) for hook in given[2:]] == [os.path.realpath("/bin/sleep"), "/no/such"]
    for name in ("stdout", "stderr"):
        with open(spec["annotations"][f"run.oci.hooks.{name}"], "w", encoding="ascii") as file:
            file.write(f"to {name}\n")
    hooks.look(os.getpid())

    def said(index: int, code: int) -> bytes:
        return Filter("", hooks)(record(f"error executing hook `{given[index]['path']}` (exit code: {code})"))[0]

    head = "error running startContainer hook"
    assert said(1, 3) == (
        f"{head} #1: error running hook: exit status 3, stdout: to stdout, stderr: to stderr\n".encode()
    )
    assert said(1, 159).startswith(f"{head} #1: error running hook: signal: bad system call, stdout: ".encode())
    assert said(2, -1) == f"{head} #2: hook ran past specified timeout of 2.0s\n".encode()
    assert said(3, 1) == f"{head} #3: fork/exec /no/such: no such file or directory\n".encode()
    assert Filter("", hooks)(record("timeout expired for `/bin/sleep`")) == (b"", True)
