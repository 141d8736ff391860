"""Connections that the host's programs make to a container's own addresses: the guest's end of them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from runvm.agent import network, networks
from runvm.agent.errors import AgentError
from runvm.linux.loop import OUT, Loop
from runvm.linux.netns import in_namespace
from runvm.protocol import frames
from runvm.protocol.frames import Frame
from runvm.protocol.messages import Connect, Json
from runvm.protocol.streams import Sink, Source

_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
"""Where a server on localhost may listen, in the order in which they are tried."""


class Connections:
    """All of them, by channel. *send* queues a frame to the host."""

    def __init__(self, loop: Loop, send: Callable[[int, int, bytes], None]) -> None:
        self._loop = loop
        self._send = send
        self._connections: dict[int, tuple[Sink, Source]] = {}

    def open(self, request: Connect, done: Callable[[Json | AgentError], None]) -> None:
        """Connect; *done* gets {} or the error. Raises OSError."""
        netns = network.open_namespace(networks.name(request.network))
        self._try(request, netns, 0, done)

    def frame(self, frame: Frame) -> bool:
        """Take a frame of the host's; False where it is of no connection."""
        connection = self._connections.get(frame.channel)
        if connection is None:
            return False
        sink, source = connection
        if frame.kind == frames.CREDIT_KIND:
            stream, count = frames.decode_credit(frame)
            if stream == frames.STDOUT:
                source.credit(count)
        elif frame.kind == frames.STDIN:
            sink.write(frame.payload)
        elif frame.kind == frames.STDOUT and not frame.payload:
            source.close(silent=True)
        self._forget_ended()
        return True

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
                self._relay(request.channel, sock.detach())
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

    def _relay(self, channel: int, fd: int) -> None:
        self._forget_ended()
        sink = Sink(self._loop, os.dup(fd), frames.STDIN, channel, self._send, half=True)
        self._connections[channel] = (sink, Source(self._loop, fd, frames.STDOUT, channel, self._send, lambda: None))

    def _forget_ended(self) -> None:
        for channel, (sink, source) in list(self._connections.items()):
            if not sink.open and not source.open:
                del self._connections[channel]
