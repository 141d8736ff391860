"""The wire format: what is malformed is refused, what the kernel says is told."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runvm.linux import links, netlink, routing
from runvm.linux.netlink import Message, NetlinkError
from runvm.linux.routing import Address, Neighbour, Route
from unit.network.namespaces import Namespace

root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def box() -> Iterator[Namespace]:
    """A namespace with nothing but lo."""
    namespace = Namespace()
    yield namespace
    namespace.close()


def test_attributes_are_read_as_they_are_written() -> None:
    data = netlink.text(3, "eth0") + netlink.number(4, 1500) + netlink.attribute(1 | 0x8000, b"abc")
    found = netlink.attributes(data)
    assert (netlink.read_text(found, 3), netlink.read_number(found, 4), found[1]) == ("eth0", 1500, b"abc")
    assert netlink.read_number(found, 9, 7) == 7


@pytest.mark.parametrize("data", [b"\x03\0\1\0", b"\x08\0\1\0abc", b"\0\0\0\0", b"\xff\xff\1\0"])
def test_an_attribute_that_runs_past_its_end_is_refused(data: bytes) -> None:
    with pytest.raises(NetlinkError, match="past"):
        netlink.attributes(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    """No other error, no endless loop."""
    try:
        for message in netlink.split(data):
            netlink.attributes(message.body)
        netlink.attributes(data)
        links._parse(Message(16, 0, data))
    except NetlinkError:
        pass


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_message_of_a_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(NetlinkError, match="past"):
        netlink.split(struct.pack("=IHHII", length, 16, 0, 1, 1))


@pytest.mark.parametrize("mac", ["", "02:00:00:00:00", "02:00:00:00:00:0g", "020000000000", "02:00:00:00:00:00:00"])
def test_a_bad_mac_is_refused(mac: str) -> None:
    with pytest.raises(NetlinkError, match="MAC"):
        netlink.mac_bytes(mac)


@pytest.mark.parametrize("destination", ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/-1", "fd00::/64", "/8"])
def test_a_bad_destination_is_refused(destination: str) -> None:
    with pytest.raises(NetlinkError):
        routing.prefix_bytes(2, destination)


@root
def test_lo_is_found(box: Namespace) -> None:
    with box.run(netlink.Socket) as sock:
        lo = links.link(sock, "lo")
        assert (lo.ifindex, lo.hardware, lo.name) == (1, links.LOOPBACK, "lo")
        assert lo in links.links(sock)
        assert any(a.address == "127.0.0.1" and ifindex == 1 for ifindex, a in routing.addresses(sock))


@root
def test_an_error_names_the_operation_and_what_the_kernel_says(box: Namespace) -> None:
    """The kernel's own words are in it, where it has any."""
    with box.run(netlink.Socket) as sock:
        with pytest.raises(NetlinkError, match=r"look for interface nosuch0: No such device") as caught:
            links.link(sock, "nosuch0")
        assert caught.value.errno == errno.ENODEV
        bad = Route(2, "10.0.0.0/8", "10.255.255.254", "lo", "", 0, 0, 99, 9999, 4, False, 0, (), ())
        with pytest.raises(NetlinkError, match=r"add route 10\.0\.0\.0/8 via 10\.255\.255\.254 dev lo: .* \(.+\)"):
            routing.add_route(sock, bad, {"lo": 1})
        with pytest.raises(NetlinkError, match="no interface 'eth9'"):
            routing.add_route(sock, bad._replace(device="eth9"), {"lo": 1})
        # the socket is in step after errors
        assert links.link(sock, "lo").ifindex == 1


@root
def test_what_is_there_or_gone_already_is_no_error(box: Namespace) -> None:
    address = Address(2, "127.77.0.1", 32, "", "", 254, 0, "", 0)
    neighbour = Neighbour(2, "127.77.0.9", "", True)
    route = Route(2, "127.78.0.0/24", "", "lo", "", 0, 253, 1, 7777, 4, False, 0, (), ())
    with box.run(netlink.Socket) as sock:
        for _ in range(2):
            routing.add_address(sock, 1, address)
            routing.add_route(sock, route, {"lo": 1})
            routing.set_neighbour(sock, 1, neighbour)
        for _ in range(2):
            routing.delete_address(sock, 1, address)
            routing.delete_route(sock, route, {"lo": 1})
            routing.delete_neighbour(sock, 1, neighbour)


@root
def test_a_monitor_that_lost_messages_says_so(box: Namespace) -> None:
    """ENOBUFS: what was lost can only be read anew."""
    with (
        box.run(lambda: netlink.Socket(netlink.GROUP_IPV4_ADDRESS)) as monitor,
        box.run(netlink.Socket) as sock,
    ):
        address = Address(2, "127.77.0.1", 32, "", "", 254, 0, "", 0)
        for _ in range(3000):
            routing.add_address(sock, 1, address)
            routing.delete_address(sock, 1, address)
        with pytest.raises(OSError) as caught:
            monitor.drain()
        assert caught.value.errno == errno.ENOBUFS
