"""QEMU's monitor while the VM runs: the supervisor's loop takes the answers, since it serves others meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runvm.errors import VmmError
from runvm.linux.loop import IN
from runvm.log import log
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.hypervisor.qemu.qmp import Qmp
    from runvm.linux.loop import Loop

_SECONDS = 10.0
"""How long QEMU may take for one command."""


class QmpCommand(NamedTuple):
    """One QMP command; *fd* is handed over with it (-1: none)."""

    name: str
    arguments: dict[str, Any] = {}  # noqa: RUF012
    fd: int = -1


Ended = Callable[[list[Any], VmmError | None], None]


class _Batch:
    """Commands sent together: their numbers while they are waited for, what came of them."""

    def __init__(self, ended: Ended) -> None:
        self.ended = ended
        self.waiting: set[int] = set()
        self.results: list[Any] = []
        self.error: VmmError | None = None
        self.timer = 0


class Monitor:
    """Over *qmp*, which nobody else reads from any more."""

    def __init__(self, loop: Loop, qmp: Qmp) -> None:
        self._loop = loop
        self._qmp = qmp
        self._number = 0
        self._batches: dict[int, _Batch] = {}
        """By the number of each command that is waited for."""
        self._failed: VmmError | None = None
        qmp.sock.setblocking(False)
        loop.watch(qmp.sock.fileno(), IN, self._ready)

    def run(self, commands: list[QmpCommand], ended: Ended) -> None:
        """Send all *commands* now; *ended* gets their results, in order, or the first error: QEMU's, or that it has
        taken too long."""
        if self._failed is not None or not commands:
            ended([], self._failed)
            return
        batch = _Batch(ended)
        batch.timer = self._loop.call_later(_SECONDS, lambda: self._late(batch, commands[0].name))
        for _ in commands:
            self._number += 1
            self._batches[self._number] = batch
            batch.waiting.add(self._number)
        try:
            for number, command in zip(sorted(batch.waiting), commands, strict=True):
                fd = command.fd if command.fd >= 0 else None
                self._qmp.send(command.name, command.arguments, fd=fd, number=number)
        except VmmError as error:
            self._fail(error)

    def _ready(self, events: int) -> None:
        try:
            messages = self._qmp.receive()
        except VmmError as error:
            self._fail(error)
            return
        for message in messages:
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        number = message.get("id")
        batch = self._batches.pop(number, None) if type(number) is int else None
        if batch is None:  # an event, or an answer that nobody waits for any more
            return
        batch.waiting.discard(number)
        if "error" in message:
            said = message["error"].get("desc", message["error"])
            batch.error = batch.error or VmmError(f"QEMU refused: {said}")
        else:
            batch.results.append(message.get("return"))
        if not batch.waiting:
            self._end(batch)

    def _end(self, batch: _Batch) -> None:
        self._loop.cancel(batch.timer)
        batch.ended([] if batch.error is not None else batch.results, batch.error)

    def _late(self, batch: _Batch, name: str) -> None:
        """Its answers are dropped when they come; other commands may be answered in time again."""
        for number in batch.waiting:
            del self._batches[number]
        batch.error = VmmError(f"timed out after {_SECONDS:.0f} s waiting for QEMU's answer to '{name}'")
        self._end(batch)

    def _fail(self, error: VmmError) -> None:
        """QEMU has gone, or makes no sense: nothing more is expected of this monitor."""
        if self._failed is not None:
            return
        self._failed = error
        log.error(str(error))
        self._loop.forget(self._qmp.sock.fileno())
        batches, self._batches = dict.fromkeys(self._batches.values()), {}
        for batch in batches:
            batch.error = error
            self._end(batch)
