"""The networks of a VM's containers: each host namespace with its taps, scanned and wired for the guest, and watched.

A NIC, once plugged in, stays in the VM: taking one out needs the guest's help and five seconds (PCIe hot-plug's
attention button), so an interface that goes leaves NIC and tap for the next one to come.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Any, Protocol

from runvm.errors import VmmError
from runvm.linux import process
from runvm.linux.loop import IN, Loop
from runvm.linux.netns import in_namespace
from runvm.log import log
from runvm.network import ports, scan, settings, tap
from runvm.network.dns import Forwarder
from runvm.network.loopback import Forwards, LoopbackProxy
from runvm.protocol import frames
from runvm.protocol.interfaces import Interface, Network, nic_mac, to_json
from runvm.protocol.messages import Done, Failed, RemoveNetwork, SetNetwork
from runvm.protocol.net_settings import PORT_RANGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.errors import RunvmError
    from runvm.linux.process import Identity
    from runvm.network.agent_line import AgentLine
    from runvm.network.packet import Ports
    from runvm.protocol.frames import Frame

_PROXY_SECONDS = 0.1
"""How long after a container has come its namespace gets a loopback proxy: not while its start is waited for."""
_MAX_NOTES, _MAX_NOTE = 64, 256
MAX_NICS = 8
"""Of a VM whose NICs are packet sockets."""
MAX_SOCKET_MTU = 1500
"""What such a NIC takes at most."""
_QUIET_SECONDS = 0.03
"""How long a namespace is left alone after a change: engines make several at once."""


class Pluggable(Protocol):
    """The VM, as far as it takes NICs (hypervisor.driver.Vm)."""

    def plug_nic(self, index: int, tap: int, mac: str, answered: Callable[[RunvmError | None], None]) -> None:
        """Plug a further NIC in."""


class _Nic:
    """A network interface (NIC) of the VM, and in the namespace *home* (a descriptor, owned) the tap at its other
    end."""

    def __init__(self, number: int, home: int) -> None:
        self.number = number
        self.home = home
        self.tap = f"rvtap{number}"
        self.mac = nic_mac(number)

    def move(self, namespace: int) -> None:
        """Take the tap to another namespace."""
        if not os.path.sameopenfile(self.home, namespace):
            tap.move_tap(self.tap, self.home, namespace)
            os.close(self.home)
            self.home = os.dup(namespace)


class _HostNamespace:
    """A network namespace of the host that one or more containers are in. *refused* says, by index, why an interface
    isn't handed over that could be."""

    def __init__(self, fd: int, number: int) -> None:
        self.fd = fd
        self.number = number
        self.users: set[str] = set()
        self.network = Network()
        self.nics: dict[int, _Nic] = {}
        self.refused: dict[int, str] = {}
        self.monitor: scan.InterfaceMonitor | None = None
        self.forwarder: Forwarder | None = None
        self.proxy: LoopbackProxy | None = None
        self.ports = in_namespace(fd, tap.get_ports)
        self.stirred = False


class HostNetworks:
    """All of them, by inode. first_tap() comes before the VM, attach() with it, then all the rest.

    What the namespaces had is kept in *directory*, should this process be killed (network.ports). *sockets*: the VM's
    NICs are packet sockets, all made now.
    """

    def __init__(self, directory: str, *, sockets: bool = False) -> None:
        self._directory = directory
        self._congestion = settings.congestion()
        self._ports: Ports | None = None
        if sockets:
            from runvm.network.packet import Ports

            self._ports = Ports(MAX_NICS)
        self._namespaces: dict[int, _HostNamespace] = {}
        self._free: list[_Nic] = []
        self._made = 0  # namespaces
        self._nic_count = 1
        self._loop: Loop
        self._vm: Pluggable
        self._guest: AgentLine
        self._forwards: Forwards

    @property
    def sockets(self) -> tuple[int, ...]:
        """The descriptors of the NICs that are packet sockets."""
        return self._ports.descriptors if self._ports is not None else ()

    @property
    def nics(self) -> int:
        """How many NICs the VM has."""
        return self._nic_count

    def number_of(self, container: str) -> int:
        """The guest's number for the network namespace of a container; 0 for the VM's own."""
        found = [namespace.number for namespace in self._namespaces.values() if container in namespace.users]
        return found[0] if found else 0

    def number_from(self, first: int) -> None:
        """The first namespace's number, for a guest that knows it already (0: it has none)."""
        self._made = max(first - 1, 0)

    def first_tap(self, namespace: int) -> int:
        """The tap of the NIC that the VM has from its start, in the namespace of the first container; -1 where NICs are
        packet sockets, and nothing is made before it is wanted."""
        if self._ports is not None:
            self._nic_count = 0
            return -1
        self._free.append(_Nic(0, os.dup(namespace)))
        return in_namespace(namespace, lambda: tap.create_tap(self._free[0].tap))

    def attach(self, loop: Loop, vm: Pluggable, guest: AgentLine, channel: Callable[[], int]) -> None:
        """The VM runs: its NICs are plugged into *vm*, its agent is *guest*; *channel* numbers a new channel."""
        self._loop, self._vm, self._guest = loop, vm, guest
        self._forwards = Forwards(loop, guest, channel)

    def join(self, container: str, shim: Identity) -> tuple[int, dict[str, Any]]:
        """Take a container's namespace (its shim's) in: (the guest's number for it, what the guest has to set up).

        Raises: OSError, VmmError.
        """
        fd = process.open_namespace(shim, "network")
        inode = os.fstat(fd).st_ino
        namespace = self._namespaces.get(inode)
        if namespace is not None:
            os.close(fd)
            namespace.users.add(container)
            return namespace.number, {}
        self._made += 1
        namespace = self._namespaces[inode] = _HostNamespace(fd, self._made)
        namespace.users.add(container)
        # before any is changed
        ports.save(self._directory, {key: each.ports for key, each in self._namespaces.items()})
        # before the first look: no change is missed
        namespace.monitor = in_namespace(fd, scan.InterfaceMonitor)
        self._loop.watch(namespace.monitor.fileno(), IN, lambda events: self._stir(namespace))
        self._take(namespace, first=True)
        number = namespace.number
        self._loop.call_later(_PROXY_SECONDS, lambda: self._open_proxy(namespace))
        namespace.forwarder = Forwarder(self._loop, fd, lambda packet: self._guest.send(frames.DNS, number, packet))
        return number, to_json(namespace.network)

    def refresh(self, container: str) -> None:
        """Bring the guest up to date before something is done that relies on it: Podman fills a new network namespace
        between create and start where there is a user namespace."""
        for namespace in self._namespaces.values():
            if container in namespace.users and namespace.monitor is not None:
                poll = select.poll()
                poll.register(namespace.monitor.fileno(), select.POLLIN)
                if poll.poll(0) or namespace.stirred:
                    namespace.monitor.drain(namespace.network)
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
            for nic in namespace.nics.values():
                os.close(nic.home)
        for nic in self._free:
            os.close(nic.home)
        self._namespaces.clear()
        self._free.clear()
        if self._ports is not None:
            self._ports.close()

    def query(self, frame: Frame) -> None:
        """A DNS query from the guest."""
        for namespace in self._namespaces.values():
            if namespace.number == frame.channel and namespace.forwarder is not None:
                namespace.forwarder.ask(frame.payload)

    def relay(self, frame: Frame) -> bool:
        """Take a stream's frame from the guest; False where it is of no forwarded connection."""
        return self._forwards.frame(frame)

    # --- changes

    def _stir(self, namespace: _HostNamespace) -> None:
        if namespace.monitor is None or not namespace.monitor.drain(namespace.network):
            return
        if not namespace.stirred:
            namespace.stirred = True
            self._loop.call_later(_QUIET_SECONDS, lambda: self._settled(namespace))

    def _settled(self, namespace: _HostNamespace) -> None:
        if namespace.stirred and namespace.users:
            self._look(namespace)

    def _look(self, namespace: _HostNamespace) -> None:
        """Scan again; the guest hears of what has changed."""
        namespace.stirred = False
        before = namespace.network
        try:
            gone = self._take(namespace, first=False)
        except (OSError, VmmError) as error:
            log.error(f"a change of a container's network can't be handed over: {error}")
            return
        if namespace.network == before:
            self._release(gone)
            return

        def plugged(answer: Done | Failed) -> None:
            self._release(gone)
            if isinstance(answer, Failed):
                log.error(f"a change of a container's network failed in the guest: {answer.error}")
            else:
                log_notes(answer)

        self._guest.ask(SetNetwork(namespace.number, to_json(namespace.network)), plugged)

    def _release(self, nics: list[_Nic]) -> None:
        """NICs that the guest has given back: who had to go without one may get it."""
        self._free += nics
        if nics:
            for namespace in self._namespaces.values():
                if namespace.refused:
                    self._look(namespace)

    def _take(self, namespace: _HostNamespace, *, first: bool) -> list[_Nic]:
        """Scan the namespace and wire each interface to a tap; the NICs that have lost theirs. But for the *first* time
        an interface for which that fails is left out."""
        found = self._scan(namespace)
        for note in found.notes:
            if note not in namespace.network.notes:
                log.warning(note)
        interfaces = []
        refused: dict[int, str] = {}
        for interface in found.interfaces:
            try:
                nic = namespace.nics.get(interface.ifindex)
                if nic is None:
                    nic = namespace.nics[interface.ifindex] = self._nic(namespace, interface)
                else:  # another may have taken the filters away
                    self._wire(namespace, interface, nic)
            except (OSError, VmmError) as error:
                if first:
                    raise
                refused[interface.ifindex] = f"interface {interface.name} can't be handed over: {error}"
                if namespace.refused.get(interface.ifindex) != refused[interface.ifindex]:
                    log.error(refused[interface.ifindex])
            if nic is not None:
                interfaces.append(interface._replace(nic=nic.mac))
        namespace.refused = refused
        there = {interface.ifindex for interface in interfaces}
        lacking = {interface.name for interface in found.interfaces if interface.ifindex not in there}
        gone = [namespace.nics.pop(ifindex) for ifindex in list(namespace.nics) if ifindex not in there]
        routes = tuple(route for route in found.routes if lacking.isdisjoint(route.devices))
        namespace.network = found._replace(interfaces=tuple(interfaces), routes=routes)
        return gone

    def _scan(self, namespace: _HostNamespace) -> Network:
        """What the namespace has, as far as this VM can have it."""
        found = in_namespace(namespace.fd, lambda: scan.scan(self._congestion))
        if namespace.ports not in (tap.DEFAULT_PORTS, tap.RESOLVER_PORTS):
            port_range = PORT_RANGE, " ".join(map(str, namespace.ports))
            found = found._replace(settings=(*found.settings, port_range))
        greatest = tap.MAX_MTU if self._ports is None else MAX_SOCKET_MTU
        fitting = [item._replace(mtu=min(item.mtu, greatest)) for item in found.interfaces]
        return found._replace(interfaces=tuple(fitting))

    def _nic(self, namespace: _HostNamespace, interface: Interface) -> _Nic:
        """A NIC for an interface, wired to it."""
        if self._free:
            nic = self._free.pop(0)
            try:
                nic.move(namespace.fd)
                self._wire(namespace, interface, nic)
            except OSError:
                self._free.append(nic)
                self._unwire(namespace, interface)
                raise
            return nic
        nic = _Nic(self._nic_count, os.dup(namespace.fd))
        try:
            if self._ports is not None:
                self._connect(self._ports, namespace, interface, nic)
            else:
                self._plug(namespace, interface, nic)
        except BaseException:
            os.close(nic.home)
            self._unwire(namespace, interface)
            raise
        self._nic_count += 1
        return nic

    def _plug(self, namespace: _HostNamespace, interface: Interface, nic: _Nic) -> None:
        """Have the VM take a new NIC, with a tap."""
        fd = in_namespace(namespace.fd, lambda: tap.create_tap(nic.tap))
        try:
            self._wire(namespace, interface, nic)
            self._vm.plug_nic(nic.number, fd, nic.mac, lambda error: _report(nic, error))
        finally:
            os.close(fd)

    def _connect(self, ports: Ports, namespace: _HostNamespace, interface: Interface, nic: _Nic) -> None:
        """Give a NIC that the VM has had from its start an end in the namespace."""
        in_namespace(namespace.fd, lambda: ports.connect(nic.number, nic.tap))
        self._wire(namespace, interface, nic)

    def _wire(self, namespace: _HostNamespace, interface: Interface, nic: _Nic) -> None:
        in_namespace(namespace.fd, lambda: tap.wire(interface.name, nic.tap, resolver=True))

    def _unwire(self, namespace: _HostNamespace, interface: Interface) -> None:
        """Leave an interface alone that can't be had."""
        try:
            in_namespace(namespace.fd, lambda: tap.unwire(interface.name))
        except OSError as error:
            log.debug(f"interface {interface.name} can't be left as it was: {error}")

    def _open_proxy(self, namespace: _HostNamespace) -> None:
        if namespace.users:
            namespace.proxy = self._forwards.open(namespace.fd, namespace.number)

    def _close(self, namespace: _HostNamespace) -> None:
        self._guest.ask(RemoveNetwork(namespace.number), lambda answer: self._release(list(namespace.nics.values())))
        self._let_go(namespace)

    def _let_go(self, namespace: _HostNamespace) -> None:
        if namespace.proxy is not None:
            namespace.proxy.close()
        if namespace.monitor is not None:
            self._loop.forget(namespace.monitor.fileno())
            namespace.monitor.close()
        if namespace.forwarder is not None:
            namespace.forwarder.close()
        self._restore(namespace)
        os.close(namespace.fd)

    def _restore(self, namespace: _HostNamespace) -> None:
        try:
            in_namespace(namespace.fd, lambda: tap.unwire_all(namespace.ports))
        except OSError as error:
            log.debug(f"a network namespace can't be left as it was: {error}")


def log_notes(answer: Done) -> None:
    """What the guest couldn't set up, by its answer; as it may be anything, so many lines of printable text."""
    notes = answer.result.get("notes")
    for note in notes[:_MAX_NOTES] if isinstance(notes, list) else ():
        text = "".join(character if character.isprintable() else "?" for character in str(note)[:_MAX_NOTE])
        log.warning(f"network in the guest: {text}")


def _report(nic: _Nic, error: RunvmError | None) -> None:
    if error is not None:
        log.error(f"network interface {nic.number} can't be plugged in: {error}")
