"""What `create` and `exec` have in common: a process's shim on the host, its terminal, and what tells the caller."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.container import gate, shim, terminal
from runvm.errors import HostError, reason
from runvm.linux import files, sockets
from runvm.protocol import frames, messages
from runvm.sandbox import registry

if TYPE_CHECKING:
    from contextlib import ExitStack

    from runvm.container.gate import StartedShim
    from runvm.container.host_view import View
    from runvm.container.passed import Passed
    from runvm.container.shim import Namespaces
    from runvm.sandbox.registry import Sandbox


_SOCKET_SECONDS = 10.0
"""How long who listens on a socket may take to accept."""


class Launch:
    """A process of container *cid* that is coming up in *sandbox*, known there as *key*. Its descriptors are closed by
    *held*; with a terminal its size is *console_size* (rows, columns; 0 = as it comes)."""

    def __init__(
        self, sandbox: Sandbox, cid: str, key: str, held: ExitStack, *, console_size: tuple[int, int] | None
    ) -> None:
        self._connection = held.enter_context(registry.connect(sandbox))
        self._connection.sendall(frames.encode(frames.MESSAGE, 0, messages.encode(messages.Attach(cid, key))))
        self._held = held
        self._master = self._slave = -1
        if console_size is not None:
            self._master, self._slave = terminal.open_pair(*console_size)
            held.callback(self._close_terminal)

    def start(
        self,
        *,
        title: list[str],
        namespaces: Namespaces,
        cgroup_procs: tuple[str, ...],
        view: View | None,
        last: bool,
        passed: Passed,
        oom_score: int | None,
        waits: bool = False,
    ) -> StartedShim:
        """Fork the shim, which waits at its gate: see shim.ShimPlan. Raises OSError, DeadlineError."""
        started = shim.start(
            shim.ShimPlan(
                title=" ".join(title),
                namespaces=namespaces,
                cgroup_procs=cgroup_procs,
                terminal=self._slave,
                view=view,
                connection=self._connection.fileno(),
                last=last,
                passed=passed,
                oom_score=oom_score,
                waits=waits,
            )
        )
        self._connection.close()  # the shim has it: should it end, the supervisor has to notice
        return started

    def release(self, started: StartedShim, *, console_socket: str, pid_file: str, pidfd_socket: str = "") -> int:
        """Let the shim go on, and tell the caller; the terminal's master where no *console_socket* takes it, the
        caller's to close, or -1. Raises OSError, HostError; the process has been killed then."""
        try:
            gate.release(started)
            self._tell(started.pid, console_socket, pid_file, pidfd_socket)
        except BaseException:
            _kill(started.pid)
            raise
        master, self._master = self._master, -1
        return master

    def _tell(self, pid: int, console_socket: str, pid_file: str, pidfd_socket: str) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
        if self._master >= 0 and console_socket:
            terminal.send(console_socket, self._master)
            os.close(self._master)
            self._master = -1
        if pidfd_socket:
            send_pidfd(pidfd_socket, pid)
        if pid_file:
            write_pid_file(pid_file, pid)

    def _close_terminal(self) -> None:
        for fd in (self._master, self._slave):
            if fd >= 0:
                os.close(fd)


def _kill(pid: int) -> None:
    """A shim that nobody is going to hear of, and with it what it stands for."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # the engine reaps it, or init
        os.waitpid(pid, 0)


def send_pidfd(path: str, pid: int) -> None:
    """Send a pidfd of the shim *pid* over the socket *path*, as runc 1.2 does (--pidfd-socket). Raises HostError."""
    import socket

    try:
        fd = os.pidfd_open(pid)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_SOCKET_SECONDS)
                sockets.connect(connection, path)
                socket.send_fds(connection, [b"pidfd"], [fd])
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"pidfd socket {path}: {reason(error)}") from error


def write_pid_file(path: str, pid: int) -> None:
    """The pid, by rename, so that who waits for the file never reads half of it. Raises HostError."""
    temporary = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}"
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # of a command that was killed
        with open(temporary, "w", opener=files.exclusive) as file:
            file.write(str(pid))
        os.rename(temporary, path)
    except OSError as error:
        raise HostError(f"write pid file {path}: {reason(error)}") from error
