"""Addresses, routes and neighbours as typed objects: the host reads them, the guest sets them.

They name interfaces by name, not by index: they are also what the host tells the guest (protocol/interfaces.py).
Sources: rtnetlink(7), linux/if_addr.h, linux/rtnetlink.h, linux/neighbour.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Mapping
from socket import AF_INET, AF_INET6

from runvm.linux import netlink
from runvm.linux.netlink import F_DUMP, Message, NetlinkError, Socket, attribute, ip_bytes, ip_text, number, unpack
from runvm.records import NamedTuple

_ADDRESS = struct.Struct("=BBBBI")
_TIMES = struct.Struct("=IIII")  # struct ifa_cacheinfo: seconds preferred, seconds valid, two that the kernel sets
_FOREVER = 0xFFFFFFFF
_ROUTE = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBi")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")

_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR, _GET_NEIGHBOUR = 28, 29, 30
_ADD = netlink.F_CREATE | netlink.F_EXCLUSIVE
_FAMILIES = (AF_INET, AF_INET6)

SECONDARY, NODAD, DADFAILED, HOMEADDRESS, DEPRECATED, NOPREFIXROUTE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x200  # IFA_F_*
SCOPE_LINK = 253
UNICAST, LOCAL = 1, 2  # RTN_*
_REFUSALS = (6, 7, 8, 9)  # RTN_BLACKHOLE, _UNREACHABLE, _PROHIBIT, _THROW
TABLE_MAIN, TABLE_LOCAL = 254, 255
PROTOCOL_KERNEL = 2  # RTPROT_KERNEL: made by the kernel for an address, as the guest's will do

_ONLINK = 0x4  # RTNH_F_ONLINK
_CLONED = 0x200  # RTM_F_CLONED: the kernel's cache
_PERMANENT = 0x80  # NUD_PERMANENT
_PROXY = 0x08  # NTF_PROXY

# IFA_*, RTA_*
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_TIMES, _IFA_FLAGS, _IFA_METRIC = 1, 2, 3, 4, 6, 8, 9
_TO, _OUT, _GATEWAY, _METRIC, _SOURCE, _METRICS, _MULTIPATH, _TABLE, _VIA, _PREFERENCE = 1, 4, 5, 6, 7, 8, 9, 15, 18, 20
_FROM, _REALMS, _ENCAPSULATION, _NEXTHOP_ID = 2, 11, 22, 30
_CONGESTION = 16  # RTAX_CC_ALGO, the only metric that is a name


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
    """A route. *destination* is '' for the default; *kind* is an RTN_ number, *metrics* has (RTAX_ number, value),
    *origin* is the prefix that a packet's source has to be in ('' for any)."""

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
    tos: int = 0
    origin: str = ""

    @property
    def devices(self) -> set[str]:
        """The interfaces that it leads by."""
        return {hop.device for hop in self.hops} | ({self.device} if self.device else set())


class Neighbour(NamedTuple):
    """A permanent neighbour entry, or with *proxy* an address answered for (no MAC then)."""

    family: int
    address: str
    mac: str
    proxy: bool


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


def routes(sock: Socket, names: Mapping[int, str], notes: list[str] | None = None) -> list[Route]:
    """The routes of all tables; *names* gives the interfaces' names by index. *notes* gets what a Route can't say of
    one. Raises NetlinkError."""
    found = []
    for message in sock.query(_GET_ROUTE, F_DUMP, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0), "read the routes"):
        family, prefix, from_prefix, tos, table, protocol, scope, kind, flags = unpack(_ROUTE, message)
        if family not in _FAMILIES or flags & _CLONED:
            continue
        values = netlink.attributes(message.body, _ROUTE.size)
        metrics = {
            key: value
            for key, value in netlink.attributes(values.get(_METRICS, b"")).items()
            if len(value) == 4 and key != _CONGESTION
        }
        route = Route(
            family=family,
            destination=prefix_text(family, values.get(_TO), prefix),
            gateway=_gateway_text(family, values),
            # by a nexthop object it is said to lead by lo, and may not be set so
            device="" if family == AF_INET and kind in _REFUSALS else names.get(netlink.read_number(values, _OUT), ""),
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
            tos=tos,
            origin=prefix_text(family, values.get(_FROM), from_prefix),
        )
        lacking = _lacking(route, values)
        if not lacking:
            found.append(route)
        elif notes is not None:
            notes.append(f"route {shown(route)} is not handed over: it has {lacking}")
    return found


def _lacking(route: Route, values: dict[int, bytes]) -> str:
    """What a route has that a Route can't say; '' for nothing."""
    if _ENCAPSULATION in values:
        return "an encapsulation"
    if _REALMS in values:
        return "realms"
    if _CONGESTION in netlink.attributes(values.get(_METRICS, b"")):
        return "a congestion control of its own"
    if _NEXTHOP_ID in values and route.kind == UNICAST and not (route.device or route.hops):
        return "a nexthop object alone"
    return ""


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


def changed_neighbour(message: Message) -> tuple[int, str, bool] | None:
    """(interface index, address, whether it is permanent) of what came to GROUP_NEIGHBOUR; None for any other message.
    One that goes isn't permanent any more. Raises NetlinkError."""
    if message.kind not in (_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR):
        return None
    family, ifindex, state, _, _ = unpack(_NEIGHBOUR, message)
    if family not in _FAMILIES:  # a bridge's addresses
        return ifindex, "", False
    address = netlink.attributes(message.body, _NEIGHBOUR.size).get(1, b"")
    return ifindex, ip_text(family, address), bool(state & _PERMANENT)


# --- changing


def add_address(sock: Socket, ifindex: int, address: Address, *, replace: bool = False) -> None:
    """Give an interface an address; that it has it already is no error, and nothing changes unless with *replace*
    (whether it is deprecated, its metric). Raises NetlinkError."""
    body = _address_body(ifindex, address)
    flags = netlink.F_CREATE | netlink.F_REPLACE if replace else _ADD
    unless((errno.EEXIST,), sock, _NEW_ADDRESS, flags, body, f"add address {address.address}/{address.prefix}")


def delete_address(sock: Socket, ifindex: int, address: Address) -> None:
    """Take an address away; that it has gone already, maybe with all of IPv6, is no error. Raises NetlinkError."""
    # a label would have to be right, and an interface's new name changes it
    body = _address_body(ifindex, address._replace(label=""))
    harmless = (errno.EADDRNOTAVAIL, errno.ENXIO)
    unless(harmless, sock, _DELETE_ADDRESS, 0, body, f"delete address {address.address}/{address.prefix}")


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
    body += attribute(_IFA_TIMES, _TIMES.pack(0 if address.flags & DEPRECATED else _FOREVER, _FOREVER, 0, 0))
    return body


def add_route(sock: Socket, route: Route, indexes: Mapping[str, int], wanted: Collection[Route] = ()) -> None:
    """Add a route; that it is there already is no error. *indexes*: the interfaces' by name, *wanted* all the routes
    that are to be there: one of them stays beside it, what the kernel has made for an address gives way to it.

    Raises NetlinkError, with EEXIST where another route is in its place.
    """
    operation = f"add route {shown(route)}"
    try:
        _add_reachable(sock, route, indexes, _ADD, operation)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        there = [
            other for other in routes(sock, {index: name for name, index in indexes.items()}) if _same(other, route)
        ]
        if any(route in (other, other._replace(onlink=False)) for other in there):
            return
        if any(other in wanted for other in there):
            _add_reachable(sock, route, indexes, netlink.F_CREATE | netlink.F_APPEND, operation)
        elif any(other.protocol == PROTOCOL_KERNEL for other in there):
            _add_reachable(sock, route, indexes, netlink.F_CREATE | netlink.F_REPLACE, operation)
        else:
            raise


def _add_reachable(sock: Socket, route: Route, indexes: Mapping[str, int], flags: int, operation: str) -> None:
    """Add a route. A gateway that no route leads to any more was reachable when the host's was added: the guest takes
    it for one on the link."""
    try:
        sock.request(_NEW_ROUTE, flags, _route_body(route, indexes), operation)
    except NetlinkError as error:
        if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL) or route.onlink:
            raise
        if not (route.gateway and route.device or route.hops):
            raise
        hops = tuple(hop._replace(onlink=bool(hop.gateway)) for hop in route.hops)
        linked = route._replace(onlink=not hops, hops=hops)
        try:
            sock.request(_NEW_ROUTE, flags, _route_body(linked, indexes), operation)
        except NetlinkError as second:
            raise (second if second.errno == errno.EEXIST else error) from None


def _same(one: Route, other: Route) -> bool:
    """Whether the kernel has place for one of them only."""
    keys = [
        (route.family, route.destination, route.origin, route.table, route.tos, route.metric) for route in (one, other)
    ]
    return keys[0] == keys[1]


def delete_route(sock: Socket, route: Route, indexes: Mapping[str, int]) -> None:
    """Delete a route; that it has gone already is no error. Raises NetlinkError."""
    unless((errno.ESRCH,), sock, _DELETE_ROUTE, 0, _route_body(route, indexes), f"delete route {shown(route)}")


def _route_body(route: Route, indexes: Mapping[str, int]) -> bytes:
    family = route.family
    destination, prefix = prefix_bytes(family, route.destination)
    origin, from_prefix = prefix_bytes(family, route.origin)
    flags = _ONLINK if route.onlink else 0
    table = short(route.table)
    body = _ROUTE.pack(family, prefix, from_prefix, route.tos, table, route.protocol, route.scope, route.kind, flags)
    body += number(_TABLE, route.table)
    if destination:
        body += attribute(_TO, destination)
    if origin:
        body += attribute(_FROM, origin)
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
    unless((errno.ENOENT,), sock, _DELETE_NEIGHBOUR, 0, body, f"delete neighbour {neighbour.address}")


def _neighbour_body(ifindex: int, neighbour: Neighbour) -> bytes:
    body = _NEIGHBOUR.pack(neighbour.family, ifindex, _PERMANENT, _PROXY if neighbour.proxy else 0, 0)
    body += attribute(1, ip_bytes(neighbour.family, neighbour.address))
    return body + (attribute(2, netlink.mac_bytes(neighbour.mac)) if neighbour.mac else b"")


# --- pieces


def unless(harmless: Collection[int], sock: Socket, kind: int, flags: int, body: bytes, operation: str) -> None:
    """Carry out a change; that it fails with a *harmless* errno is no error. Raises NetlinkError."""
    try:
        sock.request(kind, flags, body, operation)
    except NetlinkError as error:
        if error.errno not in harmless:
            raise


def short(table: int) -> int:
    """The header's byte for a table: RT_TABLE_COMPAT where an attribute alone can say it."""
    return table if table <= 255 else 252


def _index(indexes: Mapping[str, int], device: str) -> int:
    if device not in indexes:
        raise NetlinkError(errno.ENODEV, f"no interface {device!r}")
    return indexes[device]


def prefix_text(family: int, data: bytes | None, prefix: int) -> str:
    """A network as people write it; '' for all."""
    if data is None:
        return "" if not prefix else f"{'0.0.0.0' if family == AF_INET else '::'}/{prefix}"
    return f"{ip_text(family, data)}/{prefix}"


def prefix_bytes(family: int, destination: str) -> tuple[bytes, int]:
    """What prefix_text() wrote. Raises NetlinkError."""
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


def shown(route: Route) -> str:
    """As people write it."""
    words = route.destination or "default"
    return words + (f" via {route.gateway}" if route.gateway else "") + (f" dev {route.device}" if route.device else "")
