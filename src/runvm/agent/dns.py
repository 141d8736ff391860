"""A container's loopback resolver in the guest: takes queries on 127.0.0.11:53 and has the host ask the real one.

Runs on the agent's loop; its sockets are in the container's network namespace. What a resolver library sends is passed
on as it is, by UDP and TCP: names, aliases, record types are the business of the host's resolver.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable

from runvm.linux.loop import IN, OUT, Loop
from runvm.linux.netns import in_namespace
from runvm.linux.steer import steer
from runvm.protocol import dns
from runvm.protocol.dns import TCP, UDP, Packet, PacketError
from runvm.records import NamedTuple

PORT = 53
_RAW = socket.SOCK_RAW | socket.SOCK_NONBLOCK

_LIMIT = 256
"""Queries under way at once; one more is dropped, and comes again."""
_MAX_CONNECTIONS = 64
_MAX_PIPELINED = 16
"""Queries under way on one connection; it isn't read from meanwhile."""
_MAX_UDP_QUERY = 4096
_MAX_UDP_ANSWER = 65507
_MAX_UNSENT = 256 << 10
_QUERY_TIMEOUT_S = 20.0
"""More than the host's, which answers each query by then."""
_IDLE_TIMEOUT_S = 30.0
_SWEEP_S = 5.0
_REMEMBERED = 600
"""Bytes of a query that are kept: its header and question, for an answer that says that there is none."""


class _GuestQuery(NamedTuple):
    """Who waits for an answer: an UDP *peer* who takes *limit* bytes, or a *connection*."""

    until: float
    head: bytes
    peer: tuple[str, int]
    limit: int
    edns: bool
    address: _Address | None
    connection: _Connection | None


class _Address:
    """The sockets of one loopback address."""

    def __init__(self, address: str, netns: int) -> None:
        self.address = address
        self.udp, self.tcp, self.raw, self.steering = in_namespace(netns, lambda: _open(address, netns))

    def reply(self, message: bytes, peer: tuple[str, int]) -> None:
        """Send an answer from port 53, which isn't the socket's own where traffic is steered to it."""
        try:
            if self.raw is None:
                self.udp.sendto(message, peer)
            else:
                self.raw.sendto(_datagram(self.address, message, peer), (peer[0], 0))
        except OSError:
            pass  # the asker has gone, or its buffer is full: it comes again

    def close(self) -> None:
        for sock in (self.udp, self.tcp, self.raw):
            if sock is not None:
                sock.close()
        if self.steering >= 0:
            os.close(self.steering)


def _open(address: str, netns: int) -> tuple[socket.socket, socket.socket, socket.socket | None, int]:
    """(UDP, TCP, raw, steering): not bound to port 53 if this kernel can, since the container may want that itself."""
    udp, tcp = _bind(address, 0)
    try:
        steering = steer(netns, address, PORT, udp=udp.fileno(), tcp=tcp.fileno())
    except OSError:
        udp.close()
        tcp.close()
        return *_bind(address, PORT), None, -1
    try:
        return udp, tcp, socket.socket(socket.AF_INET, _RAW, socket.IPPROTO_RAW), steering
    except OSError:
        udp.close()
        tcp.close()
        os.close(steering)
        raise


def _bind(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        udp.bind((address, port))
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # or else a connection that was accepted would keep a server of the container's from binding the port
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((address, port))
            tcp.listen(_MAX_CONNECTIONS)
        except OSError:
            tcp.close()
            raise
    except OSError:
        udp.close()
        raise
    return udp, tcp


def _datagram(source: str, message: bytes, peer: tuple[str, int]) -> bytes:
    """An IPv4 packet; the kernel fills in length, id and checksum (raw(7)), and UDP may go without (RFC 768)."""
    ip = struct.pack(">BxHHHBBH4s4s", 0x45, 0, 0, 0, 64, socket.IPPROTO_UDP, 0,
                     socket.inet_aton(source), socket.inet_aton(peer[0]))  # fmt: skip
    return ip + struct.pack(">HHHH", PORT, peer[1], 8 + len(message), 0) + message


class _Connection:
    """One TCP client, with what it has sent of its next query and what it hasn't taken yet of its answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.under_way = 0
        self.ended = False
        self.open = True
        self.used = time.monotonic()


class Listener:
    """Listens on *addresses* in *netns* (a descriptor); *send* gets packets for the host, answer() those from it."""

    def __init__(
        self,
        loop: Loop,
        netns: int,
        send: Callable[[bytes], None],
        *,
        addresses: tuple[str, ...] = (dns.RESOLVER,),
    ) -> None:
        self._loop = loop
        self._send = send
        self._queries: dict[int, _GuestQuery] = {}
        self._connections: set[_Connection] = set()
        self._number = 0
        self._sweeping = False
        self._closed = False
        self._addresses: list[_Address] = []
        try:
            for text in addresses:
                self._addresses.append(_Address(text, netns))
        except OSError:
            for made in self._addresses:
                made.close()
            raise
        for made in self._addresses:
            self._listen(made)

    def answer(self, data: bytes) -> None:
        """Pass on a packet from the host."""
        try:
            packet = dns.unpack(data)
        except PacketError:
            return
        query = self._queries.pop(packet.number, None)
        if query is not None:
            self._answer(query, packet.message)

    def close(self) -> None:
        """Close every socket."""
        self._closed = True
        self._queries.clear()
        for connection in list(self._connections):
            self._close(connection)
        for made in self._addresses:
            self._loop.forget(made.udp.fileno())
            self._loop.forget(made.tcp.fileno())
            made.close()
        self._addresses.clear()

    def _listen(self, made: _Address) -> None:
        self._loop.watch(made.udp.fileno(), IN, lambda _: self._receive(made))
        self._loop.watch(made.tcp.fileno(), IN, lambda _: self._accept(made))

    # --- UDP

    def _receive(self, made: _Address) -> None:
        for _ in range(32):  # then let others have a turn
            try:
                data, peer = made.udp.recvfrom(_MAX_UDP_QUERY + 1)
            except OSError:
                return
            if dns.MIN_MESSAGE <= len(data) <= _MAX_UDP_QUERY and len(self._queries) < _LIMIT:
                limit = min(dns.udp_limit(data), _MAX_UDP_ANSWER)
                edns = data[10:12] != b"\0\0"
                head = data[:_REMEMBERED]
                until = time.monotonic() + _QUERY_TIMEOUT_S
                self._ask(_GuestQuery(until, head, peer, limit, edns, made, None), UDP, data)

    # --- TCP

    def _accept(self, made: _Address) -> None:
        try:
            sock, _ = made.tcp.accept()
        except OSError:
            return
        if len(self._connections) >= _MAX_CONNECTIONS:
            # the one that has been silent for longest makes room (RFC 7766, 6.2.3)
            self._close(min(self._connections, key=lambda connection: connection.used))
        sock.setblocking(False)
        connection = _Connection(sock)
        self._connections.add(connection)
        self._watch(connection)
        self._sweep_later()

    def _watch(self, connection: _Connection) -> None:
        """Wait for what the connection can do now."""
        if not connection.open:
            return
        events = OUT if connection.outgoing else 0
        if not connection.ended and self._has_room(connection):
            events |= IN
        if not events:
            if connection.ended and not connection.under_way:
                self._close(connection)
            else:
                self._loop.forget(connection.sock.fileno())
            return
        self._loop.watch(connection.sock.fileno(), events, lambda ready: self._ready(connection, ready))

    def _ready(self, connection: _Connection, events: int) -> None:
        connection.used = time.monotonic()
        try:
            if connection.outgoing and events & OUT:
                del connection.outgoing[: connection.sock.send(connection.outgoing)]
            if events & ~OUT:
                data = connection.sock.recv(65535)
                connection.ended = not data
                connection.incoming += data
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._close(connection)
            return
        self._take(connection)
        self._watch(connection)

    def _take(self, connection: _Connection) -> None:
        """Cut what has come into queries, as many as may be under way."""
        while len(connection.incoming) >= 2 and self._has_room(connection):
            length = int.from_bytes(connection.incoming[:2], "big")
            if not dns.MIN_MESSAGE <= length <= dns.MAX_MESSAGE:
                self._close(connection)
                return
            if len(connection.incoming) < 2 + length:
                return
            message = bytes(connection.incoming[2 : 2 + length])
            del connection.incoming[: 2 + length]
            if len(self._queries) >= _LIMIT:
                self._put(connection, dns.failure(message))
                continue
            connection.under_way += 1
            until = time.monotonic() + _QUERY_TIMEOUT_S
            self._ask(_GuestQuery(until, message[:_REMEMBERED], ("", 0), 0, False, None, connection), TCP, message)

    def _has_room(self, connection: _Connection) -> bool:
        return connection.under_way < _MAX_PIPELINED and len(connection.outgoing) < _MAX_UNSENT

    def _put(self, connection: _Connection, message: bytes) -> None:
        connection.outgoing += struct.pack(">H", len(message)) + message

    def _close(self, connection: _Connection) -> None:
        if connection.open:
            connection.open = False
            self._connections.discard(connection)
            self._loop.forget(connection.sock.fileno())
            connection.sock.close()

    # --- both

    def _ask(self, query: _GuestQuery, transport: int, message: bytes) -> None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        while self._number in self._queries:
            self._number = (self._number + 1) & 0xFFFFFFFF
        self._queries[self._number] = query
        self._sweep_later()
        self._send(dns.pack(Packet(self._number, transport, message)))

    def _answer(self, query: _GuestQuery, message: bytes) -> None:
        if message[:2] != query.head[:2]:
            message = dns.failure(query.head)
        if query.address is not None:
            if len(message) > query.limit:
                message = dns.truncated(message, edns=query.edns)
            query.address.reply(message, query.peer)
        elif query.connection is not None and query.connection.open:
            query.connection.under_way -= 1
            query.connection.used = time.monotonic()
            self._put(query.connection, message)
            self._take(query.connection)
            self._watch(query.connection)

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Forget queries that the host never answered, and clients that don't say anything."""
        self._sweeping = False
        if self._closed:
            return
        now = time.monotonic()
        for number in [number for number, query in self._queries.items() if query.until <= now]:
            self._answer(self._queries.pop(number), b"")
        for connection in [made for made in self._connections if made.used + _IDLE_TIMEOUT_S <= now]:
            self._close(connection)
        if self._queries or self._connections:
            self._sweep_later()
