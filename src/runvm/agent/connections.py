"""Connections that the host's programs make to a container's own addresses: the guest's end of them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from runvm.agent import network, networks
from runvm.agent.errors import AgentError
from runvm.linux import sockets
from runvm.linux.loop import OUT, Loop
from runvm.linux.netns import in_namespace
from runvm.protocol import frames
from runvm.protocol.frames import Frame
from runvm.protocol.gate import Gate
from runvm.protocol.messages import Connect, Json
from runvm.protocol.relay import Relay
from runvm.protocol.streams import Send

_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
"""Where a server on localhost may listen, in the order in which they are tried."""


class Connections:
    """All of them, by channel. *send* queues a frame to the host."""

    def __init__(self, loop: Loop, send: Send, gate: Gate) -> None:
        self._loop = loop
        self._relay = Relay(loop, send, says=frames.STDOUT, told=frames.STDIN, gate=gate)

    def open(self, request: Connect, done: Callable[[Json | AgentError], None]) -> None:
        """Connect; *done* gets {} or the error. Raises OSError."""
        netns = network.open_namespace(networks.name(request.network))
        self._try(request, netns, 0, done)

    def adopt(self, channel: int, sock: socket.socket, whole: bool) -> None:
        """Carry a further connection."""
        self._relay.add(channel, sock.detach(), whole=whole, read=sockets.read_without_descriptors)

    def frame(self, frame: Frame) -> bool:
        """Take a frame of the host's; False where it is of no connection."""
        return self._relay.frame(frame)

    def close(self) -> None:
        """End all of them: the host that asked for them has gone."""
        self._relay.close()

    def _try(self, request: Connect, netns: int, turn: int, done: Callable[[Json | AgentError], None]) -> None:
        """Connect to the *turn*-th of the addresses, then to the next; *netns* is closed in the end."""
        addresses = ((socket.AF_INET, request.address),) if request.address else _LOOPBACKS
        family, address = addresses[turn]
        sock = None
        try:
            sock = in_namespace(netns, lambda: socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            error = sock.connect_ex((address, request.port))
        except OSError as problem:  # a guest without IPv6
            error = problem.errno or errno.EIO

        def tried(error: int) -> None:
            if not error and sock is not None:
                os.close(netns)
                self._relay.add(request.channel, sock.detach())
                done({})
                return
            if sock is not None:
                sock.close()
            if turn + 1 < len(addresses):
                self._try(request, netns, turn + 1, done)
            else:
                os.close(netns)
                done(AgentError(os.strerror(error)))

        if error == errno.EINPROGRESS and sock is not None:
            fd = sock.fileno()

            def ready(events: int) -> None:
                self._loop.forget(fd)
                tried(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

            self._loop.watch(fd, OUT, ready)
        else:
            tried(error)
