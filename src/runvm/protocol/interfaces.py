"""A container's network as the host finds it and the guest sets it up: what the supervisor tells the agent.

On the wire it is JSON; from_json() checks each field, so that netlink in the guest gets the right types and ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from runvm.linux.routing import Address, Neighbour, Route
from runvm.linux.rules import Rule
from runvm.records import NamedTuple

MAX_ITEMS = 4096
_MAX_TEXT = 256


def nic_mac(number: int) -> str:
    """The MAC of a VM's NIC, 0 being the one that it has from its start: the guest tells NICs apart by it,
    then gives each its interface's own."""
    return f"02:72:76:00:00:{number + 1:02x}"


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

KERNEL_RULES = tuple(
    Rule(family, priority, 1, table, False, "", "", 0, "", "", 0, 0, -1)
    for family, priority, table in ((2, 0, 255), (2, 32766, 254), (2, 32767, 253), (10, 0, 255), (10, 32766, 254))
)
"""What a new namespace has."""

_BYTES = frozenset({"prefix", "scope", "kind", "protocol", "preference", "tos", "action", "address_mode"})


class NetworkError(Exception):
    """A description of a network that has a bad field."""


class Interface(NamedTuple):
    """One interface. *ifindex* is the host's: a new name doesn't change it. *nic*: the MAC that the VM's NIC has.

    *ipv4* and *ipv6* are (number, value) of the settings above.
    """

    ifindex: int
    name: str
    mac: str
    mtu: int
    up: bool
    arp: bool
    queue: int
    address_mode: int
    ipv4: tuple[tuple[int, int], ...]
    ipv6: tuple[tuple[int, int], ...]
    addresses: tuple[Address, ...]
    neighbours: tuple[Neighbour, ...]
    nic: str = ""


class Network(NamedTuple):
    """A network namespace: interfaces, and what isn't of one of them. *notes* say what couldn't be taken over.

    *loopback* are the addresses of lo beyond 127.0.0.1 and ::1, *settings* (one of net_settings, value),
    *missing_rules* those of the kernel's own rules (KERNEL_RULES) that aren't there.
    """

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    loopback: tuple[Address, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    missing_rules: tuple[Rule, ...] = ()


class InterfaceChanges(NamedTuple):
    """What became of a network's interfaces, by their index on the host."""

    added: tuple[Interface, ...]
    removed: tuple[Interface, ...]
    changed: tuple[tuple[Interface, Interface], ...]


def changes(old: Network, new: Network) -> InterfaceChanges:
    """The difference; the NICs that interfaces have got in the VM don't count."""
    before = {interface.ifindex: interface for interface in old.interfaces}
    after = {interface.ifindex: interface for interface in new.interfaces}
    return InterfaceChanges(
        added=tuple(interface for index, interface in after.items() if index not in before),
        removed=tuple(interface for index, interface in before.items() if index not in after),
        changed=tuple(
            (before[index], interface)
            for index, interface in after.items()
            if index in before and before[index]._replace(nic="") != interface._replace(nic="")
        ),
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
    try:
        network: Network = _decoder(Network)(value)
    except _BadError as error:
        raise NetworkError(f"network{error.path} {error.text}") from None
    return network


def valid_name(name: str) -> bool:
    """Whether the kernel takes *name* for an interface (dev_valid_name): it becomes a part of paths, too."""
    if not 0 < len(name.encode(errors="replace")) < 16 or name in (".", ".."):
        return False
    return not any(c in "/:" or c.isspace() or not c.isprintable() for c in name)


# --- the decoders, a function for each type and field, made at the first use: an emulated guest is slow otherwise

_Decoder = Callable[[object], Any]
_decoders: dict[Any, _Decoder] = {}


class _BadError(Exception):
    def __init__(self, path: str, text: str) -> None:
        super().__init__(path, text)
        self.path, self.text = path, text


def _decoder(hint: Any, field: str = "") -> _Decoder:
    if hint is bool:
        return _decode_bool
    if hint is str:
        return _decode_name if field == "name" else _decode_text
    if hint is int:
        return _number_decoder(field)
    if hint not in _decoders:
        _decoders[hint] = _record_decoder(hint) if hasattr(hint, "_fields") else _tuple_decoder(get_args(hint))
    return _decoders[hint]


def _decode_bool(value: object) -> bool:
    if type(value) is bool:
        return value
    raise _BadError("", "should be true or false")


def _decode_text(value: object) -> str:
    if isinstance(value, str) and len(value) <= _MAX_TEXT and "\0" not in value:
        return value
    raise _BadError("", f"should be a string of at most {_MAX_TEXT} characters")


def _decode_name(value: object) -> str:
    if isinstance(value, str) and valid_name(value):
        return value
    raise _BadError("", "is no name for an interface")


def _number_decoder(field: str) -> _Decoder:
    if field == "family":
        return _decode_family
    low = 1 if field == "weight" else -1 if field in ("", "unless_prefix") else 0
    high = 256 if field == "weight" else 255 if field in _BYTES else 0xFFFFFFFF

    def decode(value: object) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise _BadError("", f"should be a number from {low} to {high}")

    return decode


def _decode_family(value: object) -> int:
    if type(value) is int and value in (2, 10):
        return value
    raise _BadError("", "should be 2 or 10")


def _record_decoder(kind: Any) -> _Decoder:
    fields = [(field, _decoder(hint, field)) for field, hint in get_type_hints(kind).items()]
    names = {field for field, _ in fields}

    def decode(value: object) -> Any:
        if not isinstance(value, dict) or value.keys() != names:
            raise _BadError("", f"should have the fields {', '.join(field for field, _ in fields)}")
        decoded = []
        field = ""
        try:
            for field, decode_field in fields:
                decoded.append(decode_field(value[field]))
        except _BadError as error:
            raise _BadError(f".{field}{error.path}", error.text) from None
        return kind._make(decoded)

    return decode


def _tuple_decoder(kinds: tuple[Any, ...]) -> _Decoder:
    endless = kinds[-1] is Ellipsis
    decoders = [_decoder(kind) for kind in kinds if kind is not Ellipsis]

    def decode(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise _BadError("", f"should be a list of at most {MAX_ITEMS}")
        if not endless and len(value) != len(decoders):
            raise _BadError("", f"should have {len(decoders)} items")
        decoded = []
        try:
            for item, decode_item in zip(value, decoders * len(value) if endless else decoders, strict=True):
                decoded.append(decode_item(item))
        except _BadError as error:
            raise _BadError(f"[{len(decoded)}]{error.path}", error.text) from None
        return tuple(decoded)

    return decode
