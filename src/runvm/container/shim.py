"""The process that callers wait for, signal and reap: its pid is the container's (or the exec's) pid on the host.

Forked, not executed anew, from the command. It sits in the container's namespaces and cgroup on the host, has the
standard streams or the terminal, sends signals on to the process in the guest, and ends with that process's exit code.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import termios
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.container import gate, host_view
from runvm.container.passed import Passed
from runvm.errors import RunvmError
from runvm.linux import files, process, syscalls
from runvm.linux.loop import IN, Loop
from runvm.linux.terminal import get_size
from runvm.protocol import frames, messages
from runvm.protocol.connection import Connection
from runvm.protocol.frames import Frame
from runvm.protocol.streams import Sink, StreamSource
from runvm.records import NamedTuple

if TYPE_CHECKING:
    import socket

    from runvm.container.gate import StartedShim

LOST = 137
"""The exit code where the virtual machine went away under the process: as if killed by SIGKILL."""
_STALL_SECONDS = 3.0
"""How long output of which nobody takes anything may hold up the end of a process that was told to end: it would have
hung in write(2) before, and been gone at once."""
_TOLD_TO_END = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM})
_EXECS_SECONDS = 5.0
"""How long execs that don't end may hold up a container's end."""
_NOT_FORWARDED = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGWINCH, signal.SIGSEGV, signal.SIGBUS,  # noqa: E501
                  signal.SIGFPE, signal.SIGILL, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP}  # fmt: skip


class Namespaces(NamedTuple):
    """What the shim's host namespaces shall be: CLONE_NEW* flags of new ones, descriptors of those to join, in that
    order."""

    new: int
    join: tuple[int, ...]
    pid_join: int
    pid_new: bool


class ShimPlan(NamedTuple):
    """What a shim is to be. *terminal* is a pty slave or -1; *view* what its root shall show (None = the host's).
    *last*: it is process 1 of its PID namespace, and ends after those of the container's execs. *passed* are the
    descriptors beyond stdio that the process gets, *oom_score* is its oom_score_adj (None = the caller's). *waits*: it
    ends after those, too, that the process has left its output to."""

    title: str
    namespaces: Namespaces
    cgroup_procs: tuple[str, ...]
    terminal: int
    view: host_view.View | None
    connection: int
    last: bool
    passed: Passed = Passed()
    oom_score: int | None = None
    waits: bool = False


def start(plan: ShimPlan) -> StartedShim:
    """Fork a shim that is an orphan (the caller's subreaper, or init, reaps it) and waits at its gate.

    Returns when its namespaces are made. Raises OSError where they can't be, DeadlineError.
    """
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def middle() -> None:
        try:
            # the flags only count for children: the shim is process 1 of a new PID namespace
            if plan.namespaces.pid_join >= 0:
                syscalls.setns(plan.namespaces.pid_join, syscalls.CLONE_NEWPID)
            elif plan.namespaces.pid_new:
                syscalls.unshare(syscalls.CLONE_NEWPID)
            ours.close()
            gate.tell_pid(theirs, process.fork(lambda: _main(plan, theirs)))
        except OSError as error:
            gate.tell_failure(theirs, error)

    parent = process.fork(middle)
    theirs.close()
    return gate.await_made(ours, parent)


def _main(plan: ShimPlan, door: socket.socket) -> None:
    os.setsid()
    process.set_oom_score(plan.oom_score)
    # first of all the sandbox's listener: held here it would let commands connect to a supervisor that has gone
    own = (plan.connection, door.fileno(), *plan.passed.fds, *([plan.terminal] if plan.terminal >= 0 else []))
    process.close_above(2, (*own, *plan.namespaces.join))
    try:
        process.join_cgroups(plan.cgroup_procs)
        for fd in plan.namespaces.join:
            syscalls.setns(fd)
        if plan.namespaces.new:
            syscalls.unshare(plan.namespaces.new)
        if plan.namespaces.new & syscalls.CLONE_NEWNS:
            syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
    except OSError as error:
        gate.tell_failure(door, error)
        os._exit(1)
    process.close_above(2, own)
    door.sendall(gate.READY)
    order = door.recv(1)
    if order in (gate.VIEW, gate.VIEW_FOR_HOOKS) and plan.view is not None:
        _make_view(plan.view, door, for_hooks=order == gate.VIEW_FOR_HOOKS)
        order = door.recv(1)
    if order != gate.GO:
        os._exit(LOST)  # the command gave up or was killed
    shim = Shim(plan)
    syscalls.set_name("runvm-shim")
    syscalls.set_title(plan.title)
    # from here on nothing of the host's files is there: neither /proc nor a module to import
    if plan.view is not None:
        _show_root(plan.view.at, own_processes=plan.namespaces.pid_new or plan.namespaces.pid_join >= 0)
    # whatever stays open, an engine may wait for the end of (or, like containerd's own socket, must never find here)
    process.close_above(2, (plan.connection, door.fileno(), *shim.descriptors))
    shim.take_standard_streams()
    door.sendall(gate.STREAMS_TAKEN)
    door.close()
    gc.freeze()
    try:
        code = shim.run()
    except Exception:
        os._exit(LOST)  # not a word of it: 2 is the container's standard error
    if plan.last and not shim.stays_behind:
        _await_others()
    os._exit(code)


def _await_others() -> None:
    """Until nothing else is in this PID namespace: as process 1 this one takes all others with it, and what an exec's
    has still to pass on would be lost."""
    deadline = time.monotonic() + _EXECS_SECONDS
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(-1, 0)  # kill(2): every process that this one sees, but itself and process 1
            time.sleep(0.002)


def _make_view(view: host_view.View, door: socket.socket, *, for_hooks: bool) -> None:
    """Make it, and answer gate.show(); *for_hooks* show it to them until they are done, which gate.end_hooks() says."""
    try:
        made, descriptors = host_view.make(view)
        answer = [[*made.places.items()], made.home]
        if for_hooks:
            from runvm.container.hook_view import HookView

            shown = HookView(view, descriptors[0])
            gate.answer(door, answer)
            if door.recv(1) != gate.HOOKS_DONE:
                os._exit(LOST)
            answer = [*shown.end()]
        host_view.protect(view, descriptors)
        gate.answer(door, answer)
    except (RunvmError, OSError) as error:
        gate.refuse(door, error)


def _show_root(root: str, *, own_processes: bool) -> None:
    """What host_view.make() has mounted at *root* as this process's own root, for callers that join its mount
    namespace: podman cp to copy files, podman top, with *own_processes*, to read /proc, where it finds this process,
    titled as the container's."""
    os.chdir(root)
    syscalls.pivot_root(".", ".")
    if own_processes:
        # while the old root is there: in a user namespace who sees no /proc can't mount one
        with suppress(OSError):  # an image without /proc, a host that doesn't let it be mounted
            syscalls.mount("proc", "/proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
    syscalls.unmount(".", syscalls.MNT_DETACH)
    os.chdir("/")


class Shim:
    """The relay: descriptors on one side, the supervisor's connection on the other."""

    def __init__(self, plan: ShimPlan) -> None:
        self._loop = Loop()
        self._code: int | None = None
        self._waits = plan.waits
        self.stays_behind = False
        """The process has ended, and so has its shim: this is its child, which passes on what others write."""
        self._terminal = plan.terminal
        self._sinks: dict[int, Sink] = {}
        self._sources: dict[int, StreamSource] = {}
        self._connection_fd = plan.connection
        self._connection: Connection | None = None
        self._stdio: list[tuple[int, bool]] = []
        self._signals = _catch_signals()
        if plan.terminal >= 0:
            self._take_terminal()
        else:
            self._stdio = [files.reopen(fd, os.O_RDONLY if fd == 0 else os.O_WRONLY) for fd in range(3)]
        self._ways = plan.passed.ways
        self._passed = [
            files.reopen(fd, os.O_RDONLY if way == frames.IN else os.O_WRONLY)
            for fd, way in zip(plan.passed.fds, plan.passed.ways, strict=True)
        ]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What must stay open."""
        own = [fd for fd, _ in (*self._stdio, *self._passed)]
        return (*own, *self._signals, *([self._terminal] if self._terminal >= 0 else []))

    def take_standard_streams(self) -> None:
        """What the process has as 0, 1 and 2 in the guest this one has here, and nowhere else: who writes to
        /proc/PID/fd/1 meets the same file as with a process of the host's."""
        if self._terminal >= 0:
            given = [self._terminal] * 3
        else:
            given = [fd for fd, _ in self._stdio]
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in given]
        for fd in {*given} - {0, 1, 2}:
            os.close(fd)
        for number, fd in enumerate(high):
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        if self._terminal >= 0:
            self._terminal = 2
        else:
            self._stdio = [(number, careful) for number, (_, careful) in enumerate(self._stdio)]

    def run(self) -> int:
        """Relay until the process has ended and its output is out; its exit code."""
        connection = Connection(
            self._loop, self._connection_fd, on_frame=self._frame, on_close=lambda reason: self._lost()
        )
        self._connection = connection
        send = connection.send
        if self._terminal >= 0:
            os.set_blocking(self._terminal, False)
            self._sinks[frames.STDOUT] = Sink(self._loop, 1, frames.STDOUT, 0, send, keep=True)
            self._read(frames.STDIN, 0)
            self._resize()
        else:
            for kind, (fd, careful) in zip((frames.STDOUT, frames.STDERR), self._stdio[1:], strict=True):
                self._sinks[kind] = Sink(self._loop, fd, kind, 0, send, careful=careful)
            self._read(frames.STDIN, self._stdio[0][0])
        for index, (fd, careful) in enumerate(self._passed):
            both = self._ways[index] == frames.BOTH
            if self._ways[index] != frames.OUT:
                self._read(frames.toward_guest(index), os.dup(fd) if both else fd)
            if self._ways[index] != frames.IN:
                kind = frames.toward_host(index)
                self._sinks[kind] = Sink(self._loop, fd, kind, 0, send, careful=careful, half=both)
        for sink in self._sinks.values():
            sink.on_settled = self._settle
        self._loop.watch(self._signals[0], IN, self._signal)
        self._loop.run()
        return LOST if self._code is None else self._code

    def _read(self, kind: int, fd: int) -> None:
        assert self._connection is not None
        self._sources[kind] = StreamSource(
            self._loop, fd, kind, 0, self._connection.send, lambda: None, gate=self._connection.gate
        )

    def _take_terminal(self) -> None:
        """The pty's slave becomes the controlling terminal, so that its size changes arrive, and raw: the guest's
        does the editing."""
        fcntl.ioctl(self._terminal, termios.TIOCSCTTY, 0)
        tty.setraw(self._terminal)

    def _frame(self, frame: Frame) -> None:
        if frame.kind == frames.MESSAGE:
            self._message(frame.payload)
        elif frame.kind == frames.CREDIT_KIND:
            stream, count = frames.decode_credit(frame)
            if stream in self._sources:
                self._sources[stream].credit(count)
        elif frame.kind in self._sources:
            if not frame.payload:
                self._sources[frame.kind].close(silent=True)
        elif frame.kind in self._sinks:
            self._sinks[frame.kind].write(frame.payload)

    def _message(self, payload: bytes) -> None:
        number, message = messages.decode(payload, frozenset({"Exited", "Quiesce", "Unquiesce"}))
        if isinstance(message, messages.Exited):
            self._ended(message.code & 0xFF, soon=message.signal in _TOLD_TO_END)
            return
        for source in self._sources.values():
            if isinstance(message, messages.Quiesce):
                source.pause()
            else:
                source.resume()
        self._send(messages.Done({}), number)

    def _ended(self, code: int, *, soon: bool) -> None:
        """The process has ended with *code*: so does this one once its output is out, however slow the reader is; with
        *soon*, while that takes anything."""
        self._code = code
        if frames.STDIN in self._sources:
            self._sources[frames.STDIN].pause()
        if soon:
            self._loop.call_later(_STALL_SECONDS, lambda: self._look_for_stall(self._pending))
        self._settle()

    @property
    def _pending(self) -> int:
        return sum(sink.pending for sink in self._sinks.values())

    def _look_for_stall(self, before: int) -> None:
        left = self._pending
        if left and left == before:
            self._loop.stop()
        else:
            self._loop.call_later(_STALL_SECONDS, lambda: self._look_for_stall(left))

    def _settle(self) -> None:
        """End if the process has ended and all is written. What others may still write a child passes on: who waits
        for the process waits for this pid."""
        if self._code is None or self._pending:
            return
        more = {kind for kind, sink in self._sinks.items() if not sink.over}
        if self._waits and more & {frames.STDOUT, frames.STDERR}:
            return
        if more and (self.stays_behind or os.fork() == 0):
            self.stays_behind = True
            return
        self._loop.stop()

    def _lost(self) -> None:
        """Nothing more comes."""
        code = self._code
        self._code = None
        for sink in self._sinks.values():
            sink.write(b"")
        self._ended(LOST if code is None else code, soon=code is None or self.stays_behind)

    def _signal(self, events: int) -> None:
        for number in os.read(self._signals[0], 256):
            if number == signal.SIGWINCH:
                self._resize()
            elif number not in _NOT_FORWARDED:
                self._send(messages.Signal("", 0, number, False))

    def _resize(self) -> None:
        if self._terminal >= 0:
            rows, columns = get_size(self._terminal)
            if rows and columns:
                self._send(messages.Resize(0, rows, columns))

    def _send(self, message: messages.Resize | messages.Signal | messages.Done, number: int = 0) -> None:
        if self._connection is not None:
            self._connection.send(frames.MESSAGE, 0, messages.encode(message, number))


def _catch_signals() -> tuple[int, int]:
    """Every signal's number arrives in a pipe: (reader, writer)."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    nothing: Callable[[int, object], None] = lambda number, frame: None  # noqa: E731
    for number in range(1, signal.NSIG):
        if number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, 32, 33):
            continue
        signal.signal(number, signal.SIG_IGN if number in (signal.SIGPIPE, signal.SIGTTOU, signal.SIGTTIN) else nothing)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as process 1 it gets the children that execs' shims leave behind
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return reader, writer
