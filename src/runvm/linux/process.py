"""Processes: start one that dies with its parent, wait for one by pidfd to a deadline, tell whether a recorded one
still lives."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from runvm.errors import DeadlineError, reason
from runvm.linux import syscalls
from runvm.records import NamedTuple

_ENDS_WAITING = frozenset(
    getattr(signal, f"SIG{name}")
    for name in ("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "SEGV", "TERM", "STKFLT", "SYS")
)
_SIGNALS = [number for number in range(1, signal.NSIG) if number not in (signal.SIGKILL, signal.SIGSTOP)]


class Identity(NamedTuple):
    """A process told apart from a later one with the same pid: by its start time in clock ticks (proc(5), field 22)."""

    pid: int
    start: int


def namespace_name(kind: str) -> str:
    """The name in /proc/<pid>/ns of an OCI namespace type (namespaces(7))."""
    return {"network": "net", "mount": "mnt"}.get(kind, kind)


def is_namespace(fd: int, kind: str) -> bool:
    """Whether a descriptor is a namespace of that OCI type (ioctl_ns(2), NS_GET_NSTYPE)."""
    import fcntl

    flag = getattr(syscalls, f"CLONE_NEW{namespace_name(kind).upper()}")
    try:
        return bool(fcntl.ioctl(fd, 0xB703) == flag)
    except OSError:
        return False


def same_namespace(first: str, second: str) -> bool:
    """Whether two paths are one namespace; a path that can't be looked at is no namespace that we know."""
    try:
        return os.path.samestat(os.stat(first), os.stat(second))
    except OSError:
        return False


def identity(pid: int) -> Identity | None:
    """The identity of a living process; None for one that has ended, zombies included."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in (b"Z", b"X", b"x") else Identity(pid, int(fields[19]))


def alive(process: Identity) -> bool:
    """Whether that very process still runs."""
    return process.pid > 0 and identity(process.pid) == process


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it (SIGSTOP, Ctrl-Z), and none has let it go on since: proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def open_namespace(process: Identity, kind: str) -> int:
    """A descriptor of that very process's namespace of an OCI type. Raises ProcessLookupError where it has ended."""
    try:
        fd = os.open(f"/proc/{process.pid}/ns/{namespace_name(kind)}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _gone(process) from None
    if not alive(process):  # what was opened may be a later process's with its pid
        os.close(fd)
        raise _gone(process)
    return fd


def check_alive(process: Identity) -> None:
    """Before something is done by a process's pid, and after it: it was that very process's all the time. Raises
    ProcessLookupError."""
    if not alive(process):
        raise _gone(process)


def _gone(process: Identity) -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, f"process {process.pid} has ended")


def kill(process: Identity, number: int) -> bool:
    """Signal that very process, never a later one with its pid; False when it has gone (pidfd_send_signal(2))."""
    try:
        fd = os.pidfd_open(process.pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        if not alive(process):
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def ends_waiting(number: int) -> bool:
    """Whether a signal ends a container that hasn't been started yet. What waits there under runc is a Go program,
    which these alone end (pkg.go.dev/os/signal); the others do nothing."""
    return number in _ENDS_WAITING


def wait_gone(process: Identity, *, deadline: float) -> bool:
    """Wait until that process has ended (a zombie has); False if it hasn't by the deadline."""
    try:
        fd = os.pidfd_open(process.pid)
    except (ProcessLookupError, OSError):
        return True
    try:
        if not alive(process):
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while alive(process):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
        return True
    finally:
        os.close(fd)


def wait_child(pid: int, *, deadline: float) -> int | None:
    """Reap a child; its wait status, or None if it hasn't ended by the deadline."""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if time.monotonic() >= deadline:
                return None
        return os.waitpid(pid, 0)[1]
    finally:
        os.close(fd)


def how_ended(pid: int, *, deadline: float) -> str:
    """'exited with 1', 'was ended by signal 9': what has become of a child, looking until the deadline; '' while it
    runs. It stays to be reaped."""
    while True:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            return f"{'exited with' if ended.si_code == os.CLD_EXITED else 'was ended by signal'} {ended.si_status}"
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.01)


KILLED = f"was ended by signal {signal.SIGKILL:d}"
"""how_ended() of a child that somebody, or the kernel for want of memory, has killed."""


def was_killed(pid: int, *, timeout: float = 0.5) -> bool:
    """Whether SIGKILL has ended a child that is just ending; it stays to be reaped."""
    return how_ended(pid, deadline=time.monotonic() + timeout) == KILLED


def end_child(pid: int, what: str, *, timeout: float = 10.0) -> None:
    """SIGKILL to a child, and reap it; one that has gone is no error. Raises DeadlineError naming *what* it was."""
    try:
        os.kill(pid, signal.SIGKILL)
        if wait_child(pid, deadline=time.monotonic() + timeout) is None:
            raise DeadlineError(f"timed out waiting for the end of {what} (pid {pid})")
    except (ProcessLookupError, ChildProcessError):
        pass


def redirect(output: int) -> None:
    """Standard input from /dev/null, standard output and error to *output*: for a process that stays behind."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number, fd in enumerate((null, output, output)):
        os.dup2(fd, number)


def exit_code(status: int) -> int:
    """A wait status as a shell's number: 0–255, or 128 + the signal."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def fork(child: Callable[[], None]) -> int:
    """Fork; *child* runs in the new process, which ends with 0 after it, or with 1 and a line on stderr at an
    exception."""
    _keep_children()
    pid = os.fork()
    if not pid:
        _run_and_exit(child)
    return pid


def fork_in_pid_namespace(child: Callable[[], None]) -> int:
    """As fork(), and the new process is the first one of a PID namespace of its own: with it end all the processes that
    it has made (pid_namespaces(7)). Raises OSError.

    unshare(2) would need a way back, which there is none for a process in a user namespace.
    """
    import ctypes

    _keep_children()
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = syscalls.clone(syscalls.CLONE_NEWPID | signal.SIGCHLD)
    if not pid:
        python.PyOS_AfterFork_Child()
        _run_and_exit(child)
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(-pid, f"make a process in a PID namespace: {os.strerror(-pid)}")
    return pid


def _keep_children() -> None:
    """Have a child's end wait for whoever asks for it: where a caller has left SIGCHLD ignored to this process, the
    kernel would forget it, and tell nobody how it ended (wait(2))."""
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _run_and_exit(child: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        child()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)


def descendants(pid: int) -> list[int]:
    """A process and its children, theirs, and so on, as far as they live."""
    found = [pid]
    for each in found:
        try:
            with open(f"/proc/{each}/task/{each}/children") as file:
                found.extend(int(child) for child in file.read().split())
        except OSError:
            continue  # it has ended
    return found


def orphan(child: Callable[[], None]) -> None:
    """Fork *child* so that init, or the nearest subreaper, becomes its parent."""
    middle = fork(lambda: os._exit(0) if fork(child) else None)
    os.waitpid(middle, 0)


def set_oom_score(value: int | None) -> None:
    """How readily the kernel kills this process and its children when memory runs out (proc(5), oom_score_adj); None
    leaves it. Without the right to lower it, it stays."""
    if value is not None:
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(value))
        except PermissionError:
            return


def die_with_parent(parent: int) -> None:
    """SIGKILL to this process when its parent ends; at once if *parent* (its pid) has ended already (prctl(2),
    PR_SET_PDEATHSIG)."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def join_cgroups(procs: tuple[str, ...]) -> None:
    """Move this process into the control groups whose `cgroup.procs` these are (cgroups(7)). Raises OSError."""
    for path in procs:
        try:
            with open(path, "w") as file:
                file.write("0")
        except OSError as error:  # a real-time process and a cgroup without real-time share, for one
            raise OSError(error.errno, f"unable to apply cgroup configuration: write {path}: {reason(error)}") from None


def reset_signals() -> None:
    """All signals to their defaults and none blocked: what a program expects to be started with."""
    for number in _SIGNALS:
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            continue  # 32 and 33 belong to the C library
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def close_above(last: int, keep: tuple[int, ...] = ()) -> None:
    """Close every descriptor above *last* but those in *keep*: an engine's own sockets leak into us (containerd's
    shim's, for one)."""
    start = last + 1
    for fd in sorted(keep):
        if fd >= start:
            os.closerange(start, fd)
            start = fd + 1
    os.closerange(start, 1 << 20)
