"""Network interfaces of a VM as sockets: what a hypervisor takes that can't have a tap's descriptor, nor a descriptor
of anything that is made while it runs.

All sockets are made before the VM, in a network namespace with nothing else in it, and are bound to no interface yet. A
NIC that comes into use gets a pair of virtual interfaces: one end is the NIC's "tap" in a container's namespace, and
the NIC's socket is bound to the other, beside the sockets (packet(7)).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress

from runvm.errors import VmmError
from runvm.linux import links, syscalls
from runvm.linux.netlink import Socket
from runvm.linux.netns import in_namespace

_SIOCETHTOOL = 0x8946
_SET_TX_CHECKSUM = 0x17  # ETHTOOL_STXCSUM
_ETH_P_ALL = 3
_BUFFER = 1 << 20
"""Bytes that wait for the guest."""


class Ports:
    """*count* NICs' sockets, in a namespace of their own. Raises OSError."""

    def __init__(self, count: int) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.sockets: list[socket.socket] = []
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            try:
                self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                for _ in range(count):
                    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                    self.sockets.append(sock)
            finally:
                syscalls.setns(home, syscalls.CLONE_NEWNET)
        finally:
            os.close(home)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """One for each NIC, in their order."""
        return tuple(sock.fileno() for sock in self.sockets)

    def connect(self, number: int, name: str) -> None:
        """Make *name* in the caller's network namespace the other end of the NIC *number*. Raises VmmError, OSError."""
        if number >= len(self.sockets):
            raise VmmError(f"a virtual machine has at most {len(self.sockets)} network interfaces")
        peer = f"nic{number}"
        with Socket() as sock:
            links.add_veth(sock, name, peer, namespace=self._namespace)
            _without_checksum_offload(name)
        in_namespace(self._namespace, lambda: self._bind(number, peer))
        links.bring_up_unused(name)

    def _bind(self, number: int, peer: str) -> None:
        links.bring_up_unused(peer)
        self.sockets[number].bind((peer, _ETH_P_ALL))

    def close(self) -> None:
        """The pairs go with the last descriptor of the namespace, the VM's among them."""
        import threading

        # each waits until no processor uses the socket any more (kernel's synchronize_net): side by side they wait once
        closing = [threading.Thread(target=sock.close) for sock in self.sockets]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        self.sockets = []
        with suppress(OSError):
            os.close(self._namespace)


def _without_checksum_offload(name: str) -> None:
    """Packets that are sent out by it have their checksums, and are no longer than its MTU (ethtool's tx-checksumming;
    segmentation offload goes with it): whoever reads them from a socket has nobody to make that up."""
    import ctypes

    value = ctypes.create_string_buffer(struct.pack("=II", _SET_TX_CHECKSUM, 0))
    request = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
