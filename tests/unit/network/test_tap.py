"""The wiring: `outside` is the world, `box` the container's namespace on the host, `guest` stands for its VM."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from runvm.linux import links, netlink, steer, syscalls
from runvm.network import tap
from runvm.network.scan import InterfaceMonitor
from runvm.protocol.interfaces import Network
from unit.network.namespaces import Namespace, veth

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

BOX_MAC = "02:00:00:00:00:02"


class Wired(NamedTuple):
    outside: Namespace
    box: Namespace
    guest: Namespace


@pytest.fixture
def wired() -> Iterator[Wired]:
    """box's eth0 (10.7.0.2, fd07::2) is wired, the guest has a copy of it; the world has .1 and .9."""
    made = Wired(Namespace(), Namespace(), Namespace())
    outside, box, guest = made
    veth(outside, "out", box, "eth0")
    veth(box, "rv", guest, "eth0")
    outside.ip(
        "addr add 10.7.0.1/24 dev out",
        "addr add 10.99.0.1/32 dev lo",
        "addr add fd07::1/64 dev out nodad",
        "addr add fd99::1/128 dev lo",
        "link set out up",
    )
    for namespace in (box, guest):
        namespace.ip(
            f"link set eth0 address {BOX_MAC}",
            "addr add 10.7.0.2/24 dev eth0",
            "addr add fd07::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 10.7.0.1",
            "-6 route add default via fd07::1",
        )
    box.ip("link set rv addrgenmode none", "link set rv arp off", "link set rv up")
    box.run(lambda: tap.wire("eth0", "rv", resolver=True))
    yield made
    for namespace in made:
        namespace.close()


class Echo:
    """Answers UDP on port 53 with the query twice, TCP on port 53 by closing after "tcp"; counts what it got."""

    def __init__(self, namespace: Namespace, address: str, *, answer: int = 0) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.answer = answer
        self.udp = namespace.socket(family, socket.SOCK_DGRAM)
        self.tcp = namespace.socket(family, socket.SOCK_STREAM)
        self.udp.bind((address, 53))
        self.tcp.bind((address, 53))
        self.tcp.listen()
        self.stop, self._stopped = os.pipe()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            waited: list[int | socket.socket] = [self.udp, self.tcp, self.stop]
            ready, _, _ = select.select(waited, [], [])
            if self.stop in ready:
                return
            if self.udp in ready:
                data, peer = self.udp.recvfrom(65535)
                self.udp.sendto(data * 2 + bytes(self.answer), peer)
            if self.tcp in ready:
                connection, _ = self.tcp.accept()
                with connection:
                    connection.sendall(b"tcp")

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self.thread.join()
        for fd in (self.stop, self._stopped):
            os.close(fd)
        self.udp.close()
        self.tcp.close()


@pytest.fixture(params=["10.99.0.1", "fd99::1"])
def server(request: pytest.FixtureRequest, wired: Wired) -> Iterator[str]:
    """The address of a DNS server beyond the gateway."""
    echo = Echo(wired.outside, request.param)
    yield request.param
    echo.close()


def ask(namespace: Namespace, server: str, *, port: int = 0, size: int = 5, timeout: float = 3.0) -> tuple[bytes, int]:
    """The answer by UDP, and the port that it came to."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with namespace.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        if port:
            sock.bind(("", port))
        sock.connect((server, 53))
        sock.send(b"q" * size)
        return sock.recv(65535), sock.getsockname()[1]


def connect(namespace: Namespace, server: str, *, timeout: float = 3.0) -> bytes:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with namespace.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect((server, 53))
        return sock.recv(10)


@pytest.mark.parametrize("address", ["10.7.0.2", "fd07::2"])
def test_a_ping_is_answered_by_the_guest_alone(wired: Wired, address: str) -> None:
    """The host's stack has the same address and never answers: as the guest goes deaf, so does the address."""
    assert "2 received" in wired.outside.call("ping", "-c2", "-i0.2", "-W2", address).stdout
    assert "DUP" not in wired.outside.call("ping", "-c2", "-i0.2", "-W2", address).stdout
    wired.guest.ip("link set eth0 down")
    assert wired.outside.call("ping", "-c1", "-W1", address, check=False).returncode == 1


def test_a_port_is_refused_by_the_guest_alone(wired: Wired) -> None:
    """What listens in the host's namespace can't be reached, what listens in the guest can."""
    with wired.box.socket(socket.AF_INET, socket.SOCK_STREAM) as hidden:
        hidden.bind(("10.7.0.2", 8080))
        hidden.listen()
        with wired.outside.socket(socket.AF_INET, socket.SOCK_STREAM) as client, pytest.raises(ConnectionRefusedError):
            client.settimeout(3)
            client.connect(("10.7.0.2", 8080))
        with wired.guest.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("10.7.0.2", 8080))
            listener.listen()
            with wired.outside.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.settimeout(3)
                client.connect(("10.7.0.2", 8080))


def test_the_guest_asks_dns_outside(wired: Wired, server: str) -> None:
    """UDP and TCP, both from the guest's own ports."""
    answer, port = ask(wired.guest, server)
    assert answer == b"q" * 10
    assert port < tap.RESOLVER_PORTS[0]
    assert connect(wired.guest, server) == b"tcp"


def test_the_hosts_resolver_asks_dns_outside(wired: Wired, server: str) -> None:
    """A socket of the namespace itself: the gateway's MAC is found, the answers come, UDP and TCP, again and again."""
    answer, port = ask(wired.box, server)
    assert answer == b"q" * 10
    assert tap.RESOLVER_PORTS[0] <= port <= tap.RESOLVER_PORTS[1]
    assert connect(wired.box, server) == b"tcp"
    for _ in range(50):
        assert ask(wired.box, server)[0] == b"q" * 10


def test_a_resolver_in_the_guest_may_use_the_hosts_ports(wired: Wired, server: str) -> None:
    """BIND and unbound choose their UDP ports by chance over the whole range."""
    assert ask(wired.guest, server, port=61441)[0] == b"q" * 10
    assert ask(wired.guest, server, port=65535)[0] == b"q" * 10


def test_a_long_answer_in_fragments_reaches_both(wired: Wired) -> None:
    """IPv4 fragments after the first have no ports to look at."""
    echo = Echo(wired.outside, "10.99.0.1", answer=8000)
    try:
        assert len(ask(wired.box, "10.99.0.1")[0]) == 8010
        assert len(ask(wired.guest, "10.99.0.1")[0]) == 8010
    finally:
        echo.close()


def test_the_hosts_stack_stays_out_of_neighbour_discovery(wired: Wired) -> None:
    """As the guest is away, nobody answers for its addresses; the host's stack can still find the gateway."""
    wired.guest.ip("link set eth0 down")
    for address in ("10.7.0.2", "fd07::2"):
        wired.outside.call("ping", "-c1", "-W1", address, check=False)
        assert BOX_MAC not in wired.outside.ip(f"neigh show to {address}")
    echo = Echo(wired.outside, "10.99.0.1")
    try:
        assert ask(wired.box, "10.99.0.1")[0] == b"q" * 10
    finally:
        echo.close()


def test_without_a_resolver_nothing_reaches_the_hosts_stack(wired: Wired) -> None:
    """And the guest may use every port for TCP too, then."""
    wired.box.run(lambda: tap.wire("eth0", "rv"))
    echo = Echo(wired.outside, "10.99.0.1")
    try:
        with pytest.raises(TimeoutError):
            ask(wired.box, "10.99.0.1", timeout=0.5)
        with wired.guest.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(3)
            sock.bind(("", 61500))
            sock.connect(("10.99.0.1", 53))
            assert sock.recv(10) == b"tcp"
        wired.box.run(lambda: tap.wire("eth0", "rv", resolver=True))
        assert ask(wired.box, "10.99.0.1")[0] == b"q" * 10
    finally:
        echo.close()


def test_bulk_data_passes_at_the_speed_of_the_link(wired: Wired) -> None:
    """TCP through the wiring moves at least half as many bytes a second as through a plain pair of interfaces."""
    plain = Namespace()
    veth(wired.outside, "plain", plain, "eth0")
    wired.outside.ip("addr add 10.8.0.1/24 dev plain", "link set plain up")
    plain.ip("addr add 10.8.0.2/24 dev eth0", "link set eth0 up")
    try:
        direct = there = back = 0.0
        for _ in range(10):  # the best of some, side by side: the machine has other things to do
            direct = max(direct, rate(plain, wired.outside, "10.8.0.1"))
            there = max(there, rate(wired.guest, wired.outside, "10.7.0.1"))
            back = max(back, rate(wired.outside, wired.guest, "10.7.0.2"))
            if min(there, back) > direct / 2:
                break
        print(f"direct {direct:.0f} MB/s, out {there:.0f} MB/s, in {back:.0f} MB/s")
        assert min(there, back) > direct / 2
    finally:
        plain.close()


def rate(sender: Namespace, receiver: Namespace, address: str) -> float:
    total = 128 << 20
    with receiver.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()

        def send() -> None:
            with client:
                client.connect(listener.getsockname())
                block = bytes(1 << 20)
                for _ in range(total >> 20):
                    client.sendall(block)

        client = sender.socket(socket.AF_INET, socket.SOCK_STREAM)
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        listener.settimeout(5)
        connection, _ = listener.accept()
        started, got = time.monotonic(), 0
        buffer = bytearray(1 << 20)
        with connection:
            while count := connection.recv_into(buffer):
                got += count
        thread.join()
    assert got == total
    return total / (time.monotonic() - started) / 1e6


def test_a_tap_is_wired_to_its_interface(wired: Wired) -> None:
    """A real tap: frames come out of its descriptor after a virtio header; what is written leaves by the interface."""
    box = wired.box
    veth(wired.outside, "out1", box, "eth1")
    wired.outside.ip("addr add 10.9.0.1/24 dev out1", "link set out1 up")
    box.ip("link set eth1 mtu 1400", "link set eth1 up")
    fd = box.run(lambda: tap.create_tap("rvtap0"))
    try:
        box.run(lambda: tap.wire("eth1", "rvtap0"))
        shown = box.ip("-d link show rvtap0")
        assert "mtu 1400" in shown
        assert "NOARP,UP" in shown
        assert "addrgenmode none" in shown
        wired.outside.call("ping", "-c1", "-W1", "10.9.0.7", check=False)
        frame = read_frame(fd, lambda data: data[22:24] == b"\x08\x06")
        assert frame[10:16] == b"\xff" * 6
        mac, world = bytes.fromhex("020000000077"), frame[16:22]
        arp = bytes.fromhex("0001080006040002") + mac + bytes([10, 9, 0, 7]) + world + bytes([10, 9, 0, 1])
        os.write(fd, bytes(10) + world + mac + b"\x08\x06" + arp)
        wired.outside.ip("neigh replace 10.9.0.8 dev out1 lladdr 02:00:00:00:00:01")  # some time for the reply
        assert "02:00:00:00:00:77" in wired.outside.ip("neigh show to 10.9.0.7")
    finally:
        os.close(fd)
    assert "rvtap0" not in box.names()


def read_frame(fd: int, wanted: object) -> bytes:
    assert callable(wanted)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            frame = os.read(fd, 65536)
            if wanted(frame):
                return frame
    raise AssertionError("no such frame")


def test_a_tap_of_a_name_in_use_is_refused() -> None:
    """The error names the tap."""
    box = Namespace()
    fd = box.run(lambda: tap.create_tap("rvtap0"))
    try:
        with pytest.raises(OSError, match="rvtap0") as caught:
            box.run(lambda: tap.create_tap("rvtap0"))
        assert caught.value.errno == errno.EBUSY
    finally:
        os.close(fd)
        box.close()


def test_a_second_vm_in_the_same_namespace_takes_over(wired: Wired) -> None:
    """The first one's tap has gone with its VMM, killed; the filters that pointed to it are replaced."""
    wired.box.ip("link delete rv")
    veth(wired.box, "rv", wired.guest, "eth0")
    wired.guest.ip(f"link set eth0 address {BOX_MAC}", "addr add 10.7.0.2/24 dev eth0", "link set eth0 up")
    wired.box.ip("link set rv addrgenmode none", "link set rv arp off", "link set rv up")
    wired.box.run(lambda: tap.wire("eth0", "rv"))
    assert "1 received" in wired.outside.call("ping", "-c1", "-W2", "10.7.0.2").stdout


def test_unwiring_gives_the_interface_back_to_the_host(wired: Wired) -> None:
    """A namespace that outlives the VM works as before; only our own filters and qdiscs go."""
    wired.guest.ip("link set eth0 down")
    wired.box.run(lambda: tap.unwire_all(tap.DEFAULT_PORTS))
    assert "1 received" in wired.outside.call("ping", "-c1", "-W2", "10.7.0.2").stdout
    assert "ingress" not in wired.box.call("tc", "qdisc", "show").stdout
    assert wired.box.call("cat", "/proc/sys/net/ipv4/ip_local_port_range").stdout.split() == ["32768", "60999"]


def test_unwiring_restores_the_range_of_ports_that_the_namespace_had(wired: Wired) -> None:
    """An engine, or a plugin, may have set another one than the kernel's; one that was set meanwhile stays."""
    wired.box.run(lambda: tap.unwire_all((20000, 29999)))
    assert wired.box.run(tap.get_ports) == (20000, 29999)
    wired.box.run(lambda: tap.unwire_all((30000, 39999)))
    assert wired.box.run(tap.get_ports) == (20000, 29999)


def test_a_range_that_a_killed_vm_has_left_is_not_taken_for_the_namespaces_own(wired: Wired) -> None:
    """Nobody has cleared up after it before the next VM took the namespace."""
    wired.box.run(lambda: tap.unwire_all(tap.RESOLVER_PORTS))
    assert wired.box.run(tap.get_ports) == tap.DEFAULT_PORTS


def test_filters_of_others_are_left_alone(wired: Wired) -> None:
    """A CNI plugin's clsact qdisc and its filter are there before and after."""
    veth(wired.outside, "out2", wired.box, "eth2")
    wired.box.call("tc", "qdisc", "add", "dev", "eth2", "clsact")
    wired.box.call("tc", "filter", "add", "dev", "eth2", "ingress", "prio", "1", "protocol", "ip", "u32",
                   "match", "ip", "dport", "9", "0xffff", "flowid", "1:1")  # fmt: skip
    before = wired.box.call("tc", "filter", "show", "dev", "eth2", "ingress").stdout
    wired.box.run(lambda: tap.wire("eth2", "rv"))
    assert "mirred" in wired.box.call("tc", "filter", "show", "dev", "eth2", "ingress").stdout
    wired.box.run(lambda: tap.unwire("eth2"))
    assert wired.box.call("tc", "filter", "show", "dev", "eth2", "ingress").stdout == before
    assert "clsact" in wired.box.call("tc", "qdisc", "show", "dev", "eth2").stdout


def classifier(namespace: Namespace, interface: str) -> None:
    """An eBPF program that lets everything pass on, as policy agents have one, on an interface's ingress."""
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, -1, 0x95, 0, 0, 0)
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    load = struct.pack("=IIQQ", 3, 2, ctypes.addressof(instructions), ctypes.addressof(licence))
    attributes = ctypes.create_string_buffer(load, 128)
    program = ctypes.CDLL(None).syscall(syscalls.number(steer._SYS_BPF), 5, attributes, 128)
    if program < 0:
        pytest.skip("no eBPF here")
    with namespace.run(netlink.Socket) as sock:
        head = tap._TC.pack(0, links.link(sock, interface).ifindex, 0, tap._INGRESS_SIDE, 1 << 16 | socket.htons(3))
        options = netlink.number(6, program) + netlink.text(7, "policy agent's")
        body = head + netlink.text(1, "bpf") + netlink.attribute(2, options)
        sock.request(tap._NEW_FILTER, netlink.F_CREATE | netlink.F_EXCLUSIVE, body, "add a classifier")
    os.close(program)


def test_a_classifier_of_another_program_is_no_hindrance(wired: Wired) -> None:
    """Its attributes are of another kind: they are neither parsed nor taken away."""
    veth(wired.outside, "out2", wired.box, "eth2")
    wired.box.call("tc", "qdisc", "add", "dev", "eth2", "clsact")
    classifier(wired.box, "eth2")
    for _ in range(2):
        wired.box.run(lambda: tap.wire("eth2", "rv"))
    assert "mirred" in wired.box.call("tc", "filter", "show", "dev", "eth2", "ingress").stdout
    wired.box.run(lambda: tap.unwire_all(tap.DEFAULT_PORTS))
    assert "policy agent's" in wired.box.call("tc", "filter", "show", "dev", "eth2", "ingress").stdout
    assert "mirred" not in wired.box.call("tc", "filter", "show", "dev", "eth2", "ingress").stdout


def test_unwiring_goes_on_after_an_error(wired: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others and the range of ports are as before in any case, and the error is told."""
    unwire = tap.unwire

    def fail(name: str) -> None:
        if name == "lo":
            raise OSError(errno.EIO, "no luck")
        unwire(name)

    monkeypatch.setattr(tap, "unwire", fail)
    with pytest.raises(OSError, match="no luck"):
        wired.box.run(lambda: tap.unwire_all((20000, 29999)))
    assert wired.box.run(tap.get_ports) == (20000, 29999)
    assert wired.box.call("tc", "filter", "show", "dev", "eth0", "ingress").stdout == ""


def test_an_mtu_beyond_a_taps_is_the_taps_greatest() -> None:
    """A veth takes 65535."""
    outside, box = Namespace(), Namespace()
    veth(outside, "out", box, "eth0")
    box.ip("link set eth0 mtu 65535")
    fd = box.run(lambda: tap.create_tap("rvtap0"))
    box.run(lambda: tap.wire("eth0", "rvtap0"))
    assert f"mtu {tap.MAX_MTU}" in box.ip("link show rvtap0")
    os.close(fd)
    outside.close()
    box.close()


def test_wiring_what_is_not_there_says_so(wired: Wired) -> None:
    with pytest.raises(OSError, match="eth7"):
        wired.box.run(lambda: tap.wire("eth7", "rv"))


@pytest.mark.parametrize("address", ["10.9.0.3", "fd09::3"])
def test_a_bridge_is_wired_as_a_single_interface(address: str) -> None:
    """Its parts bring the guest's packets; both ends can begin."""
    outside, box, guest = Namespace(), Namespace(), Namespace()
    veth(outside, "out", box, "eth0")
    veth(box, "rv", guest, "br0")
    box.ip(
        "link add br0 type bridge",
        *("link set eth0 master br0", "link set eth0 up", f"link set br0 address {BOX_MAC}", "link set br0 up"),
    )
    box.ip("link set rv addrgenmode none", "link set rv arp off", "link set rv up", "addr add 10.9.0.3/24 dev br0")
    for namespace, name, last in ((outside, "out", 1), (guest, "br0", 3)):
        namespace.ip(f"addr add 10.9.0.{last}/24 dev {name}", f"addr add fd09::{last}/64 dev {name} nodad")
    guest.ip(f"link set br0 address {BOX_MAC}", "link set br0 up")
    outside.ip("link set out up")
    box.run(lambda: tap.wire("br0", "rv", resolver=True))
    outside.call("ping", "-c", "1", "-W", "5", address)
    guest.call("ping", "-c", "1", "-W", "5", address[:-1] + "1")
    for namespace in (outside, box, guest):
        namespace.close()


def test_macvlan_passes_the_guests_multicast(wired: Wired) -> None:
    """A macvlan interface delivers only groups that its own stack has joined, unless told otherwise."""
    wired.outside.ip("link add mv link out type macvlan mode bridge")
    wired.outside.call("ip", "link", "set", "mv", "netns", f"/proc/{os.getpid()}/fd/{wired.box.fd}")
    wired.box.ip("link set mv name eth3", "link set eth3 up")
    wired.box.run(lambda: tap.wire("eth3", "rv"))
    assert "ALLMULTI" in wired.box.ip("link show eth3")
    monitor = wired.box.run(InterfaceMonitor)
    for _ in range(10):
        wired.box.run(lambda: tap.wire("eth3", "rv"))
        if not select.select([monitor], [], [], 0.2)[0]:
            break
        monitor.drain(Network())  # what a slow host's kernel tells late of the first time
    else:
        pytest.fail("each look at the namespace would be the reason for the next one")
    monitor.close()
    with wired.box.run(netlink.Socket) as sock:
        assert links.link(sock, "eth3").kind == "macvlan"
