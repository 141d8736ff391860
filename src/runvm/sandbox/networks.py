"""The networks of a VM's containers: each host namespace with its taps, scanned and wired for the guest, and watched.

A card, once plugged in, stays in the VM: taking one out needs the guest's help and five seconds (PCIe hot-plug's
attention button), so an interface that goes leaves card and tap for the next one to come.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Any

from runvm.errors import VmmError
from runvm.linux.loop import IN, Loop
from runvm.linux.netns import in_namespace
from runvm.log import log
from runvm.network import scan, tap
from runvm.network.dns import Forwarder
from runvm.protocol import frames
from runvm.protocol.interfaces import Interface, Network, card_mac, to_json
from runvm.protocol.messages import Done, Failed, Plug, Unplug
from runvm.sandbox.forwards import Door, Forwards

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.hypervisor.driver import Vm
    from runvm.protocol.frames import Frame
    from runvm.sandbox.guest_link import GuestLink

_PLUG_SECONDS = 10.0
_DOOR_SECONDS = 0.1
"""How long after a container has come its namespace gets a door: not while its start is waited for."""
_QUIET_SECONDS = 0.03
"""How long a namespace is left alone after a change: engines make several at once."""


class _Card:
    """A network card of the VM, and in the namespace *home* (a descriptor, owned) the tap that is its other end."""

    def __init__(self, number: int, home: int) -> None:
        self.number = number
        self.home = home
        self.tap = f"rvtap{number}"
        self.mac = card_mac(number)

    def move(self, namespace: int) -> None:
        """Take the tap to another namespace."""
        if not os.path.sameopenfile(self.home, namespace):
            tap.move_tap(self.tap, self.home, namespace)
            os.close(self.home)
            self.home = os.dup(namespace)


class _Namespace:
    """A network namespace of the host that one or more containers are in."""

    def __init__(self, fd: int, number: int) -> None:
        self.fd = fd
        self.number = number
        self.users: set[str] = set()
        self.network = Network()
        self.cards: dict[int, _Card] = {}
        self.monitor: scan.Monitor | None = None
        self.forwarder: Forwarder | None = None
        self.door: Door | None = None
        self.stirred = False


class Networks:
    """All of them, by inode. first_tap() comes before the VM, attach() with it, then all the rest."""

    def __init__(self) -> None:
        self._namespaces: dict[int, _Namespace] = {}
        self._free: list[_Card] = []
        self._made = 0  # namespaces
        self._cards = 1
        self._loop: Loop
        self._vm: Vm
        self._guest: GuestLink
        self._forwards: Forwards

    def first_tap(self, namespace: int) -> int:
        """The tap of the card that the VM has from its start, in the namespace of the first container."""
        self._free.append(_Card(0, os.dup(namespace)))
        return in_namespace(namespace, lambda: tap.create_tap(self._free[0].tap))

    def attach(self, loop: Loop, vm: Vm, guest: GuestLink, channel: Callable[[], int]) -> None:
        """The VM runs: its cards are plugged into *vm*, its agent is *guest*; *channel* numbers a new channel."""
        self._loop, self._vm, self._guest = loop, vm, guest
        self._forwards = Forwards(loop, guest, channel)

    def join(self, container: str, shim_pid: int) -> tuple[int, dict[str, Any]]:
        """Take a container's namespace (its shim's) in: (the guest's number for it, what the guest has to set up).

        Raises: OSError, VmmError.
        """
        fd = os.open(f"/proc/{shim_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inode = os.fstat(fd).st_ino
        namespace = self._namespaces.get(inode)
        if namespace is not None:
            os.close(fd)
            namespace.users.add(container)
            return namespace.number, {}
        self._made += 1
        namespace = self._namespaces[inode] = _Namespace(fd, self._made)
        namespace.users.add(container)
        self._take(namespace)
        number = namespace.number
        self._loop.call_later(_DOOR_SECONDS, lambda: self._open_door(namespace))
        namespace.forwarder = Forwarder(self._loop, fd, lambda packet: self._guest.send(frames.DNS, number, packet))
        namespace.monitor = in_namespace(fd, scan.Monitor)
        self._loop.watch(namespace.monitor.fileno(), IN, lambda events: self._stir(namespace))
        return number, to_json(namespace.network)

    def refresh(self, container: str) -> None:
        """Bring the guest up to date before something is done that relies on it: Podman fills a new network namespace
        between create and start where there is a user namespace."""
        for namespace in self._namespaces.values():
            if container in namespace.users and namespace.monitor is not None:
                poll = select.poll()
                poll.register(namespace.monitor.fileno(), select.POLLIN)
                if poll.poll(0) or namespace.stirred:
                    namespace.monitor.drain()
                    self._look(namespace)

    def leave(self, container: str) -> None:
        """A container has gone; a namespace that nobody is left in is let go."""
        for inode, namespace in list(self._namespaces.items()):
            namespace.users.discard(container)
            if not namespace.users:
                del self._namespaces[inode]
                self._close(namespace)

    def close(self) -> None:
        """The VM has ended: every namespace is left as it was."""
        for namespace in self._namespaces.values():
            self._let_go(namespace)
            for card in namespace.cards.values():
                os.close(card.home)
        for card in self._free:
            os.close(card.home)
        self._namespaces.clear()
        self._free.clear()

    def query(self, frame: Frame) -> None:
        """A DNS query from the guest."""
        for namespace in self._namespaces.values():
            if namespace.number == frame.channel and namespace.forwarder is not None:
                namespace.forwarder.ask(frame.payload)

    def relay(self, frame: Frame) -> bool:
        """Take a stream's frame from the guest; False where it is of no forwarded connection."""
        return self._forwards.frame(frame)

    # --- changes

    def _stir(self, namespace: _Namespace) -> None:
        if namespace.monitor is not None:
            namespace.monitor.drain()
        if not namespace.stirred:
            namespace.stirred = True
            self._loop.call_later(_QUIET_SECONDS, lambda: self._settled(namespace))

    def _settled(self, namespace: _Namespace) -> None:
        if namespace.stirred and namespace.users:
            self._look(namespace)

    def _look(self, namespace: _Namespace) -> None:
        """Scan again; the guest hears of what has changed."""
        namespace.stirred = False
        before = namespace.network
        try:
            gone = self._take(namespace)
        except (OSError, VmmError) as error:
            log.error(f"a change of a container's network can't be handed over: {error}")
            return
        if namespace.network == before:
            return

        def plugged(answer: Done | Failed) -> None:
            self._free += gone
            if isinstance(answer, Failed):
                log.error(f"a change of a container's network failed in the guest: {answer.error}")

        self._guest.ask(Plug(namespace.number, to_json(namespace.network)), plugged)

    def _take(self, namespace: _Namespace) -> list[_Card]:
        """Scan the namespace and wire each new interface to a tap; the cards that have lost theirs."""
        found = in_namespace(namespace.fd, scan.scan)
        for note in found.notes:
            if note not in namespace.network.notes:
                log.warning(note)
        before = {interface.ifindex: interface for interface in namespace.network.interfaces}
        interfaces = []
        for interface in found.interfaces:
            card = namespace.cards.get(interface.ifindex)
            old = before.get(interface.ifindex)
            if card is None:
                card = namespace.cards[interface.ifindex] = self._card(namespace, interface)
            elif old is None or (old.name, old.mtu) != (interface.name, interface.mtu):
                self._wire(namespace, interface, card)
            interfaces.append(interface._replace(nic=card.mac))
        there = {interface.ifindex for interface in interfaces}
        gone = [namespace.cards.pop(ifindex) for ifindex in list(namespace.cards) if ifindex not in there]
        namespace.network = found._replace(interfaces=tuple(interfaces))
        return gone

    def _card(self, namespace: _Namespace, interface: Interface) -> _Card:
        """A card for an interface, wired to it."""
        if self._free:
            card = self._free.pop(0)
            try:
                card.move(namespace.fd)
                self._wire(namespace, interface, card)
            except OSError:
                self._free.append(card)
                raise
            return card
        card = _Card(self._cards, os.dup(namespace.fd))
        fd = in_namespace(namespace.fd, lambda: tap.create_tap(card.tap))
        try:
            self._wire(namespace, interface, card)
            self._vm.plug_nic(card.number, fd, card.mac, deadline=time.monotonic() + _PLUG_SECONDS)
        except BaseException:
            os.close(card.home)
            raise
        finally:
            os.close(fd)
        self._cards += 1
        return card

    def _wire(self, namespace: _Namespace, interface: Interface, card: _Card) -> None:
        in_namespace(namespace.fd, lambda: tap.wire(interface.name, card.tap, resolver=True))

    def _open_door(self, namespace: _Namespace) -> None:
        if namespace.users:
            namespace.door = self._forwards.open(namespace.fd, namespace.number)

    def _close(self, namespace: _Namespace) -> None:
        self._guest.ask(Unplug(namespace.number), lambda answer: self._free.extend(namespace.cards.values()))
        self._let_go(namespace)

    def _let_go(self, namespace: _Namespace) -> None:
        if namespace.door is not None:
            namespace.door.close()
        if namespace.monitor is not None:
            self._loop.forget(namespace.monitor.fileno())
            namespace.monitor.close()
        if namespace.forwarder is not None:
            namespace.forwarder.close()
        self._restore(namespace)
        os.close(namespace.fd)

    def _restore(self, namespace: _Namespace) -> None:
        try:
            in_namespace(namespace.fd, tap.unwire_all)
        except OSError as error:
            log.debug(f"a network namespace can't be left as it was: {error}")
