"""A process told from a later one with its pid."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from runvm.linux import process
from runvm.linux.process import Identity


@pytest.fixture
def child() -> Iterator[Identity]:
    """A child that waits, and its identity."""
    pid = process.fork(lambda: signal.pause())
    found = process.identity(pid)
    assert found is not None
    yield found
    process.end_child(pid, "the child")


def test_a_namespace_is_that_of_the_very_process(child: Identity) -> None:
    """As one path leads to it."""
    fd = process.open_namespace(child, "network")
    try:
        assert process.is_namespace(fd, "network")
        assert os.path.samestat(os.fstat(fd), os.stat(f"/proc/{child.pid}/ns/net"))
    finally:
        os.close(fd)
    process.check_alive(child)


def test_a_later_process_with_its_pid_is_not_taken_for_it(child: Identity) -> None:
    """Nor does a descriptor of that one's namespace stay open."""
    before = os.listdir("/proc/self/fd")
    earlier = Identity(child.pid, child.start - 1)
    with pytest.raises(ProcessLookupError, match=f"process {child.pid} has ended"):
        process.open_namespace(earlier, "mount")
    with pytest.raises(ProcessLookupError):
        process.check_alive(earlier)
    assert os.listdir("/proc/self/fd") == before


def test_one_that_has_ended_and_isn_t_reaped_has_ended() -> None:
    """A zombie's namespaces are gone; one that was reaped has no directory below /proc."""
    pid = process.fork(lambda: signal.pause())
    found = process.identity(pid)
    assert found is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError):
        process.open_namespace(found, "network")
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        process.open_namespace(found, "network")


def test_a_caller_that_ignores_its_childrens_end_doesnt_spoil_ours() -> None:
    """SIGCHLD ignored is inherited, and the kernel would reap them by itself (wait(2))."""

    def child() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        inner = process.fork(lambda: os._exit(7))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))

    pid = process.fork(child)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_cgroup_that_refuses_a_process_is_named_as_by_runc() -> None:
    """A real-time process and a cgroup without real-time share, for one; /proc/version refuses all."""
    with pytest.raises(OSError, match="unable to apply cgroup configuration: write /proc/version: "):
        process.join_cgroups(("/proc/version",))
