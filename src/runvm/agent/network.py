"""A container's network in the guest: a namespace that has the interfaces which the host found, on the VM's own NICs.

The agent calls make_namespace() once for each network of its containers, and configure() then and whenever the host's
side has changed. All by netlink: in an emulated guest, an exec of `ip` costs more than the whole of this.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from runvm.errors import DeadlineError
from runvm.linux import links, netlink, routing, rules
from runvm.linux.links import Link
from runvm.linux.netlink import NetlinkError, Socket
from runvm.linux.netns import in_namespace
from runvm.linux.routing import Address, Route
from runvm.linux.rules import Rule
from runvm.linux.syscalls import CLONE_NEWNET, setns, unshare
from runvm.protocol.interfaces import (
    IPV6_SETTINGS,
    NAMESPACE_SETTINGS,
    Interface,
    Network,
    changes,
    from_json,
    to_json,
)

_LIKELY = Network(settings=(("ipv4/ip_forward", "1"),))
"""What a container's namespace has on a host whose engine forwards for its networks."""
_FREE_NAME = "rvnic"
_STABLE_PRIVACY = 2  # IN6_ADDR_GEN_MODE_STABLE_PRIVACY


class _Namespace:
    """One network namespace: what it was last told to have, and its NICs by their interface's index on the host.

    *waiting* has NICs, by MAC, that were moved here before anyone knew what for, with the names that they have got;
    *settings* the NAMESPACE_SETTINGS.
    """

    def __init__(self) -> None:
        self.network = Network()
        self.nics: dict[int, int] = {}
        self.waiting: dict[str, tuple[int, str]] = {}
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            unshare(CLONE_NEWNET)
            try:
                self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                self.sock = Socket()
                self.settings = {name: _read_setting(name) for name in NAMESPACE_SETTINGS}
            finally:
                setns(home, CLONE_NEWNET)
        finally:
            os.close(home)
        links.set_link(self.sock, links.link(self.sock, "lo").ifindex, up=True)

    def close(self) -> None:
        self.sock.close()
        os.close(self.fd)


_namespaces: dict[str, _Namespace] = {}
_spare: list[_Namespace] = []


def prepare(nics: tuple[str, ...] = ()) -> int:
    """Make a namespace before a template is taken, for a make_namespace() that wants *nics* (MACs), or none.

    Those that the VM has are moved in: that takes longer than all that configure() does with them. The descriptor
    returned, for sockets that are to wait there too, remains this module's. Raises OSError.
    """
    namespace = _Namespace()
    _set_namespace_settings(namespace, _LIKELY)
    _spare.append(namespace)
    from_json(to_json(Network()))  # makes its decoders
    with Socket() as sock:
        for link in links.links(sock):
            if link.hardware == links.LOOPBACK:
                # a container of the VM's own network namespace (host_network) expects it
                links.set_link(sock, link.ifindex, up=True)
            elif _mac(link) in nics:
                # most likely the right name
                name = f"eth{len(namespace.waiting)}"
                namespace.waiting[_mac(link)] = _move(namespace, link, name), name
    return namespace.fd


def path(name: str) -> str:
    """Where crun finds the namespace of that name, for a config.json's namespace path: it isn't bound anywhere, as that
    takes time at each start. Raises OSError."""
    return f"/proc/{os.getpid()}/fd/{_find(name).fd}"


def make_namespace(name: str, nics: Iterable[str] = ()) -> int:
    """A namespace with nothing but lo, up, and maybe those of *nics* (MACs) that it is to have; configure() has to
    follow. The descriptor returned remains this module's. Raises OSError.
    """
    if name in _namespaces:
        raise OSError(errno.EEXIST, f"network namespace {name!r}")
    wanted = set(nics)
    fitting = [spare for spare in _spare if spare.waiting.keys() & wanted or not (spare.waiting or wanted)]
    if fitting:
        namespace = fitting[0]
        _spare.remove(namespace)
    else:
        namespace = _Namespace()
    _namespaces[name] = namespace
    return namespace.fd


def remove_namespace(name: str) -> None:
    """Take the NICs out and close the namespace, which ends with its last process. Does nothing for an unknown one."""
    namespace = _namespaces.pop(name, None)
    if namespace is None:
        return
    for interface in namespace.network.interfaces:
        _give_back(namespace, interface)
    _empty(namespace, set())
    namespace.close()


def open_namespace(name: str) -> int:
    """A descriptor of the namespace, the caller's to close: for sockets that are to live in it. Raises OSError."""
    return os.dup(_find(name).fd)


def _find(name: str) -> _Namespace:
    try:
        return _namespaces[name]
    except KeyError:
        raise OSError(errno.ENOENT, f"no network namespace {name!r}") from None


def configure(name: str, network: Network, *, deadline: float) -> list[str]:
    """Bring a namespace from what it was last told to have to *network*; what the container itself changed stays.

    Cards are waited for until *deadline*: they may be plugged in just now. What is returned are notes for the log.
    Raises: OSError, DeadlineError.
    """
    namespace = _find(name)
    _renumber(namespace, network)
    difference = changes(namespace.network, network)
    notes = list(network.notes)
    for interface in difference.removed:
        _give_back(namespace, interface)
    _empty(namespace, {interface.nic for interface in network.interfaces})
    for interface in difference.added:
        if interface.nic in namespace.waiting:
            ifindex, name = namespace.waiting.pop(interface.nic)
            namespace.nics[interface.ifindex] = ifindex
            if name != interface.name:
                links.set_link(namespace.sock, ifindex, name=interface.name)
    _set_namespace_settings(namespace, network)
    nics = _find_nics([item for item in difference.added if item.ifindex not in namespace.nics], deadline)
    fresh = []
    for interface in difference.added:
        if interface.ifindex in nics:
            namespace.nics[interface.ifindex] = _move(namespace, nics[interface.ifindex], interface.name)
        _set_up(namespace, interface, None, notes)
        fresh.append(interface.name)
    for old, new in difference.changed:
        if _set_up(namespace, new, old, notes):
            fresh.append(new.name)
    _set_loopback(namespace, network)
    _set_routes(namespace, network, fresh, notes)
    namespace.network = network
    return notes


def _renumber(namespace: _Namespace, network: Network) -> None:
    """What a restored VM's NICs stand for now has other indexes, in another namespace of the host: that alone is no
    reason to take an interface down."""
    new = {(interface.name, interface.nic): interface.ifindex for interface in network.interfaces}
    before = namespace.network.interfaces
    numbers = {item.ifindex: new.get((item.name, item.nic), item.ifindex) for item in before}
    if any(number != numbers[number] for number in numbers) and len(set(numbers.values())) == len(numbers):
        renumbered = tuple(item._replace(ifindex=numbers[item.ifindex]) for item in before)
        namespace.network = namespace.network._replace(interfaces=renumbered)
        namespace.nics = {numbers.get(number, number): nic for number, nic in namespace.nics.items()}


# --- NICs


def _find_nics(interfaces: Iterable[Interface], deadline: float) -> dict[int, Link]:
    """The NICs of *interfaces* in the agent's own namespace, by the interfaces' indexes on the host."""
    wanted = {interface.nic: interface for interface in interfaces}
    found: dict[int, Link] = {}
    if not wanted:
        return found
    for namespace in _spare:
        _empty(namespace, namespace.waiting.keys() - wanted.keys())
    with Socket(netlink.GROUP_LINK) as monitor, Socket() as sock:
        while True:
            for link in links.links(sock):
                interface = wanted.get(_mac(link))
                if interface is not None:
                    found[interface.ifindex] = link
            missing = [interface for interface in wanted.values() if interface.ifindex not in found]
            if not missing:
                return found
            poll = select.poll()
            poll.register(monitor.fileno(), select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and time.monotonic() >= deadline:
                nics = ", ".join(f"{interface.nic} for {interface.name}" for interface in missing)
                raise DeadlineError(f"no NIC {nics} has appeared in the guest in time")
            try:
                monitor.drain()
            except OSError:  # some were lost: the list is read anew in any case
                pass


def _mac(nic: Link) -> str:
    """The MAC that a NIC was made with, whatever it has got since."""
    return nic.permanent_mac or nic.mac


def _move(namespace: _Namespace, nic: Link, name: str) -> int:
    """Move a NIC in under its new name: its index there."""
    with Socket() as sock:
        if nic.up:
            links.set_link(sock, nic.ifindex, up=False)
        links.set_link(sock, nic.ifindex, namespace=namespace.fd, name=name)
    return links.link(namespace.sock, name).ifindex


def _give_back(namespace: _Namespace, interface: Interface) -> None:
    ifindex = namespace.nics.pop(interface.ifindex, None)
    if ifindex is not None:
        _move_out(namespace, ifindex, interface.nic)


def _empty(namespace: _Namespace, wanted: set[str]) -> None:
    """Give back the NICs that wait for nothing."""
    for mac in [mac for mac in namespace.waiting if mac not in wanted]:
        _move_out(namespace, namespace.waiting.pop(mac)[0], mac)


def _move_out(namespace: _Namespace, ifindex: int, mac: str) -> None:
    """Move a NIC back to the agent's namespace, as it was before; that it has been pulled out already is no error."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        links.set_link(namespace.sock, ifindex, up=False)
        links.set_link(namespace.sock, ifindex, mac=mac)
        links.set_link(namespace.sock, ifindex, namespace=home, name=f"{_FREE_NAME}{mac.replace(':', '')[-6:]}")
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
    finally:
        os.close(home)


# --- one interface


def _set_up(namespace: _Namespace, interface: Interface, old: Interface | None, notes: list[str]) -> bool:
    """Make the NIC of *interface* what it should be, *old* being what it was before; True if its routes are lost."""
    sock, ifindex = namespace.sock, namespace.nics[interface.ifindex]
    renamed = old is not None and old.name != interface.name
    flapped = renamed or old is not None and (old.up, old.mac) != (interface.up, interface.mac)
    if flapped:
        links.set_link(sock, ifindex, up=False)
    if renamed:
        links.set_link(sock, ifindex, name=interface.name)
    link = links.link(sock, interface.name)
    settings = {key: value for key, value in interface.ipv4 if key <= len(link.ipv4) and link.ipv4[key - 1] != value}
    fresh = old is None or flapped
    links.set_link(
        sock,
        ifindex,
        mac=interface.mac if interface.mac != link.mac else "",
        mtu=interface.mtu if interface.mtu != link.mtu else 0,
        # 0, as Docker gives its veths, would leave a real NIC without a queue: what its ring can't take would be lost
        queue=interface.queue if interface.queue not in (0, link.queue) else -1,
        ipv4=settings,
        # the host's link-local address comes with the others: the kernel's own would be tried for duplicates first
        address_mode=links.MODE_NONE if link.ipv6 and fresh else -1,
    )
    in_namespace(namespace.fd, lambda: _set_ipv6_settings(interface, link))
    if fresh and interface.up:
        links.set_link(sock, ifindex, up=True)
    if not link.ipv6 and any(address.family == 10 for address in interface.addresses):
        notes.append(f"the guest has no IPv6: the IPv6 addresses of {interface.name} are left out")
    addresses = () if old is None else old.addresses
    lost = _set_addresses(sock, ifindex, interface.addresses, addresses, bool(link.ipv6), fresh=fresh)
    if link.ipv6 and fresh and interface.address_mode not in (links.MODE_NONE, _STABLE_PRIVACY):
        # for when the container itself takes the interface down and up; a stable privacy address needs a secret
        links.set_link(sock, ifindex, address_mode=interface.address_mode)
    for neighbour in () if old is None else old.neighbours:
        if neighbour not in interface.neighbours:
            routing.delete_neighbour(sock, ifindex, neighbour)
    for neighbour in interface.neighbours:
        if (link.ipv6 or neighbour.family != 10) and (fresh or old is None or neighbour not in old.neighbours):
            routing.set_neighbour(sock, ifindex, neighbour)
    return flapped or lost


def _set_addresses(
    sock: Socket, ifindex: int, new: tuple[Address, ...], old: tuple[Address, ...], ipv6: bool, *, fresh: bool
) -> bool:
    """From the *old* addresses to the *new*; all are set where the interface is *fresh*. True if routes may be lost."""
    gone = [address for address in old if address not in new]
    for address in gone:
        routing.delete_address(sock, ifindex, address)
    for address in new:
        # the kernel drops an IPv4 network's further addresses with the first of them
        if (fresh or gone or address not in old) and (ipv6 or address.family != 10):
            routing.add_address(sock, ifindex, address)
    return bool(gone)


def _set_ipv6_settings(interface: Interface, link: Link) -> None:
    for key, value in interface.ipv6:
        if key in IPV6_SETTINGS and key < len(link.ipv6) and link.ipv6[key] != value:
            _write_setting(f"ipv6/conf/{interface.name}/{IPV6_SETTINGS[key]}", str(value))


# --- the namespace


def _set_namespace_settings(namespace: _Namespace, network: Network) -> None:
    wanted = dict(network.settings)
    names = [name for name in NAMESPACE_SETTINGS if name in wanted]
    changed = next((index for index, name in enumerate(names) if namespace.settings.get(name) != wanted[name]), None)
    if changed is None:
        return

    def write() -> None:
        # one may change those after it: conf/all/disable_ipv6 goes for the default and for lo as well
        for name in names[changed:]:
            _write_setting(name, wanted[name])

    in_namespace(namespace.fd, write)
    namespace.settings.update(wanted)


def _read_setting(name: str) -> str:
    """A file below /proc/sys/net; '' where the kernel has none of that name."""
    try:
        fd = os.open(f"/proc/sys/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, 256).decode().strip()
    finally:
        os.close(fd)


def _write_setting(name: str, value: str) -> None:
    """Write a file below /proc/sys/net, unless it says so already: writing a conf/all changes all interfaces."""
    try:
        fd = os.open(f"/proc/sys/net/{name}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # a kernel that doesn't know it
        return
    try:
        if os.read(fd, 256).decode().strip() != value:
            os.pwrite(fd, value.encode(), 0)
    finally:
        os.close(fd)


def _set_loopback(namespace: _Namespace, network: Network) -> None:
    old, new = namespace.network.loopback, network.loopback
    if old != new:
        link = links.link(namespace.sock, "lo")
        _set_addresses(namespace.sock, link.ifindex, new, old, bool(link.ipv6), fresh=False)


def _set_routes(namespace: _Namespace, network: Network, fresh: list[str], notes: list[str]) -> None:
    """Routes and rules; those of *fresh* interfaces are lost and all to be set."""
    sock, old = namespace.sock, namespace.network
    if not fresh and (old.routes, *_rules(old)) == (network.routes, *_rules(network)):
        return
    found = links.links(sock)
    indexes = {link.name: link.ifindex for link in found}
    ipv6 = any(link.ipv6 for link in found)
    for route in old.routes:
        if route not in network.routes and _devices(route) <= indexes.keys():
            routing.delete_route(sock, route, indexes)
    kept = set(old.routes)
    # a gateway must be reachable by a route that is there already
    for route in sorted(network.routes, key=lambda route: bool(route.gateway or route.hops)):
        if route.family == 10 and not ipv6:
            notes.append(f"the guest has no IPv6: the route to {route.destination or 'default'} is left out")
        elif route not in kept or not _devices(route).isdisjoint(fresh):
            with _noted(notes):
                routing.add_route(sock, route, indexes, network.routes)
    _set_rules(namespace, network, notes, ipv6=ipv6)


def _set_rules(namespace: _Namespace, network: Network, notes: list[str], *, ipv6: bool) -> None:
    """The routing rules; a new namespace has the kernel's own."""
    sock, old = namespace.sock, namespace.network
    gone = [rule for rule in old.rules if rule not in network.rules]
    gone += [rule for rule in network.missing_rules if rule not in old.missing_rules]
    new = [rule for rule in network.rules if rule not in old.rules]
    new += [rule for rule in old.missing_rules if rule not in network.missing_rules]
    for rule in new:
        if ipv6 or rule.family != 10:
            with _noted(notes):
                rules.add_rule(sock, rule)
    for rule in gone:
        with _noted(notes):
            rules.delete_rule(sock, rule)


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """What the guest's kernel refuses is no reason to be without all the rest."""
    try:
        yield
    except NetlinkError as error:
        notes.append(error.args[1] if len(error.args) > 1 else str(error))


def _rules(network: Network) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    return network.rules, network.missing_rules


def _devices(route: Route) -> set[str]:
    return {hop.device for hop in route.hops} | ({route.device} if route.device else set())
