"""Processes as an engine has them: each call with a deadline, orphans reparented to us (a subreaper) and reaped by us.

Since the test process is the subreaper of all that it starts, whatever a runtime leaves behind is a descendant of it:
a leak is found without guessing by names, and other work on the machine isn't taken for one.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import time
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")
FACTOR_VARIABLE = "RUNVM_TEST_FACTOR"
FACTOR = float(os.environ.get(FACTOR_VARIABLE, "1"))
"""How many times longer than on an idle host of today something may take: every deadline of the tests is multiplied by
it, and the runtime's own for a guest's boot."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_popen_pids: set[int] = set()


class Result(NamedTuple):
    """How a command ended. *log* holds the records of its --log file, where it was given one."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes
    log: tuple[dict[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """Standard output as text, without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    @property
    def error(self) -> str:
        """The message of the last error record in the log: what containerd shows to its user."""
        messages = [str(record["msg"]) for record in self.log if record.get("level") in ("error", "fatal")]
        return messages[-1] if messages else ""

    def json(self) -> Any:
        """Standard output parsed as JSON."""
        return json.loads(self.stdout)

    def expect(self, code: int = 0) -> Result:
        """Itself, where it ended with *code*; else an AssertionError that tells all."""
        assert self.code == code, self.describe()
        return self

    def describe(self) -> str:
        """The whole of it for a person."""
        return (
            f"{' '.join(self.argv)}\nended with {self.code}\nstdout: {self.stdout[-4000:].decode(errors='replace')}\n"
            f"stderr: {self.stderr[-4000:].decode(errors='replace')}\nlog: {json.dumps(self.log, indent=1)}"
        )


def fanotify_marks(fd: int) -> int:
    """How many marks the fanotify group *fd* of this process has (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return sum(line.startswith("fanotify ino") for line in file)


class CallTimeoutError(AssertionError):
    """A command didn't end within its deadline, or something kept its output open."""


class Process:
    """A started command whose streams are collected while it runs; `wait` gives the Result."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | int = b"",
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        die_with_us: bool = False,
    ) -> None:
        self.argv = tuple(argv)
        self._input = stdin if isinstance(stdin, bytes) else None
        child_stdin: int = subprocess.DEVNULL if stdin == b"" else stdin if isinstance(stdin, int) else subprocess.PIPE
        self.popen = subprocess.Popen(
            self.argv,
            stdin=child_stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            preexec_fn=_die_with_parent if die_with_us else None,
        )
        self.pid = self.popen.pid
        _popen_pids.add(self.pid)

    def wait(self, timeout: float) -> Result:
        """Wait for the end of the command and of its outputs. Raises CallTimeoutError, having killed the command."""
        timeout *= FACTOR
        try:
            stdout, stderr = self.popen.communicate(self._input or None, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            ended = self.popen.poll()
            report = describe(self.pid) if ended is None else f"it has ended with {ended}, yet its output is held open"
            holders = self._holders_of_output()
            self.kill()
            partial = (error.stdout or b"")[-2000:], (error.stderr or b"")[-2000:]
            raise CallTimeoutError(
                f"{' '.join(self.argv)}\nnot done after {timeout} s: {report}\nholding its output: {holders}\n{partial}"
            ) from None
        finally:
            if self.popen.returncode is not None:
                _popen_pids.discard(self.pid)
        return Result(self.argv, self.popen.returncode, stdout or b"", stderr or b"")

    def running(self) -> bool:
        """Whether it hasn't ended yet."""
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """Send it a signal, if it hasn't been reaped."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        self.popen.kill()
        self.popen.wait(10 * FACTOR)
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        _popen_pids.discard(self.pid)

    def _holders_of_output(self) -> list[str]:
        pipes = set()
        for stream in (self.popen.stdout, self.popen.stderr):
            if stream is not None and not stream.closed:
                pipes.add(f"pipe:[{os.fstat(stream.fileno()).st_ino}]")
        others = (pid for pid in all_pids() if pid != os.getpid())
        return [f"{pid} {command_line(pid)}" for pid in others if pipes & set(open_files(pid))]


def call(
    argv: Sequence[str],
    *,
    stdin: bytes | int = b"",
    timeout: float = 30,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
) -> Result:
    """Run *argv* to its end, output collected. *stdin* is what it reads (b"" = /dev/null) or a descriptor."""
    return Process(argv, stdin=stdin, env=env, cwd=cwd, pass_fds=pass_fds).wait(timeout)


def stop(running: Process | None, timeout: float) -> None:
    """SIGTERM, and SIGKILL past *timeout*."""
    if running is None or not running.running():
        return
    running.popen.terminate()
    try:
        running.popen.wait(timeout * FACTOR)
    except subprocess.TimeoutExpired:
        running.kill()


def wait_until(condition: Callable[[], T], *, timeout: float, what: str, interval: float = 0.05) -> T:
    """Ask *condition* until it is true and give what it gave. Raises AssertionError naming *what* was waited for."""
    timeout *= FACTOR
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(interval)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def become_subreaper() -> None:
    """From now on the orphans of our descendants are our children, as in containerd-shim and conmon."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap(pid: int, timeout: float) -> int:
    """Wait for our (adopted) child *pid* and give its exit code, 128+signal where a signal ended it."""
    timeout *= FACTOR
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise AssertionError(f"process {pid} is gone: nobody but its caller may reap it") from None
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise CallTimeoutError(f"process {pid} lives after {timeout} s: {describe(pid)}")
    finally:
        os.close(fd)
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        raise AssertionError(f"process {pid} isn't our child: it wasn't orphaned") from None
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def reap_orphans() -> None:
    """Collect the ended orphans that nobody here waits for."""
    for pid in children(os.getpid()):
        if pid not in _popen_pids and status(pid) == "Z":
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def all_pids() -> list[int]:
    """Every process of the host."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def status(pid: int) -> str:
    """The state letter of /proc/PID/stat, '' when it is gone."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def parent(pid: int) -> int:
    """Its parent's id, 0 when it is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def start_time(pid: int) -> int:
    """When it started, in ticks since boot: with the id, an identity; 0 when it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def cpu_ticks(pid: int) -> int:
    """User and system time so far, in ticks (SC_CLK_TCK), 0 when it is gone."""
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def alive(pid: int) -> bool:
    """Whether it exists and is no zombie."""
    return status(pid) not in ("", "Z", "X")


def command_line(pid: int) -> str:
    """Its argv joined by spaces, '[comm]' where it has none, '' when it is gone."""
    text = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    comm = _read(f"/proc/{pid}/comm").strip()
    return text or (f"[{comm}]" if comm else "")


def children(pid: int) -> list[int]:
    """Ids of the direct children, zombies included."""
    return [other for other in all_pids() if parent(other) == pid]


def descendants(pid: int) -> list[int]:
    """Ids of all processes below *pid*, zombies included."""
    below: dict[int, list[int]] = {}
    for other in all_pids():
        below.setdefault(parent(other), []).append(other)
    found: list[int] = []
    todo = [pid]
    while todo:
        more = below.get(todo.pop(), [])
        found += more
        todo += more
    return found


def open_files(pid: int) -> list[str]:
    """What its descriptors point at."""
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
            except OSError:
                pass
    except OSError:
        pass
    return found


def describe(pid: int) -> str:
    """What /proc tells about a process that doesn't end."""
    lines = [f"process {pid}: {command_line(pid)}"]
    wanted = ("State", "PPid", "SigBlk", "SigIgn", "SigCgt")
    lines += [line for line in _read(f"/proc/{pid}/status").splitlines() if line.split(":")[0] in wanted]
    lines += [f"wchan {_read(f'/proc/{pid}/wchan')}", f"syscall {_read(f'/proc/{pid}/syscall').strip()}"]
    lines += [f"child {child} {status(child)} {command_line(child)}" for child in descendants(pid)]
    return "\n  ".join(lines)


def signal_name(number: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(number).name


def _stat(pid: int) -> list[str]:
    text = _read(f"/proc/{pid}/stat")
    return text[text.rindex(")") + 2 :].split() if text else []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
