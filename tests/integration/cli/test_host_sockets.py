"""Sockets of the host that are mounted in a container: its programs talk to the host's servers."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.unix_server import UnixServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from framework.runtime import Box, Container, Runtime

TALK = """
import _socket, _thread, os, sys

def send(sock, data):
    sent = 0
    try:
        while sent < len(data):
            sent += sock.send(data[sent : sent + 65536])
        sock.shutdown(1)
    except OSError:  # the reader tells
        pass

path, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
socks = [_socket.socket(_socket.AF_UNIX) for _ in range(count)]
try:
    for sock in socks:
        sock.connect(path)
    for number, sock in enumerate(socks):
        data = bytes([65 + number]) * size
        _thread.start_new_thread(send, (sock, data))
        answer = bytearray()
        while piece := sock.recv(65536):
            answer += piece
        print(answer[:size] == data, answer[size:].decode())
except OSError as error:
    print(type(error).__name__)
sys.stdout.flush()
os._exit(0)  # without a wait for threads, whose end takes libgcc
"""
_serial = itertools.count()
TALKING = ("python3", "-SI", "/opt/talk.py")


class Server(UnixServer):
    """Echoes what it hears; once a client has said all, it tells whom it has seen and ends the connection."""

    def serve(self, accepted: socket.socket) -> None:
        _, uid, gid = struct.unpack("iII", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        with accepted:
            while data := accepted.recv(1 << 16):
                accepted.sendall(data)
            accepted.sendall(f"END {uid} {gid}".encode())


@pytest.fixture
def serve(runtime: Runtime) -> Iterator[Callable[[], Server]]:
    """Makes a server of the host's."""
    servers: list[Server] = []

    def make() -> Server:
        servers.append(Server(f"{runtime.scratch}/server{next(_serial)}"))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
        with suppress(FileNotFoundError):
            os.unlink(server.path)


def with_socket(container: Container, server: Server, *options: str) -> Container:
    """The container with the server's socket at /run/host.sock, and the client."""
    rootfs.install_python(container.bundle.rootfs)
    container.bundle.file("/opt/talk.py", TALK)
    container.bundle.bind(server.path, "/run/host.sock", *(options or ("rbind", "rprivate")))
    return container


def talk(container: Container, *arguments: object, user: str = "", group: int = 0) -> list[str]:
    """What the client says, in a further process."""
    flags = [*(["--user", user] if user else []), *(["--additional-gids", str(group)] if group else [])]
    words = map(str, arguments or (10, 1))
    return container.exec(*TALKING, "/run/host.sock", *words, flags=flags).expect(0).text.splitlines()


def test_a_containers_process_talks_to_a_server_of_the_host(box: Box, serve: Callable[[], Server]) -> None:
    """Several connections at once, much in both directions, the end of each, as its first process and as a further
    one, from a second container of the virtual machine."""
    server = serve()
    container = with_socket(box(*TALKING, "/run/host.sock", "100000", "2"), server)
    assert container.run().expect(0).text.splitlines() == ["True END 0 0"] * 2
    first = with_socket(box.idle(), server, "bind", "ro").launch()
    assert talk(first, 3 << 20, 2) == ["True END 0 0"] * 2
    assert talk(first, 1000, 20) == ["True END 0 0"] * 20
    second = with_socket(box.idle(), serve())
    second.bundle.namespace("network", f"/proc/{first.init_pid}/ns/net")
    second.launch()
    assert talk(second) == ["True END 0 0"]
    second.delete("--force")
    assert talk(first) == ["True END 0 0"]


def test_the_sockets_mode_and_owner_decide(box: Box, serve: Callable[[], Server]) -> None:
    """As for Docker's group; the server sees the ids of the container's process, not runvm's."""
    server = serve()
    os.chmod(server.path, 0o660)
    os.chown(server.path, 0, 4242)
    container = with_socket(box.idle(), server).launch()
    assert container.sh("stat -c '%F %a %u %g' /run/host.sock") == "socket 660 0 4242"
    assert talk(container, user="1000:1000") == ["PermissionError"]
    assert talk(container, user="1000:1000", group=4242) == ["True END 1000 1000"]


def test_a_server_that_has_gone_ends_connections(box: Box, serve: Callable[[], Server]) -> None:
    """At once, and each time."""
    server = serve()
    container = with_socket(box.idle(), server).launch()
    assert talk(container) == ["True END 0 0"]
    server.close()
    os.unlink(server.path)
    for _ in range(2):
        (said,) = talk(container)
        assert said in ("ConnectionRefusedError", "False ", "ConnectionResetError", "BrokenPipeError")


def test_a_user_namespaces_ids_are_the_hosts(box: Box, serve: Callable[[], Server]) -> None:
    """Root inside is 100000 to the server."""
    server = serve()
    os.chmod(server.path, 0o666)
    container = with_socket(box.idle(), server)
    container.bundle.file("/run/host.sock")
    container.bundle.namespace("user")
    for kind in ("uidMappings", "gidMappings"):
        container.bundle.linux[kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    container.launch()
    assert talk(container) == ["True END 100000 100000"]
