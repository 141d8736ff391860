"""DNS between guest and host: the packets that the supervisor relays, and the few parts of a DNS message that matter
on the way.

Sources: RFC 1035 (messages), RFC 6891 (EDNS), RFC 7766 (over TCP).
"""

from __future__ import annotations

import struct

from runvm.records import NamedTuple

UDP, TCP = 0, 1
_HEAD = struct.Struct(">IB")

_MAX = 64 << 10
MAX_MESSAGE = _MAX - _HEAD.size
"""Bytes of a DNS message: what TCP's length field could say is four more."""
MIN_MESSAGE = 12
"""Bytes of the header that each message has."""

RESOLVER = "127.0.0.11"
"""Where Docker's resolver listens in a container's network namespace; resolv.conf names it."""

_OPT = 41
_RESPONSE, _TRUNCATED, _RECURSION_AVAILABLE = 0x8000, 0x0200, 0x0080
_OPCODE_AND_RECURSION = 0x7900
_SERVER_FAILURE = 2
_MAX_RECORDS = 64
"""Records of a query that are looked at."""


class PacketError(Exception):
    """Bytes that are no such packet, or no such message."""


class Packet(NamedTuple):
    """A query, guest → host, or the answer numbered alike, host → guest; an empty one says that there is none."""

    number: int
    transport: int
    message: bytes


def pack(packet: Packet) -> bytes:
    """The wire form."""
    return _HEAD.pack(packet.number, packet.transport) + packet.message


def unpack(data: bytes) -> Packet:
    """The packet of the wire form. Raises PacketError."""
    if not _HEAD.size <= len(data) <= _MAX:
        raise PacketError(f"a DNS packet of {len(data)} bytes")
    number, transport = _HEAD.unpack_from(data)
    message = data[_HEAD.size :]
    if transport not in (UDP, TCP) or message and len(message) < MIN_MESSAGE:
        raise PacketError("a malformed DNS packet")
    return Packet(number, transport, message)


def udp_limit(query: bytes) -> int:
    """Bytes that the asker takes in a UDP answer: what its OPT record says, else 512."""
    try:
        return max(512, _opt_size(query))
    except PacketError:
        return 512


def truncated(answer: bytes, *, edns: bool) -> bytes:
    """An answer too long for UDP, without its records and marked so: the asker comes again by TCP."""
    try:
        end = _questions_end(answer)
    except PacketError:
        end = 0
    questions = answer[MIN_MESSAGE:end]
    number, flags, count = struct.unpack_from(">HHH", answer)
    head = struct.pack(">HHHHHH", number, flags | _TRUNCATED, count if questions else 0, 0, 0, int(edns))
    return head + questions + (struct.pack(">BHHIH", 0, _OPT, 1232, 0, 0) if edns else b"")


def failure(query: bytes) -> bytes:
    """SERVFAIL for *query*."""
    try:
        questions = query[MIN_MESSAGE : _questions_end(query)]
    except PacketError:
        questions = b""
    number, flags, count = struct.unpack_from(">HHH", query)
    flags = _RESPONSE | _RECURSION_AVAILABLE | flags & _OPCODE_AND_RECURSION | _SERVER_FAILURE
    return struct.pack(">HHHHHH", number, flags, count if questions else 0, 0, 0, 0) + questions


def _opt_size(query: bytes) -> int:
    offset = _questions_end(query)
    records = sum(struct.unpack_from(">HHH", query, 6))
    for _ in range(min(records, _MAX_RECORDS)):
        offset = _name_end(query, offset)
        if offset + 10 > len(query):
            raise PacketError("a record runs past the message")
        kind, size, _, length = struct.unpack_from(">HHIH", query, offset)
        if kind == _OPT:
            return int(size)
        offset += 10 + length
    return 0


def _questions_end(message: bytes) -> int:
    if len(message) < MIN_MESSAGE:
        raise PacketError("a short message")
    (count,) = struct.unpack_from(">H", message, 4)
    if count > _MAX_RECORDS:
        raise PacketError(f"{count} questions")
    offset = MIN_MESSAGE
    for _ in range(count):
        offset = _name_end(message, offset) + 4
    if offset > len(message):
        raise PacketError("a question runs past the message")
    return offset


def _name_end(message: bytes, offset: int) -> int:
    while offset < len(message):
        length = message[offset]
        if length >= 0xC0:
            return offset + 2
        if length >= 0x40:
            raise PacketError("a label of an unknown kind")
        offset += 1 + length
        if not length:
            return offset
    raise PacketError("a name runs past the message")
