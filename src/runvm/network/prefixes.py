"""The routes that a kernel makes by itself for an interface's addresses, to their networks: the guest's kernel makes
them, too, unless it is told not to."""

from __future__ import annotations

from socket import AF_INET, inet_ntop, inet_pton
from typing import TYPE_CHECKING

from runvm.linux import routing

if TYPE_CHECKING:
    from runvm.linux.links import Link
    from runvm.linux.routing import Address, Route

_BROADCAST, _ANYCAST, _MULTICAST = 3, 4, 5
_IPV6_METRIC = 256  # IP6_RT_PRIO_ADDRCONF


class Prefixes:
    """Of a namespace's *routes*."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = [
            route
            for route in routes
            if route.kind not in (_BROADCAST, _ANYCAST, _MULTICAST) or route.protocol != routing.PROTOCOL_KERNEL
        ]
        self._made: set[Route] = set()

    def marked(self, link: Link, addresses: list[Address]) -> list[Address]:
        """The addresses of an interface; one whose route has been removed is marked as one that brings none."""
        if not link.up:
            return addresses  # there are no routes; the kernel makes them once it is up
        found = []
        for address in addresses:
            routes = self._of(link, address)
            self._made.update(routes)
            secondary = address.family == AF_INET and address.flags & routing.SECONDARY
            if not routes and not secondary and self._brings(address):
                found.append(address._replace(flags=address.flags | routing.NOPREFIXROUTE))
            else:
                found.append(address)
        return found

    def others(self) -> list[Route]:
        """The routes that no address of those seen brings, for marked() has been called with all."""
        return [route for route in self._routes if route not in self._made and not _local(route)]

    def _of(self, link: Link, address: Address) -> list[Route]:
        """The routes that are there for an address."""
        network = _network(address)
        return [
            route
            for route in self._routes
            if route.protocol == routing.PROTOCOL_KERNEL
            and route.device == link.name
            and route.destination == network
            and not route.gateway
            and (address.family != AF_INET or route.source == address.address)
            and route.metric == (address.metric or (0 if address.family == AF_INET else _IPV6_METRIC))
        ]

    def _brings(self, address: Address) -> bool:
        """Whether the kernel makes a route for it: not for one that is alone in its network."""
        return address.family != AF_INET or bool(address.peer) or address.prefix < 32


def _network(address: Address) -> str:
    """Its network as a route's destination; without the ipaddress module, whose import takes longer than a scan."""
    raw = inet_pton(address.family, address.peer or address.address)
    beyond = len(raw) * 8 - address.prefix
    network = (int.from_bytes(raw) >> beyond << beyond).to_bytes(len(raw))
    return f"{inet_ntop(address.family, network)}/{address.prefix}"


def _local(route: Route) -> bool:
    """What the kernel has in its local table for an address."""
    return route.protocol == routing.PROTOCOL_KERNEL and route.table == routing.TABLE_LOCAL
