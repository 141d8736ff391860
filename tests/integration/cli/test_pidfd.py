"""--pidfd-socket of runc 1.2 and later: a pidfd of the container's process on the host, sent over a Unix socket."""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from framework.runtime import Box

pytestmark = [
    pytest.mark.differs("runc", "1.1 of Debian has no such flag"),
    pytest.mark.differs("crun", "has no such flag"),
]


def listen(path: Path) -> socket.socket:
    """A listening socket at *path*."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.settimeout(20)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def receive(listener: socket.socket) -> int:
    """The descriptor that comes over the next connection."""
    with listener, listener.accept()[0] as connection:
        connection.settimeout(20)
        message, fds, _, _ = socket.recv_fds(connection, 64, 4)
    assert message
    (fd,) = fds
    return fd


def test_the_pidfd_is_the_containers(box: Box, tmp_path: Path) -> None:
    """SIGKILL by it ends the container; it is readable then (pidfd_open(2))."""
    container = box.idle()
    listener = listen(tmp_path / "socket")
    container.create("--pidfd-socket", str(tmp_path / "socket"))
    fd = receive(listener)
    container.start()
    assert not select.select([fd], [], [], 0)[0]
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        assert f"Pid:\t{container.init_pid}\n" in file.read()
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    assert select.select([fd], [], [], 20)[0]
    os.close(fd)
    assert container.wait() == 137


def test_a_socket_that_nobody_listens_on_fails_the_call(box: Box, tmp_path: Path) -> None:
    """With its path; nothing is left."""
    result = box.idle().try_create("--pidfd-socket", str(tmp_path / "none"))
    assert result.code == 1
    assert f"pidfd socket {tmp_path / 'none'}: no such file or directory" in result.error
