"""Real network namespaces for tests: made without a name, gone with their descriptor."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from typing import TypeVar

from runvm.linux import links, netlink
from runvm.linux.netns import in_namespace
from runvm.linux.syscalls import CLONE_NEWNET, setns, unshare

T = TypeVar("T")


class Namespace:
    """A network namespace with lo up."""

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        unshare(CLONE_NEWNET)
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        setns(home, CLONE_NEWNET)
        os.close(home)
        self.ip("link set lo up")

    def close(self) -> None:
        os.close(self.fd)

    def run(self, function: Callable[[], T]) -> T:
        return in_namespace(self.fd, function)

    def call(self, *argv: str, check: bool = True, timeout: float = 20) -> subprocess.CompletedProcess[str]:
        done = self.run(lambda: subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False))
        if check:
            assert done.returncode == 0, (argv, done)
        return done

    def ip(self, *commands: str) -> str:
        """Each command is the text of one `ip` call; what the last one prints."""
        output = ""
        for command in commands:
            output = self.call("ip", *command.split()).stdout
        return output

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self.run(lambda: socket.socket(family, kind, protocol))

    def names(self) -> set[str]:
        with self.run(netlink.Socket) as sock:
            return {link.name for link in links.links(sock)}


def veth(one: Namespace, name: str, two: Namespace, peer: str) -> None:
    """Connect two namespaces."""
    with one.run(netlink.Socket) as sock:
        links.add_veth(sock, name, peer, namespace=two.fd)


def attached(outside: Namespace) -> Namespace:
    """A container's namespace as Docker leaves it: eth0, whose other end is *outside*, with an address and a default
    route."""
    box = Namespace()
    veth(outside, "out0", box, "eth0")
    outside.ip("link set out0 up")
    box.ip(
        "link set eth0 address 02:42:ac:11:00:02",
        "addr add 172.17.0.2/16 broadcast 172.17.255.255 dev eth0",
        "link set eth0 up",
        "route add default via 172.17.0.1",
    )
    return box
