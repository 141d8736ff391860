"""Connections to a namespace's 127.0.0.1 that end at another one's: both ends of it, in real namespaces."""

from __future__ import annotations

import os
import resource
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from runvm.agent import connections, network
from runvm.linux import process
from runvm.linux.loop import Loop
from runvm.network.loopback import Forwards, LoopbackProxy
from runvm.protocol.frames import Frame
from runvm.protocol.gate import Gate
from runvm.protocol.messages import Done, Failed
from unit.network.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runvm.agent.errors import AgentError
    from runvm.protocol.messages import Connect, Json

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]

BIG = os.urandom(5 << 20)


class Link:
    """Host's and guest's end on one loop, in a thread of its own; what a virtual machine has between them."""

    def __init__(self, box: Namespace) -> None:
        self.loop = Loop()
        self.gate = Gate(self.loop)
        self._end, self._ender = os.pipe()
        self._guest = connections.Connections(self.loop, self._to_host, self.gate)
        self._number = 0
        self.forwards = Forwards(self.loop, self, self._next)
        self.door = self.forwards.open(box.fd, 1)
        self.loop.watch(self._end, select.POLLIN, lambda _: self.loop.stop())
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def _next(self) -> int:
        self._number += 1
        return self._number

    def send(self, kind: int, channel: int, payload: bytes) -> None:
        self.loop.call_later(0, lambda: void(self._guest.frame(Frame(kind, channel, payload))))

    def ask(self, message: Connect, answered: Callable[[Done | Failed], None]) -> None:
        def done(result: Json | AgentError) -> None:
            answer = Done(result) if isinstance(result, dict) else Failed(str(result))
            self.loop.call_later(0, lambda: answered(answer))

        self.loop.call_later(0, lambda: self._guest.open(message, done))

    def _to_host(self, kind: int, channel: int, payload: bytes) -> None:
        self.loop.call_later(0, lambda: void(self.forwards.frame(Frame(kind, channel, payload))))

    def close(self) -> None:
        os.write(self._ender, b"x")
        self._thread.join()
        if self.door is not None:
            self.door.close()
        os.close(self._end)
        os.close(self._ender)


def void(_: object) -> None:
    pass


@pytest.fixture
def box() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    namespace = Namespace()
    monkeypatch.setattr(network, "open_namespace", lambda name: os.dup(namespace.fd))
    yield namespace
    namespace.close()


@pytest.fixture
def link(box: Namespace, guest: Namespace) -> Iterator[Link]:
    made = Link(box)
    if made.door is None:
        made.close()
        pytest.skip("this kernel has no BPF sk_lookup, or doesn't let us use it")
    yield made
    made.close()


def _listen(guest: Namespace, family: int, address: str) -> socket.socket:
    server = guest.socket(family, socket.SOCK_STREAM)
    server.bind((address, 8080))
    server.listen()
    server.settimeout(10)
    return server


def _connect(box: Namespace, port: int) -> socket.socket:
    client = box.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(10)
    client.connect(("127.0.0.1", port))
    return client


def _read_all(sock: socket.socket) -> bytes:
    found = bytearray()
    while data := sock.recv(1 << 16):
        found += data
    return bytes(found)


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_much_goes_both_ways_and_each_end_is_told(
    box: Namespace, guest: Namespace, link: Link, family: int, address: str
) -> None:
    """A client that has said all, by shutdown, still gets the whole answer; then both are closed."""
    with _listen(guest, family, address) as server:
        for _ in range(2):
            with _connect(box, 8080) as client:
                accepted, _ = server.accept()
                with accepted:
                    accepted.settimeout(10)
                    writer = threading.Thread(
                        target=lambda sock=client: (sock.sendall(BIG), sock.shutdown(socket.SHUT_WR))
                    )
                    writer.start()
                    assert _read_all(accepted) == BIG
                    writer.join()
                    answer = threading.Thread(target=lambda sock=accepted: (sock.sendall(BIG[::-1]), sock.close()))
                    answer.start()
                    assert _read_all(client) == BIG[::-1]
                    answer.join()


def test_a_port_without_a_server_resets(box: Namespace, guest: Namespace, link: Link) -> None:
    with pytest.raises(ConnectionResetError), _connect(box, 8081) as client:
        client.recv(1)


def test_other_addresses_and_udp_are_left_alone(box: Namespace, guest: Namespace, link: Link) -> None:
    """Docker's resolver on 127.0.0.11, whatever else listens in the namespace."""
    with box.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.11", 0))
        server.listen()
        with box.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            client.connect(server.getsockname())
            accepted, peer = server.accept()
            accepted.close()
            assert peer == client.getsockname()
    with (
        box.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        box.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.settimeout(5)
        receiver.bind(("127.0.0.1", 9999))
        sender.sendto(b"word", ("127.0.0.1", 9999))
        assert receiver.recv(10) == b"word"


def test_a_closed_door_refuses(box: Namespace, guest: Namespace) -> None:
    made = Link(box)
    made.close()
    with pytest.raises(ConnectionRefusedError):
        _connect(box, 8080)


def test_a_connection_waits_while_no_descriptors_are_left(box: Namespace) -> None:
    """The listener is ready all the time, and isn't asked again and again: the supervisor has others to serve."""

    def serve() -> None:
        loop = Loop()
        accepted: list[socket.socket] = []
        try:
            LoopbackProxy(loop, box.fd, lambda sock, address, port: accepted.append(sock))
        except OSError:
            os._exit(5)
        client = box.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", 8080))
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        deadline = time.monotonic() + 0.5
        turns = 0
        while time.monotonic() < deadline:
            loop.turn(0.5)
            turns += 1
        os._exit(0 if turns < 5 and not accepted else 6)

    pid = process.fork(serve)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 5:
        pytest.skip("this kernel has no BPF sk_lookup, or doesn't let us use it")
    assert code == 0
