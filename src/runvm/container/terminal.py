"""Terminals on the host: a pty pair for a container, its master sent over a console socket, or kept by `run` and
`exec -t`."""

from __future__ import annotations

import fcntl
import gc
import os
import termios

from runvm.errors import HostError, UnsupportedError, reason
from runvm.linux import sockets
from runvm.linux.terminal import get_size, make_raw, set_size


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
        import select
        import signal

        self._master = master
        self._pid = pid
        self._tty = tty_fd
        self._gone = os.pidfd_open(pid)
        self._signals, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in {*passed_on, signal.SIGWINCH, signal.SIGCHLD}:
            signal.signal(number, lambda number, frame: None)
        self._poll = select.poll()
        for fd in (0, master, self._signals, self._gone):
            self._poll.register(fd, select.POLLIN)
        if tty_fd >= 0:
            make_raw(tty_fd)
        self._resize()

    def run(self) -> int:
        """Until the process has ended and its last output is out; its wait status."""
        gc.enable()
        ended = False
        while True:
            ready = dict(self._poll.poll(200 if ended else None))
            if self._master in ready and not _copy(self._master, 1):
                self._poll.unregister(self._master)
                if ended:
                    break
            if 0 in ready and not _copy(0, self._master):
                self._poll.unregister(0)
            if self._signals in ready:
                self._pass_on()
            if self._gone in ready and not ended:
                ended = True
                self._poll.unregister(self._gone)
            elif ended and self._master not in ready:
                break
        return os.waitpid(self._pid, 0)[1]

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


def _copy(source: int, target: int) -> bool:
    try:
        data = os.read(source, 65536)
        while data:
            written = os.write(target, data)
            if written == len(data):
                return True
            data = data[written:]
    except OSError:
        pass  # EIO: the other side of the pty is closed
    return False
