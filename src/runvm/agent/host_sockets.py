"""The guest's end of the host's sockets that are mounted in a container: a socket of the guest's own stands for each.

Who connects there gets a connection to the host's (sandbox.host_sockets). Per socket one connection is made after the
other; the next ones wait in the kernel's queue, as with a server that is busy.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from runvm.agent import socket_mounts
from runvm.agent.errors import AgentError
from runvm.agent.socket_mounts import SocketPlace
from runvm.linux import files, sockets
from runvm.linux.loop import IN, Loop
from runvm.protocol import frames
from runvm.protocol.frames import Frame
from runvm.protocol.gate import Gate
from runvm.protocol.messages import AddSocket, Dial, Dialled, Json
from runvm.protocol.names import host_socket
from runvm.protocol.relay import Relay
from runvm.protocol.streams import Send

_BACKLOG = 128
_PAUSE_SECONDS = 0.1
"""How long nothing is accepted where there are no descriptors for it."""


class HostSocketRelays:
    """Of all containers. *send* queues a frame to the host, *event* a message."""

    def __init__(self, loop: Loop, send: Send, event: Callable[[Any], None], gate: Gate) -> None:
        self._loop = loop
        self._event = event
        self._relay = Relay(loop, send, says=frames.STDOUT, told=frames.STDIN, gate=gate)
        self._listeners: dict[str, dict[int, socket.socket]] = {}
        self._dialling: dict[int, tuple[socket.socket, str, int, socket.socket]] = {}
        self._places: dict[tuple[str, int], SocketPlace] = {}
        self._number = 0

    def listen(self, container: str, owners: Json) -> None:
        """Make the sockets of *container*, each with the mode, user and group that *owners* has by its number. Raises
        OSError."""
        for number, (mode, uid, gid) in owners.items():
            self._listen(container, int(number), (mode, uid, gid), socket.SOCK_STREAM)

    def add(self, request: AddSocket, place: SocketPlace) -> None:
        """Put a socket over that of a server of the host's. Raises AgentError, OSError."""
        container, number = request.container, request.socket
        kind = socket.SOCK_SEQPACKET if request.whole else socket.SOCK_STREAM
        path = self._listen(container, number, (request.mode, request.uid, request.gid), kind)
        try:
            socket_mounts.put(path, place)
        except (AgentError, OSError):
            self.drop(container, number)
            raise
        self._places[container, number] = place

    def drop(self, container: str, number: int) -> None:
        """Take it away. Raises AgentError, OSError."""
        listener = self._listeners.get(container, {}).pop(number, None)
        if listener is None:
            return
        self._loop.forget(listener.fileno())
        listener.close()
        path = host_socket(container, number)
        place = self._places.pop((container, number), None)
        try:
            if place is not None:
                socket_mounts.take_away(path, place)
        finally:
            os.unlink(path)

    def _listen(self, container: str, number: int, owner: tuple[int, int, int], kind: int) -> str:
        path = host_socket(container, number)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        self._listeners.setdefault(container, {})[number] = listener
        sockets.bind(listener, path)
        mode, uid, gid = owner
        os.chown(path, uid, gid)
        os.chmod(path, mode)
        listener.listen(_BACKLOG)
        self._watch(listener, container, number)
        return path

    def frame(self, frame: Frame) -> bool:
        """Take a frame of the host's; False where it is of no connection."""
        return self._relay.frame(frame)

    def dialled(self, answer: Dialled) -> Json | None:
        """The host has connected, or has refused to, which isn't answered. Raises AgentError."""
        waiting = self._dialling.pop(answer.number, None)
        if waiting is None:
            raise AgentError(f"no connection {answer.number} to a socket of the host's is being made")
        listener, container, number, sock = waiting
        self._watch(listener, container, number)
        if answer.channel:
            whole = sock.type == socket.SOCK_SEQPACKET
            self._relay.add(answer.channel, sock.detach(), whole=whole, read=_read)
            return {}
        sock.close()
        return None

    def close(self, container: str) -> None:
        """*container* has gone."""
        listeners = self._listeners.pop(container, {})
        for number, listener in listeners.items():
            self._places.pop((container, number), None)
            self._loop.forget(listener.fileno())
            listener.close()
        if listeners:
            shutil.rmtree(os.path.dirname(host_socket(container, 0)), ignore_errors=True)

    def _watch(self, listener: socket.socket, container: str, number: int) -> None:
        if listener.fileno() >= 0:  # else closed meanwhile
            self._loop.watch(listener.fileno(), IN, lambda events: self._accept(listener, container, number))

    def _accept(self, listener: socket.socket, container: str, number: int) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            self._loop.forget(listener.fileno())
            self._loop.call_later(_PAUSE_SECONDS, lambda: self._watch(listener, container, number))
            return
        self._loop.forget(listener.fileno())
        self._number += 1
        self._dialling[self._number] = (listener, container, number, sock)
        self._event(Dial(container, number, self._number, *sockets.peer(sock)))


def _read(fd: int, size: int) -> bytes:
    try:
        return sockets.read_without_descriptors(fd, size)
    except sockets.DescriptorError as error:
        with suppress(OSError):
            files.write(
                "/dev/kmsg", f"<4>runvm agent: a connection to a socket of the host's has ended: {error.strerror}\n"
            )
        raise
