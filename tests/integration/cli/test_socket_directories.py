"""Sockets of the host's servers in a mounted directory: a container's programs connect as if they were on the host."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.process import wait_until
from framework.unix_server import UnixServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from framework.runtime import Box, Container

# Says each word as a message of its own, and prints what comes back
CLIENT = """
import _socket, sys

kind, path, *words = sys.argv[1:]
sock = _socket.socket(_socket.AF_UNIX, int(kind))
sock.settimeout(20)
try:
    sock.connect(path)
    said = []
    for word in words:
        sock.send(word.encode())
        if kind == "1":
            said.append(sock.recv(100).decode())
    said += [sock.recv(100).decode() for word in words if kind == "5"]
    print(*said)
except OSError as error:
    print(type(error).__name__)
"""

# Passes a descriptor, and prints how that ends
PASS = """
import _socket, sys

sock = _socket.socket(_socket.AF_UNIX)
sock.settimeout(20)
sock.connect(sys.argv[1])
try:
    sock.sendmsg([b"x"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, (1).to_bytes(4, "little"))])
    print("answer", sock.recv(10))
except OSError as error:
    print(type(error).__name__)
"""

# A server of the container's own
SERVER = """
import _socket, os, sys

listener = _socket.socket(_socket.AF_UNIX)
try:
    os.unlink(sys.argv[1])
except FileNotFoundError:
    pass
listener.bind(sys.argv[1])
listener.listen(5)
while True:
    fd, _ = listener._accept()
    accepted = _socket.socket(fileno=fd)
    accepted.recv(100)
    accepted.send(b"from the container")
"""


class Server(UnixServer):
    """Answers each message with itself in brackets, until it is closed."""

    def serve(self, accepted: socket.socket) -> None:
        with accepted, suppress(OSError):
            while data := accepted.recv(1000):
                accepted.send(b"<" + data + b">")


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Makes a server of the host's."""
    servers: list[Server] = []

    def make(path: Path | str, kind: socket.SocketKind = socket.SOCK_STREAM) -> Server:
        servers.append(Server(str(path), kind))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The one that is mounted; its path is short enough for a socket's address."""
    path = tmp_path / "d"
    (path / "inner").mkdir(parents=True)
    return path


def with_directory(container: Container, directory: Path, *options: str) -> Container:
    """The container with the host's *directory* at /run/d, and the client."""
    rootfs.install_python(container.bundle.rootfs)
    for name, text in (("client", CLIENT), ("pass", PASS), ("server", SERVER)):
        container.bundle.file(f"/opt/{name}.py", text)
    container.bundle.bind(str(directory), "/run/d", *(options or ("rbind", "rprivate")))
    return container


def talk(container: Container, path: str, *words: str, kind: int = socket.SOCK_STREAM) -> str:
    """What the client says, in a further process."""
    return container.exec("python3", "-SI", "/opt/client.py", str(int(kind)), path, *words).text


def wait_talk(container: Container, path: str, kind: int = socket.SOCK_STREAM) -> None:
    """Until the server there answers: what appears while the container runs takes a moment."""
    wait_until(lambda: talk(container, path, "x", kind=kind) == "<x>", timeout=20, what="an answer")


@pytest.mark.parametrize("options", [("rbind", "rprivate"), ("bind", "ro")])
def test_a_server_that_is_there_before(
    box: Box, directory: Path, serve: Callable[..., Server], options: tuple[str, ...]
) -> None:
    """Answers the container's first process at once; in a directory below the mounted one, and in records, too."""
    serve(directory / "a")
    serve(directory / "inner" / "b")
    serve(directory / "c", socket.SOCK_SEQPACKET)
    container = with_directory(box("python3", "-SI", "/opt/client.py", "1", "/run/d/a", "hello"), directory, *options)
    assert container.run().expect(0).text == "<hello>"
    container = with_directory(box.idle(), directory, *options).launch()
    assert talk(container, "/run/d/inner/b", "one", "two") == "<one> <two>"
    assert talk(container, "/run/d/c", "one", "two", "three", kind=socket.SOCK_SEQPACKET) == "<one> <two> <three>"


def test_a_server_that_comes_later_or_anew(box: Box, directory: Path, serve: Callable[..., Server]) -> None:
    """Also in a directory that is new, and one whose file has been put in the place of the last one's."""
    container = with_directory(box.idle(), directory).launch()
    first = serve(directory / "late")
    wait_talk(container, "/run/d/late")
    first.close()
    os.unlink(first.path)
    serve(directory / "late")
    wait_talk(container, "/run/d/late")
    (directory / "new").mkdir()
    serve(directory / "new" / "records", socket.SOCK_SEQPACKET)
    wait_talk(container, "/run/d/new/records", kind=socket.SOCK_SEQPACKET)
    os.rename(directory / "late", directory / "moved")
    wait_talk(container, "/run/d/moved")
    wait_until(lambda: talk(container, "/run/d/late", "x") == "FileNotFoundError", timeout=20, what="its end")


@pytest.mark.differs("runc", "there the server has the descriptor")
def test_descriptors_are_refused(box: Box, directory: Path, serve: Callable[..., Server]) -> None:
    """Who passes one finds the connection ended, instead of a server that never gets it."""
    serve(directory / "a")
    container = with_directory(box.idle(), directory).launch()
    said = container.exec("python3", "-SI", "/opt/pass.py", "/run/d/a").text
    assert said in ("answer b''", "ConnectionResetError", "BrokenPipeError")
    assert talk(container, "/run/d/a", "x") == "<x>"


def test_a_file_without_a_server_is_the_containers(box: Box, directory: Path, serve: Callable[..., Server]) -> None:
    """One that a server has left behind can be replaced by the container's own, as before."""
    left = serve(directory / "a")
    left.close()
    container = with_directory(box.idle(), directory).launch()
    assert talk(container, "/run/d/a", "x") == "ConnectionRefusedError"
    container.sh("python3 -SI /opt/server.py /run/d/a >/dev/null 2>&1 </dev/null &")
    wait_until(
        lambda: talk(container, "/run/d/a", "x") == "from the container", timeout=20, what="the container's own server"
    )


def test_a_server_that_has_gone_makes_room(box: Box, directory: Path, serve: Callable[..., Server]) -> None:
    """Its file, once it has been found to lead nowhere, may be the container's to replace."""
    server = serve(directory / "a")
    container = with_directory(box.idle(), directory).launch()
    assert talk(container, "/run/d/a", "x") == "<x>"
    server.close()
    wait_until(lambda: talk(container, "/run/d/a", "x") == "ConnectionRefusedError", timeout=20, what="its end")
    container.sh("python3 -SI /opt/server.py /run/d/a >/dev/null 2>&1 </dev/null &")
    wait_until(
        lambda: talk(container, "/run/d/a", "x") == "from the container", timeout=20, what="the container's own server"
    )


def test_a_symlink_leads_to_no_socket_outside(
    box: Box, directory: Path, serve: Callable[..., Server], tmp_path: Path
) -> None:
    """A socket that isn't in the mounted directory isn't the container's, by whatever name."""
    serve(tmp_path / "outside")
    (directory / "link").symlink_to(tmp_path / "outside")
    (directory / "up").symlink_to("..")
    container = with_directory(box.idle(), directory).launch()
    serve(directory / "inside")
    wait_talk(container, "/run/d/inside")
    assert talk(container, "/run/d/link", "x") == "FileNotFoundError"
    assert talk(container, "/run/d/up/outside", "x") == "FileNotFoundError"


def test_a_server_of_another_container(box: Box, directory: Path) -> None:
    """By a directory that both have, each in a virtual machine of its own; also one that is started anew, and with the
    ids and the rights that its file has."""
    server = with_directory(box("python3", "-SI", "/opt/server.py", "/run/d/a"), directory).launch()
    wait_until(lambda: (directory / "a").exists(), timeout=30, what="the server's socket")
    client = with_directory(box.idle(), directory).launch()

    def answers() -> bool:
        return talk(client, "/run/d/a", "x") == "from the container"

    wait_until(answers, timeout=20, what="an answer")
    assert server.exec("python3", "-SI", "/opt/client.py", "1", "/run/d/a", "x").text == "from the container"
    server.exec("chmod", "600", "/run/d/a").expect(0)
    wait_until(
        lambda: client.exec("stat", "-c", "%a", "/run/d/a").text == "600",
        timeout=20,
        what="the mode of the server's file",
    )
    said = client.exec("python3", "-SI", "/opt/client.py", "1", "/run/d/a", "x", flags=["--user", "1000"]).text
    assert said == "PermissionError"
    assert answers()
    server.delete("--force")
    wait_until(lambda: not answers(), timeout=20, what="its end")
    again = with_directory(box("python3", "-SI", "/opt/server.py", "/run/d/a"), directory).launch()
    wait_until(answers, timeout=30, what="an answer")
    again.delete("--force")
