"""Sockets whose paths are longer than an address: 107 bytes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from runvm.linux import sockets


@pytest.mark.parametrize("length", [60, 107, 108, 250, 900])
def test_a_socket_is_bound_and_found_by_a_path_of_any_length(tmp_path: Path, length: int) -> None:
    """As `control` below a long state_dir; nothing stays open of what it took."""
    directory = str(tmp_path)
    while len(directory) + 8 < length:
        directory += "/" + "d" * min(200, length - len(directory) - 9)
        os.makedirs(directory, exist_ok=True)
    path = f"{directory}/control"
    before = os.listdir("/proc/self/fd")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        sockets.bind(listener, path)
        listener.listen(1)
        sockets.connect(client, path)
        client.sendall(b"x")
        assert listener.accept()[0].recv(1) == b"x"
    assert os.path.exists(path)
    assert os.listdir("/proc/self/fd") == before


def test_a_name_that_is_too_long_itself_can_be_connected_to(tmp_path: Path) -> None:
    """A console socket is the caller's to name."""
    path = f"{tmp_path}/{'s' * 200}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        sockets.bind(listener, f"{tmp_path}/short")
        os.rename(f"{tmp_path}/short", path)
        listener.listen(1)
        sockets.connect(client, path)


def test_what_isn_t_there_is_said_as_ever(tmp_path: Path) -> None:
    """Engines look for the text."""
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
        sockets.connect(client, f"{tmp_path}/{'s' * 200}")


def test_a_server_is_told_from_a_file_that_is_left(tmp_path: Path) -> None:
    """And from a datagram's; by its type, and without its notice."""
    (tmp_path / "file").touch()
    kinds = {"stream": socket.SOCK_STREAM, "records": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}
    made = {name: socket.socket(socket.AF_UNIX, kind) for name, kind in (*kinds.items(), ("left", socket.SOCK_STREAM))}
    for name, each in made.items():
        each.bind(str(tmp_path / name))
        if name != "datagram":
            each.listen(1)
    made["left"].close()
    for name in ("file", *made):
        fd = os.open(tmp_path / name, os.O_PATH)
        assert sockets.server(fd) == (kinds.get(name, 0) if name != "datagram" else 0)
        os.close(fd)
    for name in ("stream", "records"):
        made[name].setblocking(False)
        with pytest.raises(BlockingIOError):
            made[name].accept()
    for each in made.values():
        each.close()


def test_who_passes_descriptors_finds_the_connection_ended() -> None:
    """And they are closed; what is only bytes arrives."""
    here, there = socket.socketpair()
    with here, there, open("/dev/null", "rb") as file:
        there.send(b"plain")
        assert sockets.read_without_descriptors(here.fileno(), 100) == b"plain"
        before = os.listdir("/proc/self/fd")
        socket.send_fds(there, [b"x"], [file.fileno(), file.fileno()])
        with pytest.raises(sockets.DescriptorError, match="descriptors"):
            sockets.read_without_descriptors(here.fileno(), 100)
        assert os.listdir("/proc/self/fd") == before
        assert there.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            there.send(b"y")
