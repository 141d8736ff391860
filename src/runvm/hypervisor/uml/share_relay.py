"""Between User Mode Linux and virtiofsd while the share's device is set up (vhost-user).

Two things keep them from talking to each other directly. The kernel asks the daemon for the device's configuration
(GET_CONFIG: the share's tag and how many queues it has), which virtiofsd leaves to the hypervisor; and it sends
SET_MEM_TABLE as long as for two regions where it names one, which the Rust daemon refuses. The relay answers the first
and cuts the second to its length. The files' data doesn't pass through it: the daemon has the guest's memory mapped,
and each side wakes the other by descriptors that have been passed on here.

All of this happens while the guest's kernel starts, before any of the guest's programs runs. Then the relay stops
reading, so what a guest sends afterwards reaches nobody. Still, each message must be one of those below, in the right
length and with as many descriptors as it calls for. Source: QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from contextlib import suppress

from runvm.errors import VmmError
from runvm.records import NamedTuple

_HEADER = struct.Struct("=III")
_VERSION, _REPLY, _NEED_REPLY = 1, 4, 8
_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_CONFIG = struct.Struct("=III")
_REGIONS = struct.Struct("=II")
_REGION_SIZE = 32
_MAX_REGIONS = 2

# Requests
_GET_FEATURES, _SET_FEATURES, _SET_OWNER, _SET_MEM_TABLE = 1, 2, 3, 5
_SET_NUM, _SET_ADDRESS, _SET_BASE, _SET_KICK, _SET_CALL = 8, 9, 10, 12, 13
_GET_PROTOCOL_FEATURES, _SET_PROTOCOL_FEATURES, _SET_ENABLE, _SET_DAEMON_REQUESTS, _GET_CONFIG = 15, 16, 18, 21, 24

# Protocol features
_F_REPLY_ACK, _F_DAEMON_REQUESTS, _F_CONFIG = 1 << 3, 1 << 5, 1 << 9

QUEUES = 2
"""What the device has: one for requests that must overtake others, one for all the rest."""
_TAG_BYTES = 36
_MAX_PAYLOAD = 256

_SIZES = {
    _GET_FEATURES: 0, _SET_FEATURES: 8, _SET_OWNER: 0, _SET_NUM: 8, _SET_ADDRESS: 40, _SET_BASE: 8, _SET_KICK: 8,
    _SET_CALL: 8, _GET_PROTOCOL_FEATURES: 0, _SET_PROTOCOL_FEATURES: 8, _SET_ENABLE: 8, _SET_DAEMON_REQUESTS: 0,
}  # fmt: skip
"""Each request's payload in bytes; that of SET_MEM_TABLE and GET_CONFIG depends on what is in it."""
_WITH_DESCRIPTOR = frozenset({_SET_KICK, _SET_CALL, _SET_DAEMON_REQUESTS})
_ANSWERED = frozenset({_GET_FEATURES, _GET_PROTOCOL_FEATURES})


class VhostMessage(NamedTuple):
    """A request as it is to be passed on."""

    request: int
    flags: int
    payload: bytes

    def encode(self) -> bytes:
        """The bytes of it."""
        return _HEADER.pack(self.request, self.flags, len(self.payload)) + self.payload

    @property
    def wants_reply(self) -> bool:
        """Whether the daemon answers it."""
        return bool(self.request in _ANSWERED or self.flags & _NEED_REPLY)


def checked(request: int, flags: int, payload: bytes, descriptors: int) -> VhostMessage:
    """The message, SET_MEM_TABLE cut to its regions. Raises VmmError where it isn't as it has to be."""
    if flags & ~_NEED_REPLY != _VERSION:
        raise VmmError(f"the guest's kernel broke the vhost-user protocol: flags {flags:#x} of request {request}")
    wanted = 1 if request in _WITH_DESCRIPTOR else 0
    if request == _SET_MEM_TABLE:
        count = _REGIONS.unpack_from(payload)[0] if len(payload) >= _REGIONS.size else 0
        size = _REGIONS.size + count * _REGION_SIZE
        if not 1 <= count <= _MAX_REGIONS or len(payload) not in (size, _REGIONS.size + _MAX_REGIONS * _REGION_SIZE):
            raise _malformed(request, payload, descriptors)
        payload, wanted = payload[:size], count
    elif request == _GET_CONFIG:
        if len(payload) < _CONFIG.size:
            raise _malformed(request, payload, descriptors)
        offset, size, _ = _CONFIG.unpack_from(payload)
        if len(payload) != _CONFIG.size + size or offset + size > _TAG_BYTES + 4:
            raise _malformed(request, payload, descriptors)
    elif _SIZES.get(request) != len(payload):
        raise _malformed(request, payload, descriptors)
    if descriptors != wanted:
        raise _malformed(request, payload, descriptors)
    return VhostMessage(request, flags, payload)


def _malformed(request: int, payload: bytes, descriptors: int) -> VmmError:
    size = f"{len(payload)} bytes and {descriptors} descriptors"
    return VmmError(f"the guest's kernel broke the vhost-user protocol: request {request} with {size}")


def configuration(tag: str, payload: bytes) -> bytes:
    """The answer to a GET_CONFIG whose *payload* has been checked: of the device's tag and number of queues."""
    offset, size, flags = _CONFIG.unpack_from(payload)
    whole = tag.encode().ljust(_TAG_BYTES, b"\0") + struct.pack("<I", QUEUES - 1)
    return _CONFIG.pack(offset, size, flags) + whole[offset : offset + size]


class ShareRelay:
    """Passes on what *kernel* (User Mode Linux's socket, owned) and *daemon* (virtiofsd's) have to say until the device
    named *tag* is set up. Both sockets have timeouts."""

    def __init__(self, kernel: socket.socket, daemon: socket.socket, tag: str) -> None:
        self.kernel = kernel
        self._daemon = daemon
        self._tag = tag
        self._offers_config = False
        self._enabled: set[int] = set()

    @property
    def done(self) -> bool:
        """Whether every queue of the device is in use."""
        return len(self._enabled) == QUEUES

    def step(self) -> None:
        """Take one request from the kernel and see it answered. Raises VmmError, OSError (TimeoutError among them)."""
        header, descriptors = _receive(self.kernel, _HEADER.size, "the guest's kernel")
        try:
            request, flags, size = _HEADER.unpack(header)
            if size > _MAX_PAYLOAD:
                raise VmmError(f"the guest's kernel broke the vhost-user protocol: request {request} with {size} bytes")
            payload, more = _receive(self.kernel, size, "the guest's kernel")
            descriptors += more
            message = checked(request, flags, payload, len(descriptors))
            if message.request == _GET_CONFIG:
                answer = configuration(self._tag, message.payload)
                self.kernel.sendall(_HEADER.pack(_GET_CONFIG, _VERSION | _REPLY, len(answer)) + answer)
                return
            self._pass_on(message, descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)
        if message.request == _SET_ENABLE:
            index, enabled = _STATE.unpack(message.payload)
            if enabled and index < QUEUES:
                self._enabled.add(index)

    def _pass_on(self, message: VhostMessage, descriptors: list[int]) -> None:
        if message.request == _SET_PROTOCOL_FEATURES and not self._offers_config:
            features = _U64.unpack(message.payload)[0] & ~_F_CONFIG
            message = message._replace(payload=_U64.pack(features))
        data = message.encode()
        sent = socket.send_fds(self._daemon, [data], descriptors) if descriptors else self._daemon.send(data)
        self._daemon.sendall(data[sent:])
        if not message.wants_reply:
            return
        reply, unwanted = _receive(self._daemon, _HEADER.size + _U64.size, "virtiofsd")
        for fd in unwanted:
            os.close(fd)
        request, flags, size = _HEADER.unpack_from(reply)
        if (request, flags & ~_NEED_REPLY, size) != (message.request, _VERSION | _REPLY, _U64.size):
            raise VmmError(f"virtiofsd broke the vhost-user protocol: it answered request {message.request} otherwise")
        value = _U64.unpack_from(reply, _HEADER.size)[0]
        if message.request == _GET_PROTOCOL_FEATURES:
            self._offers_config = bool(value & _F_CONFIG)
            value = value & (_F_REPLY_ACK | _F_DAEMON_REQUESTS) | _F_CONFIG
        self.kernel.sendall(_HEADER.pack(request, _VERSION | _REPLY, _U64.size) + _U64.pack(value))


def _receive(sock: socket.socket, size: int, who: str) -> tuple[bytes, list[int]]:
    """Exactly *size* bytes and the descriptors that came with them, the caller's to close. Raises VmmError, OSError."""
    data = b""
    descriptors = array.array("i")
    try:
        while len(data) < size:
            room = socket.CMSG_SPACE(_MAX_REGIONS * descriptors.itemsize)
            part, ancillary, _, _ = sock.recvmsg(size - len(data), room, socket.MSG_CMSG_CLOEXEC)
            for level, kind, body in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(body[: len(body) - len(body) % descriptors.itemsize])
            if not part:
                raise VmmError(f"{who} ended while the share was set up")
            data += part
    except BaseException:
        for fd in descriptors:
            with suppress(OSError):
                os.close(fd)
        raise
    return data, list(descriptors)
