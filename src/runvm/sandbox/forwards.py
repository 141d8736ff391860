"""Connections to 127.0.0.1 in a container's network namespace on the host, carried to the guest's 127.0.0.1.

containerd and CRI-O carry `kubectl port-forward` out so: they enter the pod's namespace and connect to localhost there.
What listens is in the guest, whose loopback is another one.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from runvm.linux.loop import IN, Loop
from runvm.linux.netns import in_namespace
from runvm.linux.steer import steer
from runvm.log import log
from runvm.protocol import frames, streams
from runvm.protocol.messages import Connect, Done, Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.protocol.frames import Frame
    from runvm.sandbox.guest_link import GuestLink

_ADDRESS = "127.0.0.1"
_MOST = 256
"""Connections of one VM at once; one more is refused."""
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection (socket(7))


class Door:
    """The listener of one namespace, to which all that is connected to its 127.0.0.1 is steered."""

    def __init__(self, loop: Loop, netns: int, accepted: Callable[[socket.socket], None]) -> None:
        """Raises OSError: this kernel can't do that."""
        self._loop = loop
        self._accepted = accepted
        self._listener = in_namespace(netns, lambda: socket.create_server((_ADDRESS, 0), backlog=64))
        try:
            self._steering = steer(netns, _ADDRESS, 0, udp=-1, tcp=self._listener.fileno())
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        loop.watch(self._listener.fileno(), IN, self._ready)

    def close(self) -> None:
        """Connections are refused again; those that there are go on."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        os.close(self._steering)

    def _ready(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it has gone already
            return
        self._accepted(sock)


class Forwards:
    """All connections of one VM, each on a channel of its own that *number* gives."""

    def __init__(self, loop: Loop, guest: GuestLink, number: Callable[[], int]) -> None:
        self._loop = loop
        self._guest = guest
        self._number = number
        self._connections: dict[int, tuple[streams.Source, streams.Sink]] = {}
        self._opening: set[int] = set()

    def open(self, netns: int, network: int) -> Door | None:
        """The door of the namespace *netns*, which is the guest's *network*; None where the host can't have one."""
        try:
            return Door(self._loop, netns, lambda sock: self._connect(sock, network))
        except OSError as error:
            log.debug(f"no ports can be forwarded from the host's loopback: {error}")
            return None

    def frame(self, frame: Frame) -> bool:
        """Take a frame of the guest's; False where it is of no connection."""
        connection = self._connections.get(frame.channel)
        if connection is None:
            return False
        source, sink = connection
        if frame.kind == frames.CREDIT_KIND:
            stream, count = frames.decode_credit(frame)
            if stream == frames.STDIN:
                source.credit(count)
        elif frame.kind == frames.STDIN and not frame.payload:
            source.close(silent=True)
        elif frame.kind == frames.STDOUT:
            sink.write(frame.payload)
        self._forget_ended()
        return True

    def _connect(self, sock: socket.socket, network: int) -> None:
        self._forget_ended()
        if len(self._connections) + len(self._opening) >= _MOST:
            _reset(sock)
            return
        channel = self._number()
        self._opening.add(channel)

        def answered(answer: Done | Failed) -> None:
            self._opening.discard(channel)
            if isinstance(answer, Failed):
                log.debug(f"a connection to the guest's port {port}: {answer.error}")
                _reset(sock)
                return
            fd = sock.detach()
            os.set_blocking(fd, False)
            sink = streams.Sink(self._loop, os.dup(fd), frames.STDOUT, channel, self._guest.send, half=True)
            source = streams.Source(self._loop, fd, frames.STDIN, channel, self._guest.send, lambda: None)
            self._connections[channel] = (source, sink)

        port = int(sock.getsockname()[1])
        self._guest.ask(Connect(channel, network, port), answered)

    def _forget_ended(self) -> None:
        for channel, (source, sink) in list(self._connections.items()):
            if not source.open and not sink.open:
                del self._connections[channel]


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
