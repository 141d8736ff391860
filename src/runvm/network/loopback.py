"""Connections to 127.0.0.1 or an own address in a container's network namespace on the host, carried to the guest's.

containerd and CRI-O carry `kubectl port-forward` out so: they enter the pod's namespace and connect to localhost there.
Podman's rootlessport, which publishes ports of slirp4netns' networks, connects to the namespace's address. What listens
is in the guest.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from runvm.linux import process
from runvm.linux.loop import IN, Loop
from runvm.linux.netns import in_namespace
from runvm.linux.steer import steer
from runvm.linux.syscalls import CLONE_NEWNET, setns
from runvm.log import log
from runvm.protocol import frames
from runvm.protocol.messages import Connect, Done, Failed
from runvm.protocol.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.network.agent_line import AgentLine
    from runvm.protocol.frames import Frame

_ADDRESS = "127.0.0.1"
_MAX = 256
"""Connections of one VM at once; one more is refused."""
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection (socket(7))


_IPTABLES = "/usr/sbin/iptables"
_ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST, linux/netfilter_ipv4.h


class LoopbackProxy:
    """The listener of one namespace, to which all that is connected to its own addresses from within is steered."""

    def __init__(self, loop: Loop, netns: int, accepted: Callable[[socket.socket, str, int], None]) -> None:
        """*accepted* gets each connection with the address and port that it was meant for.

        Raises OSError: this kernel can't do that.
        """
        self._loop = loop
        self._accepted = accepted
        self._netns = netns
        self._steering = -1
        self._listener = in_namespace(netns, lambda: socket.create_server((_ADDRESS, 0), backlog=64))
        try:
            self._steering = steer(netns, "", 0, udp=-1, tcp=self._listener.fileno())
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES):
                self._listener.close()
                raise
            self._redirect("--append")
        self._listener.setblocking(False)
        loop.watch(self._listener.fileno(), IN, self._ready)

    def close(self) -> None:
        """Connections are refused again; those that there are go on."""
        if self._steering >= 0:
            os.close(self._steering)
        else:
            self._redirect("--delete")
        self._loop.forget(self._listener.fileno())
        self._listener.close()

    def _ready(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):  # it has gone already
            return
        except OSError:  # no descriptors are left: the connection waits
            self._loop.rest(self._listener.fileno())
            return
        address, port = sock.getsockname()
        if self._steering < 0:
            try:
                raw = sock.getsockopt(socket.SOL_IP, _ORIGINAL_DESTINATION, 16)
            except OSError:  # it came to the listener's own port
                sock.close()
                return
            port, address = int.from_bytes(raw[2:4], "big"), socket.inet_ntoa(raw[4:8])
        self._accepted(sock, address, port)

    def _redirect(self, change: str) -> None:
        """Have the packet filter do what a user may not do by BPF. Nobody waits for it."""
        port = self._listener.getsockname()[1]
        rule = ["OUTPUT", "-o", "lo", "-p", "tcp", "!", "-d", "127.0.0.11", "-j", "REDIRECT", "--to-ports", str(port)]

        def run() -> None:
            setns(self._netns, CLONE_NEWNET)
            # the older iptables' lock is the system's, and no other user's namespace needs one
            os.execve(_IPTABLES, ["iptables", "-t", "nat", change, *rule], {"XTABLES_LOCKFILE": "/dev/null"})

        pid = process.fork(run)
        fd = os.pidfd_open(pid)

        def ended(events: int) -> None:
            self._loop.forget(fd)
            os.close(fd)
            if os.waitpid(pid, 0)[1]:
                log.warning("ports can't be forwarded from the host's loopback: iptables failed")

        self._loop.watch(fd, IN, ended)


class Forwards:
    """All connections of one VM, each on a channel of its own that *number* gives."""

    def __init__(self, loop: Loop, guest: AgentLine, number: Callable[[], int]) -> None:
        self._loop = loop
        self._guest = guest
        self._number = number
        self._relay = Relay(loop, guest.send, says=frames.STDIN, told=frames.STDOUT, gate=guest.gate)
        self._opening: set[int] = set()

    def open(self, netns: int, network: int) -> LoopbackProxy | None:
        """The proxy of the namespace *netns*, which is the guest's *network*; None where the host can't have one."""
        try:
            return LoopbackProxy(
                self._loop, netns, lambda sock, address, port: self._connect(sock, network, address, port)
            )
        except OSError as error:
            log.debug(f"no ports can be forwarded from the host's loopback: {error}")
            return None

    def frame(self, frame: Frame) -> bool:
        """Take a frame of the guest's; False where it is of no connection."""
        return self._relay.frame(frame)

    def _connect(self, sock: socket.socket, network: int, address: str, port: int) -> None:
        if len(self._relay) + len(self._opening) >= _MAX:
            _reset(sock)
            return
        channel = self._number()
        self._opening.add(channel)

        def answered(answer: Done | Failed) -> None:
            self._opening.discard(channel)
            if isinstance(answer, Failed):
                log.debug(f"a connection to the guest's port {port}: {answer.error}")
                _reset(sock)
                return
            self._relay.add(channel, sock.detach())

        self._guest.ask(Connect(channel, network, "" if address == _ADDRESS else address, port), answered)


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
