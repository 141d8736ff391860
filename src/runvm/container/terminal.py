"""Terminals on the host: a pty pair for a container, its master sent over a console socket, or kept by `run` and
`exec -t`."""

from __future__ import annotations

import fcntl
import os
import termios

from runvm.errors import HostError, UnsupportedError, reason
from runvm.linux import files, sockets
from runvm.linux.loop import IN, Loop
from runvm.linux.terminal import get_size, make_raw, set_size
from runvm.protocol import frames
from runvm.protocol.streams import Sink, StreamSource

_LAST_SECONDS = 0.2
"""How long the last output of a process that has ended may take to come."""


def check(wanted: bool, console_socket: str, *, own: bool) -> None:
    """Whether a process that does or doesn't want a terminal gets along with what the caller gave; *own*: the caller
    waits, so that its own terminal may do. Raises UnsupportedError with runc's message."""
    if wanted and not console_socket and not own:
        raise UnsupportedError("cannot allocate tty if runvm will detach without setting console socket")
    if console_socket and (own or not wanted):
        raise UnsupportedError("cannot use console socket if runvm will not detach or allocate tty")


def open_pair(rows: int, columns: int) -> tuple[int, int]:
    """(master, slave) of a new pty of that size (0 = as it comes)."""
    master, slave = os.openpty()
    for fd in (master, slave):
        os.set_inheritable(fd, False)
    if rows and columns:
        set_size(master, rows, columns)
    return master, slave


def callers_size() -> tuple[int, int]:
    """(rows, columns) of the caller's own terminal; zeros where it has none."""
    tty_fd = _callers()
    return get_size(tty_fd) if tty_fd >= 0 else (0, 0)


def _callers() -> int:
    return next((fd for fd in (0, 1, 2) if os.isatty(fd)), -1)


def send(path: str, master: int) -> None:
    """Send the master over the console socket, with its name, as runc does. Raises HostError."""
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            sockets.connect(connection, path)
            socket.send_fds(connection, [b"/dev/ptmx"], [master])
    except OSError as error:
        raise HostError(f"console socket {path}: {reason(error)}") from error


def relay(master: int, pid: int, passed_on: frozenset[int]) -> int:
    """Connect the caller's terminal, raw, with *master* until the child *pid* ends, and pass the signals *passed_on* to
    it; its wait status. The terminal is restored in any case."""
    tty_fd = _callers()
    saved = termios.tcgetattr(tty_fd) if tty_fd >= 0 else None
    try:
        return _Relay(master, pid, tty_fd, passed_on).run()
    finally:
        if saved is not None:
            termios.tcsetattr(tty_fd, termios.TCSADRAIN, saved)


class _Relay:
    """Bytes and signals between the caller's terminal *tty_fd* (-1: none) and the process *pid* behind *master*."""

    def __init__(self, master: int, pid: int, tty_fd: int, passed_on: frozenset[int]) -> None:
        import signal

        self._loop = Loop()
        self._master = master
        self._pid = pid
        self._tty = tty_fd
        self._ended = False
        self._gone = os.pidfd_open(pid)
        self._signals, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in {*passed_on, signal.SIGWINCH, signal.SIGCHLD}:
            signal.signal(number, lambda number, frame: None)
        os.set_blocking(master, False)
        shown, careful = files.reopen(1, os.O_WRONLY)
        self._out = Sink(self._loop, shown, frames.STDOUT, 0, self._credit, careful=careful)
        typed = Sink(self._loop, os.dup(master), frames.STDIN, 0, self._credit)
        self._sources = {
            frames.STDOUT: self._source(frames.STDOUT, os.dup(master), self._out),
            frames.STDIN: self._source(frames.STDIN, files.reopen(0, os.O_RDONLY)[0], typed),
        }
        self._out.on_settled = self._settle
        self._loop.watch(self._signals, IN, lambda events: self._pass_on())
        self._loop.watch(self._gone, IN, lambda events: self._process_ended())
        if tty_fd >= 0:
            make_raw(tty_fd)
        self._resize()

    def run(self) -> int:
        """Until the process has ended and its last output is out; its wait status."""
        self._loop.run()
        return os.waitpid(self._pid, 0)[1]

    def _source(self, kind: int, fd: int, sink: Sink) -> StreamSource:
        pass_on = lambda kind, channel, payload: sink.write(payload)  # noqa: E731
        return StreamSource(self._loop, fd, kind, 0, pass_on, self._settle)

    def _credit(self, kind: int, channel: int, payload: bytes) -> None:
        """A sink takes more. One that nobody reads from any more takes all: what is at the terminal isn't held up."""
        if kind == frames.CREDIT_KIND:
            stream, count = frames.CREDIT.unpack(payload)
            self._sources[stream].credit(count)

    def _settle(self) -> None:
        if self._ended and not self._sources[frames.STDOUT].open and not self._out.pending:
            self._loop.stop()

    def _process_ended(self) -> None:
        self._loop.forget(self._gone)
        self._ended = True
        self._loop.call_later(_LAST_SECONDS, self._close)
        self._settle()

    def _close(self) -> None:
        """Somebody else has the terminal's other side open."""
        source = self._sources[frames.STDOUT]
        source.drain()
        if source.blocked:
            self._loop.call_later(_LAST_SECONDS, self._close)
        else:
            source.close()

    def _pass_on(self) -> None:
        import signal

        for caught in os.read(self._signals, 256):
            if caught == signal.SIGWINCH:
                self._resize()
            elif caught != signal.SIGCHLD:
                os.kill(self._pid, caught)

    def _resize(self) -> None:
        if self._tty >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, fcntl.ioctl(self._tty, termios.TIOCGWINSZ, bytes(8)))
