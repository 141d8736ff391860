"""The rtnetlink protocol: sockets, messages, attributes. Typed objects on top: links.py, routing.py.

Our own code because an exec of `ip` costs 0.1 s in an emulated guest, and pyroute2 300 ms to import.
Sources: netlink(7), rtnetlink(7), linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from socket import AF_INET, inet_ntop, inet_pton

from runvm.records import NamedTuple

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TIMEVAL = struct.Struct("ll")

F_REQUEST, F_ACK, F_DUMP_INTERRUPTED, F_DUMP = 0x1, 0x4, 0x10, 0x300
F_REPLACE, F_EXCLUSIVE, F_CREATE, F_APPEND = 0x100, 0x200, 0x400, 0x800
_F_ACK_TLVS, _F_CAPPED = 0x200, 0x100
_ERROR, _DONE, _OVERRUN = 2, 3, 4
_ATTRIBUTE_MESSAGE = 1  # NLMSGERR_ATTR_MSG: the kernel's own message
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_SOL_NETLINK, _EXT_ACK = 270, 11

GROUP_LINK, GROUP_IPV4_ADDRESS, GROUP_IPV4_ROUTE = 1 << 0, 1 << 4, 1 << 6
GROUP_IPV6_ADDRESS, GROUP_IPV6_ROUTE, GROUP_IPV4_RULE = 1 << 8, 1 << 10, 1 << 7
GROUP_IPV6_RULE = 1 << 18
GROUP_NEIGHBOUR, GROUP_IPV4_SETTINGS, GROUP_IPV6_SETTINGS = 1 << 2, 1 << 23, 1 << 24

_RECEIVE = 64 << 10
_MAX_REPLY = 16 << 20
"""Bytes of one dump: a namespace with more than that isn't a container's."""
_TIMEOUT_S = 10
"""For one answer. The kernel answers within the call that sends, unless the rtnl lock is held long."""


class NetlinkError(OSError):
    """The kernel refused a request, or its answer makes no sense; the message names the operation."""


class Message(NamedTuple):
    """One netlink message: its type, its flags, and what follows the header."""

    kind: int
    flags: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded as the next one needs it."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute that is a u32."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """An attribute that is a NUL-terminated string."""
    return attribute(kind, os.fsencode(value) + b"\0")


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from *offset* to the end, by type; the last one of a type counts. Raises NetlinkError."""
    found = {}
    end = len(data)
    while end - offset >= 4:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise NetlinkError(errno.EBADMSG, "a netlink attribute runs past its message")
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def read_number(found: dict[int, bytes], kind: int, default: int = 0) -> int:
    """The u32 attribute of that type, or *default*."""
    value = found.get(kind)
    return int(struct.unpack_from("=I", value)[0]) if value is not None and len(value) >= 4 else default


def read_text(found: dict[int, bytes], kind: int) -> str:
    """The string attribute of that type, or ''."""
    return os.fsdecode(found.get(kind, b"").split(b"\0", 1)[0])


def mac_text(data: bytes) -> str:
    """An Ethernet address as people write it; '' for one of another kind."""
    return data.hex(":") if len(data) == 6 else ""


def mac_bytes(mac: str) -> bytes:
    """The six bytes of a MAC address. Raises NetlinkError."""
    try:
        raw = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        raw = b""
    if len(raw) != 6 or len(mac) != 17:
        raise NetlinkError(errno.EINVAL, f"{mac!r} is no MAC address")
    return raw


def ip_text(family: int, data: bytes) -> str:
    """An address as people write it. Raises NetlinkError."""
    try:
        return inet_ntop(family, data)
    except (OSError, ValueError):
        raise NetlinkError(errno.EBADMSG, f"an address of {len(data)} bytes") from None


def ip_bytes(family: int, address: str) -> bytes:
    """The bytes of an address. Raises NetlinkError."""
    try:
        return inet_pton(family, address)
    except (OSError, ValueError):
        raise NetlinkError(errno.EINVAL, f"{address!r} is no IPv{4 if family == AF_INET else 6} address") from None


def unpack(layout: struct.Struct, message: Message) -> tuple[int, ...]:
    """The fixed part of a message. Raises NetlinkError."""
    if len(message.body) < layout.size:
        raise NetlinkError(errno.EBADMSG, f"a netlink message of type {message.kind} is too short")
    return layout.unpack_from(message.body)


def split(data: bytes) -> list[Message]:
    """The messages in one datagram. Raises NetlinkError."""
    messages = []
    offset = 0
    while len(data) - offset >= _HEADER.size:
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise NetlinkError(errno.EBADMSG, "a netlink message runs past its datagram")
        messages.append(Message(kind, flags, data[offset + _HEADER.size : offset + length]))
        offset += (length + 3) & ~3
    return messages


def _refusal(message: Message, operation: str) -> NetlinkError | None:
    """The error that an NLMSG_ERROR message carries; None for a mere acknowledgement."""
    if len(message.body) < 4:
        return NetlinkError(errno.EBADMSG, f"{operation}: a short answer")
    code = -int(struct.unpack_from("=i", message.body)[0])
    if not code:
        return None
    said = ""
    if message.kind == _ERROR and message.flags & _F_ACK_TLVS and len(message.body) >= 4 + _HEADER.size:
        # struct nlmsgerr: the error, then the request's header, and the whole request unless it was capped
        length = _HEADER.size if message.flags & _F_CAPPED else int(struct.unpack_from("=I", message.body, 4)[0])
        said = read_text(attributes(message.body, 4 + ((length + 3) & ~3)), _ATTRIBUTE_MESSAGE)
    return NetlinkError(code, f"{operation}: {os.strerror(code)}" + (f" ({said})" if said else ""))


class Socket:
    """A NETLINK_ROUTE socket of the caller's present network namespace; it stays with that wherever it is used later.

    *groups* are the multicast groups that it listens to. Use as a context manager, or close().
    """

    def __init__(self, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(_TIMEOUT_S, 0))
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._socket.bind((0, groups))
            self._port: int = self._socket.getsockname()[0]
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._socket.fileno()

    def request(self, kind: int, flags: int, body: bytes, operation: str) -> None:
        """Carry out one change and wait for the kernel's word. Raises NetlinkError, which names *operation*."""
        self._send(kind, flags | F_ACK, body)
        self._collect(operation)

    def query(self, kind: int, flags: int, body: bytes, operation: str) -> list[Message]:
        """What the kernel answers to a request, F_DUMP or not. Raises NetlinkError."""
        for _ in range(8):  # a dump that a change interrupted is incomplete: again
            self._send(kind, flags | (0 if flags & F_DUMP == F_DUMP else F_ACK), body)
            found = self._collect(operation)
            if found is not None:
                return found
        raise NetlinkError(errno.EAGAIN, f"{operation}: changed while it was read, eight times")

    def drain(self) -> list[Message]:
        """What came to the groups, without waiting. Raises OSError: ENOBUFS where messages were lost."""
        messages: list[Message] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            messages += split(data)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags | F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)

    def _collect(self, operation: str) -> list[Message] | None:
        """The messages up to the acknowledgement or the dump's end; None if the dump was interrupted."""
        collected: list[Message] = []
        size = 0
        whole = True
        while True:
            data = self._receive(operation)
            size += len(data)
            if size > _MAX_REPLY:
                raise NetlinkError(errno.EMSGSIZE, f"{operation}: more than {_MAX_REPLY} bytes")
            if len(data) < _HEADER.size or _HEADER.unpack_from(data)[3:] != (self._sequence, self._port):
                continue  # the rest of an answer that was given up, or what came to a group
            for message in split(data):
                whole = whole and not message.flags & F_DUMP_INTERRUPTED
                if message.kind == _OVERRUN:
                    raise NetlinkError(errno.ENOBUFS, f"{operation}: overrun")
                if message.kind in (_ERROR, _DONE):
                    error = _refusal(message, operation)
                    if error is not None:
                        raise error
                    return collected if whole else None
                collected.append(message)

    def _receive(self, operation: str) -> bytes:
        try:
            data, _, flags, _ = self._socket.recvmsg(_RECEIVE)
        except BlockingIOError:
            raise NetlinkError(errno.ETIMEDOUT, f"{operation}: no answer within {_TIMEOUT_S} s") from None
        if flags & socket.MSG_TRUNC:
            raise NetlinkError(errno.EMSGSIZE, f"{operation}: an answer of more than {_RECEIVE} bytes")
        return data
