"""The agent's side on real namespaces: `vm` stands for the guest's own, its cards are veth ends."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator

import pytest

from runvm.agent import network as guest
from runvm.errors import DeadlineError
from runvm.network import scan
from runvm.protocol.interfaces import Interface, Network, from_json, to_json
from unit.network.namespaces import Namespace, veth

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

CARD = "02:72:76:00:00:00"
SECOND = "02:72:76:00:00:01"


class Pair:
    """The container's namespace on the host, and a guest with a namespace `c1` that is to look like it."""

    def __init__(self) -> None:
        self.outside, self.box, self.vm = Namespace(), Namespace(), Namespace()
        veth(self.outside, "out0", self.box, "eth0")
        self.outside.ip("link set out0 up")
        self.plug(CARD)
        self.vm.run(lambda: guest.make_namespace("c1"))
        self.fd = guest.open_namespace("c1")
        self.inner = Namespace.__new__(Namespace)
        self.inner.fd = self.fd

    def plug(self, mac: str) -> None:
        """A card comes up in the guest, as by device_add."""
        name = f"tap{mac[-2:]}"
        veth(self.outside, name, self.vm, f"card{mac[-2:]}")
        self.outside.ip(f"link set {name} up")
        self.vm.ip(f"link set card{mac[-2:]} address {mac}")

    def scan(self, cards: dict[str, str]) -> Network:
        """The host's network, as it comes over the wire with the cards assigned."""
        found = self.box.run(scan.scan)
        interfaces = tuple(interface._replace(nic=cards[interface.name]) for interface in found.interfaces)
        return from_json(json.loads(json.dumps(to_json(found._replace(interfaces=interfaces)))))

    def configure(self, cards: dict[str, str], *, timeout: float = 5) -> list[str]:
        network = self.scan(cards)
        return self.vm.run(lambda: guest.configure("c1", network, deadline=time.monotonic() + timeout))

    def assert_alike(self) -> None:
        """A scan of the guest's namespace finds what a scan of the host's does."""
        here, there = self.inner.run(scan.scan), self.box.run(scan.scan)
        assert stripped(here) == stripped(there)
        assert sorted(here.routes) == sorted(there.routes)
        assert here[2:5] == there[2:5]

    def close(self) -> None:
        os.close(self.fd)
        self.vm.run(lambda: guest.remove_namespace("c1"))
        for namespace in (self.outside, self.box, self.vm):
            namespace.close()


def stripped(network: Network) -> list[Interface]:
    """Its interfaces by name, without what differs by nature."""
    made = [item._replace(ifindex=0, addresses=tuple(sorted(item.addresses))) for item in network.interfaces]
    return sorted(made, key=lambda item: item.name)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_a_new_namespace_has_lo_up(pair: Pair) -> None:
    assert pair.inner.names() == {"lo"}
    shown = pair.inner.ip("addr show lo")
    assert "LOOPBACK,UP" in shown
    assert "127.0.0.1/8" in shown
    assert "::1/128" in shown


def test_the_namespace_has_a_path_and_goes_with_its_name() -> None:
    """crun joins it by path."""
    made = os.fstat(guest.make_namespace("one")).st_ino
    assert os.stat(guest.path("one")).st_ino == made
    fd = guest.open_namespace("one")
    assert os.fstat(fd).st_ino == made
    os.close(fd)
    with pytest.raises(FileExistsError):
        guest.make_namespace("one")
    guest.remove_namespace("one")
    guest.remove_namespace("one")
    with pytest.raises(FileNotFoundError):
        guest.path("one")


def test_a_namespace_made_in_advance_is_used() -> None:
    spare = os.fstat(guest.prepare()).st_ino
    guest.make_namespace("one")
    assert os.stat(guest.path("one")).st_ino == spare
    guest.remove_namespace("one")


@pytest.fixture
def prepared(pair: Pair) -> Pair:
    """As a VM from a template starts: the first card is in the namespace already."""
    pair.vm.run(lambda: guest.remove_namespace("c1"))
    os.close(pair.fd)
    pair.vm.run(lambda: guest.prepare((CARD, SECOND)))
    pair.vm.run(lambda: guest.make_namespace("c1", (CARD,)))
    pair.fd = pair.inner.fd = guest.open_namespace("c1")
    return pair


def test_a_card_moved_in_advance_is_used(prepared: Pair) -> None:
    """Whatever its interface is called, and beside one that another interface of its name needs."""
    assert prepared.inner.names() == {"lo", "eth0"}
    veth(prepared.outside, "out1", prepared.box, "eth1")
    prepared.plug(SECOND)
    prepared.box.ip("link set eth0 up", "addr add 172.17.0.2/16 dev eth0", "addr add 172.18.0.2/16 dev eth1")
    prepared.configure({"eth1": CARD, "eth0": SECOND})
    prepared.assert_alike()


def test_a_card_moved_in_advance_goes_where_it_is_not_wanted(prepared: Pair) -> None:
    """A container without a network sees lo only, and the card is there for a later one."""
    prepared.vm.run(lambda: guest.configure("c1", Network(), deadline=time.monotonic() + 1))
    assert prepared.inner.names() == {"lo"}
    assert prepared.vm.names() == {"lo", "rvnic000000"}
    prepared.configure({"eth0": CARD})
    prepared.assert_alike()


def test_a_container_without_a_network_leaves_the_card_that_was_moved_in_advance(pair: Pair) -> None:
    """Its namespace is another; once it is connected to a network, it gets the card from where that waits."""
    pair.vm.run(lambda: guest.remove_namespace("c1"))
    os.close(pair.fd)
    waiting = pair.vm.run(lambda: guest.prepare((CARD,)))
    bare = os.fstat(pair.vm.run(guest.prepare)).st_ino
    pair.vm.run(lambda: guest.make_namespace("c1"))
    pair.fd = pair.inner.fd = guest.open_namespace("c1")
    assert os.fstat(pair.fd).st_ino == bare
    pair.vm.run(lambda: guest.configure("c1", Network(), deadline=time.monotonic() + 1))
    assert pair.inner.names() == {"lo"}
    pair.box.ip("addr add 172.17.0.2/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1")
    pair.configure({"eth0": CARD})
    pair.assert_alike()
    other = pair.vm.run(lambda: guest.make_namespace("c2"))
    assert os.fstat(other).st_ino == os.fstat(waiting).st_ino
    pair.vm.run(lambda: guest.remove_namespace("c2"))


def test_the_guest_gets_what_the_host_has(pair: Pair) -> None:
    """Name, MAC, MTU, addresses of both families, every kind of route, rules, neighbours and settings."""
    pair.box.ip(
        "link set eth0 address 02:42:ac:11:00:02 mtu 1400 txqueuelen 77",
        "addr add 172.17.0.2/16 broadcast 172.17.255.255 dev eth0",
        "addr add 172.17.0.3/16 dev eth0 noprefixroute metric 5",
        "addr add 10.5.0.1 peer 10.5.0.2/32 dev eth0",
        "addr add fd00::2/64 dev eth0 nodad",
        "addr add 10.200.0.1/32 dev lo",
        "link set eth0 up",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
        "route add 10.6.0.0/16 via 192.168.9.9 dev eth0 onlink mtu 1300",
        "route add 10.7.0.0/16 nexthop via 172.17.0.5 weight 2 nexthop via 172.17.0.6",
        "route add 10.9.0.0/16 via inet6 fe80::9 dev eth0",
        "route add blackhole 10.8.0.0/16 metric 9",
        "route add default via 172.17.0.9 table 1000 src 172.17.0.2",
        "-6 route add default via fe80::1 dev eth0 metric 7 pref high",
        "-6 route add unreachable fd55::/16",
        "rule add from 172.17.0.2 fwmark 0x10/0xf0 table 1000 priority 500",
        "-6 rule add not to fd00::/64 iif eth0 table 1000 suppress_prefixlength 0 priority 600",
        "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
        "neigh add fd00::7 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
        "neigh add proxy 10.5.0.9 dev eth0",
    )
    pair.box.call("sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=2", "net.ipv4.ip_forward=1",
                  "net.ipv6.conf.eth0.hop_limit=33", "net.ipv6.conf.all.forwarding=1")  # fmt: skip
    assert pair.configure({"eth0": CARD}) == []
    pair.assert_alike()
    assert pair.vm.names() == {"lo"}
    assert "tentative" not in pair.inner.ip("-6 addr show")


def test_other_numbers_on_the_host_alone_take_nothing_down(pair: Pair) -> None:
    """A restored VM's interfaces have other indexes on their new host: the card stays up where it is, and what has
    changed besides is set."""
    pair.box.ip("address add 10.1.0.2/24 dev eth0")
    pair.box.ip("link set eth0 up")
    pair.configure({"eth0": CARD})
    pair.inner.ip("route add 10.55.0.0/16 dev eth0")  # the kernel drops it with the interface's going down
    pair.box.ip("address add 10.1.0.3/24 dev eth0")
    found = pair.scan({"eth0": CARD})
    elsewhere = tuple(interface._replace(ifindex=interface.ifindex + 100) for interface in found.interfaces)
    moved = found._replace(interfaces=elsewhere)
    pair.vm.run(lambda: guest.configure("c1", moved, deadline=time.monotonic() + 5))
    assert "10.55.0.0/16" in pair.inner.ip("route show")
    assert "10.1.0.3/24" in pair.inner.ip("address show dev eth0")


def test_a_card_keeps_its_queue(pair: Pair) -> None:
    """Docker's veths have none; a card without one drops what its ring can't take."""
    pair.box.ip("link set eth0 txqueuelen 0", "link set eth0 up")
    pair.configure({"eth0": CARD})
    assert "qlen 1000" in pair.inner.ip("link show eth0")


def test_ipv6_switched_off_on_the_host_is_off_in_the_guest(pair: Pair) -> None:
    """Docker does that for networks without IPv6."""
    pair.box.call("sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1")
    pair.box.ip("addr add 172.17.0.2/16 dev eth0", "link set eth0 up")
    pair.configure({"eth0": CARD})
    assert pair.inner.ip("-6 addr show") == ""
    pair.assert_alike()


def test_an_interface_that_is_down_stays_down_until_the_hosts_goes_up(pair: Pair) -> None:
    pair.box.ip("addr add 172.17.0.2/16 dev eth0")
    pair.configure({"eth0": CARD})
    pair.assert_alike()
    pair.box.ip("link set eth0 up", "route add default via 172.17.0.1")
    pair.configure({"eth0": CARD})
    pair.assert_alike()


def test_the_containers_own_link_local_address_comes_back(pair: Pair) -> None:
    """Taking the interface down and up in the container makes the kernel's link-local address anew, as on the host."""
    pair.box.ip("link set eth0 up")
    pair.configure({"eth0": CARD})
    assert "fe80" in pair.inner.ip("-6 addr show eth0")
    pair.inner.ip("link set eth0 down")
    assert "fe80" not in pair.inner.ip("-6 addr show eth0")
    pair.inner.ip("link set eth0 up")
    assert "fe80" in pair.inner.ip("-6 addr show eth0")


def test_a_network_is_connected_and_disconnected(pair: Pair) -> None:
    """The second card is plugged in after the request came; what the container added itself stays."""
    pair.box.ip("addr add 172.17.0.2/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1")
    pair.configure({"eth0": CARD})
    pair.inner.ip("addr add 10.77.0.1/24 dev eth0", "route add 10.78.0.0/16 via 10.77.0.9")
    veth(pair.outside, "out1", pair.box, "eth1")
    pair.outside.ip("link set out1 up")
    pair.box.ip("addr add 172.18.0.2/16 dev eth1", "link set eth1 up", "route add 10.18.0.0/16 via 172.18.0.1")
    late = threading.Timer(0.2, pair.plug, (SECOND,))
    late.start()
    pair.configure({"eth0": CARD, "eth1": SECOND})
    late.join()
    assert "172.18.0.2/16" in pair.inner.ip("addr show eth1")
    assert "10.18.0.0/16" in pair.inner.ip("route")
    pair.box.ip("link delete eth1", "route add 10.19.0.0/16 via 172.17.0.5")
    pair.configure({"eth0": CARD})
    assert pair.inner.names() == {"lo", "eth0"}
    assert pair.vm.names() == {"lo", "rvnic000001"}
    assert SECOND in pair.vm.ip("link show rvnic000001")
    routes = pair.inner.ip("route")
    assert "10.78.0.0/16" in routes
    assert "10.19.0.0/16" in routes
    assert "10.18.0.0/16" not in routes
    # the same card serves the next network
    veth(pair.outside, "out2", pair.box, "eth2")
    pair.configure({"eth0": CARD, "eth2": SECOND})
    assert pair.inner.names() == {"lo", "eth0", "eth2"}


def test_the_hosts_changes_are_followed(pair: Pair) -> None:
    """New name, MAC, MTU, addresses and routes of an interface that is in use."""
    pair.box.ip(
        "addr add 172.17.0.2/16 dev eth0",
        "addr add 172.17.0.3/16 dev eth0",
        "addr add 10.4.0.1/16 dev eth0 label eth0:9",
        "link set eth0 up",
        "route add default via 172.17.0.1",
        "neigh add 172.17.0.7 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
        "rule add to 10.0.0.1 table 254 priority 9",
    )
    pair.configure({"eth0": CARD})
    pair.assert_alike()
    pair.box.ip(
        "link set eth0 down",
        "link set eth0 name lan0",
        "link set lan0 address 02:00:00:00:00:09 mtu 1300 up",
        "addr add 172.19.0.2/16 dev lan0 label lan0:1",
        "addr del 172.17.0.2/16 dev lan0",
        "route add default via 172.19.0.1",
        "rule del priority 9",
    )
    pair.configure({"lan0": CARD})
    pair.assert_alike()


def test_a_card_that_does_not_come_is_named(pair: Pair) -> None:
    """At the deadline, not later."""
    veth(pair.outside, "out1", pair.box, "eth1")
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=f"{SECOND} for eth1"):
        pair.configure({"eth0": CARD, "eth1": SECOND}, timeout=0.3)
    assert time.monotonic() - started < 1


def test_cards_come_back_when_the_namespace_is_removed(pair: Pair) -> None:
    """For the next container of this VM."""
    pair.box.ip("addr add 172.17.0.2/16 dev eth0", "link set eth0 up")
    pair.configure({"eth0": CARD})
    pair.vm.run(lambda: guest.remove_namespace("c1"))
    assert pair.vm.names() == {"lo", "rvnic000000"}
    pair.vm.run(lambda: guest.make_namespace("c1"))
    pair.configure({"eth0": CARD})


def test_a_bad_route_is_named(pair: Pair) -> None:
    """The note says which, and what the kernel says; the rest is set."""
    network = pair.scan({"eth0": CARD})
    pair.box.ip("addr add 172.17.0.2/16 dev eth0", "link set eth0 up", "route add 10.1.0.0/16 via 172.17.0.1")
    found = pair.scan({"eth0": CARD})
    broken = network._replace(routes=(*found.routes, found.routes[0]._replace(destination="10.2.0.0/16", gateway="")))
    notes = pair.vm.run(lambda: guest.configure("c1", broken, deadline=time.monotonic() + 1))
    assert notes[0].startswith("add route 10.2.0.0/16 dev eth0: Network is down"), notes


def test_a_prefix_route_that_was_replaced_is_not_in_the_guest(pair: Pair) -> None:
    """The network behind a gateway that is in it: some clouds set that up, for both families."""
    pair.box.ip(
        "link set eth0 up",
        "addr add 10.8.1.185/24 dev eth0",
        "route del 10.8.1.0/24 dev eth0",
        "route add 10.8.1.1 dev eth0",
        "route add 10.8.1.0/24 via 10.8.1.1",
        "addr add 10.9.0.1/24 dev eth0",
        "route del 10.9.0.0/24 dev eth0",
        "addr add 10.10.0.1/24 dev eth0",
        "addr add 10.10.0.2/24 dev eth0",
        "addr add fd00::2/64 dev eth0 nodad",
        "-6 route del fd00::/64 dev eth0",
        "-6 route add fd00::1 dev eth0",
        "-6 route add fd00::/64 via fd00::1 dev eth0",
    )
    assert pair.configure({"eth0": CARD}) == []
    for family in ("-4", "-6"):
        assert table(pair.inner, family) == table(pair.box, family)
    # it comes back, and another one goes
    pair.box.ip("route del 10.8.1.0/24 via 10.8.1.1", "route add 10.8.1.0/24 dev eth0 proto kernel scope link src "
                "10.8.1.185", "route del 10.10.0.0/24 dev eth0")  # fmt: skip
    assert pair.configure({"eth0": CARD}) == []
    assert table(pair.inner, "-4") == table(pair.box, "-4")


def table(namespace: Namespace, family: str) -> list[str]:
    """All its unicast routes, of every table but the local one."""
    lines = namespace.ip(f"{family} route show table all").splitlines()
    return sorted(" ".join(line.split()) for line in lines if "table local" not in line and "multicast" not in line)


def test_routes_of_every_kind_are_the_hosts(pair: Pair) -> None:
    """Several in one place, a type of service, an origin, nexthop objects, metrics, a gateway nothing leads to."""
    pair.box.ip(
        "link set eth0 up",
        "addr add 172.17.0.2/16 dev eth0",
        "addr add fd00::2/64 dev eth0 nodad",
        "route add 10.1.0.0/16 via 172.17.0.1",
        "route append 10.1.0.0/16 via 172.17.0.9",
        "route add 10.1.0.0/16 via 172.17.0.5 tos 0x10",
        "route add 10.1.0.0/16 via 172.17.0.6 metric 50",
        "route add 10.3.0.0/16 via 172.17.0.1 mtu lock 1300 advmss 900 initcwnd 20 quickack 1",
        "route add throw 10.4.0.0/16 table 77",
        "route add prohibit 10.4.0.0/16",
        "route add local 10.5.0.0/16 dev lo table 78",
        "nexthop add id 5 via 172.17.0.7 dev eth0",
        "route add 10.6.0.0/16 nhid 5",
        "-6 route add fd01::/64 from fd00::2/128 via fd00::1 dev eth0",
        "route add 192.168.1.1 dev eth0",
        "route add 10.7.0.0/16 via 192.168.1.1",
        "route del 192.168.1.1 dev eth0",
    )
    assert pair.configure({"eth0": CARD}) == []
    plain = [line.replace(" nhid 5", "") for line in table(pair.box, "-4")]
    assert [line.replace(" onlink", "") for line in table(pair.inner, "-4")] == plain
    assert table(pair.inner, "-6") == table(pair.box, "-6")


def test_rules_are_the_hosts(pair: Pair) -> None:
    """Those of users, ports and protocols too; the kernel's own where they have been moved or removed."""
    pair.box.ip(
        "link set eth0 up",
        "rule add uidrange 1-5 table 1000 priority 501",
        "rule add ipproto tcp dport 80-90 table 1000 priority 502",
        "rule add sport 53 table 1000 priority 503",
        "rule add from all goto 32766 priority 504",
        "rule add from all lookup local priority 100",
        "rule del priority 0",
        "rule del priority 32767",
        "-6 rule add from fd00::1 prohibit priority 7",
    )
    assert pair.configure({"eth0": CARD}) == []
    for family in ("-4", "-6"):
        assert pair.inner.ip(f"{family} rule") == pair.box.ip(f"{family} rule")
    pair.box.ip("rule add from all lookup local priority 0", "rule del priority 100", "rule del priority 503")
    assert pair.configure({"eth0": CARD}) == []
    assert pair.inner.ip("-4 rule") == pair.box.ip("-4 rule")


def test_what_cannot_be_carried_over_is_told(pair: Pair) -> None:
    """Each by its name."""
    pair.box.ip(
        "link set eth0 up",
        "addr add 172.17.0.2/16 dev eth0",
        "route add 10.1.0.0/16 via 172.17.0.1 congctl reno",
        "route add 10.2.0.0/16 via 172.17.0.1 realm 3",
        "link add link eth0 name mv0 type macvlan",
        "link set mv0 up",
        "addr add 172.30.0.1/16 dev mv0",
        "route add 10.3.0.0/16 via 172.30.0.2",
        "rule add from 10.0.0.1 realms 3 table 99 priority 9",
    )
    notes = "\n".join(pair.configure({"eth0": CARD}))
    assert "route 10.1.0.0/16 via 172.17.0.1 dev eth0 is not handed over: it has a congestion control" in notes
    assert "route 10.2.0.0/16 via 172.17.0.1 dev eth0 is not handed over: it has realms" in notes
    assert "route 10.3.0.0/16 via 172.30.0.2 dev mv0 is not handed over: its interface mv0 isn't" in notes
    assert "routing rule 9 is not handed over" in notes


def test_a_route_of_the_containers_own_in_its_place_is_told(pair: Pair) -> None:
    """That there is one already doesn't mean that it is the right one."""
    pair.box.ip("link set eth0 up", "addr add 172.17.0.2/16 dev eth0")
    pair.configure({"eth0": CARD})
    pair.inner.ip("route add 10.1.0.0/16 via 172.17.0.99")
    pair.box.ip("route add 10.1.0.0/16 via 172.17.0.1")
    (note,) = pair.configure({"eth0": CARD})
    assert "add route 10.1.0.0/16 via 172.17.0.1 dev eth0: File exists" in note


def test_sysctls_of_the_hosts_namespace_are_the_guests(pair: Pair) -> None:
    """They come, change and go; what the container has set beside them stays, and what is refused is a note."""
    names = ("net.core.somaxconn", "net.ipv4.tcp_keepalive_time", "net.ipv4.conf.all.arp_ignore", "net.ipv4.tcp_wmem")

    def read(namespace: Namespace) -> list[str]:
        return namespace.call("sysctl", "-n", *names).stdout.split("\n")

    usual = read(pair.inner)
    pair.box.call("sysctl", "-w", "net.core.somaxconn=777", "net.ipv4.tcp_keepalive_time=120",
                  "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.tcp_wmem=4096 20000 100000")  # fmt: skip
    assert pair.configure({"eth0": CARD}) == []
    assert read(pair.inner) == read(pair.box)
    pair.inner.call("sysctl", "-w", "net.ipv4.conf.all.arp_ignore=2", "net.ipv4.conf.all.rp_filter=2")
    pair.box.call("sysctl", "-w", "net.core.somaxconn=778", "net.ipv4.ip_forward=1")
    assert pair.configure({"eth0": CARD}) == []
    assert read(pair.inner)[:3] == ["778", "120", "2"]
    assert pair.inner.call("sysctl", "-n", "net.ipv4.conf.all.rp_filter").stdout == "2\n"
    assert pair.inner.call("sysctl", "-n", "net.ipv4.ip_forward").stdout == "1\n"
    pair.box.call("sysctl", "-w", f"net.core.somaxconn={usual[0]}", f"net.ipv4.tcp_keepalive_time={usual[1]}",
                  "net.ipv4.conf.all.arp_ignore=0", f"net.ipv4.tcp_wmem={usual[3]}")  # fmt: skip
    assert pair.configure({"eth0": CARD}) == []
    assert read(pair.inner) == usual
    found = pair.scan({"eth0": CARD})
    odd = (*found.settings, ("ipv4/tcp_congestion_control", "nosuch"), ("../kernel/hostname", "x"))
    (note,) = pair.vm.run(lambda: guest.configure("c1", found._replace(settings=odd), deadline=time.monotonic() + 1))
    assert "set ipv4/tcp_congestion_control to nosuch" in note


def test_routes_of_rare_kinds_are_set(pair: Pair) -> None:
    """Multicast, broadcast and anycast ones, and a nexthop object's blackhole."""
    pair.box.ip(
        "link set eth0 up",
        "addr add 172.17.0.2/16 dev eth0",
        "addr add fd00::2/64 dev eth0 nodad",
        "route add multicast 239.0.0.0/8 dev eth0",
        "route add broadcast 10.77.255.255 dev eth0",
        "-6 route add anycast fd00::77 dev eth0",
        "nexthop add id 9 blackhole",
        "route add 10.66.0.0/16 nhid 9",
    )
    assert pair.configure({"eth0": CARD}) == []
    pair.assert_alike()
