"""Named network namespaces joined by veth pairs: what CNI and netavark hand to a runtime, with a far end to talk to."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any

from framework.process import Process, Result, call

if TYPE_CHECKING:
    from collections.abc import Sequence


class NetNamespace:
    """A namespace at /run/netns/NAME, with lo up. `close` takes it away."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        ip("netns", "add", name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *args: str) -> str:
        """`ip` in it."""
        return ip("-n", self.name, *args)

    def json(self, *args: str) -> Any:
        """`ip -json` in it."""
        return json.loads(ip("-n", self.name, "-json", *args) or "[]")

    def call(self, *argv: str, stdin: bytes = b"", timeout: float = 30) -> Result:
        """A program of the host in it."""
        return call(["ip", "netns", "exec", self.name, *argv], stdin=stdin, timeout=timeout)

    def start(self, *argv: str, stdin: bytes = b"") -> Process:
        """The same without waiting."""
        return Process(["ip", "netns", "exec", self.name, *argv], stdin=stdin)

    def socket(self, family: int, kind: int) -> socket.socket:
        """A socket that lives in it, for a test to use."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(self.path, os.O_RDONLY)
        try:
            _setns(there)
            try:
                return socket.socket(family, kind)
            finally:
                _setns(here)
        finally:
            os.close(here)
            os.close(there)

    def close(self) -> None:
        """Take it away, with its interfaces."""
        subprocess.run(["ip", "netns", "delete", self.name], check=False, timeout=10, capture_output=True)


def veth(near: NetNamespace, far: NetNamespace, *, name: str, far_name: str, mac: str = "", mtu: int = 1500) -> None:
    """Join two namespaces by a pair of interfaces, both up."""
    address = ["address", mac] if mac else []
    peer = ["peer", "name", far_name, "netns", far.name]
    near.ip("link", "add", name, "mtu", str(mtu), *address, "type", "veth", *peer)
    far.ip("link", "set", far_name, "mtu", str(mtu), "up")
    near.ip("link", "set", name, "up")


def address(namespace: NetNamespace, interface: str, *addresses: str) -> None:
    """Give an interface addresses; IPv6 ones at once, without looking for duplicates."""
    for text in addresses:
        namespace.ip("address", "add", text, "dev", interface, *(["nodad"] if ":" in text else []))


def ip(*args: str) -> str:
    """Run `ip`, which must succeed."""
    done = subprocess.run(["ip", *args], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, f"ip {' '.join(args)}: {done.stderr}"
    return done.stdout


def interfaces(listing: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`ip -json address` by name of interface."""
    return {entry["ifname"]: entry for entry in listing}


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000) != 0:  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")
