"""QEMU's monitor: greeting, commands, events, each wait with a deadline. Knows nothing of containers.

Source: QEMU's docs/interop/qmp-spec and the QMP reference manual.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from runvm.errors import DeadlineError, VmmError

_MAX_LINE = 4 << 20


class Qmp:
    """One monitor connection over *sock* (owned)."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    def negotiate(self, *, deadline: float) -> None:
        """Take the greeting and enter command mode."""
        message = self._read(deadline, "QEMU's greeting")
        if "QMP" not in message:
            raise VmmError("QEMU greeted with something else than QMP")
        self.run("qmp_capabilities", deadline=deadline)

    def run(
        self, command: str, arguments: dict[str, Any] | None = None, *, deadline: float, fd: int | None = None
    ) -> Any:
        """Run one command, handing over *fd* with it, and return its answer. Raises VmmError with QEMU's message."""
        self.send(command, arguments, fd=fd)
        return self.answer(command, deadline=deadline)

    def send(
        self, command: str, arguments: dict[str, Any] | None = None, *, fd: int | None = None, number: int = 0
    ) -> None:
        """Send a command without waiting; its answer must be taken by answer(), in order, or has *number* as its id."""
        body: dict[str, Any] = {"execute": command, "arguments": arguments or {}}
        if number:
            body["id"] = number
        data = json.dumps(body).encode()
        try:
            if fd is None:
                self.sock.sendall(data)
            else:
                socket.send_fds(self.sock, [data], [fd])
        except OSError as error:
            raise VmmError(f"QEMU doesn't take '{command}': {error.strerror}") from error

    def answer(self, command: str, *, deadline: float) -> Any:
        """The answer to the oldest command sent."""
        while True:
            message = self._read(deadline, f"QEMU's answer to '{command}'")
            if "event" in message:
                self._keep(message)
            elif "error" in message:
                raise VmmError(f"QEMU refused '{command}': {message['error'].get('desc', message['error'])}")
            elif "return" in message:
                return message["return"]

    def wait_event(self, name: str, *, deadline: float) -> dict[str, Any]:
        """The data of the next event called *name* (kept ones first)."""
        while True:
            for index, event in enumerate(self._events):
                if event.get("event") == name:
                    del self._events[index]
                    data = event.get("data", {})
                    return data if isinstance(data, dict) else {}
            message = self._read(deadline, f"QEMU's event {name}")
            if "event" in message:
                self._keep(message)

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come, without waiting for one. Raises VmmError when QEMU has gone."""
        self.sock.setblocking(False)
        try:
            self._take(self.sock.recv(65536))
        except BlockingIOError:
            return []
        except OSError as error:
            raise VmmError(f"QEMU's monitor has gone: {error.strerror}") from error
        found = []
        while b"\n" in self._buffer:
            found.append(self._next())
        return found

    def _keep(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        del self._events[:-64]

    def _read(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineError(f"timed out waiting for {what}")
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                raise DeadlineError(f"timed out waiting for {what}") from None
            except OSError as error:
                raise VmmError(f"QEMU went away while {what} was awaited: {error.strerror}") from error
            if not data:
                raise VmmError(f"QEMU ended while {what} was awaited")
            self._take(data)
        return self._next()

    def _take(self, data: bytes) -> None:
        if not data:
            raise VmmError("QEMU has closed its monitor")
        self._buffer += data
        if len(self._buffer) > _MAX_LINE:
            raise VmmError(f"QEMU's monitor sent a line of more than {_MAX_LINE} bytes")

    def _next(self) -> dict[str, Any]:
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError as error:
            raise VmmError(f"QEMU's monitor sent no JSON: {error}") from error
        return message if isinstance(message, dict) else {}
