"""`runvm exec`: the process that the flags and the container's own process make."""

import json
from pathlib import Path

import pytest

from runvm.cli import exec as command
from runvm.cli.grammar import parse
from runvm.container.options import ExecOptions
from runvm.errors import RunvmError, UsageError
from runvm.oci.shapes import JsonObject

OWN: JsonObject = {
    "terminal": True,
    "user": {"uid": 1, "gid": 2},
    "args": ["sleep", "1000"],
    "env": ["PATH=/bin"],
    "cwd": "/",
}


def options(*argv: str) -> ExecOptions:
    return command.options(parse(command.COMMAND, list(argv)), lambda: OWN)


def test_a_command_alone_has_all_but_the_terminal_of_the_containers_process() -> None:
    assert options("c1", "ls", "-l") == ExecOptions(
        process={**OWN, "terminal": False, "args": ["ls", "-l"]}, detach=False
    )


def test_flags_change_the_process() -> None:
    made = options(
        *("--tty", "--cwd", "/srv", "-e", "A=1", "--env=B=2", "-u", "5:6", "-g", "7", "--additional-gids", "8"),
        *("--cap", "CAP_KILL", "--no-new-privs", "--apparmor", "p", "--process-label", "l", "c1", "sh"),
    )
    assert made.process["terminal"] is True
    assert made.process["cwd"] == "/srv"
    assert made.process["env"] == ["PATH=/bin", "A=1", "B=2"]
    assert made.process["user"] == {"uid": 5, "gid": 6, "additionalGids": [7, 8]}
    assert made.process["noNewPrivileges"] is True
    assert made.process["apparmorProfile"] == "p"
    assert made.process["selinuxLabel"] == "l"
    assert made.process["capabilities"]["bounding"] == ["CAP_KILL"]  # type: ignore[index]


def test_flags_about_the_call() -> None:
    made = options(
        *("--detach", "--pid-file", "/p", "--console-socket", "/s", "--preserve-fds", "2", "--ignore-paused"),
        *("--cgroup", "/a", "c1", "sh"),
    )
    assert made[1:] == ("/s", "/p", True, 2, "a", "", True)


@pytest.mark.parametrize(
    ("given", "wanted"), [([], ""), (["/"], ""), (["a/../b"], "b"), (["/a/b/"], "a/b"), (["a"], "a")]
)
def test_a_sub_cgroup(given: list[str], wanted: str) -> None:
    assert command.sub_cgroup(given) == wanted


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["../.."], "../.. is not a sub cgroup path"),
        (["a/../../b"], "a/../../b is not a sub cgroup path"),
        (["a", "b"], "invalid --cgroup argument: a (missing <controller>: prefix)"),
        (["cpu:a:b"], "invalid --cgroup argument: cpu:a:b"),
        (["cpu,memory:/a", "pids:/b"], "unknown controller cpu in SubCgroupPaths"),
    ],
)
def test_a_bad_sub_cgroup_is_refused_in_runcs_words(given: list[str], words: str) -> None:
    with pytest.raises(RunvmError) as caught:
        command.sub_cgroup(given)
    assert str(caught.value).startswith(words)


def test_a_process_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """As containerd calls it; the flags beside it have no say in runc either."""
    file = tmp_path / "process.json"
    file.write_text(json.dumps({**OWN, "args": ["true"]}))
    made = options("--process", str(file), "--cwd", "/other", "--detach", "c1")
    assert made.process == {**OWN, "args": ["true"]}
    assert made.detach


def test_no_command() -> None:
    with pytest.raises(UsageError, match="process args cannot be empty"):
        options("c1")
