"""The networks of a VM's containers: each host namespace with its taps, scanned and wired for the guest."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from runvm.hypervisor.driver import DEFAULT_MAC
from runvm.linux.netns import in_namespace
from runvm.log import log
from runvm.network import scan, tap
from runvm.protocol.interfaces import Network, to_json
from runvm.protocol.messages import Plug

if TYPE_CHECKING:
    from runvm.hypervisor.driver import Vm

_PLUG_SECONDS = 10.0


class _Namespace:
    """A network namespace of the host that one or more containers are in."""

    def __init__(self, fd: int, inode: int) -> None:
        self.fd = fd
        self.name = f"n{inode}"
        self.users: set[str] = set()
        self.network = Network()


class Networks:
    """All of them, by inode."""

    def __init__(self) -> None:
        self._namespaces: dict[int, _Namespace] = {}
        self._first = -1
        self._first_free = False
        self._cards = 0

    def first_tap(self, namespace: int) -> int:
        """The tap of the card that the VM has from its start, in the namespace of the first container."""
        self._first = os.fstat(namespace).st_ino
        self._first_free = True
        return in_namespace(namespace, lambda: tap.create_tap("rvtap0"))

    def join(self, vm: Vm, container: str, shim_pid: int) -> tuple[str, dict[str, Any]]:
        """Take a container's namespace (its shim's) in: (the guest's name for it, what the guest has to set up).

        Raises: OSError, VmmError.
        """
        fd = os.open(f"/proc/{shim_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inode = os.fstat(fd).st_ino
        namespace = self._namespaces.get(inode)
        if namespace is not None:
            os.close(fd)
            namespace.users.add(container)
            return namespace.name, {}
        namespace = self._namespaces[inode] = _Namespace(fd, inode)
        namespace.users.add(container)
        return namespace.name, to_json(self._take(vm, namespace, inode))

    def refresh(self, vm: Vm, container: str) -> Plug | None:
        """The container's network if it has changed since it was last looked at; None if not."""
        for inode, namespace in self._namespaces.items():
            if container in namespace.users:
                before = namespace.network
                found = self._take(vm, namespace, inode)
                return Plug(namespace.name, to_json(found)) if found != before else None
        return None

    def leave(self, container: str) -> None:
        """A container has gone; a namespace that nobody is left in is let go."""
        for inode, namespace in list(self._namespaces.items()):
            namespace.users.discard(container)
            if not namespace.users:
                del self._namespaces[inode]
                try:
                    in_namespace(namespace.fd, tap.unwire_all)
                except OSError as error:
                    log.debug(f"network namespace {inode}: {error}")
                os.close(namespace.fd)

    def _take(self, vm: Vm, namespace: _Namespace, inode: int) -> Network:
        """Scan the namespace, wire each new interface to a tap and the tap to a card."""
        found = in_namespace(namespace.fd, scan.scan)
        for note in found.notes:
            log.warning(note)
        cards = {interface.ifindex: interface.nic for interface in namespace.network.interfaces}
        interfaces = []
        for interface in found.interfaces:
            if interface.ifindex not in cards:
                cards[interface.ifindex] = self._card(vm, namespace, inode, interface.name)
            interfaces.append(interface._replace(nic=cards[interface.ifindex]))
        namespace.network = found._replace(interfaces=tuple(interfaces))
        return namespace.network

    def _card(self, vm: Vm, namespace: _Namespace, inode: int, interface: str) -> str:
        """A card for an interface, wired to it: its MAC."""
        if inode == self._first and self._first_free:
            self._first_free = False
            in_namespace(namespace.fd, lambda: tap.wire(interface, "rvtap0", resolver=True))
            return DEFAULT_MAC
        self._cards += 1
        number = self._cards
        name = f"rvtap{number}"

        def make() -> int:
            fd = tap.create_tap(name)
            tap.wire(interface, name, resolver=True)
            return fd

        fd = in_namespace(namespace.fd, make)
        mac = f"{DEFAULT_MAC[:-2]}{number + 1:02x}"
        try:
            vm.plug_nic(number, fd, mac, deadline=time.monotonic() + _PLUG_SECONDS)
        finally:
            os.close(fd)
        return mac
