"""The network namespaces of this VM's containers, by the host's numbers: interfaces and Docker's resolver in each."""

from __future__ import annotations

import time
from collections.abc import Callable

from runvm.agent import network
from runvm.agent.dns import Listener
from runvm.linux.loop import Loop
from runvm.protocol import frames
from runvm.protocol.frames import Frame
from runvm.protocol.interfaces import Network, from_json, nic_mac
from runvm.protocol.messages import Json

_CONFIGURE_SECONDS = 10.0


class _Resolver:
    """The listener of one namespace, which may wait for its number."""

    def __init__(self, loop: Loop, namespace: int, send: Callable[[int, int, bytes], None]) -> None:
        self.number = 0
        self.listener = Listener(loop, namespace, lambda packet: send(frames.DNS, self.number, packet))


class GuestNetworks:
    """*send* queues a frame to the host, *say* a line for its log."""

    def __init__(self, loop: Loop, send: Callable[[int, int, bytes], None], say: Callable[[str], None]) -> None:
        self._loop = loop
        self._send = send
        self._say = say
        self._resolvers: dict[int, _Resolver] = {}
        # in the template: the first network of most VMs, with a NIC or without, finds namespace and sockets there
        self._spare: dict[int, _Resolver] = {}
        for nics in ((nic_mac(0),), ()):
            namespace = network.prepare(nics)
            self._spare[namespace] = _Resolver(loop, namespace, send)

    def set(self, number: int, interfaces: Json) -> list[str]:
        """Make a namespace have *interfaces*; {} for one that is there changes nothing. 0 is the VM's own.
        What couldn't be set is returned, for the host's log.

        Raises: OSError, DeadlineError, NetworkError.
        """
        if not number:
            return []
        new = number not in self._resolvers
        if not (new or interfaces):
            return []
        found = from_json(interfaces) if interfaces else Network()
        if new:
            namespace = network.make_namespace(name(number), [interface.nic for interface in found.interfaces])
            resolver = self._spare.pop(namespace, None) or _Resolver(self._loop, namespace, self._send)
            resolver.number = number
            self._resolvers[number] = resolver
        notes = network.configure(name(number), found, deadline=time.monotonic() + _CONFIGURE_SECONDS)
        for note in notes:
            self._say(note)
        # the host knows its own
        return [note for note in notes if note not in found.notes]

    def remove(self, number: int) -> None:
        """Let go of a namespace; its NICs are free then."""
        resolver = self._resolvers.pop(number, None)
        if resolver is not None:
            resolver.listener.close()
            network.remove_namespace(name(number))

    def answer(self, frame: Frame) -> None:
        """A DNS answer from the host."""
        resolver = self._resolvers.get(frame.channel)
        if resolver is not None:
            resolver.listener.answer(frame.payload)


def name(number: int) -> str:
    """The namespace's name in network.DIRECTORY."""
    return f"n{number}"
