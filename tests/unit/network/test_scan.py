"""What is read from a namespace that an engine has filled."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator

import pytest

from runvm.network import scan, tap
from runvm.network.scan import InterfaceMonitor
from runvm.protocol.interfaces import Interface, Network, changes, from_json, to_json
from unit.network.namespaces import Namespace, veth

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


def scanned(namespace: Namespace) -> Network:
    """The network, which also stands its way over the wire."""
    network = namespace.run(scan.scan)
    assert from_json(json.loads(json.dumps(to_json(network)))) == network
    return network


def only(network: Network) -> Interface:
    (interface,) = network.interfaces
    return interface


def test_an_empty_namespace_has_no_interfaces() -> None:
    namespace = Namespace()
    network = scanned(namespace)
    namespace.close()
    assert not any((network.interfaces, network.routes, network.rules, network.loopback, network.notes))
    assert ("ipv4/conf/all/rp_filter", "0") in network.settings


def test_dockers_interface_is_read_whole(box: Namespace) -> None:
    """Name, MAC, MTU, address with broadcast; of the routes only the one that the address doesn't bring."""
    network = scanned(box)
    interface = only(network)
    assert (interface.name, interface.mac, interface.mtu, interface.up) == ("eth0", "02:42:ac:11:00:02", 1500, True)
    ipv4 = next(address for address in interface.addresses if address.family == 2)
    assert (ipv4.address, ipv4.prefix, ipv4.broadcast) == ("172.17.0.2", 16, "172.17.255.255")
    (route,) = (route for route in network.routes if route.family == 2)
    assert (route.destination, route.gateway, route.device) == ("", "172.17.0.1", "eth0")


def test_ipv6_addresses_are_not_to_be_tried_again(box: Namespace) -> None:
    """Whatever state the host's duplicate detection is in, the scan is the same, link-local address included."""
    box.ip("addr add fd00::2/64 dev eth0")  # the link-local one comes later
    first = scanned(box)
    addresses = {address.address: address for address in only(first).addresses if address.family == 10}
    assert {"fd00::2", "fe80::42:acff:fe11:2"} == addresses.keys()
    assert all(address.flags & 0x02 for address in addresses.values())
    for _ in range(3):
        assert scanned(box) == first


def test_ptp_routes_neighbours_and_rules(box: Namespace) -> None:
    """What CNI plugins set: a peer, on-link routes, other tables, multipath, blackholes, permanent neighbours."""
    box.ip(
        "addr add 10.5.0.1 peer 10.5.0.2/32 dev eth0",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add 10.6.0.0/16 via 192.168.9.9 dev eth0 onlink mtu 1300",
        "route add 10.7.0.0/16 nexthop via 172.17.0.5 weight 2 nexthop via 172.17.0.6",
        "route add blackhole 10.8.0.0/16 metric 9",
        "route add default via 172.17.0.9 table 1000 src 172.17.0.2",
        "rule add from 172.17.0.2 fwmark 0x10/0xf0 table 1000 priority 500",
        "rule add uidrange 1-5 table 1000 priority 501",
        "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
        "neigh add proxy 10.5.0.9 dev eth0",
    )
    network = scanned(box)
    assert any((a.address, a.peer, a.prefix) == ("10.5.0.1", "10.5.0.2", 32) for a in only(network).addresses)
    routes = {(route.table, route.destination): route for route in network.routes if route.family == 2}
    assert routes[254, "169.254.1.1/32"].scope == 253
    assert routes[254, "10.6.0.0/16"].onlink
    assert routes[254, "10.6.0.0/16"].metrics == ((2, 1300),)
    hops = routes[254, "10.7.0.0/16"].hops
    assert [(hop.gateway, hop.weight) for hop in hops] == [("172.17.0.5", 2), ("172.17.0.6", 1)]
    assert (routes[254, "10.8.0.0/16"].kind, routes[254, "10.8.0.0/16"].metric) == (6, 9)
    assert routes[1000, ""].source == "172.17.0.2"
    rule, users = network.rules
    assert (users.priority, users.extra) == (501, ((20, "0100000005000000"),))
    assert (rule.priority, rule.table, rule.source, rule.mark, rule.mask) == (500, 1000, "172.17.0.2/32", 0x10, 0xF0)
    neighbours = {(n.address, n.mac, n.proxy) for n in only(network).neighbours}
    assert neighbours == {("169.254.1.1", "ee:ee:ee:ee:ee:ee", False), ("10.5.0.9", "", True)}


def test_settings_that_engines_write_are_read(box: Namespace) -> None:
    """Docker switches IPv6 off, CNI's tuning plugin sets an interface's sysctls."""
    box.call("sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv4.ip_forward=1")
    box.call("sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=2")
    network = scanned(box)
    assert dict(network.settings)["ipv6/conf/all/disable_ipv6"] == "1"
    assert dict(network.settings)["ipv4/ip_forward"] == "1"
    assert dict(only(network).ipv4)[8] == 2
    assert dict(only(network).ipv6)[26] == 1


def test_what_is_no_card_of_the_containers_is_left_out(box: Namespace) -> None:
    """Our taps and what is in a bridge silently; what lies on another interface with a note, if it is up."""
    fd = box.run(lambda: tap.create_tap("rvtap0"))
    try:
        box.ip(
            "link add br0 type bridge",
            "link set br0 up",
            "link add a0 type veth peer name a1",
            "link set a0 master br0",
            "link set a0 up",
            "link add link eth0 name mv0 type macvlan",
            "link set mv0 up",
            "link add br1 type bridge",
            "link set a1 master br1",
            "link set a1 up",
            "addr add 10.50.0.1/24 dev mv0",
            "route add 10.51.0.0/24 via 10.50.0.2",
        )
        network = scanned(box)
    finally:
        os.close(fd)
    assert {interface.name for interface in network.interfaces} == {"eth0", "br0"}
    notes = "\n".join(network.notes)
    assert "interface a0" not in notes
    assert "a1 is not handed over: it is part of another interface" in notes  # of one that is down
    assert "mv0 is not handed over: it lies on eth0" in notes
    assert not any(route.device == "mv0" for route in network.routes)


def test_further_loopback_addresses_are_read(box: Namespace) -> None:
    box.ip("addr add 10.200.0.1/32 dev lo")
    assert [address.address for address in scanned(box).loopback] == ["10.200.0.1"]


def test_the_monitor_sees_a_network_being_connected(box: Namespace, outside: Namespace) -> None:
    """As `docker network connect` does: the interface comes under another name, is renamed, gets its address."""
    old = scanned(box)
    monitor = box.run(InterfaceMonitor)
    try:
        assert not select.select([monitor], [], [], 0)[0]
        veth(outside, "out1", box, "veth1234")
        box.ip("link set veth1234 name eth1", "addr add 172.18.0.2/16 dev eth1", "link set eth1 up")
        assert select.select([monitor], [], [], 1)[0]
        assert monitor.drain(old)
        new = scanned(box)
        difference = changes(old, new)
        assert [interface.name for interface in difference.added] == ["eth1"]
        assert not difference.removed and not difference.changed
        box.ip("link delete eth1")
        assert select.select([monitor], [], [], 1)[0]
        assert [interface.name for interface in changes(new, scanned(box)).removed] == ["eth1"]
    finally:
        monitor.close()


def test_changes_follow_an_interface_through_its_new_name(box: Namespace) -> None:
    """And the NIC that it has in the VM doesn't count."""
    old = scanned(box)
    with_card = old._replace(interfaces=(only(old)._replace(nic="02:72:76:00:00:00"),))
    assert changes(with_card, old) == ((), (), ())
    box.ip("link set eth0 down", "link set eth0 name lan0", "link set lan0 up")
    ((before, after),) = changes(with_card, scanned(box)).changed
    assert (before.name, after.name) == ("eth0", "lan0")


def test_wiring_is_no_change(box: Namespace) -> None:
    """The supervisor's own work doesn't look like the engine's."""
    old = scanned(box)
    fd = box.run(lambda: tap.create_tap("rvtap0"))
    try:
        box.run(lambda: tap.wire("eth0", "rvtap0", resolver=True))
        assert scanned(box) == old
    finally:
        os.close(fd)


def test_routes_of_rare_kinds_are_read(box: Namespace) -> None:
    """Multicast and anycast ones that somebody has set, and a nexthop object's blackhole, which leads nowhere."""
    box.ip(
        "addr add fd00::2/64 dev eth0 nodad",
        "route add multicast 239.0.0.0/8 dev eth0",
        "route add broadcast 10.77.255.255 dev eth0",
        "-6 route add anycast fd00::77 dev eth0",
        "nexthop add id 9 blackhole",
        "route add 10.66.0.0/16 nhid 9",
    )
    found = {route.destination: route for route in scanned(box).routes}
    assert found["239.0.0.0/8"].kind == 5
    assert {"10.77.255.255/32", "fd00::77/128"} <= found.keys()
    assert (found["10.66.0.0/16"].kind, found["10.66.0.0/16"].device) == (6, "")
    assert "ff00::/8" not in found
    assert "172.17.255.255/32" not in found


@pytest.fixture
def monitor(box: Namespace) -> Iterator[InterfaceMonitor]:
    made = box.run(InterfaceMonitor)
    yield made
    made.close()


def test_the_monitor_sees_neighbours_and_settings(box: Namespace, monitor: InterfaceMonitor) -> None:
    """Permanent neighbours come, change and go; a forwarding or rp_filter changes."""
    known = scanned(box)
    for change in ("add", "change", "del"):
        mac = "" if change == "del" else f"lladdr ee:ee:ee:ee:ee:0{len(change)} nud permanent"
        box.ip(f"neigh {change} 172.17.0.7 {mac} dev eth0")
        assert monitor.drain(known), change
        known = scanned(box)
    box.call("sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=2")
    assert monitor.drain(known)
    box.call("sysctl", "-w", "net.ipv6.conf.eth0.forwarding=1")
    assert monitor.drain(known)


def test_neighbours_that_the_kernel_finds_are_no_change(box: Namespace, monitor: InterfaceMonitor) -> None:
    """They come, fail and grow old all the time."""
    known = scanned(box)
    monitor.drain(known)
    box.ip("neigh add 172.17.0.8 lladdr ee:ee:ee:ee:ee:ee nud reachable dev eth0")
    box.ip("neigh change 172.17.0.8 lladdr ee:ee:ee:ee:ee:ee nud stale dev eth0", "neigh del 172.17.0.8 dev eth0")
    assert select.select([monitor], [], [], 1)[0]
    assert not monitor.drain(known)


def test_the_monitor_takes_lost_messages_for_a_change(box: Namespace, monitor: InterfaceMonitor) -> None:
    """A flood of them may hide what counts."""
    known = scanned(box)
    monitor.drain(known)
    lines = "\n".join(
        f"neigh replace 172.17.0.8 lladdr ee:ee:ee:ee:ee:e{n % 2} nud reachable dev eth0" for n in range(3000)
    )
    box.run(lambda: subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True))
    assert monitor.drain(known)
