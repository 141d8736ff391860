"""DNS on the guest's behalf: the supervisor asks the resolver that listens on a loopback address of the container's
namespace.

Docker's listens on 127.0.0.11 there, where the guest, with a loopback of its own, can't reach it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

from runvm.linux.loop import IN, OUT, Loop
from runvm.linux.netns import in_namespace
from runvm.protocol import dns
from runvm.protocol.dns import TCP, UDP, Packet, PacketError

LIMIT = 256
"""Queries under way at once, for one container's network; what comes on top is answered by failure at once."""
TIMEOUT_S = 15.0
"""Docker's resolver gives each of up to three servers four seconds."""


class Forwarder:
    """Asks the namespace's resolver; runs on the supervisor's *loop*, its sockets are in *netns*.

    *send* gets the packet for the guest: exactly one for each packet given to ask(), unless it wasn't a packet.
    """

    def __init__(
        self,
        loop: Loop,
        netns: int,
        send: Callable[[bytes], None],
        *,
        resolver: str = dns.RESOLVER,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._loop = loop
        self._netns = os.dup(netns)
        self._send = send
        self._resolver = (resolver, 53)
        self._timeout_s = timeout_s
        self._queries: dict[int, _Query] = {}

    def ask(self, data: bytes) -> None:
        """Pass on a packet from the guest, which is not trusted: no more is looked at than its length."""
        try:
            packet = dns.unpack(data)
        except PacketError:
            return
        if len(self._queries) >= LIMIT or packet.number in self._queries or not packet.message:
            self._send(dns.pack(packet._replace(message=b"")))
            return
        kind = socket.SOCK_STREAM if packet.transport == TCP else socket.SOCK_DGRAM
        try:
            sock = in_namespace(self._netns, lambda: socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK))
        except OSError:
            self._send(dns.pack(packet._replace(message=b"")))
            return
        query = _Query(sock, packet)
        query.timer = self._loop.call_later(self._timeout_s, lambda: self._finish(query, b"", timed_out=True))
        self._queries[packet.number] = query
        error = sock.connect_ex(self._resolver)
        if error not in (0, errno.EINPROGRESS):
            self._finish(query, b"")
            return
        self._loop.watch(sock.fileno(), OUT, lambda _: self._ready(query))

    def close(self) -> None:
        """Give up what is under way."""
        for query in list(self._queries.values()):
            self._loop.cancel(query.timer)
            self._loop.forget(query.sock.fileno())
            query.sock.close()
        self._queries.clear()
        os.close(self._netns)

    def _ready(self, query: _Query) -> None:
        try:
            if query.outgoing:
                sent = query.sock.send(query.outgoing)
                query.outgoing = query.outgoing[sent:] if query.packet.transport == TCP else b""
                if not query.outgoing:
                    self._loop.change(query.sock.fileno(), IN)
                return
            data = query.sock.recv(65535)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # refused: nobody listens there
            self._finish(query, b"")
            return
        if query.packet.transport == UDP:
            if data[:2] == query.packet.message[:2]:
                self._finish(query, data)
            return
        query.incoming += data
        whole = 2 + int.from_bytes(query.incoming[:2], "big") if len(query.incoming) >= 2 else 2
        if len(query.incoming) >= whole > 2:
            self._finish(query, bytes(query.incoming[2:whole]))
        elif not data or len(query.incoming) >= 2 and whole == 2:
            self._finish(query, b"")

    def _finish(self, query: _Query, answer: bytes, *, timed_out: bool = False) -> None:
        del self._queries[query.packet.number]
        if not timed_out:
            self._loop.cancel(query.timer)
        self._loop.forget(query.sock.fileno())
        query.sock.close()
        if not dns.MIN_MESSAGE <= len(answer) <= dns.MAX_MESSAGE:
            answer = b""
        self._send(dns.pack(query.packet._replace(message=answer)))


class _Query:
    """One query under way."""

    __slots__ = ("incoming", "outgoing", "packet", "sock", "timer")

    def __init__(self, sock: socket.socket, packet: Packet) -> None:
        self.sock = sock
        self.packet = packet
        self.outgoing = packet.message
        if packet.transport == TCP:
            self.outgoing = struct.pack(">H", len(packet.message)) + packet.message
        self.incoming = bytearray()
        self.timer = 0
