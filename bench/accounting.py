"""What processes and threads that end cost the host's processors, told by the kernel as each of them ends.

Source: the kernel's accounting/taskstats.rst and linux/taskstats.h; genetlink's controller in linux/genetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import NamedTuple

_GENERIC = 16  # NETLINK_GENERIC
_HEADER, _GENL = struct.Struct("=IHHII"), struct.Struct("=BBH")
_CONTROLLER, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_GET, _REGISTER = 1, 3  # TASKSTATS_CMD_GET, TASKSTATS_CMD_ATTR_REGISTER_CPUMASK
_BY_PID, _STATS = 4, 3  # TASKSTATS_TYPE_AGGR_PID, TASKSTATS_TYPE_STATS
# offsets in struct taskstats
_RUN_NS, _COMM, _PID, _ELAPSED_US = 72, 80, 128, 144


class Ended(NamedTuple):
    """A thread that has ended: its name, number, nanoseconds on a processor, when it began (time.monotonic())."""

    name: str
    pid: int
    cpu_ns: int
    began: float


class Accounting:
    """Collects every thread of this host that ends while it is open: a context manager. Raises OSError where the kernel
    has no taskstats, or root's rights are missing."""

    def __enter__(self) -> Accounting:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.settimeout(5)
        self._socket.bind((0, 0))
        self._family = self._ask_family()
        mask = f"0-{(os.cpu_count() or 1) - 1}".encode() + b"\0"
        self._send(self._family, _GET, _attribute(_REGISTER, mask))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ended(self, *, since: float, settle: float) -> list[Ended]:
        """The threads that began after *since* (time.monotonic()) and have ended, until none has for *settle*
        seconds."""
        found: list[Ended] = []
        self._socket.settimeout(settle)
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                return [thread for thread in found if thread.began >= since]
            now = time.monotonic()
            for kind, body in _messages(data):
                if kind == self._family:
                    found += [_thread(stats, now) for stats in _stats(body[_GENL.size :])]

    def _send(self, family: int, command: int, body: bytes) -> None:
        payload = _GENL.pack(command, 1, 0) + body
        self._socket.send(_HEADER.pack(_HEADER.size + len(payload), family, 1, 1, 0) + payload)

    def _ask_family(self) -> int:
        self._send(_CONTROLLER, _GET_FAMILY, _attribute(_FAMILY_NAME, b"TASKSTATS\0"))
        for kind, body in _messages(self._socket.recv(1 << 16)):
            if kind == _CONTROLLER:
                value = _attributes(body[_GENL.size :]).get(_FAMILY_ID)
                if value:
                    return int(struct.unpack("=H", value)[0])
        raise OSError("the kernel has no taskstats")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :] if length >= 4 else b""
    return found


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        found.append((kind, data[_HEADER.size : length]))
        data = data[(length + 3) & ~3 :] if length >= _HEADER.size else b""
    return found


def _stats(data: bytes) -> list[bytes]:
    value = _attributes(data).get(_BY_PID)
    stats = _attributes(value).get(_STATS) if value else None
    return [stats] if stats else []


def _thread(stats: bytes, now: float) -> Ended:
    name = stats[_COMM : _COMM + 32].split(b"\0", 1)[0].decode(errors="replace")
    cpu_ns, elapsed_us = (struct.unpack_from("=Q", stats, offset)[0] for offset in (_RUN_NS, _ELAPSED_US))
    pid = struct.unpack_from("=I", stats, _PID)[0]
    return Ended(name, pid, cpu_ns, now - elapsed_us / 1e6)
