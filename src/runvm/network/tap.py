"""An interface of a container's network namespace ↔ a tap whose other end is a NIC of the VM; the supervisor's.

All functions but move_tap() work on the namespace that the caller is in: see linux.netns.in_namespace.

What comes in on the interface is redirected to the tap before the host's stack sees it, and the other way round (tc(8):
ingress qdisc, u32, mirred). So the guest alone answers for the interface's addresses, which the namespace keeps.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from socket import htons

from runvm.linux import links, netlink
from runvm.linux.netlink import F_CREATE, F_DUMP, F_EXCLUSIVE, NetlinkError, Socket, attribute, number, text
from runvm.linux.netns import in_namespace
from runvm.records import NamedTuple

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000

# linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
_TC = struct.Struct("=BxxxiIII")
_NEW_QDISC, _DELETE_QDISC, _GET_QDISC = 36, 37, 38
_NEW_FILTER, _DELETE_FILTER, _GET_FILTER = 44, 45, 46
_INGRESS, _INGRESS_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_INGRESS_SIDE = (
    0xFFFFFFF2  # the parent of a filter: ingress, of an ingress qdisc as of a clsact one that is there already
)
_KIND, _OPTIONS = 1, 2
_U32_CLASS, _U32_SELECTOR, _U32_ACTIONS = 1, 5, 7
_U32_TERMINAL = 1
_SELECTOR = struct.Struct("=BxB13x")
_MIRRED = struct.Struct("=IIiiiiI")
_MIRRED_PARAMETERS = 2
_REDIRECT, _MIRROR = 1, 2  # TCA_EGRESS_REDIR, TCA_EGRESS_MIRROR
_OK, _STOLEN = 0, 4  # TC_ACT_*
_ALL, _IPV4, _ARP, _IPV6 = 0x0003, 0x0800, 0x0806, 0x86DD

MAX_MTU = 65521
"""What a tap takes at most: 65535 with the head of a frame."""
RESOLVER_PORTS = (61440, 65535)
"""The source ports of the namespace's own sockets: a guest's are from 32768 to 60999 unless it chose otherwise."""
DEFAULT_PORTS = (32768, 60999)
"""What the kernel gives a new namespace."""
_DNS_REPLY = (0x0035F000, 0xFFFFF000)  # from port 53 to RESOLVER_PORTS


_FIRST = 0x7276
"""Our filters' priorities begin here: those of others come first, and are told from ours."""


class _Filter(NamedTuple):
    """What is of an Ethernet *protocol* and matches all *keys* (value, mask, offset) goes to tap, host or both."""

    priority: int
    protocol: int
    keys: tuple[tuple[int, int, int], ...]
    to_tap: bool
    to_host: bool


_UNFRAGMENTED = (0, 0x00001FFF, 4)  # fragment offset 0
_IPV4_TCP, _IPV4_UDP = (0x00060000, 0x00FF0000, 8), (0x00110000, 0x00FF0000, 8)
_IPV6_TCP, _IPV6_UDP = (0x00000600, 0x0000FF00, 4), (0x00001100, 0x0000FF00, 4)
_IPV4_DNS = ((0x45000000, 0xFF000000, 0), _UNFRAGMENTED, (*_DNS_REPLY, 20))  # no options: the ports are at 20
_IPV6_DNS = ((*_DNS_REPLY, 40),)
_ADVERTISEMENT = ((0x00003A00, 0x0000FF00, 4), (0x88000000, 0xFF000000, 40))  # ICMPv6 type 136

_FOR_RESOLVER = (
    # the host's stack needs the gateway's MAC, and must answer for nobody: replies only
    _Filter(_FIRST + 1, _ARP, ((0x00000002, 0x0000FFFF, 4),), to_tap=True, to_host=True),
    # TCP: a stack that doesn't know the connection would reset it, so to one of them only
    _Filter(_FIRST + 2, _IPV4, (_IPV4_TCP, *_IPV4_DNS), to_tap=False, to_host=True),
    # UDP: a recursive resolver in the guest may use these ports as well
    _Filter(_FIRST + 3, _IPV4, (_IPV4_UDP, *_IPV4_DNS), to_tap=True, to_host=True),
    _Filter(_FIRST + 4, _IPV4, (_UNFRAGMENTED,), to_tap=True, to_host=False),
    # what is left are later fragments, which have no ports: they may be of a long answer
    _Filter(_FIRST + 5, _IPV4, (_IPV4_UDP,), to_tap=True, to_host=True),
    _Filter(_FIRST + 6, _IPV6, (_IPV6_TCP, *_IPV6_DNS), to_tap=False, to_host=True),
    _Filter(_FIRST + 7, _IPV6, (_IPV6_UDP, *_IPV6_DNS), to_tap=True, to_host=True),
    _Filter(_FIRST + 8, _IPV6, _ADVERTISEMENT, to_tap=True, to_host=True),
)
_EVERYTHING = _Filter(_FIRST + 100, _ALL, ((0, 0, 0),), to_tap=True, to_host=False)
_OURS = frozenset(item.priority for item in (*_FOR_RESOLVER, _EVERYTHING))


def create_tap(name: str) -> int:
    """Make a tap, up and unused by the host's stack; the descriptor is for QEMU, and the tap ends with it.

    Raises: OSError.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, request)
        except OSError as error:
            raise OSError(error.errno, f"make tap {name}: {error.strerror}") from None
        links.bring_up_unused(name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def scratch_tap() -> int:
    """A tap in a network namespace that nothing else is in: what a VM's first NIC has until it is some container's."""
    import socket
    import time

    from runvm.errors import HostError
    from runvm.linux import process, syscalls

    ours, theirs = socket.socketpair()
    with ours, theirs:

        def child() -> None:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            socket.send_fds(theirs, [b"t"], [create_tap("rvtap0")])

        pid = process.fork(child)
        if process.wait_child(pid, deadline=time.monotonic() + 10) != 0:
            raise HostError("a tap can't be made", do="run 'runvm doctor'")
        return socket.recv_fds(ours, 1, 1)[1][0]


def move_tap(name: str, old: int, new: int) -> None:
    """Take a tap from one namespace (a descriptor) to another, where it is as create_tap() leaves it. Raises
    OSError."""

    def send() -> None:
        with Socket() as sock:
            links.set_link(sock, links.link(sock, name).ifindex, up=False)
            links.set_link(sock, links.link(sock, name).ifindex, namespace=new, name=name)

    in_namespace(old, send)
    in_namespace(new, lambda: links.bring_up_unused(name))


def wire(interface: str, tap: str, *, resolver: bool = False) -> None:
    """Connect *interface* and *tap* both ways; once more: MTU and *resolver* are brought up to date. Raises OSError.

    With *resolver*, sockets of the namespace itself may ask DNS servers outside, as those of Docker's resolver do: they
    get ports in RESOLVER_PORTS, and what comes from port 53 to these reaches them, as do ARP replies and IPv6 neighbour
    advertisements. The price: a TCP connection that the guest makes from such a port to port 53 fails.
    """
    with Socket() as sock:
        outer, inner = links.link(sock, interface), links.link(sock, tap)
        mtu = min(outer.mtu, MAX_MTU)
        if inner.mtu != mtu:
            links.set_link(sock, inner.ifindex, mtu=mtu)
        if outer.kind in ("macvlan", "ipvlan"):
            # they pass on the multicast groups that the host's stack has joined, and don't know of the guest's
            links.set_link(sock, outer.ifindex, all_multicast=True)
        if resolver:
            _set_ports(*RESOLVER_PORTS)
        for source, target, wanted in (
            (inner, outer, (_EVERYTHING,)),
            (outer, inner, (*_FOR_RESOLVER, _EVERYTHING) if resolver else (_EVERYTHING,)),
        ):
            _add_ingress(sock, source.ifindex)
            _set_filters(sock, source.ifindex, wanted, target.ifindex)


def unwire(name: str) -> None:
    """Undo wire() on one side: a tap that another interface is to have, one that outlives the VM. Raises OSError."""
    with Socket() as sock:
        ifindex = links.link(sock, name).ifindex
        _set_filters(sock, ifindex, (), 0)
        kinds = {
            netlink.read_text(netlink.attributes(message.body, _TC.size), _KIND)
            for message in sock.query(_GET_QDISC, F_DUMP, _TC.pack(0, ifindex, 0, 0, 0), "read the qdiscs")
            if netlink.unpack(_TC, message)[1:4:2] == (ifindex, _INGRESS)
        }
        if "ingress" in kinds and not _filters(sock, ifindex):
            body = _TC.pack(0, ifindex, _INGRESS_HANDLE, _INGRESS, 0)
            sock.request(_DELETE_QDISC, 0, body, f"delete the ingress qdisc of {name}")


def unwire_all(ports: tuple[int, int]) -> None:
    """Leave a namespace that others keep as it was before its VM, which may have been killed; *ports* is what
    get_ports() said then. Raises OSError, when all that is possible is done."""
    with Socket() as sock:
        names = [link.name for link in links.links(sock)]
    failed = None
    for name in names:
        try:
            unwire(name)
        except OSError as error:
            if error.errno != errno.ENODEV:  # it has just gone
                failed = error
    if get_ports() == RESOLVER_PORTS:  # else somebody has changed it since
        _set_ports(*(ports if ports != RESOLVER_PORTS else DEFAULT_PORTS))
    if failed is not None:
        raise failed


def get_ports() -> tuple[int, int]:
    """The range of ports that the namespace's own sockets get (ip_local_port_range). Raises OSError."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        low, high = file.read().split()
        return int(low), int(high)


def _set_ports(low: int, high: int) -> None:
    with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
        file.write(f"{low} {high}")


def _add_ingress(sock: Socket, ifindex: int) -> None:
    body = _TC.pack(0, ifindex, _INGRESS_HANDLE, _INGRESS, 0) + text(_KIND, "ingress")
    try:
        sock.request(_NEW_QDISC, F_CREATE | F_EXCLUSIVE, body, "add an ingress qdisc")
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise


def _set_filters(sock: Socket, ifindex: int, wanted: tuple[_Filter, ...], target: int) -> None:
    """Bring our filters on *ifindex* to what is *wanted*; the one for everything stays in force where it is right."""
    there = _filters(sock, ifindex)
    for item in (*_FOR_RESOLVER, _EVERYTHING):
        right = item in wanted and there.get(item.priority) == (target if item.to_tap else 0)
        if item.priority in there and not right:
            sock.request(_DELETE_FILTER, 0, _filter_head(item, ifindex), "delete a filter")
        if item in wanted and not right:
            sock.request(_NEW_FILTER, F_CREATE | F_EXCLUSIVE, _filter_body(item, ifindex, target), "add a filter")


def _filters(sock: Socket, ifindex: int) -> dict[int, int]:
    """The filters on *ifindex*: where mirred sends what matches (0: nowhere, or its target has gone), by priority.

    Those of others count, too, by their priority's negative: what is in them is theirs to know.
    """
    found: dict[int, int] = {}
    answer = sock.query(_GET_FILTER, F_DUMP, _TC.pack(0, ifindex, 0, _INGRESS_SIDE, 0), "read the filters")
    for message in answer:
        priority = netlink.unpack(_TC, message)[4] >> 16
        value = message.body[_TC.size :]
        if priority not in _OURS or netlink.read_text(netlink.attributes(value), _KIND) != "u32":
            found[-priority] = 0
            continue
        for kind in (_OPTIONS, _U32_ACTIONS, 1, _OPTIONS, _MIRRED_PARAMETERS):
            value = netlink.attributes(value).get(kind, b"")
        target = int(_MIRRED.unpack_from(value)[6]) if len(value) >= _MIRRED.size else 0
        found[priority] = target or found.get(priority, 0)
    return found


def _filter_head(item: _Filter, ifindex: int) -> bytes:
    return _TC.pack(0, ifindex, 0, _INGRESS_SIDE, item.priority << 16 | htons(item.protocol)) + text(_KIND, "u32")


def _filter_body(item: _Filter, ifindex: int, target: int) -> bytes:
    selector = _SELECTOR.pack(_U32_TERMINAL, len(item.keys))
    for value, mask, offset in item.keys:
        selector += struct.pack(">II", mask, value) + struct.pack("=ii", offset, 0)
    # a match without an action ends with TC_ACT_OK: kernels without act_gact can do that, too
    options = number(_U32_CLASS, 0x00010001) + attribute(_U32_SELECTOR, selector)
    if item.to_tap:
        verb, verdict = (_MIRROR, _OK) if item.to_host else (_REDIRECT, _STOLEN)
        parameters = attribute(_MIRRED_PARAMETERS, _MIRRED.pack(0, 0, verdict, 0, 0, verb, target))
        options += attribute(_U32_ACTIONS, attribute(1, text(_KIND, "mirred") + attribute(_OPTIONS, parameters)))
    return _filter_head(item, ifindex) + attribute(_OPTIONS, options)
