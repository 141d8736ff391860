"""Ctrl-C, SIGTERM and SIGHUP while a command makes something: what is half made is undone, what is whole by then gets
the signal. By their default they would end the command in the middle of it."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runvm.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_NUMBERS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class _Caught:
    """What has come, and what is done with it."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self.raises = False
        self.pid = 0

    def take(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler."""
        if self.pid:
            send(self.pid, number)
            return
        self.noted.append(number)
        if self.raises:
            self.raises = False  # what is undone then isn't to be interrupted
            raise Interrupted(number)


_caught = _Caught()


@contextmanager
def caught() -> Iterator[None]:
    """What comes from now on is noted, and ends the command when it is done; those alone that would have ended it (not
    under nohup, say). Raises Interrupted."""
    mine = [number for number in _NUMBERS if signal.getsignal(number) in _DEFAULTS]
    defaults = {number: signal.signal(number, _caught.take) for number in mine}

    def restore() -> None:
        while defaults:
            signal.signal(*defaults.popitem())

    os.register_at_fork(after_in_child=restore)
    try:
        yield
    finally:
        restore()
    if _caught.noted and not _caught.pid:
        raise Interrupted(_caught.noted[0])


@contextmanager
def raising() -> Iterator[None]:
    """Within caught(): what has come and what comes raises Interrupted here, once."""
    if _caught.noted:
        raise Interrupted(_caught.noted[0])
    _caught.raises = True
    try:
        yield
    finally:
        _caught.raises = False
    if _caught.noted:  # where it came no exception could be raised
        raise Interrupted(_caught.noted[0])


@contextmanager
def postponed() -> Iterator[None]:
    """Within raising(): what comes is raised at the end of this. For the start of a process, until it is known to what
    takes things back."""
    raises, _caught.raises = _caught.raises, False
    yield
    if raises:
        if _caught.noted:
            raise Interrupted(_caught.noted[0])
        _caught.raises = True


def forward(pid: int) -> None:
    """What has come and what comes is for the process *pid*, our child, from now on."""
    _caught.pid = pid
    for number in _caught.noted:
        send(pid, number)


def send(pid: int, number: int) -> None:
    """A signal to our child *pid*, which may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
