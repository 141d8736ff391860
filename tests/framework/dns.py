"""A name server of a few fixed names on UDP and TCP: what lies outside, for tests without the Internet."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

TYPES = {1: 4, 28: 6}  # A, AAAA: the version of the address


class NameServer:
    """Answers A and AAAA for *names*; a name with many addresses gets a truncated answer by UDP, whole by TCP."""

    def __init__(self, address: str, names: Mapping[str, list[str]], port: int = 53) -> None:
        self._names = dict(names)
        self.asked: list[tuple[str, str]] = []
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._udp.bind((address, port))
        self._tcp.bind((address, port))
        self._tcp.listen()
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def close(self) -> None:
        """Stop; the threads end with their sockets."""
        for one in (self._udp, self._tcp):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def _serve_udp(self) -> None:
        while True:
            try:
                query, sender = self._udp.recvfrom(4096)
                if query:
                    self._udp.sendto(self._answer(query, "udp", 512), sender)
            except OSError:
                return

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    (size,) = struct.unpack("!H", connection.recv(2))
                    answer = self._answer(connection.recv(size), "tcp", 65535)
                    connection.sendall(struct.pack("!H", len(answer)) + answer)
                except (OSError, struct.error):
                    pass

    def _answer(self, query: bytes, transport: str, limit: int) -> bytes:
        labels, at = [], 12
        while size := query[at]:
            labels.append(query[at + 1 : at + 1 + size].decode(errors="replace"))
            at += 1 + size
        kind, _ = struct.unpack("!HH", query[at + 1 : at + 5])
        question = query[12 : at + 5]
        name = ".".join(labels).lower()
        self.asked.append((name, transport))
        known = self._names.get(name)
        parsed = [ipaddress.ip_address(text) for text in known or []]
        found = [address.packed for address in parsed if address.version == TYPES.get(kind)]
        records = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 60, len(packed)) + packed for packed in found)
        flags = 0x8180 | (3 if known is None else 0)
        if 12 + len(question) + len(records) > limit:
            flags, found, records = flags | 0x0200, [], b""
        return query[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + question + records
