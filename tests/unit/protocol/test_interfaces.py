"""The description of a network on the wire: whole, or refused by the name of the bad field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from runvm.linux.routing import Address, Hop, Neighbour, Route
from runvm.linux.rules import Rule
from runvm.protocol.interfaces import (
    Interface,
    Network,
    NetworkError,
    changes,
    from_json,
    to_json,
    valid_name,
)

ETH0 = Interface(
    ifindex=7, name="eth0", mac="02:42:ac:11:00:02", mtu=1500, up=True, arp=True, queue=1000,
    address_mode=0, ipv4=((1, 1), (8, 0)), ipv6=((10, -1), (26, 0)),
    addresses=(Address(2, "172.17.0.2", 16, "", "172.17.255.255", 0, 0, "", 0),),
    neighbours=(Neighbour(2, "169.254.1.1", "ee:ee:ee:ee:ee:ee", False),), nic="02:72:76:00:00:00",
)  # fmt: skip
HOPS = (Hop("eth0", "172.17.0.3", 1, False), Hop("eth0", "172.17.0.4", 256, True))
NETWORK = Network(
    interfaces=(ETH0,),
    routes=(Route(2, "", "", "", "", 5, 0, 1, 254, 4, False, 0, ((2, 1400),), HOPS),),
    rules=(Rule(10, 500, 1, 1000, False, "fd00::/64", "", 0, "eth0", "", 1, 255, -1),),
    loopback=(Address(2, "10.0.0.1", 32, "", "", 0, 0, "", 0),),
    settings=(("ipv4/ip_forward", "1"),),
    notes=("interface br0 is not handed over: it is a bridge",),
)


def wire(network: Network) -> Any:
    return json.loads(json.dumps(to_json(network)))


def test_a_network_stands_its_way_over_the_wire() -> None:
    assert from_json(wire(NETWORK)) == NETWORK
    assert from_json(wire(Network())) == Network()


def put(*path: Any) -> Callable[[Any], None]:
    *steps, last, value = path

    def change(data: Any) -> None:
        for step in steps:
            data = data[step]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (put("interfaces", 0, "name", "../x"), r"network.interfaces\[0\].name"),
        (put("interfaces", 0, "name", ""), r"network.interfaces\[0\].name"),
        (put("interfaces", 0, "mtu", "1500"), r"network.interfaces\[0\].mtu"),
        (put("interfaces", 0, "mtu", 1 << 32), r"network.interfaces\[0\].mtu"),
        (put("interfaces", 0, "up", 1), r"network.interfaces\[0\].up"),
        (put("interfaces", 0, "mac", None), r"network.interfaces\[0\].mac"),
        (put("interfaces", 0, "ipv4", [[1]]), r"network.interfaces\[0\].ipv4\[0\]"),
        (put("interfaces", 0, "ipv4", [[1, True]]), r"network.interfaces\[0\].ipv4\[0\]\[1\]"),
        (put("interfaces", 0, "addresses", 0, "family", 3), "family should be 2 or 10"),
        (put("interfaces", 0, "addresses", 0, "prefix", 256), r"addresses\[0\].prefix"),
        (put("interfaces", 0, "more", 1), r"network.interfaces\[0\] should have the fields"),
        (put("interfaces", {}), "network.interfaces"),
        (put("interfaces", [to_json(ETH0)] * 5000), "network.interfaces"),
        (put("routes", 0, "hops", 0, "weight", 0), r"hops\[0\].weight"),
        (put("rules", 0, "unless_prefix", -2), r"rules\[0\].unless_prefix"),
        (put("notes", ["x" * 300]), r"notes\[0\]"),
        (put("settings", [["a", "b\0"]]), r"settings\[0\]\[1\]"),
    ],
)
def test_a_bad_field_is_named(change: Callable[[Any], None], field: str) -> None:
    data = wire(NETWORK)
    change(data)
    with pytest.raises(NetworkError, match=field):
        from_json(data)


@pytest.mark.parametrize("name", ["eth0", "eth0.5", "veth-1_x", "ä", "x" * 15])
def test_names_that_the_kernel_takes(name: str) -> None:
    assert valid_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a:1", "x" * 16, "ä" * 8, "a\n", "a\0"])
def test_names_that_it_does_not(name: str) -> None:
    assert not valid_name(name)


def test_changes_tell_interfaces_by_their_index() -> None:
    renamed = ETH0._replace(name="lan0", nic="")
    other = ETH0._replace(ifindex=8, name="eth0")
    found = changes(NETWORK, NETWORK._replace(interfaces=(renamed, other), routes=()))
    assert found.added == (other,)
    assert found.removed == ()
    assert found.changed == ((ETH0, renamed),)


def test_a_card_or_a_note_is_no_change() -> None:
    assert changes(NETWORK, NETWORK._replace(interfaces=(ETH0._replace(nic=""),), notes=())) == ((), (), ())
