"""A container's network in the guest: a namespace that has the interfaces which the host found, on the VM's own NICs.

The agent calls make_namespace() once for each network of its containers, and configure() then and whenever the host's
side has changed. All by netlink: in an emulated guest, an exec of `ip` costs more than the whole of this.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from runvm.agent import interfaces
from runvm.agent.interfaces import noted, write_setting
from runvm.errors import DeadlineError
from runvm.linux import links, routing, rules
from runvm.linux.netlink import NetlinkError, Socket
from runvm.linux.netns import in_namespace
from runvm.linux.rules import Rule
from runvm.linux.syscalls import CLONE_NEWNET, setns, unshare
from runvm.protocol.interfaces import (
    Interface,
    InterfaceChanges,
    Network,
    changes,
    from_json,
    to_json,
)
from runvm.protocol.net_settings import NAMESPACE_SETTINGS, USUAL

_LIKELY = Network(settings=(("ipv4/ip_forward", "1"),))
"""What a container's namespace has on a host whose engine forwards for its networks."""
_NO_IPV6 = "ipv6/conf/all/disable_ipv6"


class _Namespace:
    """One network namespace: what it was last told to have, and its NICs by their interface's index on the host.

    *waiting* has NICs, by MAC, that were moved here before anyone knew what for, with the names that they have got;
    *missed* those that didn't come in time, *settings* the NAMESPACE_SETTINGS, *fresh* what the settings that the host
    has told were before.
    """

    def __init__(self) -> None:
        self.network = Network()
        self.nics: dict[int, int] = {}
        self.waiting: dict[str, tuple[int, str]] = {}
        self.missed: set[str] = set()
        self.fresh: dict[str, str] = {}
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
    _set_namespace_settings(namespace, _LIKELY, [])
    _spare.append(namespace)
    from_json(to_json(Network()))  # makes its decoders
    with Socket() as sock:
        for link in links.links(sock):
            if link.hardware == links.LOOPBACK:
                # a container of the VM's own network namespace (host_network) expects it
                links.set_link(sock, link.ifindex, up=True)
            elif interfaces.mac(link) in nics:
                # most likely the right name
                name = f"eth{len(namespace.waiting)}"
                ifindex = interfaces.move_in(namespace.sock, namespace.fd, link)
                links.set_link(namespace.sock, ifindex, name=name)
                namespace.waiting[interfaces.mac(link)] = ifindex, name
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
        _give_back(namespace, interface, [])
    _empty(namespace, set(), [])
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

    NICs are waited for until *deadline*: they may be plugged in just now. What is returned are notes for the log.
    Raises: OSError; DeadlineError for a NIC that hasn't come, when all the rest is set up. The next call looks for it
    again, and waits no more.
    """
    namespace = _find(name)
    _renumber(namespace, network)
    difference = changes(namespace.network, network)
    notes = list(network.notes)
    for interface in difference.removed:
        _give_back(namespace, interface, notes)
    _empty(namespace, {interface.nic for interface in network.interfaces}, notes)
    for interface in difference.added:
        if interface.nic in namespace.waiting:
            ifindex, waits_as = namespace.waiting.pop(interface.nic)
            namespace.nics[interface.ifindex] = ifindex
            if waits_as != interface.name:
                with noted(notes):
                    interfaces.take_name(namespace.sock, ifindex, interface.nic)
    _set_namespace_settings(namespace, network, notes)
    _take_nics(namespace, difference.added, deadline, notes)
    fresh = _set_up(namespace, difference, notes)
    _set_loopback(namespace, network, notes)
    _set_routes(namespace, network, fresh, notes)
    there = tuple(interface for interface in network.interfaces if interface.ifindex in namespace.nics)
    lacking = [interface for interface in network.interfaces if interface not in there]
    namespace.network = network._replace(interfaces=there)
    late = [interface for interface in lacking if interface.nic not in namespace.missed]
    namespace.missed = {interface.nic for interface in lacking}
    if late:
        nics = ", ".join(f"{interface.nic} for {interface.name}" for interface in late)
        raise DeadlineError(f"no NIC {nics} has appeared in the guest in time")
    return notes


def _take_nics(namespace: _Namespace, added: tuple[Interface, ...], deadline: float, notes: list[str]) -> None:
    """Move the NICs of new interfaces in."""
    wanted = {interface.nic: interface for interface in added if interface.ifindex not in namespace.nics}
    if wanted:
        for spare in _spare:
            _empty(spare, spare.waiting.keys() - wanted.keys(), notes)
    for nic, link in interfaces.find_nics(set(wanted), namespace.missed, deadline).items():
        namespace.missed.add(nic)  # it has come, whatever becomes of it
        with noted(notes):
            namespace.nics[wanted[nic].ifindex] = interfaces.move_in(namespace.sock, namespace.fd, link)


def _set_up(namespace: _Namespace, difference: InterfaceChanges, notes: list[str]) -> list[str]:
    """Set up the interfaces that are new or changed; the names of those whose routes are lost."""
    for old, new in difference.changed:
        if old.name != new.name and new.ifindex in namespace.nics:  # another one may be about to get the name
            with noted(notes):
                interfaces.take_name(namespace.sock, namespace.nics[new.ifindex], new.nic)
    fresh = []
    for before, interface in [(None, new) for new in difference.added] + list(difference.changed):
        ifindex = namespace.nics.get(interface.ifindex)
        if ifindex is None:
            continue
        try:
            if interfaces.set_up(namespace.sock, namespace.fd, ifindex, interface, before, notes):
                fresh.append(interface.name)
        except NetlinkError as error:
            notes.append(f"interface {interface.name} can't be set up: {error.args[1]}")
            if error.errno == errno.ENODEV:  # the container has moved it elsewhere, from where it may come back
                del namespace.nics[interface.ifindex]
                namespace.missed.add(interface.nic)
    return fresh + [interface.name for interface in difference.added]


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


def _give_back(namespace: _Namespace, interface: Interface, notes: list[str]) -> None:
    ifindex = namespace.nics.pop(interface.ifindex, None)
    if ifindex is not None:
        with noted(notes):
            interfaces.move_out(namespace.sock, ifindex, interface.nic)


def _empty(namespace: _Namespace, wanted: set[str], notes: list[str]) -> None:
    """Give back the NICs that wait for nothing."""
    for mac in [mac for mac in namespace.waiting if mac not in wanted]:
        with noted(notes):
            interfaces.move_out(namespace.sock, namespace.waiting.pop(mac)[0], mac)


# --- the namespace


def _set_namespace_settings(namespace: _Namespace, network: Network, notes: list[str]) -> None:
    """Write what the host has changed; the container's own changes of other settings stay."""
    wanted = dict(network.settings)
    before = dict(namespace.network.settings)
    names = [name for name in NAMESPACE_SETTINGS if name in wanted and namespace.settings.get(name)]
    changed = {name for name in names if namespace.settings[name] != wanted[name]}
    if _NO_IPV6 in changed:  # it goes for the default and for lo as well
        changed |= {name for name in names if name.endswith("/disable_ipv6")}
    values = {name: wanted[name] for name in names if name in changed}
    namespace.settings.update(values)
    values |= {name: value for name, value in network.settings if name in USUAL and before.get(name) != value}
    # no longer told: as in a new namespace
    values |= {name: namespace.fresh.pop(name) for name in before if name in namespace.fresh and name not in wanted}
    if not values:
        return

    def write() -> None:
        for name, value in values.items():
            with noted(notes):
                there = write_setting(name, value)
                if name in wanted:
                    namespace.fresh.setdefault(name, there)

    in_namespace(namespace.fd, write)


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


def _set_loopback(namespace: _Namespace, network: Network, notes: list[str]) -> None:
    old, new = namespace.network.loopback, network.loopback
    if old != new:
        link = links.link(namespace.sock, "lo")
        interfaces.set_addresses(namespace.sock, link, new, old, notes, fresh=False)


def _set_routes(namespace: _Namespace, network: Network, fresh: list[str], notes: list[str]) -> None:
    """Routes and rules; those of *fresh* interfaces are lost and all to be set."""
    sock, old = namespace.sock, namespace.network
    if not fresh and (old.routes, *_rules(old)) == (network.routes, *_rules(network)):
        return
    found = links.links(sock)
    indexes = {link.name: link.ifindex for link in found}
    # whatever the container calls them
    indexes |= {
        item.name: namespace.nics[item.ifindex]
        for item in (*old.interfaces, *network.interfaces)
        if item.ifindex in namespace.nics
    }
    ipv6 = any(link.ipv6 for link in found)
    for route in old.routes:
        if route not in network.routes and route.devices <= indexes.keys():
            with noted(notes):
                routing.delete_route(sock, route, indexes)
    kept = set(old.routes)
    # a gateway must be reachable by a route that is there already
    for route in sorted(network.routes, key=lambda route: bool(route.gateway or route.hops)):
        if route.family == 10 and not ipv6:
            notes.append(f"the guest has no IPv6: the route to {route.destination or 'default'} is left out")
        elif route not in kept or not route.devices.isdisjoint(fresh):
            with noted(notes):
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
            with noted(notes):
                rules.add_rule(sock, rule)
    for rule in gone:
        with noted(notes):
            rules.delete_rule(sock, rule)


def _rules(network: Network) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    return network.rules, network.missing_rules
