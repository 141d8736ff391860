"""Hooks are real programs here: what they get, how long they may take, and what is said when they fail."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runvm.errors import HookError
from runvm.oci import hooks
from runvm.oci.spec import Hook

STATE = hooks.state_json(cid="c1", status="creating", pid=42, bundle="/b", annotations={"a": "b"})


def sh(script: str, *, env: tuple[str, ...] | None = None, timeout_s: int | None = None) -> Hook:
    """A hook that runs *script*."""
    return Hook("/bin/sh", ("sh", "-c", script), env, timeout_s)


def run(*all_hooks: Hook, cwd: str = "/", name: str = "prestart", default_timeout_s: float = 20.0) -> None:
    hooks.run(all_hooks, STATE, cwd=cwd, name=name, default_timeout_s=default_timeout_s)


def error_of(hook: Hook, *, cwd: str = "/", default_timeout_s: float = 20.0) -> str:
    with pytest.raises(HookError) as caught:
        run(Hook("/bin/true", (), (), None), hook, cwd=cwd, default_timeout_s=default_timeout_s)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    """No test leaves a descriptor, a child, a blocked or a pending signal."""
    fds = set(os.listdir("/proc/self/fd"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    assert set(os.listdir("/proc/self/fd")) == fds
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert not signal.sigpending()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# --- what a hook gets


def test_hooks_run_in_order_in_the_bundle(tmp_path: Path) -> None:
    run(sh("pwd > out"), sh("echo second >> out"), sh("echo third >> out"), cwd=str(tmp_path))
    assert (tmp_path / "out").read_text().split() == [str(tmp_path), "second", "third"]


def test_argv_is_exactly_args_whatever_the_path_is(tmp_path: Path) -> None:
    """dockerd's hook is /proc/<pid>/exe with argv[0] libnetwork-setkey, which says what it is to do."""
    run(Hook("/bin/sh", ("libnetwork-setkey", "-c", f"tr '\\0' ' ' < /proc/$$/cmdline > {tmp_path}/out"), None, None))
    assert (tmp_path / "out").read_text().startswith("libnetwork-setkey -c ")


def test_without_args_argv_is_the_path(tmp_path: Path) -> None:
    script = tmp_path / "hook"
    script.write_text(f'#!/bin/sh\necho "$0 $#" > {tmp_path}/out\n')
    script.chmod(0o755)
    run(Hook(str(script), (), None, None))
    assert (tmp_path / "out").read_text() == f"{script} 0\n"


def test_the_state_is_on_stdin(tmp_path: Path) -> None:
    run(sh("cat > state"), cwd=str(tmp_path))
    assert json.loads((tmp_path / "state").read_text()) == {
        "ociVersion": "1.1.0",
        "id": "c1",
        "status": "creating",
        "pid": 42,
        "bundle": "/b",
        "annotations": {"a": "b"},
    }


def test_a_state_without_pid_or_annotations() -> None:
    """poststop: runc leaves the pid out, the container has none."""
    state = hooks.state_json(cid="x", status="stopped", bundle="/b", oci_version="1.0.2")
    assert state == {"ociVersion": "1.0.2", "id": "x", "status": "stopped", "bundle": "/b"}


def test_no_env_means_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNVM_TEST_MARK", "here")
    run(sh("echo $RUNVM_TEST_MARK > out"), cwd=str(tmp_path))
    assert (tmp_path / "out").read_text() == "here\n"


def test_no_env_means_the_one_given(tmp_path: Path) -> None:
    """createContainer hooks without env get the container's (runc)."""
    hook = Hook("/usr/bin/env", ("env",), None, None)
    with pytest.raises(HookError, match="stdout: A=1, stderr"):
        hooks.run([hook._replace(path="/bin/sh", args=("sh", "-c", "/usr/bin/env -u PWD; exit 1"))], STATE,
                  cwd=str(tmp_path), name="createContainer", env={"A": "1"})  # fmt: skip


@pytest.mark.parametrize(("env", "seen"), [((), ""), (("A=1", "B=2=3", "bare", "=x", "A=4"), "A=4 B=2=3")])
def test_an_env_is_all_there_is(env: tuple[str, ...], seen: str, tmp_path: Path) -> None:
    """An empty one is empty; of two the last counts, as in Go; entries without a name or '=' say nothing."""
    run(sh("tr '\\0' ' ' < /proc/self/environ > out", env=env), cwd=str(tmp_path))
    # sh exports PWD and the like only to children that ask: environ of `tr` is what sh got, but for these
    got = [pair for pair in (tmp_path / "out").read_text().split() if not pair.startswith(("PWD=", "_=", "OLDPWD="))]
    assert sorted(got) == seen.split()


def test_no_descriptor_above_2_is_inherited(tmp_path: Path) -> None:
    """A caller's descriptor that isn't close-on-exec (containerd leaks its socket as fd 3) stops at the runtime."""
    leaked = os.dup(1)
    os.set_inheritable(leaked, True)
    try:
        run(sh("ls /proc/$$/fd > out"), cwd=str(tmp_path))
    finally:
        os.close(leaked)
    # fd 1 is the file; a shell may keep a copy of what it redirects from 10 up
    assert {fd for fd in (tmp_path / "out").read_text().split() if int(fd) < 10} == {"0", "1", "2"}


def test_signals_are_as_in_a_fresh_process(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        run(Hook("/bin/grep", ("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"), None, None))
        run(sh("grep -E 'Sig(Blk|Ign)' /proc/self/status > out"), cwd=str(tmp_path))
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    # 32 and 33 are the C library's own: no call of it can give them back once a parent ignores them
    own = 1 << 31 | 1 << 32
    assert [int(line.split()[1], 16) & ~own for line in (tmp_path / "out").read_text().splitlines()] == [0, 0]


def test_it_works_where_the_callers_standard_descriptors_are_closed(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(0, 3)
            hooks.run([sh("cat > state; echo x; echo y >&2")], STATE, cwd=str(tmp_path), name="prestart")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert "c1" in (tmp_path / "state").read_text()


def test_enter_is_called_in_the_child_before_the_cwd_and_the_program(tmp_path: Path) -> None:
    inside = tmp_path / "inside"

    def enter() -> None:
        inside.mkdir()
        os.environ["NOT_HERE"] = "1"  # another process: the caller's stays as it is
        (inside / "pid").write_text(str(os.getpid()))

    hooks.run([sh("echo $$ > hook")], STATE, cwd=str(inside), name="createContainer", enter=enter)
    assert (inside / "pid").read_text() == (inside / "hook").read_text().strip() != str(os.getpid())
    assert "NOT_HERE" not in os.environ


# --- how it fails


def test_a_failure_has_runcs_words_and_what_the_hook_wrote() -> None:
    message = error_of(sh("echo out; echo err >&2; exit 3"))
    assert message == "error running prestart hook #1: error running hook: exit status 3, stdout: out, stderr: err"


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (Hook("/nonexistent", (), None, None), "fork/exec /nonexistent: no such file or directory"),
        (Hook("/etc/passwd", (), None, None), "fork/exec /etc/passwd: permission denied"),
        (Hook("/bin/false", ("",), None, None), "error running hook: exit status 1, stdout: , stderr: "),
        (sh("kill -9 $$"), "error running hook: signal: killed, stdout: , stderr: "),
    ],
)
def test_each_way_to_fail(hook: Hook, words: str) -> None:
    assert error_of(hook) == f"error running prestart hook #1: {words}"


def test_a_failure_to_enter_or_to_change_directory() -> None:
    def enter() -> None:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(HookError, match=r"#0: enter the container's namespaces: operation not permitted$"):
        hooks.run([sh(":")], STATE, cwd="/", name="createContainer", enter=enter)
    assert error_of(sh(":"), cwd="/nonexistent").endswith("chdir /nonexistent: no such file or directory")


def test_the_first_failure_ends_it(tmp_path: Path) -> None:
    with pytest.raises(HookError):
        run(sh("exit 1"), sh("touch late"), cwd=str(tmp_path))
    assert not (tmp_path / "late").exists()


def test_run_all_goes_on_and_tells(tmp_path: Path) -> None:
    failures = hooks.run_all([sh("exit 1"), sh("touch late"), sh("exit 2")], STATE, cwd=str(tmp_path), name="poststop")
    assert [str(failure).split(",")[0] for failure in failures] == [
        "error running poststop hook #0: error running hook: exit status 1",
        "error running poststop hook #2: error running hook: exit status 2",
    ]
    assert (tmp_path / "late").exists()


def test_a_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    begin = time.monotonic()
    message = error_of(sh(f"sleep 60 & echo $! > {tmp_path}/pid; wait", timeout_s=1))
    assert message == "error running prestart hook #1: hook ran past specified timeout of 1.0s"
    assert 0.9 < time.monotonic() - begin < 5
    sleeper = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(200):  # its new parent reaps it
            os.kill(sleeper, 0)
            if Path(f"/proc/{sleeper}/stat").read_text().split()[2] == "Z":
                raise ProcessLookupError
            time.sleep(0.01)


def test_a_hook_without_a_timeout_has_the_default() -> None:
    message = error_of(sh("sleep 60"), default_timeout_s=0.2)
    assert "hook ran past specified timeout of 0.2s (the default: the hook sets none)" in message


# --- nothing waits, nothing overflows


@pytest.mark.parametrize("script", ["exit 0", "exec 0<&-; sleep 0.1", "head -c 1 > /dev/null; exit 0", "sleep 0.1"])
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_hook_may_ignore_its_stdin(script: str, size: int) -> None:
    """Even where the state doesn't fit a pipe; and SIGPIPE never reaches us, though its default would end us."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        hooks.run([sh(script)], {**STATE, "annotations": {"a": "x" * size}}, cwd="/", name="prestart")
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_large_state_arrives_whole(tmp_path: Path) -> None:
    state = {**STATE, "annotations": {"a": "x" * 1_000_000}}
    hooks.run([sh("sleep 0.1; cat > state")], state, cwd=str(tmp_path), name="prestart")
    assert json.loads((tmp_path / "state").read_text()) == state


def test_output_in_any_amount_is_drained_and_the_end_of_it_kept() -> None:
    message = error_of(sh("head -c 3000000 /dev/zero | tr '\\0' x; echo END; echo cause >&2; exit 1"))
    assert "xEND, stderr: cause" in message
    assert "stdout: ...xxx" in message
    assert len(message) < 10_000


def test_output_that_is_no_text() -> None:
    assert "stdout: a\ufffdb" in error_of(sh("printf 'a\\377b'; exit 1"))


def test_a_daemon_that_a_hook_leaves_is_not_waited_for(tmp_path: Path) -> None:
    """It holds the hook's stdout open: runc would wait for its end. It lives on."""
    begin = time.monotonic()
    run(sh("sleep 30 & echo $! > pid"), cwd=str(tmp_path))
    assert time.monotonic() - begin < 5
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_it_works_where_children_are_ignored() -> None:
    """A parent that set SIGCHLD to be ignored hands that down; the hook's exit status must be seen all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert "exit status 3" in error_of(sh("exit 3"))
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)
