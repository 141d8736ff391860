"""The framing on the agent's port and on the sandbox's sockets: length-prefixed, refused by size before anything is
allocated.

A frame is a header (payload length, kind, channel; big endian) and its payload. A channel is one process (a container's
init or an exec) or one forwarded connection; channel 0 is the sandbox itself. A DNS frame's channel is a network's
number. Streams carry at most WINDOW bytes that the receiver hasn't credited yet, so neither side ever has to hold more
than that for a slow reader.
"""

from __future__ import annotations

import struct

from runvm.records import NamedTuple

HEADER = struct.Struct(">IBI")
CREDIT = struct.Struct(">BI")

MESSAGE = 0
STDIN = 1
STDOUT = 2
STDERR = 3
CREDIT_KIND = 4
DNS = 5
VERSION = 6
"""First on a connection to a supervisor: protocol.version.own()."""
PASSED = 16
"""The first kind of the streams of descriptors beyond stdio: two for each, toward the guest and toward the host."""
MAX_PASSED = 112
"""How many of those a process may have."""
_STREAMS = frozenset((STDIN, STDOUT, STDERR, *range(PASSED, PASSED + 2 * MAX_PASSED)))
_KINDS = _STREAMS | {MESSAGE, CREDIT_KIND, DNS, VERSION}

IN, OUT, BOTH = WAYS = ("in", "out", "both")
"""Which way the bytes of a descriptor beyond stdio go, as seen from the process: a pipe's or a socket's."""

MAX_MESSAGE = 16 << 20
"""Bytes of a message: config.json's own limit, which `create` carries."""
MAX_GUEST_MESSAGE = 1 << 20
"""Bytes of a message from the guest, which is not trusted with the host's memory."""
_MAX_VERSION = 64
CHUNK = 256 << 10
"""Bytes of stream data in one frame."""
WINDOW = 2 << 20
"""Bytes of one stream under way without credit."""


class FrameError(Exception):
    """The peer broke the framing; the connection is of no more use."""


class Frame(NamedTuple):
    """One frame; an empty payload on a stream's kind is its end of file."""

    kind: int
    channel: int
    payload: bytes


def encode(kind: int, channel: int, payload: bytes) -> bytes:
    """The bytes of one frame."""
    return HEADER.pack(len(payload), kind, channel) + payload


def decode_credit(frame: Frame) -> tuple[int, int]:
    """(stream, bytes) of a credit frame. Raises FrameError."""
    if len(frame.payload) != CREDIT.size:
        raise FrameError("a credit frame of the wrong size")
    stream, count = CREDIT.unpack(frame.payload)
    if stream not in _STREAMS:
        raise FrameError(f"credit for stream {stream}")
    return stream, count


def toward_guest(index: int) -> int:
    """The kind of the stream into the process's descriptor 3 + *index*."""
    return PASSED + 2 * index


def toward_host(index: int) -> int:
    """The kind of the stream out of the process's descriptor 3 + *index*."""
    return PASSED + 2 * index + 1


class Decoder:
    """Cuts a byte stream into frames; holds at most one unfinished frame."""

    def __init__(self, *, max_message: int) -> None:
        self._limit = {MESSAGE: max_message, CREDIT_KIND: CREDIT.size, VERSION: _MAX_VERSION}
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that *data* completes. Raises FrameError at a bad kind or size, before the payload is awaited."""
        buffer = self._buffer
        buffer += data
        frames = []
        offset = 0
        while len(buffer) - offset >= HEADER.size:
            length, kind, channel = HEADER.unpack_from(buffer, offset)
            if kind not in _KINDS:
                raise FrameError(f"a frame of unknown kind {kind}")
            if length > self._limit.get(kind, CHUNK):
                raise FrameError(f"a frame of {length} bytes, kind {kind}")
            end = offset + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append(Frame(kind, channel, bytes(buffer[offset + HEADER.size : end])))
            offset = end
        if offset:
            del buffer[:offset]
        return frames
