"""DNS from a guest's namespace to the resolver in the host's, with real sockets and a real resolver library.

`guest` and `box` are namespaces; the agent's listener and the supervisor's forwarder run on one loop in a thread, and
the packets go between them as over the agent's channel.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from runvm.agent import dns as agent
from runvm.agent.dns import Listener
from runvm.linux.loop import Loop
from runvm.network import dns as host
from runvm.network.dns import Forwarder
from runvm.protocol import dns
from unit.network.namespaces import Namespace

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

RESOLVER = "127.0.0.11"


def query(name: str, *, number: int = 0x1234, edns: int = 0, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = labels + b"\0" + struct.pack(">HH", kind, 1)
    opt = struct.pack(">BHHIH", 0, 41, edns, 0, 0) if edns else b""
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, int(bool(edns))) + question + opt


def answered(message: bytes) -> list[str]:
    """The IPv4 addresses in an answer."""
    count = struct.unpack_from(">H", message, 6)[0]
    return [socket.inet_ntoa(message[i : i + 4]) for i in range(len(message) - 16 * count + 12, len(message), 16)]


class Resolver:
    """As Docker's: `web` is 10.0.0.7, `manyN` has N addresses, `slow` is never answered, the rest doesn't exist."""

    def __init__(self, namespace: Namespace, *, tcp: bool = True) -> None:
        self.udp = namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((RESOLVER, 53))
        self.tcp = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.tcp.bind((RESOLVER, 53))
        if tcp:
            self.tcp.listen(64)
        self.asked: list[tuple[str, str]] = []
        self._end, self._ender = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        poll = select.poll()
        connections: dict[int, socket.socket] = {}
        for fd in (self.udp.fileno(), self.tcp.fileno(), self._end):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._end:
                    return
                if fd == self.udp.fileno():
                    data, peer = self.udp.recvfrom(65535)
                    answer = self._answer(data, "udp")
                    if answer:
                        self.udp.sendto(answer, peer)
                elif fd == self.tcp.fileno():
                    try:
                        connection, _ = self.tcp.accept()
                    except OSError:  # not listening
                        poll.unregister(fd)
                        continue
                    connections[connection.fileno()] = connection
                    poll.register(connection, select.POLLIN)
                else:
                    data = connections[fd].recv(65535)
                    answer = self._answer(data[2:], "tcp") if data else b""
                    if answer:
                        # in two pieces, as it may come
                        connections[fd].sendall(struct.pack(">H", len(answer)) + answer[:20])
                        connections[fd].sendall(answer[20:])
                    if not data:
                        poll.unregister(fd)
                        connections.pop(fd).close()

    def _answer(self, data: bytes, transport: str) -> bytes:
        try:
            end = dns._questions_end(data)
        except dns.PacketError:
            return b""
        name = data[13 : 13 + data[12]].decode()
        self.asked.append((name, transport))
        if name == "slow":
            return b""
        known = {"web": 1, "one": 1}.get(name, int(name[4:]) if name.startswith("many") else 0)
        ipv4 = struct.unpack_from(">H", data, end - 4)[0] == 1
        count = known if ipv4 else 0
        head = data[:2] + struct.pack(">HHHHH", 0x8180 if known else 0x8183, 1, count, 0, 0)
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([10, 0, i >> 8, (7 + i) & 0xFF])
            for i in range(count)
        )
        return head + data[12:end] + records

    def close(self) -> None:
        os.write(self._ender, b"x")
        self._thread.join()
        os.close(self._end)
        os.close(self._ender)
        self.udp.close()
        self.tcp.close()


class Bridge:
    """Listener and forwarder on a loop of their own, in a thread: which alone moves between namespaces."""

    def __init__(self, guest: Namespace, box: Namespace, *, timeout_s: float = 15.0) -> None:
        self.loop = Loop()
        self._end, self._ender = os.pipe()
        self.packets: list[bytes] = []
        later = self.loop.call_later
        self.forwarder = Forwarder(
            self.loop, box.fd, lambda data: void(later(0, lambda: self.listener.answer(data))), timeout_s=timeout_s
        )
        self.listener = Listener(self.loop, guest.fd, self._to_host)
        self.loop.watch(self._end, select.POLLIN, lambda _: self.loop.stop())
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def _to_host(self, data: bytes) -> None:
        self.packets.append(data)
        self.loop.call_later(0, lambda: self.forwarder.ask(data))

    def close(self) -> None:
        os.write(self._ender, b"x")
        self._thread.join()
        self.listener.close()
        self.forwarder.close()
        os.close(self._end)
        os.close(self._ender)


def void(_: object) -> None:
    pass


@pytest.fixture
def guest() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def box() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def resolver(box: Namespace) -> Iterator[Resolver]:
    made = Resolver(box)
    yield made
    made.close()


@pytest.fixture(params=["steered", "bound"])
def bridge(
    request: pytest.FixtureRequest, guest: Namespace, box: Namespace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bridge]:
    """Both ways to get at the traffic: a kernel with BPF's sk_lookup, and one without."""
    if request.param == "bound":
        monkeypatch.setattr(agent, "steer", refuse)
    made = Bridge(guest, box)
    yield made
    made.close()


def refuse(*_: object, **__: object) -> int:
    raise OSError("no such thing in this kernel")


def ask_udp(namespace: Namespace, message: bytes, *, timeout: float = 5.0, connected: bool = True) -> bytes:
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        if connected:
            sock.connect((RESOLVER, 53))
            sock.send(message)
            return sock.recv(65535)
        sock.sendto(message, (RESOLVER, 53))
        data, peer = sock.recvfrom(65535)
        assert peer == (RESOLVER, 53)
        return data


def open_tcp(namespace: Namespace) -> socket.socket:
    sock = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect((RESOLVER, 53))
    return sock


def send_tcp(sock: socket.socket, message: bytes) -> None:
    sock.sendall(struct.pack(">H", len(message)) + message)


def read_tcp(sock: socket.socket) -> bytes:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = sock.recv(count - len(data))
            assert piece, "the connection ended"
            data += piece
        return data

    return exactly(struct.unpack(">H", exactly(2))[0])


def test_the_resolver_library_finds_names(
    guest: Namespace, resolver: Resolver, bridge: Bridge, tmp_path: object
) -> None:
    """glibc's, by the resolv.conf that Docker writes: a name, one that doesn't exist, one with more than UDP takes."""
    guest.ip("addr add 10.5.0.1/32 dev lo")  # glibc asks for no addresses of a family that the host hasn't got itself
    path = f"{tmp_path}/resolv.conf"
    with open(path, "w") as file:
        file.write(f"nameserver {RESOLVER}\noptions ndots:0\n")

    def getent(name: str) -> list[str]:
        command = f"mount --bind {path} /etc/resolv.conf && getent -s dns ahostsv4 {name}"
        done = guest.call("unshare", "-m", "sh", "-c", command, check=False)
        return sorted({line.split()[0] for line in done.stdout.splitlines()})

    assert getent("web") == ["10.0.0.7"]
    assert getent("nosuch") == []
    assert len(getent("many150")) == 150
    assert ("many150", "tcp") in resolver.asked


@pytest.mark.parametrize("connected", [True, False])
def test_an_answer_comes_from_where_it_was_asked(
    guest: Namespace, resolver: Resolver, bridge: Bridge, connected: bool
) -> None:
    """glibc connects its socket, musl looks at the sender's address."""
    answer = ask_udp(guest, query("web"), connected=connected)
    assert answer[:2] == b"\x12\x34"
    assert answered(answer) == ["10.0.0.7"]


@pytest.mark.parametrize(
    ("name", "edns", "whole"),
    [
        ("many20", 0, True),
        ("many40", 0, False),
        ("many40", 4096, True),
        ("many300", 1232, False),
        ("many3500", 65535, True),
    ],
)
def test_what_is_too_long_for_udp_is_truncated(
    guest: Namespace, resolver: Resolver, bridge: Bridge, name: str, edns: int, whole: bool
) -> None:
    """512 bytes without EDNS, else what the asker says; a truncated answer has the question and the TC bit."""
    answer = ask_udp(guest, query(name, edns=edns))
    flags, questions, answers, _, more = struct.unpack_from(">HHHHH", answer, 2)
    assert bool(flags & 0x0200) is not whole
    assert questions == 1
    assert answers == (int(name[4:]) if whole else 0)
    if not whole:
        assert more == int(edns > 0)
        assert query(name)[12:] in answer


def test_tcp_serves_several_queries_on_a_connection(guest: Namespace, resolver: Resolver, bridge: Bridge) -> None:
    """Written at once, in pieces, and half-closed after: every one is answered, by number."""
    with open_tcp(guest) as sock:
        whole = b""
        for number in range(40):
            message = query("web" if number % 2 else "many100", number=number)
            whole += struct.pack(">H", len(message)) + message
        sock.sendall(whole[:100])
        time.sleep(0.02)
        sock.sendall(whole[100:])
        sock.shutdown(socket.SHUT_WR)
        answers = {struct.unpack_from(">H", message)[0]: message for message in (read_tcp(sock) for _ in range(40))}
        assert answers.keys() == set(range(40))
        assert len(answered(answers[0])) == 100
        assert sock.recv(1) == b""


def test_a_long_answer_passes_by_tcp(guest: Namespace, resolver: Resolver, bridge: Bridge) -> None:
    with open_tcp(guest) as sock:
        send_tcp(sock, query("many4000"))
        assert len(answered(read_tcp(sock))) == 4000


def test_without_a_resolver_the_answer_is_a_failure_at_once(guest: Namespace, bridge: Bridge) -> None:
    """Nobody waits for a time-out where the host has nothing listening."""
    started = time.monotonic()
    answer = ask_udp(guest, query("web"))
    assert struct.unpack_from(">H", answer, 2)[0] & 0x800F == 0x8002
    assert answer[12:] == query("web")[12:]
    with open_tcp(guest) as sock:
        send_tcp(sock, query("web"))
        assert read_tcp(sock) == answer
    assert time.monotonic() - started < 2


def test_a_silent_resolver_is_given_up(guest: Namespace, box: Namespace, resolver: Resolver) -> None:
    """The forwarder says so after its time-out; others are answered meanwhile."""
    made = Bridge(guest, box, timeout_s=0.5)
    try:
        with guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((RESOLVER, 53))
            sock.send(query("slow"))
            assert answered(ask_udp(guest, query("web"))) == ["10.0.0.7"]
            assert struct.unpack_from(">H", sock.recv(512), 2)[0] & 15 == 2
    finally:
        made.close()


def test_many_at_once_are_answered(guest: Namespace, resolver: Resolver, bridge: Bridge) -> None:
    """200 clients, each with its own port and number."""
    socks = [guest.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(200)]
    for number, sock in enumerate(socks):
        sock.settimeout(5)
        sock.connect((RESOLVER, 53))
        sock.send(query("web", number=number))
    for number, sock in enumerate(socks):
        assert struct.unpack_from(">H", sock.recv(512))[0] == number
        sock.close()


def test_too_many_at_once_are_bounded(
    guest: Namespace, resolver: Resolver, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host fails what exceeds its limit, the guest drops it; after that all is well again."""
    monkeypatch.setattr(host, "LIMIT", 4)
    monkeypatch.setattr(host, "TIMEOUT_S", 1)
    bridge.forwarder._timeout_s = 0.5
    with open_tcp(guest) as sock:
        for number in range(10):
            send_tcp(sock, query("slow", number=number))
        assert {struct.unpack_from(">H", read_tcp(sock))[0] for _ in range(10)} == set(range(10))
        send_tcp(sock, query("web", number=99))
        assert answered(read_tcp(sock)) == ["10.0.0.7"]


def test_junk_is_no_query(guest: Namespace, resolver: Resolver, bridge: Bridge) -> None:
    """Neither side minds short, endless or broken messages."""
    for junk in (b"", b"x", b"\0" * 11, b"\xff" * 40, query("web")[:14], bytes(5000)):
        with guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(junk, (RESOLVER, 53))
    with open_tcp(guest) as sock:
        sock.sendall(b"\0\x05hello")
        assert sock.recv(1) == b""
    for packet in (b"", b"\0" * 4, b"\0\0\0\1\7" + bytes(12), b"\0\0\0\1\0short", bytes(70000)):
        bridge.loop.call_later(0, partial(bridge.forwarder.ask, packet))
        bridge.loop.call_later(0, partial(bridge.listener.answer, packet))
    assert answered(ask_udp(guest, query("web"))) == ["10.0.0.7"]


def test_connections_are_bounded(
    guest: Namespace, resolver: Resolver, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is silent for longest gives way."""
    monkeypatch.setattr(agent, "_MAX_CONNECTIONS", 3)
    socks = []
    for _ in range(5):
        socks.append(open_tcp(guest))
        send_tcp(socks[-1], query("web"))
        read_tcp(socks[-1])
    assert socks[0].recv(1) == socks[1].recv(1) == b""
    send_tcp(socks[2], query("web"))
    assert answered(read_tcp(socks[2])) == ["10.0.0.7"]
    for sock in socks:
        sock.close()


def test_clients_that_say_nothing_are_left(
    guest: Namespace, box: Namespace, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_SWEEP_S", 0.1)
    monkeypatch.setattr(agent, "_IDLE_TIMEOUT_S", 0.3)
    made = Bridge(guest, box)
    try:
        with open_tcp(guest) as sock:
            assert sock.recv(1) == b""
    finally:
        made.close()


def test_the_container_can_have_port_53_itself(guest: Namespace, box: Namespace, resolver: Resolver) -> None:
    """A DNS server in the container, bound to all addresses: both work, each on its own, a connection being open."""
    made = Bridge(guest, box)
    try:
        with open_tcp(guest) as sock:
            send_tcp(sock, query("web"))
            read_tcp(sock)
            with (
                guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
                guest.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
                guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
            ):
                udp.bind(("0.0.0.0", 53))
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind(("0.0.0.0", 53))
                tcp.listen()
                client.sendto(b"mine", ("127.0.0.1", 53))
                assert udp.recv(10) == b"mine"
                assert answered(ask_udp(guest, query("web"))) == ["10.0.0.7"]
                send_tcp(sock, query("one"))
                assert answered(read_tcp(sock)) == ["10.0.0.7"]
                with open_tcp(guest) as second:
                    send_tcp(second, query("web"))
                    assert answered(read_tcp(second)) == ["10.0.0.7"]
    finally:
        made.close()


def test_nothing_is_left_when_it_closes(guest: Namespace, box: Namespace) -> None:
    """Descriptors and the steering: port 53 is refused again, and not by the container's."""
    before = set(os.listdir("/proc/self/fd"))
    made = Bridge(guest, box)
    made.close()
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ConnectionRefusedError):
        ask_udp(guest, query("web"))


def test_a_query_takes_little_time(guest: Namespace, resolver: Resolver, bridge: Bridge) -> None:
    """Through both loops and back: well under what a resolver in the same namespace would be noticed by."""
    started = time.monotonic()
    for _ in range(100):
        ask_udp(guest, query("web"))
    each = (time.monotonic() - started) / 100
    print(f"{each * 1000:.2f} ms a query")
    assert each < 0.05
