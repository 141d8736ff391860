"""Network interfaces of the namespace that a netlink socket belongs to: read, change, make, delete.

Sources: rtnetlink(7), linux/if_link.h, linux/ip.h and linux/ipv6.h (the settings' numbers).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from socket import AF_INET, AF_INET6

from runvm.linux import netlink
from runvm.linux.netlink import F_CREATE, F_DUMP, F_EXCLUSIVE, Message, NetlinkError, Socket, attribute, number
from runvm.records import NamedTuple

_HEAD = struct.Struct("=BxHiII")
NEW_LINK, DELETE_LINK, _GET_LINK, _SET_LINK = 16, 17, 18, 19

_IFF_UP, _IFF_NOARP, _IFF_ALLMULTI = 0x1, 0x80, 0x200
ETHERNET, LOOPBACK = 1, 772
MODE_NONE = 1
"""IN6_ADDR_GEN_MODE_NONE: no link-local address of the kernel's own making."""

# IFLA_*
_ADDRESS, _NAME, _MTU, _LINK, _MASTER, _QUEUE, _INFO, _FAMILIES, _NAMESPACE = 1, 3, 4, 5, 10, 13, 18, 26, 28
_EXTENSIONS, _LINK_NAMESPACE, _PERMANENT_ADDRESS = 29, 37, 54
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_INET_SETTINGS, _INET6_SETTINGS, _INET6_ADDRESS_MODE = 1, 2, 8
_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS: half of an answer otherwise


class Link(NamedTuple):
    """An interface. *ipv4*, *ipv6*: its settings in the order of IPV4_DEVCONF_* and DEVCONF_* (empty: no IPv6).

    *parent* is the interface below it or, of a veth, its peer: of this namespace unless *parent_elsewhere*.
    """

    ifindex: int
    name: str
    kind: str
    hardware: int
    mac: str
    permanent_mac: str
    mtu: int
    up: bool
    arp: bool
    queue: int
    parent: int
    parent_elsewhere: bool
    master: int
    ipv4: tuple[int, ...]
    ipv6: tuple[int, ...]
    address_mode: int


def links(sock: Socket) -> list[Link]:
    """Each interface. Raises NetlinkError."""
    body = _HEAD.pack(0, 0, 0, 0, 0) + number(_EXTENSIONS, _SKIP_STATISTICS)
    return [_parse(message) for message in sock.query(_GET_LINK, F_DUMP, body, "read the interfaces")]


def link(sock: Socket, name: str) -> Link:
    """The interface of that name. Raises NetlinkError (ENODEV where there is none)."""
    return _ask(sock, _HEAD.pack(0, 0, 0, 0, 0) + netlink.text(_NAME, name), name)


def link_at(sock: Socket, ifindex: int) -> Link:
    """The interface with that index, whatever its name. Raises NetlinkError (ENODEV where there is none)."""
    return _ask(sock, _HEAD.pack(0, 0, ifindex, 0, 0), str(ifindex))


def _ask(sock: Socket, body: bytes, what: str) -> Link:
    for message in sock.query(_GET_LINK, 0, body + number(_EXTENSIONS, _SKIP_STATISTICS), f"look for interface {what}"):
        return _parse(message)
    raise NetlinkError(errno.ENODEV, f"look for interface {what}: no answer")


def _parse(message: Message) -> Link:
    _, hardware, ifindex, flags, _ = netlink.unpack(_HEAD, message)
    found = netlink.attributes(message.body, _HEAD.size)
    families = netlink.attributes(found.get(_FAMILIES, b""))
    ipv4 = netlink.attributes(families.get(AF_INET, b""))
    ipv6 = netlink.attributes(families.get(AF_INET6, b""))
    return Link(
        ifindex=ifindex,
        name=netlink.read_text(found, _NAME),
        kind=netlink.read_text(netlink.attributes(found.get(_INFO, b"")), _INFO_KIND),
        hardware=hardware,
        mac=netlink.mac_text(found.get(_ADDRESS, b"")),
        permanent_mac=netlink.mac_text(found.get(_PERMANENT_ADDRESS, b"")),
        mtu=netlink.read_number(found, _MTU),
        up=bool(flags & _IFF_UP),
        arp=not flags & _IFF_NOARP,
        queue=netlink.read_number(found, _QUEUE),
        parent=netlink.read_number(found, _LINK),
        parent_elsewhere=_LINK_NAMESPACE in found,
        master=netlink.read_number(found, _MASTER),
        ipv4=_settings(ipv4.get(_INET_SETTINGS, b"")),
        ipv6=_settings(ipv6.get(_INET6_SETTINGS, b"")),
        address_mode=(ipv6.get(_INET6_ADDRESS_MODE) or b"\0")[0],
    )


def _settings(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4])


def set_link(
    sock: Socket,
    ifindex: int,
    *,
    name: str = "",
    mac: str = "",
    mtu: int = 0,
    queue: int = -1,
    up: bool | None = None,
    arp: bool | None = None,
    all_multicast: bool | None = None,
    namespace: int = -1,
    address_mode: int = -1,
    ipv4: Mapping[int, int] | None = None,
) -> None:
    """Change what is given. A move to *namespace* (a descriptor) is done under the new *name*. Raises NetlinkError.

    The kernel takes up the flags before *address_mode* and *ipv4*: what must hold before `up` is a call of its own.
    """
    flags = change = 0
    no_arp = None if arp is None else not arp
    for wanted, bit in ((up, _IFF_UP), (no_arp, _IFF_NOARP), (all_multicast, _IFF_ALLMULTI)):
        if wanted is not None:
            change |= bit
            flags |= bit if wanted else 0
    body = _HEAD.pack(0, 0, ifindex, flags, change)
    if name:
        body += netlink.text(_NAME, name)
    if mac:
        body += attribute(_ADDRESS, netlink.mac_bytes(mac))
    if mtu:
        body += number(_MTU, mtu)
    if queue >= 0:
        body += number(_QUEUE, queue)
    if namespace >= 0:
        body += number(_NAMESPACE, namespace)
    families = b""
    if ipv4:
        settings = b"".join(number(key, value & 0xFFFFFFFF) for key, value in ipv4.items())
        families += attribute(AF_INET, attribute(_INET_SETTINGS, settings))
    if address_mode >= 0:
        families += attribute(AF_INET6, attribute(_INET6_ADDRESS_MODE, bytes([address_mode])))
    if families:
        body += attribute(_FAMILIES, families)
    sock.request(_SET_LINK, 0, body, f"set up interface {name or ifindex}")


def add_veth(sock: Socket, name: str, peer: str, *, namespace: int = -1) -> None:
    """Make a pair of virtual interfaces, *peer* in *namespace* (-1: the socket's). Raises NetlinkError."""
    other = _HEAD.pack(0, 0, 0, 0, 0) + netlink.text(_NAME, peer)
    if namespace >= 0:
        other += number(_NAMESPACE, namespace)
    info = netlink.text(_INFO_KIND, "veth") + attribute(_INFO_DATA, attribute(_VETH_PEER, other))
    body = _HEAD.pack(0, 0, 0, 0, 0) + netlink.text(_NAME, name) + attribute(_INFO, info)
    sock.request(NEW_LINK, F_CREATE | F_EXCLUSIVE, body, f"make interface {name}")


def bring_up_unused(name: str) -> None:
    """Bring an interface up that the host's stack shall not use. Raises OSError."""
    with Socket() as sock:
        ifindex = link(sock, name).ifindex
        try:
            # no router solicitations, no multicast reports of the host's for the guest to see
            set_link(sock, ifindex, address_mode=MODE_NONE)
        except NetlinkError as error:
            if error.errno != errno.EAFNOSUPPORT:  # a host without IPv6
                raise
        set_link(sock, ifindex, up=True, arp=False)
