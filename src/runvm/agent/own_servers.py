"""Servers of containers that listen in a mounted directory: the host connects to them for the clients of other virtual
machines (sandbox.own_servers)."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from runvm.agent import socket_mounts
from runvm.agent.children import Children
from runvm.agent.errors import AgentError
from runvm.agent.socket_mounts import SocketPlace
from runvm.linux import process, sockets
from runvm.linux.loop import Loop
from runvm.protocol.messages import ConnectServer, Json

_SECONDS = 10.0
"""How long a server whose queue is full is waited for."""
Answered = Callable[[Json | AgentError], None]


class GuestServers:
    """Of all containers; *connected* gets each connection's channel and socket, and whether it takes records."""

    def __init__(self, loop: Loop, children: Children, connected: Callable[[int, socket.socket, bool], None]) -> None:
        self._loop = loop
        self._children = children
        self._connected = connected

    def find(self, place: SocketPlace) -> Json:
        """Whether a server listens at *place*: {"kind"}, its type of socket or 0. Raises OSError."""
        file = socket_mounts.open_file(place)
        try:
            return {"kind": int(sockets.server(file))}
        finally:
            os.close(file)

    def connect(self, request: ConnectServer, place: SocketPlace, done: Answered) -> None:
        """Connect to the server at *place*, by a process with the ids of who asked for it. Raises OSError."""
        file = socket_mounts.open_file(place)
        try:
            kind = sockets.server(file)
            if not kind:
                raise AgentError("no server listens there")
            sock = socket.socket(socket.AF_UNIX, kind)

            def run() -> None:
                try:
                    sockets.take_ids(request.uid, request.gid, request.groups)
                    sockets.connect_to(sock, file)
                except OSError as error:
                    raise SystemExit(min(error.errno or 1, 255)) from None

            pid = process.fork(run)
        finally:
            os.close(file)
        timer = self._loop.call_later(_SECONDS, lambda: _kill(pid))

        def ended(status: int) -> None:
            self._loop.cancel(timer)
            code = os.waitstatus_to_exitcode(status)
            if code:
                sock.close()
                done(AgentError(os.strerror(code) if code > 0 else "the server doesn't take connections"))
                return
            self._connected(request.channel, sock, kind == socket.SOCK_SEQPACKET)
            done({})

        self._children.adopt(pid, ended)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
