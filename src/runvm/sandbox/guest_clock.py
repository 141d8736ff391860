"""Keeps a guest's clock at the host's time of day.

A guest is told the time once, when it becomes a VM; that comes late by what the message takes. From then on its clock
runs by itself: it knows nothing of the host's clock being set, of corrections that the host gets from the network, and
under emulation nothing of the time that the host has slept. So it is asked what it shows, and moved if need be: soon
after the start, whenever the host's clock jumps, and now and then.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.linux.clock import ClockChanges
from runvm.linux.loop import IN
from runvm.log import log
from runvm.protocol.messages import Clock, Done, Failed
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.linux.loop import Loop
    from runvm.sandbox.guest_link import GuestLink

SETTLED_SECONDS = 1.0
"""After the start: the guest is busy with its first container until then, and answers late."""
EVERY_SECONDS = 60.0
"""Two clocks may drift apart by some 3 ms in that time."""
TOLERANCE_NS = 1_000_000
_QUESTIONS = 5


class Answer(NamedTuple):
    """How long the guest took to answer, and how far it was ahead; that is known to half of what it took."""

    took_ns: int
    ahead_ns: int


def correction(answers: list[Answer]) -> int:
    """By how many ns the guest's clock has to be moved: 0 where it is right as far as can be told."""
    if not answers:
        return 0
    best = min(answers)
    return -best.ahead_ns if abs(best.ahead_ns) > best.took_ns // 2 + TOLERANCE_NS else 0


class GuestClock:
    """Of the guest that *agent* leads to, from now until close()."""

    def __init__(self, loop: Loop, agent: GuestLink) -> None:
        self._loop = loop
        self._agent = agent
        self._answers: list[Answer] = []
        self._left = 0
        self._timer = loop.call_later(SETTLED_SECONDS, self._now_and_then)
        self._changes: ClockChanges | None = None
        with suppress(OSError):  # out of descriptors: then now and then
            self._changes = ClockChanges()
            loop.watch(self._changes.fileno(), IN, self._changed)

    def close(self) -> None:
        """Once."""
        self._loop.cancel(self._timer)
        if self._changes is not None:
            self._loop.forget(self._changes.fileno())
            self._changes.close()

    def _changed(self, events: int) -> None:
        assert self._changes is not None
        self._changes.take()
        self.check()

    def _now_and_then(self) -> None:
        self._timer = self._loop.call_later(EVERY_SECONDS, self._now_and_then)
        self.check()

    def check(self) -> None:
        """Ask the guest what it shows, and move it if need be: it has stood still, say."""
        under_way = self._left > 0
        self._answers = []  # what was found before the host's clock jumped is worth nothing
        self._left = _QUESTIONS
        if not under_way:
            self._ask()

    def _ask(self) -> None:
        asked, since = time.time_ns(), time.monotonic_ns()

        def answered(answer: Done | Failed) -> None:
            took = time.monotonic_ns() - since
            self._left -= 1
            shown = answer.result.get("clock_ns") if isinstance(answer, Done) else None
            if isinstance(shown, int) and abs(time.time_ns() - asked - took) < TOLERANCE_NS:
                self._answers.append(Answer(took, shown - asked - took // 2))
            if self._left > 0 and isinstance(answer, Done):
                self._ask()
                return
            self._left = 0
            if by := correction(self._answers):
                log.debug(f"supervisor: the guest's clock is moved by {by / 1e6:.1f} ms")
                self._agent.ask(Clock(by), lambda answer: None)

        self._agent.ask(Clock(0), answered)
