"""A container's network as the host finds it and the guest sets it up: what the supervisor tells the agent.

On the wire it is JSON; from_json() checks each field, so that netlink in the guest gets the right types and ranges.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args, get_type_hints

from runvm.linux.routing import Address, Neighbour, Route, Rule

MAX_ITEMS = 4096
_MAX_TEXT = 256

NAMESPACE_SETTINGS = (
    "ipv4/ip_forward",
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/default/rp_filter",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/all/disable_ipv6",
    "ipv6/conf/default/disable_ipv6",
    "ipv6/conf/lo/disable_ipv6",
)
"""Files below /proc/sys/net that engines write in a namespace; in the order in which to set them."""

IPV4_SETTINGS = (1, 3, 4, 5, 6, 7, 8, 9, 11, 13, 18, 19, 20, 21, 22, 23, 24, 26, 29, 31)
"""IPV4_DEVCONF_* (linux/ip.h) copied with an interface: forwarding, redirects, rp_filter, arp_*, route_localnet …"""

IPV6_SETTINGS = {
    0: "forwarding",
    1: "hop_limit",
    3: "accept_ra",
    4: "accept_redirects",
    5: "autoconf",
    6: "dad_transmits",
    7: "router_solicitations",
    10: "use_tempaddr",
    17: "accept_ra_defrtr",
    18: "accept_ra_pinfo",
    19: "accept_ra_rtr_pref",
    22: "proxy_ndp",
    24: "accept_source_route",
    26: "disable_ipv6",
    27: "accept_dad",
}
"""DEVCONF_* (linux/ipv6.h) copied with an interface, and their files."""

_BYTES = frozenset({"prefix", "scope", "kind", "protocol", "preference", "tos", "action", "address_mode", "weight"})


class NetworkError(Exception):
    """A description of a network that has a bad field."""


class Interface(NamedTuple):
    """One interface. *ifindex* is the host's: a new name doesn't change it. *nic*: the MAC that the VM's card has.

    *ipv4* and *ipv6* are (number, value) of the settings above.
    """

    ifindex: int
    name: str
    mac: str
    mtu: int
    up: bool
    queue: int
    address_mode: int
    ipv4: tuple[tuple[int, int], ...]
    ipv6: tuple[tuple[int, int], ...]
    addresses: tuple[Address, ...]
    neighbours: tuple[Neighbour, ...]
    nic: str = ""


class Network(NamedTuple):
    """A network namespace: interfaces, and what isn't of one of them. *notes* say what couldn't be taken over.

    *loopback* are the addresses of lo beyond 127.0.0.1 and ::1, *settings* (one of NAMESPACE_SETTINGS, value).
    """

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    loopback: tuple[Address, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


class Changes(NamedTuple):
    """What became of a network: interfaces by their index on the host. *rest* tells whether routes, rules … differ."""

    added: tuple[Interface, ...]
    removed: tuple[Interface, ...]
    changed: tuple[tuple[Interface, Interface], ...]
    rest: bool


def changes(old: Network, new: Network) -> Changes:
    """The difference; the cards that interfaces have got in the VM don't count."""
    before = {interface.ifindex: interface for interface in old.interfaces}
    after = {interface.ifindex: interface for interface in new.interfaces}
    return Changes(
        added=tuple(interface for index, interface in after.items() if index not in before),
        removed=tuple(interface for index, interface in before.items() if index not in after),
        changed=tuple(
            (before[index], interface)
            for index, interface in after.items()
            if index in before and before[index]._replace(nic="") != interface._replace(nic="")
        ),
        rest=old._replace(interfaces=(), notes=()) != new._replace(interfaces=(), notes=()),
    )


def to_json(value: Any) -> Any:
    """A Network, or any part of one, as lists, dicts, strings and numbers."""
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return {field: to_json(item) for field, item in zip(value._fields, value, strict=True)}
        return [to_json(item) for item in value]
    return value


def from_json(value: object) -> Network:
    """The Network that to_json() wrote. Raises NetworkError, which names the bad field."""
    network: Network = _decode("network", value, Network)
    return network


def valid_name(name: str) -> bool:
    """Whether the kernel takes *name* for an interface (dev_valid_name): it becomes a part of paths, too."""
    if not 0 < len(name.encode(errors="replace")) < 16 or name in (".", ".."):
        return False
    return not any(c in "/:" or c.isspace() or not c.isprintable() for c in name)


_hints: dict[Any, dict[str, Any]] = {}


def _decode(where: str, value: object, hint: Any) -> Any:
    if hint is int:
        _check_number(where, value)
    elif hint is bool:
        if type(value) is not bool:
            raise NetworkError(f"{where} should be true or false")
    elif hint is str:
        _check_text(where, value)
    elif hasattr(hint, "_fields"):
        if hint not in _hints:
            _hints[hint] = get_type_hints(hint)
        hints = _hints[hint]
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise NetworkError(f"{where} should have the fields {', '.join(hints)}")
        return hint(**{field: _decode(f"{where}.{field}", value[field], kind) for field, kind in hints.items()})
    else:
        return _decode_tuple(where, value, get_args(hint))
    return value


def _decode_tuple(where: str, value: object, kinds: tuple[Any, ...]) -> Any:
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise NetworkError(f"{where} should be a list of at most {MAX_ITEMS}")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise NetworkError(f"{where} should have {len(kinds)} items")
    return tuple(_decode(f"{where}[{i}]", item, kind) for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def _check_number(where: str, value: object) -> None:
    field = where.rpartition(".")[2]
    low = -1 if field == "unless_prefix" or field.endswith("]") else 1 if field == "weight" else 0
    high = 255 + (field == "weight") if field in _BYTES else 0xFFFFFFFF
    if type(value) is not int or not low <= value <= high:
        raise NetworkError(f"{where} should be a number from {low} to {high}")
    if field == "family" and value not in (2, 10):
        raise NetworkError(f"{where} should be 2 or 10")


def _check_text(where: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or "\0" in value:
        raise NetworkError(f"{where} should be a string of at most {_MAX_TEXT} characters")
    field = where.rpartition(".")[2]
    if field == "name" and not valid_name(value):
        raise NetworkError(f"{where} is no name for an interface")
