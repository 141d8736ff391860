"""What a container's network namespace has: the supervisor reads it once the hooks have filled it, and on changes."""

from __future__ import annotations

from collections.abc import Iterator
from socket import AF_INET6, inet_ntop

from runvm.linux import links, netlink, routing, rules
from runvm.linux.links import Link
from runvm.linux.routing import Address, Route
from runvm.network import settings
from runvm.network.prefixes import Prefixes
from runvm.protocol.interfaces import (
    IPV4_SETTINGS,
    IPV6_SETTINGS,
    KERNEL_RULES,
    Interface,
    Network,
)

TAP_PREFIX = "rvtap"
"""The taps that runvm makes are named rvtap0, rvtap1 …; they aren't the container's."""

_KEPT_FLAGS = routing.NOPREFIXROUTE | routing.HOMEADDRESS | routing.DEPRECATED
_COMPOUND = ("bridge", "bond", "team")
"""Handed over as a single NIC, in place of their parts."""
_LOOPBACK = ("127.0.0.1", "::1")
_DISABLE_IPV6 = 26  # DEVCONF_DISABLE_IPV6
_MODE_EUI64 = 0  # IN6_ADDR_GEN_MODE_EUI64


def is_tap(link: Link) -> bool:
    """Whether that is a tap of ours."""
    return link.kind in ("tun", "veth") and link.name.startswith(TAP_PREFIX)


def scan(congestion: str = "cubic") -> Network:
    """The network of the namespace that the caller is in (see linux.netns.in_namespace); *congestion* is what TCP uses
    in a new one. Raises OSError."""
    with netlink.Socket() as sock:
        found = links.links(sock)
        names = {link.ifindex: link.name for link in found}
        # before the addresses: one that comes meanwhile seems to lack its route, until the next scan
        notes: list[str] = []
        routes = routing.routes(sock, names, notes)
        addresses: dict[int, list[Address]] = {}
        for ifindex, address in routing.addresses(sock):
            addresses.setdefault(ifindex, []).append(address)
        neighbours: dict[int, list[routing.Neighbour]] = {}
        for ifindex, neighbour in routing.neighbours(sock):
            neighbours.setdefault(ifindex, []).append(neighbour)
        policies = rules.rules(sock, notes)
    prefixes = Prefixes(routes)
    interfaces = []
    loopback: tuple[Address, ...] = ()
    kept = set()
    for link in found:
        own = _settled(link, prefixes.marked(link, addresses.get(link.ifindex, [])))
        if link.hardware == links.LOOPBACK:
            loopback = tuple(address for address in own if address.address not in _LOOPBACK)
            kept.add(link.name)
            continue
        reason = _unfit(link, found)
        if reason:
            if link.up and not is_tap(link) and not _is_part(link, found):
                notes.append(f"interface {link.name} is not handed over: {reason}")
            continue
        kept.add(link.name)
        interfaces.append(_interface(link, own, tuple(neighbours.get(link.ifindex, ()))))
    return Network(
        interfaces=tuple(interfaces),
        routes=tuple(_handed_over(prefixes.others(), kept, names, notes)),
        rules=tuple(rule for rule in policies if rule not in KERNEL_RULES),
        loopback=loopback,
        settings=settings.read(congestion),
        notes=tuple(notes),
        missing_rules=tuple(
            rule
            for rule in KERNEL_RULES
            if rule not in policies and any(other.family == rule.family for other in policies)
        ),
    )


def _unfit(link: Link, found: list[Link]) -> str:
    """Why an interface can't be had in the guest; '' if it can."""
    if is_tap(link):
        return "it is runvm's"
    if link.hardware != links.ETHERNET:
        return "it isn't an Ethernet interface"
    if link.master:
        return "it is part of another interface"
    if link.kind == "vrf" or link.kind in _COMPOUND and not link.up:
        return f"it is a {link.kind}"
    if link.parent and not link.parent_elsewhere and link.kind != "veth":
        # its frames pass the interface below, whose NIC in the guest has them already
        return f"it lies on {next((other.name for other in found if other.ifindex == link.parent), 'another one')}"
    if link.kind in ("gretap", "erspan", "ip6gretap") and not link.up:
        return "it is the kernel's fallback tunnel"
    return ""


def _is_part(link: Link, found: list[Link]) -> bool:
    """Whether its frames reach the guest by the interface that it is a part of."""
    return any(other.ifindex == link.master and not _unfit(other, found) for other in found)


def _interface(link: Link, addresses: tuple[Address, ...], neighbours: tuple[routing.Neighbour, ...]) -> Interface:
    return Interface(
        ifindex=link.ifindex,
        name=link.name,
        mac=link.mac,
        mtu=link.mtu,
        up=link.up,
        arp=link.arp,
        queue=link.queue,
        address_mode=link.address_mode,
        ipv4=tuple((key, link.ipv4[key - 1]) for key in IPV4_SETTINGS if key <= len(link.ipv4)),
        ipv6=tuple((key, link.ipv6[key]) for key in IPV6_SETTINGS if key < len(link.ipv6)),
        addresses=addresses,
        neighbours=neighbours,
    )


def _settled(link: Link, own: list[Address]) -> tuple[Address, ...]:
    """The addresses as the guest takes them: not to be tried for duplicates again, their state on the host left out."""
    settled = []
    for address in own:
        if not address.flags & routing.DADFAILED:
            flags = address.flags & _KEPT_FLAGS | (routing.NODAD if address.family == AF_INET6 else 0)
            # a label that is the interface's name changes with that by itself
            settled.append(address._replace(flags=flags, label="" if address.label == link.name else address.label))
    there = any(_is_link_local(address) for address in own)
    automatic = bool(link.ipv6) and not link.ipv6[_DISABLE_IPV6] and link.address_mode == _MODE_EUI64
    if link.hardware == links.ETHERNET and link.up and automatic and not there:
        # the kernel makes it up to a second after the interface has come up
        expected = _link_local(link.mac)
        settled.append(Address(int(AF_INET6), expected, 64, "", "", routing.SCOPE_LINK, routing.NODAD, "", 0))
    return tuple(sorted(settled, key=_is_link_local))


def _is_link_local(address: Address) -> bool:
    return address.family == AF_INET6 and address.scope == routing.SCOPE_LINK


def _link_local(mac: str) -> str:
    """RFC 4291, appendix A."""
    raw = bytes.fromhex(mac.replace(":", ""))
    return inet_ntop(AF_INET6, b"\xfe\x80" + bytes(6) + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:])


def _handed_over(routes: list[Route], kept: set[str], names: dict[int, str], notes: list[str]) -> Iterator[Route]:
    """The routes of *routes* that lead by interfaces which the guest has."""
    for route in routes:
        devices = route.devices
        if devices <= kept:
            yield route
        elif not any(device.startswith(TAP_PREFIX) for device in devices):
            lacking = ", ".join(sorted(device or "another" for device in devices - kept))
            if route.protocol != routing.PROTOCOL_KERNEL:
                notes.append(f"route {routing.shown(route)} is not handed over: its interface {lacking} isn't")


class InterfaceMonitor:
    """Tells when the network of a namespace may have changed; made in that namespace, used from anywhere."""

    def __init__(self) -> None:
        self._socket = netlink.Socket(
            netlink.GROUP_LINK
            | netlink.GROUP_IPV4_ADDRESS
            | netlink.GROUP_IPV6_ADDRESS
            | netlink.GROUP_IPV4_ROUTE
            | netlink.GROUP_IPV6_ROUTE
            | netlink.GROUP_IPV4_RULE
            | netlink.GROUP_IPV6_RULE
            | netlink.GROUP_NEIGHBOUR
            | netlink.GROUP_IPV4_SETTINGS
            | netlink.GROUP_IPV6_SETTINGS
        )

    def fileno(self) -> int:
        """Readable when something has happened: then call drain(), and scan() once it has been quiet for a moment."""
        return self._socket.fileno()

    def drain(self, network: Network) -> bool:
        """Take what has come; whether that can be a change from *network*. It is where the kernel had to drop messages:
        scan() reads everything.

        A neighbour that the kernel itself has found, and loses or finds again all the time, is none.
        """
        try:
            messages = self._socket.drain()
            neighbours = [routing.changed_neighbour(message) for message in messages]
        except OSError:
            return True
        if any(neighbour is None for neighbour in neighbours):
            return True
        known = {(each.ifindex, entry.address) for each in network.interfaces for entry in each.neighbours}
        return any(found is not None and (found[2] or found[:2] in known) for found in neighbours)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
