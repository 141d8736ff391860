"""Addresses, routes, neighbours and rules as typed objects: the host reads them, the guest sets them.

They name interfaces by name, not by index: they are also what the host tells the guest (protocol/interfaces.py).
Sources: rtnetlink(7), linux/if_addr.h, linux/rtnetlink.h, linux/neighbour.h, linux/fib_rules.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from runvm.linux import netlink
from runvm.linux.netlink import F_DUMP, NetlinkError, Socket, attribute, ip_bytes, ip_text, number, unpack

_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBi")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_RULE = struct.Struct("=BBBBBBBBI")

_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR, _GET_NEIGHBOUR = 28, 29, 30
_NEW_RULE, _DELETE_RULE, _GET_RULE = 32, 33, 34
_ADD = netlink.F_CREATE | netlink.F_EXCLUSIVE
_FAMILIES = (AF_INET, AF_INET6)

NODAD, DADFAILED, HOMEADDRESS, NOPREFIXROUTE = 0x02, 0x08, 0x10, 0x200  # IFA_F_*
SCOPE_LINK = 253
UNICAST, LOCAL = 1, 2  # RTN_*
TABLE_MAIN, TABLE_LOCAL = 254, 255
PROTOCOL_KERNEL = 2  # RTPROT_KERNEL: made by the kernel for an address, as the guest's will do

_ONLINK = 0x4  # RTNH_F_ONLINK
_CLONED = 0x200  # RTM_F_CLONED: the kernel's cache
_PERMANENT = 0x80  # NUD_PERMANENT
_PROXY = 0x08  # NTF_PROXY
_INVERT = 0x2  # FIB_RULE_INVERT

# IFA_*, RTA_*, FRA_*
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_FLAGS, _IFA_METRIC = 1, 2, 3, 4, 8, 9
_TO, _OUT, _GATEWAY, _METRIC, _SOURCE, _METRICS, _MULTIPATH, _TABLE, _VIA, _PREFERENCE = 1, 4, 5, 6, 7, 8, 9, 15, 18, 20
_RULE_TO, _RULE_FROM, _RULE_IN, _RULE_PRIORITY, _RULE_MARK, _RULE_UNLESS, _RULE_TABLE = 1, 2, 3, 6, 10, 14, 15
_RULE_MASK, _RULE_OUT, _RULE_PADDING, _RULE_PROTOCOL = 16, 17, 18, 21
_RULE_KNOWN = frozenset((
    _RULE_TO, _RULE_FROM, _RULE_IN, _RULE_PRIORITY, _RULE_MARK, _RULE_UNLESS, _RULE_TABLE,
    _RULE_MASK, _RULE_OUT, _RULE_PADDING, _RULE_PROTOCOL,
))  # fmt: skip


class Address(NamedTuple):
    """An address of an interface; *flags* are IFA_F_*, *metric* that of its prefix route (0: the default)."""

    family: int
    address: str
    prefix: int
    peer: str
    broadcast: str
    scope: int
    flags: int
    label: str
    metric: int


class Hop(NamedTuple):
    """One way of a multipath route; *weight* counts from 1."""

    device: str
    gateway: str
    weight: int
    onlink: bool


class Route(NamedTuple):
    """A route. *destination* is '' for the default; *kind* is an RTN_ number, *metrics* has (RTAX_ number, value)."""

    family: int
    destination: str
    gateway: str
    device: str
    source: str
    metric: int
    scope: int
    kind: int
    table: int
    protocol: int
    onlink: bool
    preference: int
    metrics: tuple[tuple[int, int], ...]
    hops: tuple[Hop, ...]


class Neighbour(NamedTuple):
    """A permanent neighbour entry, or with *proxy* an address answered for (no MAC then)."""

    family: int
    address: str
    mac: str
    proxy: bool


class Rule(NamedTuple):
    """A policy routing rule; '' and 0: doesn't look at that. *unless_prefix* is suppress_prefixlength, -1 for none."""

    family: int
    priority: int
    action: int
    table: int
    invert: bool
    source: str
    destination: str
    tos: int
    input: str
    output: str
    mark: int
    mask: int
    unless_prefix: int


# --- reading


def addresses(sock: Socket) -> list[tuple[int, Address]]:
    """(interface index, address) of all IPv4 and IPv6 addresses. Raises NetlinkError."""
    found = []
    for message in sock.query(_GET_ADDRESS, F_DUMP, _ADDRESS.pack(0, 0, 0, 0, 0), "read the addresses"):
        family, prefix, flags, scope, ifindex = unpack(_ADDRESS, message)
        if family not in _FAMILIES:
            continue
        values = netlink.attributes(message.body, _ADDRESS.size)
        # IFA_ADDRESS is the peer's where IFA_LOCAL says otherwise; IPv6 has no IFA_LOCAL without a peer
        address = ip_text(family, values.get(_IFA_ADDRESS, b""))
        local = ip_text(family, values[_IFA_LOCAL]) if _IFA_LOCAL in values else address
        found.append((ifindex, Address(
            family=family,
            address=local,
            prefix=prefix,
            peer=address if address != local else "",
            broadcast=ip_text(family, values[_IFA_BROADCAST]) if _IFA_BROADCAST in values else "",
            scope=scope,
            flags=netlink.read_number(values, _IFA_FLAGS, flags),
            label=netlink.read_text(values, _IFA_LABEL),
            metric=netlink.read_number(values, _IFA_METRIC),
        )))  # fmt: skip
    return found


def routes(sock: Socket, names: Mapping[int, str]) -> list[Route]:
    """The routes of all tables; *names* gives the interfaces' names by index. Raises NetlinkError."""
    found = []
    for message in sock.query(_GET_ROUTE, F_DUMP, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0), "read the routes"):
        family, prefix, _, _, table, protocol, scope, kind, flags = unpack(_ROUTE, message)
        if family not in _FAMILIES or flags & _CLONED:
            continue
        values = netlink.attributes(message.body, _ROUTE.size)
        metrics = {
            key: value for key, value in netlink.attributes(values.get(_METRICS, b"")).items() if len(value) == 4
        }
        found.append(Route(
            family=family,
            destination=_prefix_text(family, values.get(_TO), prefix),
            gateway=_gateway_text(family, values),
            device=names.get(netlink.read_number(values, _OUT), ""),
            source=ip_text(family, values[_SOURCE]) if _SOURCE in values else "",
            metric=netlink.read_number(values, _METRIC),
            scope=scope,
            kind=kind,
            table=netlink.read_number(values, _TABLE, table),
            protocol=protocol,
            onlink=bool(flags & _ONLINK),
            preference=(values.get(_PREFERENCE) or b"\0")[0],
            metrics=tuple((key, netlink.read_number(metrics, key)) for key in sorted(metrics)),
            hops=_hops(family, values.get(_MULTIPATH, b""), names),
        ))  # fmt: skip
    return found


def _hops(family: int, data: bytes, names: Mapping[int, str]) -> tuple[Hop, ...]:
    hops = []
    offset = 0
    while len(data) - offset >= _HOP.size:
        length, flags, weight, ifindex = _HOP.unpack_from(data, offset)
        if length < _HOP.size or offset + length > len(data):
            raise NetlinkError(errno.EBADMSG, "a hop runs past its route")
        values = netlink.attributes(data[offset + _HOP.size : offset + length])
        hops.append(Hop(names.get(ifindex, ""), _gateway_text(family, values), weight + 1, bool(flags & _ONLINK)))
        offset += (length + 3) & ~3
    return tuple(hops)


def neighbours(sock: Socket) -> list[tuple[int, Neighbour]]:
    """(interface index, entry) of all neighbours that were set by hand. Raises NetlinkError."""
    found = []
    for asked in (0, _PROXY):
        body = _NEIGHBOUR.pack(0, 0, 0, asked, 0)
        for message in sock.query(_GET_NEIGHBOUR, F_DUMP, body, "read the neighbours"):
            family, ifindex, state, flags, _ = unpack(_NEIGHBOUR, message)
            values = netlink.attributes(message.body, _NEIGHBOUR.size)
            proxy = bool(flags & _PROXY)
            mac = "" if proxy else netlink.mac_text(values.get(2, b""))
            if family in _FAMILIES and proxy == bool(asked) and (proxy or state & _PERMANENT and mac):
                found.append((ifindex, Neighbour(family, ip_text(family, values.get(1, b"")), mac, proxy)))
    return found


def rules(sock: Socket) -> list[Rule]:
    """The policy routing rules, the kernel's own too, but what looks at more than Rule can say. Raises NetlinkError."""
    found = []
    for message in sock.query(_GET_RULE, F_DUMP, _RULE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0), "read the routing rules"):
        family, to_prefix, from_prefix, tos, table, _, _, action, flags = unpack(_RULE, message)
        values = netlink.attributes(message.body, _RULE.size)
        if family not in _FAMILIES or values.keys() - _RULE_KNOWN:
            continue  # by user or port, say: without that it would catch more than it should
        unless = netlink.read_number(values, _RULE_UNLESS, 0xFFFFFFFF)
        found.append(Rule(
            family=family,
            priority=netlink.read_number(values, _RULE_PRIORITY),
            action=action,
            table=netlink.read_number(values, _RULE_TABLE, table),
            invert=bool(flags & _INVERT),
            source=_prefix_text(family, values.get(_RULE_FROM), from_prefix),
            destination=_prefix_text(family, values.get(_RULE_TO), to_prefix),
            tos=tos,
            input=netlink.read_text(values, _RULE_IN),
            output=netlink.read_text(values, _RULE_OUT),
            mark=netlink.read_number(values, _RULE_MARK),
            mask=netlink.read_number(values, _RULE_MASK),
            unless_prefix=-1 if unless == 0xFFFFFFFF else unless,
        ))  # fmt: skip
    return found


# --- changing


def add_address(sock: Socket, ifindex: int, address: Address) -> None:
    """Give an interface an address; that it has it already is no error. Raises NetlinkError."""
    body = _address_body(ifindex, address)
    _unless(errno.EEXIST, sock, _NEW_ADDRESS, _ADD, body, f"add address {address.address}/{address.prefix}")


def delete_address(sock: Socket, ifindex: int, address: Address) -> None:
    """Take an address away; that it has gone already is no error. Raises NetlinkError."""
    # a label would have to be right, and an interface's new name changes it
    body = _address_body(ifindex, address._replace(label=""))
    _unless(errno.EADDRNOTAVAIL, sock, _DELETE_ADDRESS, 0, body, f"delete address {address.address}/{address.prefix}")


def _address_body(ifindex: int, address: Address) -> bytes:
    family = address.family
    local = ip_bytes(family, address.address)
    body = _ADDRESS.pack(family, address.prefix, address.flags & 0xFF, address.scope, ifindex)
    body += attribute(_IFA_LOCAL, local)
    body += attribute(_IFA_ADDRESS, ip_bytes(family, address.peer) if address.peer else local)
    body += number(_IFA_FLAGS, address.flags)
    if address.broadcast:
        body += attribute(_IFA_BROADCAST, ip_bytes(family, address.broadcast))
    if address.label:
        body += netlink.text(_IFA_LABEL, address.label)
    if address.metric:
        body += number(_IFA_METRIC, address.metric)
    return body


def add_route(sock: Socket, route: Route, indexes: Mapping[str, int]) -> None:
    """Add a route; that it is there already is no error. *indexes*: the interfaces' by name. Raises NetlinkError."""
    _unless(errno.EEXIST, sock, _NEW_ROUTE, _ADD, _route_body(route, indexes), f"add route {_shown(route)}")


def delete_route(sock: Socket, route: Route, indexes: Mapping[str, int]) -> None:
    """Delete a route; that it has gone already is no error. Raises NetlinkError."""
    _unless(errno.ESRCH, sock, _DELETE_ROUTE, 0, _route_body(route, indexes), f"delete route {_shown(route)}")


def _route_body(route: Route, indexes: Mapping[str, int]) -> bytes:
    family = route.family
    destination, prefix = _prefix_bytes(family, route.destination)
    flags = _ONLINK if route.onlink else 0
    body = _ROUTE.pack(family, prefix, 0, 0, _short(route.table), route.protocol, route.scope, route.kind, flags)
    body += number(_TABLE, route.table)
    if destination:
        body += attribute(_TO, destination)
    body += _gateway(family, route.gateway)
    if route.device:
        body += number(_OUT, _index(indexes, route.device))
    if route.source:
        body += attribute(_SOURCE, ip_bytes(family, route.source))
    if route.metric:
        body += number(_METRIC, route.metric)
    if route.preference:
        body += attribute(_PREFERENCE, bytes([route.preference]))
    if route.metrics:
        body += attribute(_METRICS, b"".join(number(key, value) for key, value in route.metrics))
    hops = b""
    for hop in route.hops:
        values = _gateway(family, hop.gateway)
        hop_flags = _ONLINK if hop.onlink else 0
        hops += _HOP.pack(_HOP.size + len(values), hop_flags, hop.weight - 1, _index(indexes, hop.device)) + values
    if hops:
        body += attribute(_MULTIPATH, hops)
    return body


def set_neighbour(sock: Socket, ifindex: int, neighbour: Neighbour) -> None:
    """Set a permanent entry, in place of one for the same address. Raises NetlinkError."""
    body = _neighbour_body(ifindex, neighbour)
    sock.request(_NEW_NEIGHBOUR, netlink.F_CREATE | netlink.F_REPLACE, body, f"set neighbour {neighbour.address}")


def delete_neighbour(sock: Socket, ifindex: int, neighbour: Neighbour) -> None:
    """Delete an entry; that it has gone already is no error. Raises NetlinkError."""
    body = _neighbour_body(ifindex, neighbour)
    _unless(errno.ENOENT, sock, _DELETE_NEIGHBOUR, 0, body, f"delete neighbour {neighbour.address}")


def _neighbour_body(ifindex: int, neighbour: Neighbour) -> bytes:
    body = _NEIGHBOUR.pack(neighbour.family, ifindex, _PERMANENT, _PROXY if neighbour.proxy else 0, 0)
    body += attribute(1, ip_bytes(neighbour.family, neighbour.address))
    return body + (attribute(2, netlink.mac_bytes(neighbour.mac)) if neighbour.mac else b"")


def add_rule(sock: Socket, rule: Rule) -> None:
    """Add a rule; that it is there already is no error. Raises NetlinkError."""
    _unless(errno.EEXIST, sock, _NEW_RULE, _ADD, _rule_body(rule), f"add routing rule {rule.priority}")


def delete_rule(sock: Socket, rule: Rule) -> None:
    """Delete a rule; that it has gone already is no error. Raises NetlinkError."""
    _unless(errno.ENOENT, sock, _DELETE_RULE, 0, _rule_body(rule), f"delete routing rule {rule.priority}")


def _rule_body(rule: Rule) -> bytes:
    source, from_prefix = _prefix_bytes(rule.family, rule.source)
    destination, to_prefix = _prefix_bytes(rule.family, rule.destination)
    flags = _INVERT if rule.invert else 0
    body = _RULE.pack(rule.family, to_prefix, from_prefix, rule.tos, _short(rule.table), 0, 0, rule.action, flags)
    body += number(_RULE_PRIORITY, rule.priority) + number(_RULE_TABLE, rule.table)
    if source:
        body += attribute(_RULE_FROM, source)
    if destination:
        body += attribute(_RULE_TO, destination)
    if rule.input:
        body += netlink.text(_RULE_IN, rule.input)
    if rule.output:
        body += netlink.text(_RULE_OUT, rule.output)
    if rule.mark or rule.mask:
        body += number(_RULE_MARK, rule.mark) + number(_RULE_MASK, rule.mask)
    if rule.unless_prefix >= 0:
        body += number(_RULE_UNLESS, rule.unless_prefix)
    return body


# --- pieces


def _unless(harmless: int, sock: Socket, kind: int, flags: int, body: bytes, operation: str) -> None:
    try:
        sock.request(kind, flags, body, operation)
    except NetlinkError as error:
        if error.errno != harmless:
            raise


def _short(table: int) -> int:
    """The header's byte for a table: RT_TABLE_COMPAT where an attribute alone can say it."""
    return table if table <= 255 else 252


def _index(indexes: Mapping[str, int], device: str) -> int:
    if device not in indexes:
        raise NetlinkError(errno.ENODEV, f"no interface {device!r}")
    return indexes[device]


def _prefix_text(family: int, data: bytes | None, prefix: int) -> str:
    if data is None:
        return "" if not prefix else f"{'0.0.0.0' if family == AF_INET else '::'}/{prefix}"
    return f"{ip_text(family, data)}/{prefix}"


def _prefix_bytes(family: int, destination: str) -> tuple[bytes, int]:
    if not destination:
        return b"", 0
    address, _, prefix = destination.partition("/")
    if not prefix.isdecimal() or int(prefix) > (32 if family == AF_INET else 128):
        raise NetlinkError(errno.EINVAL, f"{destination!r} is no destination")
    return ip_bytes(family, address), int(prefix)


def _gateway_text(family: int, values: dict[int, bytes]) -> str:
    if _GATEWAY in values:
        return ip_text(family, values[_GATEWAY])
    via = values.get(_VIA, b"")  # a gateway of the other family
    return ip_text(int(struct.unpack_from("=H", via)[0]), via[2:]) if len(via) > 2 else ""


def _gateway(family: int, gateway: str) -> bytes:
    if not gateway:
        return b""
    other = AF_INET6 if ":" in gateway else AF_INET
    raw = ip_bytes(other, gateway)
    return attribute(_GATEWAY, raw) if other == family else attribute(_VIA, struct.pack("=H", other) + raw)


def _shown(route: Route) -> str:
    shown = route.destination or "default"
    return shown + (f" via {route.gateway}" if route.gateway else "") + (f" dev {route.device}" if route.device else "")
