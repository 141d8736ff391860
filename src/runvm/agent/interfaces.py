"""One interface of a container's network, on a NIC of the VM: found, moved in, set up, moved out. For agent.network.

A NIC is moved under a name that nothing else has, and gets its interface's afterwards: that the container has taken the
name, or that two interfaces swap theirs, then costs a name, not the NIC.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runvm.linux import links, netlink, routing
from runvm.linux.links import Link
from runvm.linux.netlink import NetlinkError, Socket
from runvm.linux.netns import in_namespace
from runvm.linux.routing import Address
from runvm.protocol.interfaces import IPV6_SETTINGS, Interface

_STABLE_PRIVACY = 2  # IN6_ADDR_GEN_MODE_STABLE_PRIVACY


def mac(nic: Link) -> str:
    """The MAC that a NIC was made with, whatever it has got since."""
    return nic.permanent_mac or nic.mac


def temporary_name(nic: str) -> str:
    """What a NIC with that MAC is called until it has its interface's name."""
    return f"rvnic{nic.replace(':', '')[-6:]}"


# --- NICs


def find_nics(wanted: set[str], missed: set[str], deadline: float) -> dict[str, Link]:
    """The NICs of the agent's own namespace with these MACs. They are waited for, but for those of *missed*."""
    found: dict[str, Link] = {}
    if not wanted:
        return found
    with Socket(netlink.GROUP_LINK) as monitor, Socket() as sock:
        while True:
            found = {mac(link): link for link in links.links(sock) if mac(link) in wanted}
            if wanted <= found.keys() | missed:
                return found
            poll = select.poll()
            poll.register(monitor.fileno(), select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and time.monotonic() >= deadline:
                return found
            try:
                monitor.drain()
            except OSError:  # some were lost: the list is read anew in any case
                pass


def move_in(sock: Socket, netns: int, nic: Link) -> int:
    """Move a NIC of the agent's namespace to *netns*, of which *sock* is, under its temporary name: its index there.

    Raises NetlinkError.
    """
    name = temporary_name(mac(nic))
    with Socket() as home:
        if nic.up:
            links.set_link(home, nic.ifindex, up=False)
        if nic.name != name:  # by a call of its own: refused beside a move, it would leave the NIC moved
            links.set_link(home, nic.ifindex, name=name)
        links.set_link(home, nic.ifindex, namespace=netns)
    return links.link(sock, name).ifindex


def move_out(sock: Socket, ifindex: int, nic: str) -> None:
    """Move a NIC back to the agent's namespace, as it was before; that it has been pulled out already is no error."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        links.set_link(sock, ifindex, up=False)
        links.set_link(sock, ifindex, mac=nic, arp=True)
        links.set_link(sock, ifindex, namespace=home, name=temporary_name(nic))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
    finally:
        os.close(home)


def take_name(sock: Socket, ifindex: int, nic: str) -> None:
    """Give a NIC its temporary name again; set_up() gives it the one that it is to have. Raises NetlinkError."""
    links.set_link(sock, ifindex, up=False)
    links.set_link(sock, ifindex, name=temporary_name(nic))


# --- one interface


def set_up(
    sock: Socket, netns: int, ifindex: int, interface: Interface, old: Interface | None, notes: list[str]
) -> bool:
    """Make the NIC of *interface* what it should be, *old* being what it was before; True if its routes are lost.

    What the container has changed itself stays, unless the host has changed the same. What the kernel refuses is a
    note. Raises NetlinkError: ENODEV where the NIC isn't there.
    """
    flapped = old is not None and (old.name, old.up, old.mac) != (interface.name, interface.up, interface.mac)
    fresh = old is None or flapped
    if flapped:
        links.set_link(sock, ifindex, up=False)
    link = links.link_at(sock, ifindex)
    if link.name == temporary_name(interface.nic):
        with noted(notes):
            links.set_link(sock, ifindex, name=interface.name)
            link = link._replace(name=interface.name)
    ipv6 = bool(link.ipv6)
    if _changed(interface.mtu, old and old.mtu, link.mtu):
        with noted(notes):
            links.set_link(sock, ifindex, mtu=interface.mtu)
        # below 1280 an interface has no IPv6
        link = links.link_at(sock, ifindex)
    reborn = bool(link.ipv6) and not ipv6
    before = None if reborn else old
    with noted(notes):
        _set_link(sock, link, interface, old, own_addresses=bool(link.ipv6) and (fresh or reborn))
    with noted(notes):
        in_namespace(netns, lambda: _set_ipv6_settings(link, interface, before, notes))
    if fresh and interface.up:
        with noted(notes):
            links.set_link(sock, ifindex, up=True)
    if not link.ipv6 and any(address.family == 10 for address in interface.addresses):
        notes.append(f"the guest has no IPv6: the IPv6 addresses of {interface.name} are left out")
    addresses = () if old is None else old.addresses
    lost = set_addresses(sock, link, interface.addresses, addresses, notes, fresh=fresh or reborn)
    if link.ipv6 and (fresh or reborn) and interface.address_mode not in (links.MODE_NONE, _STABLE_PRIVACY):
        # for when the container itself takes the interface down and up; a stable privacy address needs a secret
        with noted(notes):
            links.set_link(sock, ifindex, address_mode=interface.address_mode)
    _set_neighbours(sock, link, interface, old, notes, again=fresh or reborn or lost)
    return flapped or reborn or lost


def _changed(new: object, old: object, actual: object) -> bool:
    """Whether to write *new*: where the host has changed it, or has said it for the first time (*old*: None)."""
    return new not in (old, actual)


def _set_link(sock: Socket, link: Link, interface: Interface, old: Interface | None, *, own_addresses: bool) -> None:
    settings = dict(old.ipv4) if old is not None else {}
    links.set_link(
        sock,
        link.ifindex,
        mac=interface.mac if _changed(interface.mac, old and old.mac, link.mac) else "",
        # 0, as Docker gives its veths, would leave a real NIC without a queue: what its ring can't take would be lost
        queue=interface.queue if interface.queue and _changed(interface.queue, old and old.queue, link.queue) else -1,
        arp=interface.arp if _changed(interface.arp, old and old.arp, link.arp) else None,
        ipv4={
            key: value
            for key, value in interface.ipv4
            if key <= len(link.ipv4) and _changed(value, settings.get(key), link.ipv4[key - 1])
        },
        # the host's link-local address comes with the others: the kernel's own would be tried for duplicates first
        address_mode=links.MODE_NONE if own_addresses else -1,
    )


def _set_ipv6_settings(link: Link, interface: Interface, old: Interface | None, notes: list[str]) -> None:
    settings = dict(old.ipv6) if old is not None else {}
    for key, value in interface.ipv6:
        if key in IPV6_SETTINGS and key < len(link.ipv6) and _changed(value, settings.get(key), link.ipv6[key]):
            with noted(notes):
                write_setting(f"ipv6/conf/{link.name}/{IPV6_SETTINGS[key]}", str(value))


def set_addresses(
    sock: Socket, link: Link, new: tuple[Address, ...], old: tuple[Address, ...], notes: list[str], *, fresh: bool
) -> bool:
    """From the *old* addresses to the *new*; all are set where the interface is *fresh*. True if routes may be lost."""
    # the kernel puts a new IPv6 address before the others
    ordered = [item for item in new if item.family != 10] + [item for item in new[::-1] if item.family == 10]
    ordered = [item for item in ordered if item.family != 10 or link.ipv6]
    aged = [item for item in ordered if item not in old and _other_age(item) in old]
    gone = [item for item in old if item not in new and _other_age(item) not in aged]
    # before others go: with its last IPv4 address an interface loses its routes and neighbours, the container's own too
    for item in ordered:
        if fresh or item not in old:
            with noted(notes):
                routing.add_address(sock, link.ifindex, item, replace=item in aged)
    for item in gone:
        if item.family != 10 or link.ipv6:
            with noted(notes):
                routing.delete_address(sock, link.ifindex, item)
    if gone:
        # the kernel drops an IPv4 network's further addresses with the first of them, and takes none twice
        for item in ordered:
            with noted(notes):
                routing.add_address(sock, link.ifindex, item)
    return bool(gone)


def _other_age(address: Address) -> Address:
    return address._replace(flags=address.flags ^ routing.DEPRECATED)


def _set_neighbours(
    sock: Socket, link: Link, interface: Interface, old: Interface | None, notes: list[str], *, again: bool
) -> None:
    before = () if old is None else old.neighbours
    for neighbour in before:
        if neighbour not in interface.neighbours:
            with noted(notes):
                routing.delete_neighbour(sock, link.ifindex, neighbour)
    for neighbour in interface.neighbours:
        if (link.ipv6 or neighbour.family != 10) and (again or neighbour not in before):
            with noted(notes):
                routing.set_neighbour(sock, link.ifindex, neighbour)


# --- pieces


def write_setting(name: str, value: str) -> str:
    """Write a file below /proc/sys/net, unless it says so already: writing a conf/all changes all interfaces.
    What it said before. Raises OSError."""
    try:
        fd = os.open(f"/proc/sys/net/{name}", os.O_RDWR | os.O_CLOEXEC)
        try:
            before = os.read(fd, 256).decode().strip()
            if before.split() != value.split():
                os.pwrite(fd, value.encode(), 0)
            return before
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, f"set {name} to {value}: {error.strerror}") from None


@contextmanager
def noted(notes: list[str]) -> Iterator[None]:
    """What the guest's kernel refuses is no reason to be without all the rest."""
    try:
        yield
    except OSError as error:
        notes.append(str(error.args[1]) if len(error.args) > 1 else str(error))
