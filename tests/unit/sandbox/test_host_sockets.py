"""Connections to sockets of the host that a container has mounted: both ends, and a guest that breaks the rules."""

from __future__ import annotations

import functools
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from runvm.agent import host_sockets as agent
from runvm.linux import process
from runvm.linux.loop import Loop
from runvm.protocol.frames import Frame
from runvm.protocol.gate import Gate
from runvm.protocol.messages import Dial, Dialled, Done, Failed
from runvm.sandbox import host_sockets
from runvm.sandbox.host_sockets import Sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runvm.sandbox.guest_link import GuestLink

BIG = os.urandom(3 << 20)
ME = (os.getuid(), os.getgid(), list[int]())


class Link:
    """Host's and guest's end on one loop, with what a virtual machine has between them. Without *guest* what the host
    says is only kept."""

    def __init__(self, server: Path, *, guest: bool) -> None:
        self.loop = Loop()
        self.gate = Gate(self.loop)
        self.told: list[Dialled] = []
        self._number = 0
        self.sockets = Sockets({3: os.open(server, os.O_PATH | os.O_CLOEXEC)}, {}, [range(1 << 20)], [range(1 << 20)])
        self.host = host_sockets.HostSockets(self.loop, cast("GuestLink", self), self._next)
        self.guest = agent.HostSocketRelays(self.loop, self._to_host, self._dial, self.gate) if guest else None

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _later(self, call: Callable[[], object]) -> None:
        def run() -> None:
            call()

        self.loop.call_later(0, run)

    def _dial(self, message: Any) -> None:
        self._later(lambda: self.host.dial(self.sockets, message))

    def _to_host(self, kind: int, channel: int, payload: bytes) -> None:
        self._later(lambda: self.host.frame(Frame(kind, channel, payload)))

    def send(self, kind: int, channel: int, payload: bytes) -> None:
        if self.guest is not None:
            guest = self.guest
            self._later(lambda: guest.frame(Frame(kind, channel, payload)))

    def tell(self, message: Dialled) -> None:
        self.told.append(message)
        if self.guest is not None:
            assert self.guest.dialled(message) is None

    def ask(self, message: Dialled, answered: Callable[[Done | Failed], None]) -> None:
        self.told.append(message)
        if self.guest is not None:
            assert self.guest.dialled(message) == {}
        self._later(lambda: answered(Done({})))

    def turn_until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline, "timed out waiting for the two ends"
            self.loop.turn(0.1)

    def refuses(self, request: Dial) -> bool:
        self.told.clear()
        self.host.dial(self.sockets, request)
        self.turn_until(lambda: self.told)
        return self.told == [Dialled(request.number, 0)]

    def close(self) -> None:
        if self.guest is not None:
            self.guest.close("c")
        self.sockets.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    """A server of the host's."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{tmp_path}/host")
        made.listen(300)
        made.settimeout(10)
        yield made


@pytest.fixture
def link(server: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """Both ends; the guest's socket is `c/3`."""
    monkeypatch.setattr(agent, "host_socket", lambda container, number: f"{tmp_path}/{container}/{number}")
    made = Link(tmp_path / "host", guest=True)
    assert made.guest is not None
    made.guest.listen("c", {"3": [0o640, os.getuid(), os.getgid()]})
    yield made
    made.close()


@pytest.fixture
def hostile(server: socket.socket, tmp_path: Path) -> Iterator[Link]:
    """The host's end alone."""
    made = Link(tmp_path / "host", guest=False)
    yield made
    made.close()


def _read_all(sock: socket.socket) -> bytes:
    found = bytearray()
    while data := sock.recv(1 << 16):
        found += data
    return bytes(found)


def test_much_goes_both_ways_and_each_end_is_told(link: Link, server: socket.socket, tmp_path: Path) -> None:
    """A client that has said all, by shutdown, still gets the whole answer."""
    heard: list[bytes] = []

    def serve() -> None:
        accepted, _ = server.accept()
        with accepted:
            heard.append(_read_all(accepted))
            accepted.sendall(BIG[::-1])

    def talk() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(f"{tmp_path}/c/3")
            client.sendall(BIG)
            client.shutdown(socket.SHUT_WR)
            heard.append(_read_all(client))

    assert os.stat(tmp_path / "c" / "3").st_mode & 0o777 == 0o640
    threads = [threading.Thread(target=call, daemon=True) for call in (serve, talk)]
    for thread in threads:
        thread.start()
    link.turn_until(lambda: len(heard) == 2)
    for thread in threads:
        thread.join(10)
    assert heard == [BIG, BIG[::-1]]


def test_a_server_that_has_gone_ends_the_connection(link: Link, server: socket.socket, tmp_path: Path) -> None:
    """As do those that come after: the socket goes on being served."""
    server.close()
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/c/3")
            ready = select.poll()
            ready.register(client, select.POLLIN)
            link.turn_until(functools.partial(ready.poll, 0))
            assert client.recv(1) == b""
    assert all(answer.channel == 0 for answer in link.told)


def test_a_guest_reaches_nothing_but_its_sockets(hostile: Link) -> None:
    """No other number, no container that isn't there, no ids beyond those of its user namespace."""
    for wrong in (0, 4, -1, 1 << 63):
        assert hostile.refuses(Dial("c", wrong, 1, *ME))
    for uid, gid in ((1 << 20, 0), (-1, 0), (0, 1 << 20), ((1 << 32) - 1, 0)):
        assert hostile.refuses(Dial("c", 3, 1, uid, gid, []))
    hostile.told.clear()
    hostile.host.dial(None, Dial("x", 3, 7, *ME))
    assert hostile.told == [Dialled(7, 0)]
    groups = cast("list[int]", [5, "x", 1 << 20, -1, *range(100, 300)])
    ids = hostile.sockets.ids(Dial("c", 3, 1, 1, 2, groups))
    assert ids is not None
    assert ids.groups[:2] == [5, 100]
    assert len(ids.groups) == 64


def test_a_guest_has_so_many_connections_and_no_more(hostile: Link, server: socket.socket) -> None:
    """Neither open ones, nor ones that are being made."""
    for number in range(40):
        hostile.host.dial(hostile.sockets, Dial("c", 3, number, *ME))
    assert len(hostile.told) == 8
    hostile.turn_until(lambda: len(hostile.told) == 40)
    opened = 32
    while not hostile.refuses(Dial("c", 3, 1000, *ME)):
        hostile.turn_until(lambda: True)
        opened += 1
    assert opened == 128
    hostile.host.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="other users' ids need root")
def test_the_server_sees_the_ids_of_the_containers_process(hostile: Link, server: socket.socket) -> None:
    """And the server's file decides by them."""
    os.chmod(server.getsockname(), 0o660)
    os.chown(server.getsockname(), 0, 4242)
    assert hostile.refuses(Dial("c", 3, 1, 1000, 1001, []))
    assert not hostile.refuses(Dial("c", 3, 1, 1000, 1001, [4242]))
    accepted, _ = server.accept()
    with accepted:
        found = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    assert [int.from_bytes(found[at : at + 4], "little") for at in (4, 8)] == [1000, 1001]


def test_a_connection_that_is_being_made_ends_with_the_supervisor(server: socket.socket, tmp_path: Path) -> None:
    """Who waits for a killed supervisor's end by a connection to it isn't kept waiting by what it was connecting."""
    here, there = socket.socketpair()
    server.listen(0)
    first = socket.socket(socket.AF_UNIX)
    first.connect(server.getsockname())  # the queue is full

    def supervise() -> None:
        here.close()
        link = Link(tmp_path / "host", guest=False)
        link.host.dial(link.sockets, Dial("c", 3, 1, *(ME if os.geteuid() else (1000, 1000, list[int]()))))
        there.send(b"x")
        link.turn_until(lambda: False)

    os.chmod(server.getsockname(), 0o666)
    os.chmod(tmp_path, 0o755)
    pid = process.fork(supervise)
    there.close()
    with here, first:
        here.settimeout(5)
        assert here.recv(1) == b"x"
        time.sleep(0.5)  # until it connects
        connecting = process.descendants(pid)[1:]
        assert len(connecting) == 1
        process.end_child(pid, "the process in the supervisor's place")
        assert here.recv(1) == b""
        who = process.identity(connecting[0])
        assert who is None or process.wait_gone(who, deadline=time.monotonic() + 5)
