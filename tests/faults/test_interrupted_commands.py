"""A command that is told to end half-way, by ctrl-C, SIGTERM or SIGHUP: it takes back what it has made, by itself."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host
    from framework.runtime import Box

MOMENTS = [0.05, 0.15, 0.3, 0.5, 0.8, 1.2]
"""Seconds after its start."""
ENDED_BY = {signal.SIGINT: 130, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGHUP: 128 + signal.SIGHUP}

pytestmark = pytest.mark.only("runvm", "runc leaves its half-made init and cgroup behind")


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """A job in the background, as this one may be, has some of them ignored, and so had its children."""
    ignored = [number for number in ENDED_BY if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("number", ENDED_BY, ids=lambda number: number.name)
@pytest.mark.parametrize("words", [("create",), ("run", "--detach")], ids=" ".join)
def test_what_is_half_made_is_taken_back(box: Box, host: Host, words: tuple[str, ...], number: int) -> None:
    """Nobody has to call `delete` for it. What was whole already stays, as its maker is told by the exit code."""
    taken_back = 0
    for moment in MOMENTS:
        container = box.idle()
        command = container.begin(*words[1:], command=words[0])
        time.sleep(moment)
        command.signal(number)
        result = container.created(command)
        if result.code == 0 or os.path.exists(container.pid_file):
            container.delete("--force")
            continue
        assert result.code in (ENDED_BY[signal.Signals(number)], -number), result.describe()
        assert container.id not in container.runtime.ids()
        assert not os.path.exists(f"{container.runtime.root}/{container.id}")
        taken_back += 1
    assert taken_back > 1


@pytest.mark.parametrize("number", ENDED_BY, ids=lambda number: number.name)
def test_a_foreground_run_is_taken_back_or_gets_the_signal(box: Box, number: int) -> None:
    """At no moment does it end and leave the container."""
    for moment in (*MOMENTS, 1.6, 2.4):
        container = box.sh(f"trap 'exit 77' {number}; while :; do sleep 0.1; done")
        container.bundle.save()
        command = container.runtime.start("run", "--bundle", container.bundle.path, container.id)
        time.sleep(moment)
        command.signal(number)
        time.sleep(1.5)  # a signal that came before the trap was set is the kernel's to drop
        command.signal(number)
        result = command.wait(container.runtime.timeout)
        if b"init_import_site" not in result.stderr:  # the interpreter itself hadn't started
            assert result.code in (77, ENDED_BY[signal.Signals(number)], -number), result.describe()
        assert container.id not in container.runtime.ids()
        assert not os.path.exists(f"{container.runtime.root}/{container.id}")
