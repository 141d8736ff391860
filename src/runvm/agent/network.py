"""The guest's side of a container's network: a namespace of its own, the VM's cards moved in and made what the host's interfaces are."""

from __future__ import annotations

import os
import time
from typing import Any

from runvm.linux import links, netlink, routing, syscalls
from runvm.linux.netns import in_namespace
from runvm.protocol.interfaces import Interface, Network, NetworkError, from_json

_DIRECTORY = "/run/netns"
_NO_DAD = 0x02
_IFA_F_PERMANENT = 0x80


def set_loopback_up() -> None:
    """Bring lo up in the caller's namespace."""
    with netlink.Socket() as sock:
        links.set_link(sock, links.link(sock, "lo").ifindex, up=True)


def make_namespace(name: str) -> None:
    """Make the network namespace *name*, once, bound at /run/netns as ip-netns(8) has it; its loopback is up."""
    path = f"{_DIRECTORY}/{name}"
    if os.path.exists(path):
        return
    os.makedirs(_DIRECTORY, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        try:
            syscalls.mount("/proc/self/ns/net", path, "", syscalls.MS_BIND)
            set_loopback_up()
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    finally:
        os.close(home)


def configure(name: str, description: dict[str, Any], *, deadline: float) -> None:
    """Make the namespace's network as *description* (a Network) says. Raises NetworkError, OSError."""
    if not description:
        return
    network = from_json(description)
    fd = os.open(f"{_DIRECTORY}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for interface in network.interfaces:
            if interface.nic:
                _move(interface, fd, deadline)
        in_namespace(fd, lambda: _set_up(network))
    finally:
        os.close(fd)


def deconfigure(name: str, interface: str) -> None:
    """Take an interface down before its card is unplugged. Raises OSError."""
    fd = os.open(f"{_DIRECTORY}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:

        def down() -> None:
            with netlink.Socket() as sock:
                links.set_link(sock, links.link(sock, interface).ifindex, up=False)

        in_namespace(fd, down)
    finally:
        os.close(fd)


def counters(name: str) -> str:
    """/proc/net/dev of the namespace."""
    fd = os.open(f"{_DIRECTORY}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:

        def read() -> str:
            with open("/proc/thread-self/net/dev") as file:
                return file.read(16384)

        return in_namespace(fd, read)
    finally:
        os.close(fd)


def _move(interface: Interface, namespace: int, deadline: float) -> None:
    """Move the card with the MAC *interface.nic* into the namespace, under the interface's name; it may still be arriving."""
    while True:
        with netlink.Socket() as sock:
            card = next((link for link in links.links(sock) if interface.nic in (link.permanent_mac, link.mac)), None)
            if card is not None:
                links.set_link(sock, card.ifindex, name=interface.name, namespace=namespace)
                return
        if time.monotonic() > deadline:
            raise NetworkError(f"the network card for {interface.name} didn't appear in the guest")
        time.sleep(0.005)


def _set_up(network: Network) -> None:
    for setting, value in network.settings:
        try:
            with open(f"/proc/sys/net/{setting}", "w") as file:
                file.write(value)
        except OSError:
            continue  # a setting that this kernel doesn't have
    with netlink.Socket() as sock:
        for interface in network.interfaces:
            link = links.link(sock, interface.name)
            links.set_link(sock, link.ifindex, address_mode=interface.address_mode) if interface.address_mode else None
            links.set_link(sock, link.ifindex, mac=interface.mac, mtu=interface.mtu, queue=interface.queue)
            links.set_link(sock, link.ifindex, up=interface.up)
            for address in interface.addresses:
                # the host has proved it unique already: no second of waiting for duplicates
                routing.add_address(sock, link.ifindex, address._replace(flags=(address.flags | _NO_DAD) & ~_IFA_F_PERMANENT))
            for neighbour in interface.neighbours:
                routing.set_neighbour(sock, link.ifindex, neighbour)
        lo = links.link(sock, "lo").ifindex
        for address in network.loopback:
            routing.add_address(sock, lo, address)
        indexes = {link.name: link.ifindex for link in links.links(sock)}
        # a gateway must be reachable before a route may name it
        for route in sorted(network.routes, key=lambda route: bool(route.gateway or route.hops)):
            routing.add_route(sock, route, indexes)
        for rule in network.rules:
            routing.add_rule(sock, rule)
