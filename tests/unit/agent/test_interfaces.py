"""Changes of single interfaces that the kernel refuses, drops something for, or that meet the container's own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from runvm.agent import network as guest
from runvm.errors import DeadlineError
from runvm.linux import links
from runvm.linux.netlink import Socket
from unit.agent.test_network import CARD, SECOND, Pair
from unit.network.namespaces import Namespace, veth

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    made.box.ip("addr add 172.17.0.2/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1")
    yield made
    made.close()


# --- MTU


def test_an_interface_too_small_for_ipv6_is_set_up(pair: Pair) -> None:
    """Below 1280 the kernel drops an interface's IPv6, whose settings are then refused."""
    pair.box.ip("link set eth0 mtu 1200")
    assert pair.configure({"eth0": CARD}) == []
    pair.assert_alike()


def test_ipv6_goes_and_comes_with_the_mtu(pair: Pair) -> None:
    """The addresses are gone before they are deleted, and come back with their settings and routes."""
    pair.box.ip("addr add fd00::2/64 dev eth0 nodad", "-6 route add fd01::/64 via fd00::1")
    pair.box.call("sysctl", "-w", "net.ipv6.conf.eth0.hop_limit=33")
    assert pair.configure({"eth0": CARD}) == []
    pair.box.ip("link set eth0 mtu 1200")
    assert pair.configure({"eth0": CARD}) == []
    assert "inet6" not in pair.inner.ip("addr show eth0")
    pair.box.ip("link set eth0 mtu 1500", "addr add fd00::2/64 dev eth0 nodad", "-6 route add fd01::/64 via fd00::1")
    pair.box.call("sysctl", "-w", "net.ipv6.conf.eth0.hop_limit=34")
    assert pair.configure({"eth0": CARD}) == []
    pair.assert_alike()
    assert "fd01::/64" in pair.inner.ip("-6 route")


# --- names


def test_a_name_goes_to_a_new_interface(pair: Pair) -> None:
    """An interface is renamed, and another one comes under its old name before anybody has looked."""
    pair.configure({"eth0": CARD})
    pair.plug(SECOND)
    pair.box.ip("link set eth0 down", "link set eth0 name net0", "link set net0 up")
    veth(pair.outside, "out1", pair.box, "eth0")
    pair.outside.ip("link set out1 up")
    pair.box.ip("addr add 172.18.0.2/16 dev eth0", "link set eth0 up")
    assert pair.configure({"net0": CARD, "eth0": SECOND}) == []
    pair.assert_alike()


def test_two_interfaces_swap_their_names(pair: Pair) -> None:
    pair.plug(SECOND)
    veth(pair.outside, "out1", pair.box, "eth1")
    pair.outside.ip("link set out1 up")
    pair.box.ip("addr add 172.18.0.2/16 dev eth1", "link set eth1 up")
    pair.configure({"eth0": CARD, "eth1": SECOND})
    pair.box.ip(
        *("link set eth0 down", "link set eth1 down", "link set eth0 name x", "link set eth1 name eth0"),
        *("link set x name eth1", "link set eth0 up", "link set eth1 up", "route add default via 172.17.0.1"),
    )
    assert pair.configure({"eth1": CARD, "eth0": SECOND}) == []
    pair.assert_alike()


def test_a_name_that_the_container_has_taken_costs_the_name_alone(pair: Pair) -> None:
    """The interface is there under another, with its addresses and routes; later changes reach all of them."""
    pair.configure({"eth0": CARD})
    pair.inner.ip("link add eth1 type veth peer name peer1")
    pair.plug(SECOND)
    veth(pair.outside, "out1", pair.box, "eth1")
    pair.outside.ip("link set out1 up")
    pair.box.ip("addr add 172.18.0.2/16 dev eth1", "link set eth1 up", "route add 10.18.0.0/16 via 172.18.0.1")
    (note,) = pair.configure({"eth0": CARD, "eth1": SECOND})
    assert "File exists" in note
    assert "172.18.0.2/16" in pair.inner.ip("addr show rvnic000001")
    assert "10.18.0.0/16 via 172.18.0.1 dev rvnic000001" in pair.inner.ip("route")
    started = time.monotonic()
    pair.box.ip("addr add 172.17.0.3/16 dev eth0", "addr add 172.18.0.3/16 dev eth1")
    pair.inner.ip("link delete eth1")
    assert pair.configure({"eth0": CARD, "eth1": SECOND}) == []
    assert time.monotonic() - started < 2
    assert "172.17.0.3/16" in pair.inner.ip("addr show eth0")
    assert "172.18.0.3/16" in pair.inner.ip("addr show eth1")


def test_an_interface_that_the_container_has_renamed_follows_the_hosts(pair: Pair) -> None:
    """It keeps the container's name until the host gives it a new one."""
    pair.configure({"eth0": CARD})
    pair.inner.ip("link set eth0 down", "link set eth0 name mine", "link set mine up")
    pair.box.ip("addr add 172.17.0.3/16 dev eth0", "route add 10.5.0.0/16 via 172.17.0.9")
    assert pair.configure({"eth0": CARD}) == []
    assert "172.17.0.3/16" in pair.inner.ip("addr show mine")
    assert "10.5.0.0/16" in pair.inner.ip("route show dev mine")
    pair.box.ip("link set eth0 down", "link set eth0 name lan0", "link set lan0 up")
    assert pair.configure({"lan0": CARD}) == []
    pair.assert_alike()


def test_an_interface_that_the_container_has_moved_is_no_hindrance(pair: Pair) -> None:
    """A note tells; others are set up, and no NIC is waited for again."""
    pair.configure({"eth0": CARD})
    away = Namespace()
    with pair.inner.run(Socket) as sock:
        link = links.link(sock, "eth0")
        links.set_link(sock, link.ifindex, namespace=away.fd)
    pair.plug(SECOND)
    veth(pair.outside, "out1", pair.box, "eth1")
    pair.box.ip("addr add 172.17.0.3/16 dev eth0", "addr add 172.18.0.2/16 dev eth1", "link set eth1 up")
    notes = "\n".join(pair.configure({"eth0": CARD, "eth1": SECOND}))
    assert "interface eth0 can't be set up" in notes
    assert "172.18.0.2/16" in pair.inner.ip("addr show eth1")
    started = time.monotonic()
    pair.box.ip("addr add 172.18.0.3/16 dev eth1")
    pair.configure({"eth0": CARD, "eth1": SECOND})
    assert time.monotonic() - started < 2
    assert "172.18.0.3/16" in pair.inner.ip("addr show eth1")
    away.close()


def test_one_refused_address_does_not_cost_the_others(pair: Pair) -> None:
    """It is told, and what comes after it is set up; so are all later changes."""
    found = pair.scan({"eth0": CARD})
    (eth0,) = found.interfaces
    bad = eth0.addresses[0]._replace(address="172.17.0.9", prefix=77)
    broken = found._replace(interfaces=(eth0._replace(addresses=(bad, *eth0.addresses)),))
    (note,) = pair.vm.run(lambda: guest.configure("c1", broken, deadline=time.monotonic() + 1))
    assert "add address 172.17.0.9/77" in note
    assert "default via 172.17.0.1" in pair.inner.ip("route")
    pair.box.ip("addr add 172.17.0.3/16 dev eth0")
    assert len(pair.configure({"eth0": CARD})) <= 1  # that the bad one can't be deleted either
    pair.assert_alike()


def test_a_card_that_does_not_come_is_waited_for_once(pair: Pair) -> None:
    """All else is set up meanwhile, and the card when it has come at last."""
    veth(pair.outside, "out1", pair.box, "eth1")
    pair.box.ip("addr add 172.18.0.2/16 dev eth1", "link set eth1 up")
    with pytest.raises(DeadlineError, match=f"{SECOND} for eth1"):
        pair.configure({"eth0": CARD, "eth1": SECOND}, timeout=0.2)
    assert "default via 172.17.0.1" in pair.inner.ip("route")
    started = time.monotonic()
    pair.box.ip("addr add 172.17.0.3/16 dev eth0")
    pair.configure({"eth0": CARD, "eth1": SECOND}, timeout=30)
    assert time.monotonic() - started < 5
    assert "172.17.0.3/16" in pair.inner.ip("addr show eth0")
    pair.plug(SECOND)
    pair.outside.ip("link set out1 up")
    pair.box.ip("addr add 172.17.0.4/16 dev eth0")
    pair.configure({"eth0": CARD, "eth1": SECOND})
    pair.assert_alike()


# --- addresses and neighbours


def test_what_belongs_to_an_interface_stays_when_its_only_address_changes(pair: Pair) -> None:
    """With its last IPv4 address an interface loses routes and neighbours: the new one comes first."""
    pair.box.ip("neigh add 172.17.0.7 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent")
    pair.configure({"eth0": CARD})
    pair.inner.ip("route add 10.55.0.0/16 dev eth0")
    pair.box.ip("addr add 10.9.0.2/24 dev eth0", "addr del 172.17.0.2/16 dev eth0")
    assert pair.configure({"eth0": CARD}) == []
    assert "10.55.0.0/16" in pair.inner.ip("route")
    pair.inner.ip("route del 10.55.0.0/16")
    pair.assert_alike()


def test_permanent_neighbours_survive_a_change_within_one_network(pair: Pair) -> None:
    """There the kernel drops the new address with the old one, and all neighbours."""
    pair.box.call("sysctl", "-w", "net.ipv4.conf.eth0.promote_secondaries=1")
    pair.configure({"eth0": CARD})
    pair.inner.call("sysctl", "-w", "net.ipv4.conf.eth0.promote_secondaries=0")
    pair.box.ip(
        *("addr add 172.17.0.3/16 dev eth0", "neigh add 172.17.0.7 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent"),
    )
    pair.configure({"eth0": CARD})
    pair.box.ip("addr del 172.17.0.2/16 dev eth0")
    assert pair.configure({"eth0": CARD}) == []
    assert "172.17.0.7 lladdr ee:ee:ee:ee:ee:ee PERMANENT" in pair.inner.ip("neigh show dev eth0")
    assert "172.17.0.3/16" in pair.inner.ip("addr show dev eth0")
    assert "default via 172.17.0.1" in pair.inner.ip("route")


def six(namespace: Namespace) -> list[str]:
    lines = [line.split() for line in namespace.ip("-6 addr show dev eth0").splitlines()]
    return [f"{line[1]} {'deprecated' in line}" for line in lines if line[0] == "inet6"]


def test_ipv6_addresses_have_the_hosts_order_and_age(pair: Pair) -> None:
    """Which one a connection comes from hangs on both."""
    pair.box.ip(
        *("addr add fd00::2/64 dev eth0 nodad", "addr add fd00::3/64 dev eth0 nodad"),
        *("addr add fd00::4/64 dev eth0 nodad preferred_lft 0", "addr add 2001:db8::1/64 dev eth0 nodad"),
    )
    assert pair.configure({"eth0": CARD}) == []
    assert six(pair.inner) == six(pair.box)
    pair.inner.ip("-6 route add fd77::/64 via fd00::9 src fd00::3")
    pair.box.ip(
        *("addr add fd00::5/64 dev eth0 nodad", "addr change fd00::3/64 dev eth0 preferred_lft 0"),
        *("addr change fd00::4/64 dev eth0 preferred_lft forever",),
    )
    assert pair.configure({"eth0": CARD}) == []
    assert six(pair.inner) == six(pair.box)
    assert "fd77::/64" in pair.inner.ip("-6 route")


def test_an_interface_without_arp_has_none_in_the_guest(pair: Pair) -> None:
    pair.box.ip("link set eth0 arp off")
    assert pair.configure({"eth0": CARD}) == []
    assert "NOARP" in pair.inner.ip("link show eth0")
    pair.box.ip("link set eth0 arp on")
    pair.configure({"eth0": CARD})
    assert "NOARP" not in pair.inner.ip("link show eth0")


def test_what_the_container_has_changed_stays(pair: Pair) -> None:
    """A change of something else on the host doesn't undo it; one of the same does."""
    pair.configure({"eth0": CARD})
    pair.inner.ip("link set eth0 mtu 1400", "link set eth0 txqueuelen 50")
    pair.inner.call("sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=2", "net.ipv6.conf.eth0.hop_limit=9")
    pair.box.ip("addr add 172.17.0.3/16 dev eth0")
    pair.configure({"eth0": CARD})
    shown = pair.inner.ip("addr show eth0")
    assert "172.17.0.3/16" in shown
    assert "mtu 1400" in shown
    assert "qlen 50" in shown
    read = pair.inner.call("sysctl", "-n", "net.ipv4.conf.eth0.rp_filter", "net.ipv6.conf.eth0.hop_limit").stdout
    assert read.split() == ["2", "9"]
    pair.box.ip("link set eth0 mtu 1300")
    pair.configure({"eth0": CARD})
    assert "mtu 1300" in pair.inner.ip("link show eth0")
