"""Runs the hooks of config.json, and builds the state that they read; `create`, `start`, `run` and `delete` call it.

As runc 1.1 does it: in order, argv exactly `args` (dockerd's hook is told by argv[0] what it is to be), an absent `env`
means the caller's environment and an empty one an empty environment, the state is on stdin, stdout and stderr go into
the error. Unlike runc, nothing waits for ever: not for a hook without a timeout, not for one that doesn't read its
stdin, not for a daemon that a hook left behind with the hook's stdout open.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from runvm.errors import HookError, reason
from runvm.oci import OCI_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runvm.oci.spec import Hook

# For hooks that set no timeout. Callers give up sooner (the kubelet after 2 minutes), so nobody is still waiting for
# what comes later, while the container's lock is held and `delete` has to wait for it
DEFAULT_TIMEOUT_S = 300

_MAX_KEPT = 8192  # of each of stdout and stderr, the end of it: an error comes last
_MAX_AFTER_EXIT = 1 << 20  # read from each once the hook has ended: a daemon that it left may go on writing
_KILL_GRACE_S = 5.0


def state_json(
    *,
    cid: str,
    status: str,
    bundle: str,
    pid: int = 0,
    annotations: Mapping[str, str] | None = None,
    oci_version: str = OCI_VERSION,
) -> dict[str, object]:
    """The container's state as hooks read it (runtime.md, State); without a pid there is no `pid`, as in runc."""
    state: dict[str, object] = {"ociVersion": oci_version, "id": cid, "status": status}
    if pid:
        state["pid"] = pid
    state["bundle"] = bundle
    if annotations:
        state["annotations"] = dict(annotations)
    return state


def run(
    hooks: Sequence[Hook],
    state: Mapping[str, object],
    *,
    cwd: str,
    name: str,
    enter: Callable[[], None] | None = None,
    env: Mapping[str, str] | None = None,
    default_timeout_s: float = DEFAULT_TIMEOUT_S,
) -> None:
    """Run *hooks* of the kind *name* one after the other; the first that fails ends it.

    cwd: where they start: the bundle, for createContainer the root directory ('' = where the caller is).
    enter: called in the child before it changes to *cwd* and executes the hook: setns(2) for createContainer.
    env: for hooks that have no `env`; None = the caller's own environment.
    Raises: HookError, which names the hook, how it ended and what it wrote.
    """
    for index, hook in enumerate(hooks):
        _run_one(index, hook, state, cwd=cwd, name=name, enter=enter, env=env, default_timeout_s=default_timeout_s)


def run_all(
    hooks: Sequence[Hook],
    state: Mapping[str, object],
    *,
    cwd: str,
    name: str,
    default_timeout_s: float = DEFAULT_TIMEOUT_S,
) -> list[HookError]:
    """Run *hooks* as `run` does, but all of them, and return what went wrong, for the caller to log.

    For poststop: "the remaining hooks and lifecycle continue as if the hook had succeeded" (runtime.md).
    """
    failures = []
    for index, hook in enumerate(hooks):
        try:
            _run_one(index, hook, state, cwd=cwd, name=name, enter=None, env=None, default_timeout_s=default_timeout_s)
        except HookError as error:
            failures.append(error)
    return failures


class _Job:
    """What a hook's child is made of."""

    __slots__ = ("cwd", "enter", "env", "hook")

    def __init__(self, hook: Hook, cwd: str, env: dict[str, str], enter: Callable[[], None] | None) -> None:
        self.hook, self.cwd, self.env, self.enter = hook, cwd, env, enter


def _run_one(
    index: int,
    hook: Hook,
    state: Mapping[str, object],
    *,
    cwd: str,
    name: str,
    enter: Callable[[], None] | None,
    env: Mapping[str, str] | None,
    default_timeout_s: float,
) -> None:
    job = _Job(hook, cwd, _environment(hook, env), enter)
    data = json.dumps(state).encode()
    with _Signals():
        failure = _Child(job).wait(data, hook.timeout_s or default_timeout_s)
    if failure:
        if failure == _TIMED_OUT:
            default = " (the default: the hook sets none)" if hook.timeout_s is None else ""
            failure = f"hook ran past specified timeout of {hook.timeout_s or default_timeout_s:.1f}s{default}"
        # runc 1.1 leaves the kind out; later ones have it
        raise HookError(f"error running {name} hook #{index}: {failure}")


def _environment(hook: Hook, default: Mapping[str, str] | None) -> dict[str, str]:
    if hook.env is None:
        return dict(os.environ if default is None else default)
    pairs = (entry.partition("=") for entry in hook.env)
    return {name: value for name, equals, value in pairs if name and equals}


class _Signals:
    """While a hook runs, SIGPIPE is blocked, and SIGCHLD isn't ignored: a kernel reaps by itself where it is."""

    def __enter__(self) -> None:
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        self._ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
        if self._ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        if signal.SIGPIPE not in self._blocked:
            while signal.SIGPIPE in signal.sigpending():
                signal.sigtimedwait({signal.SIGPIPE}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        if self._ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)


_TIMED_OUT = "timed out"


class _Child:
    """One hook's process: forked at once, fed, listened to and reaped by `wait`."""

    def __init__(self, job: _Job) -> None:
        stdin_read, self._stdin = os.pipe()
        self._stdout, stdout_write = os.pipe()
        self._stderr, stderr_write = os.pipe()
        self._report, report_write = os.pipe()
        theirs = (stdin_read, stdout_write, stderr_write, report_write)
        try:
            self._pid = os.fork()
            if self._pid == 0:
                _become(job, *theirs)
        except OSError as error:
            for fd in (self._stdin, self._stdout, self._stderr, self._report):
                os.close(fd)
            raise HookError(f"cannot fork for {job.hook.path}: {reason(error)}") from error
        finally:
            for fd in theirs:
                os.close(fd)
        try:
            os.setpgid(self._pid, self._pid)  # here and in the child: whoever is first, a kill reaches the group
        except OSError:
            pass  # it has executed or ended already
        self._pidfd = os.pidfd_open(self._pid)
        self._kept = {self._stdout: b"", self._stderr: b"", self._report: b""}
        self._open = {self._stdin, *self._kept}
        for fd in self._open:
            os.set_blocking(fd, False)

    def wait(self, data: bytes, timeout_s: float) -> str:
        """Feed *data* to the hook's stdin and wait for its end; what went wrong, with runc's message, or ''."""
        reaped = False
        try:
            timed_out = not self._serve(data, time.monotonic() + timeout_s)
            if timed_out:
                self._kill()
            how = self._reap(block=not timed_out)
            reaped = True
            if timed_out:
                return _TIMED_OUT
            for fd in self._open.intersection(self._kept):
                self._read(fd, _MAX_AFTER_EXIT)
            if report := self._kept[self._report]:
                return report.decode(errors="replace")
            if not how:
                return ""
            stdout, stderr = (_tail(self._kept[fd]) for fd in (self._stdout, self._stderr))
            return f"error running hook: {how}, stdout: {stdout}, stderr: {stderr}"
        finally:
            if not reaped:
                self._kill()
                self._reap(block=False)
            for fd in (*self._open, self._pidfd):
                os.close(fd)
            self._open.clear()

    def _serve(self, data: bytes, deadline: float) -> bool:
        """Pass the streams until the hook ends (True) or the *deadline* comes."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        for fd in self._kept:
            poll.register(fd, select.POLLIN)
        poll.register(self._stdin, select.POLLOUT)
        while (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(min(left, 86400.0) * 1000):  # poll(2) takes no more than 24 days
                if fd == self._pidfd:
                    return True
                if fd == self._stdin:
                    data = self._write(data)
                    more = bool(data)
                else:
                    more = self._read(fd, 1)
                if not more:
                    poll.unregister(fd)
                    self._open.discard(fd)
                    os.close(fd)
        return False

    def _write(self, data: bytes) -> bytes:
        """What is left of *data*: nothing, too, once the hook has closed its stdin, which is its right."""
        try:
            return data[os.write(self._stdin, data) :]
        except BlockingIOError:
            return data
        except BrokenPipeError:
            return b""

    def _read(self, fd: int, at_least: int) -> bool:
        """Read *at_least* so many bytes if they are there; False at end of file."""
        while at_least > 0:
            try:
                chunk = os.read(fd, 65536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            at_least -= len(chunk)
            self._kept[fd] = (self._kept[fd] + chunk)[-_MAX_KEPT - 1 :]
        return True

    def _kill(self) -> None:
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll(_KILL_GRACE_S * 1000)  # one that hangs in the kernel isn't waited for any longer

    def _reap(self, *, block: bool) -> str:
        """How it ended, as Go says it: 'exit status 3', 'signal: killed'; '' = well."""
        try:
            end = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | (0 if block else os.WNOHANG))
        except ChildProcessError:
            return "its exit status was taken by another part of the program"
        if end is None:
            return "still there after SIGKILL"
        if end.si_code == os.CLD_EXITED:
            return f"exit status {end.si_status}" if end.si_status else ""
        core = " (core dumped)" if end.si_code == os.CLD_DUMPED else ""
        return f"signal: {(signal.strsignal(end.si_status) or str(end.si_status)).lower()}{core}"


def _become(job: _Job, stdin: int, stdout: int, stderr: int, report: int) -> NoReturn:
    """In the child: turn into the hook, or tell *report* why not."""
    doing = "setpgid"
    try:
        os.setpgid(0, 0)
        if job.enter:
            doing = "enter the container's namespaces"
            job.enter()
        if job.cwd:
            doing = f"chdir {job.cwd}"
            os.chdir(job.cwd)
        doing = f"fork/exec {job.hook.path}"
        # Out of the way of 0, 1, 2, which the caller may have had closed
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (stdin, stdout, stderr, report)]
        for standard, fd in enumerate(high[:3]):
            os.dup2(fd, standard)
        report = os.dup2(high[3], 3, inheritable=False)
        os.closerange(4, max(os.sysconf("SC_OPEN_MAX"), 65536))
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if signal.getsignal(number) != signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        argv = job.hook.args if job.hook.args and job.hook.args[0] else (job.hook.path, *job.hook.args[1:])
        os.execve(job.hook.path, argv, job.env)
    except BaseException as error:
        said = reason(error) if isinstance(error, OSError) else str(error) or type(error).__name__
        try:
            os.write(report, f"{doing}: {said}".encode(errors="replace")[:_MAX_KEPT])
        finally:
            os._exit(127)
    raise AssertionError("execve returned")


def _tail(output: bytes) -> str:
    cut = "..." if len(output) > _MAX_KEPT else ""
    return cut + output[-_MAX_KEPT:].decode(errors="replace").rstrip()
