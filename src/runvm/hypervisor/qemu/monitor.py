"""QEMU's monitor while the VM runs: the supervisor's loop takes the answers, since it serves others meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from runvm.errors import VmmError
from runvm.linux.loop import IN
from runvm.log import log

if TYPE_CHECKING:
    from runvm.hypervisor.qemu.qmp import Qmp
    from runvm.linux.loop import Loop

_SECONDS = 10.0
"""How long QEMU may take for one command."""


class Command(NamedTuple):
    """One QMP command; *fd* is handed over with it (-1: none)."""

    name: str
    arguments: dict[str, Any] = {}  # noqa: RUF012
    fd: int = -1


Ended = Callable[[list[Any], VmmError | None], None]


class _Batch:
    def __init__(self, commands: list[Command], ended: Ended, timer: int) -> None:
        self.waiting = len(commands)
        self.results: list[Any] = []
        self.error: VmmError | None = None
        self.ended = ended
        self.timer = timer


class Monitor:
    """Over *qmp*, which nobody else reads from any more."""

    def __init__(self, loop: Loop, qmp: Qmp) -> None:
        self._loop = loop
        self._qmp = qmp
        self._batches: deque[_Batch] = deque()
        self._failed: VmmError | None = None
        loop.watch(qmp.sock.fileno(), IN, self._ready)

    def run(self, commands: list[Command], ended: Ended) -> None:
        """Send all *commands* now; *ended* gets their results, or the first error. QEMU answers in order."""
        if self._failed is not None or not commands:
            ended([], self._failed)
            return
        batch = _Batch(commands, ended, 0)
        batch.timer = self._loop.call_later(_SECONDS, lambda: self._late(batch, commands[0].name))
        self._batches.append(batch)
        try:
            for command in commands:
                self._qmp.send(command.name, command.arguments, fd=command.fd if command.fd >= 0 else None)
        except VmmError as error:
            self._fail(error)

    def _late(self, batch: _Batch, name: str) -> None:
        self._fail(VmmError(f"timed out after {_SECONDS:.0f} s waiting for QEMU's answer to '{name}'"))

    def _ready(self, events: int) -> None:
        try:
            messages = self._qmp.receive()
        except VmmError as error:
            self._fail(error)
            return
        for message in messages:
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message or not self._batches:
            return
        batch = self._batches[0]
        if "error" in message:
            said = message["error"].get("desc", message["error"])
            batch.error = batch.error or VmmError(f"QEMU refused: {said}")
        elif "return" in message:
            batch.results.append(message["return"])
        else:
            return
        batch.waiting -= 1
        if not batch.waiting:
            self._batches.popleft()
            self._loop.cancel(batch.timer)
            batch.ended(batch.results, batch.error)

    def _fail(self, error: VmmError) -> None:
        """Nothing more is expected of this monitor: answers would no longer fit their commands."""
        if self._failed is not None:
            return
        self._failed = error
        log.error(str(error))
        self._loop.forget(self._qmp.sock.fileno())
        while self._batches:
            batch = self._batches.popleft()
            self._loop.cancel(batch.timer)
            batch.ended([], error)
