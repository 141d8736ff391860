"""Terminals as an engine holds them: the socket that a pty master arrives on, and the master's user."""

from __future__ import annotations

import array
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import termios
import time

from framework.process import FACTOR


class Terminal:
    """The master side of a pty: what a person at a terminal types and sees. Owns *fd*."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = b""

    def send(self, data: bytes) -> None:
        """Type."""
        while data:
            data = data[os.write(self.fd, data) :]

    def expect(self, wanted: bytes, timeout: float = 20) -> bytes:
        """Read until *wanted* comes; gives all up to its end. Raises AssertionError with what came instead."""
        deadline = time.monotonic() + timeout * FACTOR
        while wanted not in self.seen:
            chunk = self._read(deadline)
            assert chunk is not None, f"not within {timeout} s: {wanted!r}; the terminal shows {self.seen!r}"
            assert chunk, f"the terminal hung up before {wanted!r}; it showed {self.seen!r}"
            self.seen += chunk
        end = self.seen.index(wanted) + len(wanted)
        head, self.seen = self.seen[:end], self.seen[end:]
        return head

    def read_to_end(self, timeout: float = 20) -> bytes:
        """All that comes until the other side hangs up."""
        deadline = time.monotonic() + timeout * FACTOR
        while chunk := self._read(deadline):
            self.seen += chunk
        assert chunk is not None, f"no hang-up within {timeout} s; the terminal showed {self.seen!r}"
        data, self.seen = self.seen, b""
        return data

    def resize(self, *, rows: int, columns: int) -> None:
        """A new window size; the kernel tells the foreground process group by SIGWINCH."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Hang up."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _read(self, deadline: float) -> bytes | None:
        """A chunk, b"" at the end, None past the deadline."""
        ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        try:
            return os.read(self.fd, 65536)
        except OSError:  # EIO: the last slave is closed
            return b""


class ConsoleSocket:
    """The listening socket named by --console-socket; `receive` gives the terminal that the runtime sends."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen()

    def receive(self, timeout: float = 60) -> Terminal:
        """Wait for the runtime to connect and to send exactly one descriptor."""
        self._listener.settimeout(timeout * FACTOR)
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(timeout * FACTOR)
            fds = array.array("i")
            _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4 * fds.itemsize))
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        assert len(fds) == 1, f"one descriptor is sent, not {len(fds)}"
        assert os.isatty(fds[0]), "the descriptor is a terminal"
        os.set_inheritable(fds[0], False)
        return Terminal(fds[0])

    def close(self) -> None:
        """Take the socket away."""
        self._listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)


class Session:
    """A program run at a terminal of its own, as in a person's shell: a new session that the terminal controls."""

    def __init__(self, argv: list[str], *, rows: int = 24, columns: int = 80, cwd: str | None = None) -> None:
        master, slave = pty.openpty()
        os.set_inheritable(slave, True)
        self.terminal = Terminal(master)
        self.slave = slave  # kept open: the terminal's settings are read off it after the program's end
        self.terminal.resize(rows=rows, columns=columns)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if cwd is not None:
                    os.chdir(cwd)
                os.setsid()
                fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
                for number in (0, 1, 2):
                    os.dup2(slave, number)
                os.closerange(3, 256)
                for number in (signal.SIGPIPE, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                os.execvp(argv[0], argv)
            finally:
                os._exit(127)

    def settings(self) -> list[object]:
        """What tcgetattr says now."""
        return list(termios.tcgetattr(self.slave))

    def wait(self, timeout: float = 30) -> int:
        """Its exit code. What it writes meanwhile stays to be read (expect), as far as the pty's buffer goes."""
        from framework.process import reap

        return reap(self.pid, timeout)

    def close(self) -> None:
        """Hang up and end it."""
        self.terminal.close()
        os.close(self.slave)
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
