"""The agent's answers about containers, without one that crun has made."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from runvm.agent import runtime as agent_runtime
from runvm.agent.errors import AgentError
from runvm.agent.processes import Container, GuestProcess
from runvm.agent.runtime import Runtime
from runvm.errors import NOT_RUNNING
from runvm.linux.loop import Loop
from runvm.protocol.gate import Gate
from runvm.protocol.messages import Exited, Freeze, Signal

if TYPE_CHECKING:
    from pathlib import Path


def test_a_signal_to_what_has_just_ended_is_answered_in_runcs_words() -> None:
    """containerd and Docker match them: the host may not have heard of the end yet."""
    loop = Loop()
    runtime = Runtime(loop, lambda kind, channel, payload: None, lambda message: None, Gate(loop))
    container = runtime.containers["c1"] = Container("c1", "c1", "/nowhere", 0)
    with pytest.raises(AgentError, match=f"^{NOT_RUNNING}$"):
        runtime.signal(Signal("c1", 1, 15, False))
    process = container.processes[1] = GuestProcess(container, 1)
    process.pid, process.status, process.reported = 1 << 22, 0, True
    with pytest.raises(AgentError, match=f"^{NOT_RUNNING}$"):
        runtime.signal(Signal("c1", 1, 15, False))


def test_a_killed_process_whose_output_nobody_takes_has_been_killed() -> None:
    """It has ended by itself in the guest; where it writes to its reader directly it would have hung until then."""
    loop = Loop()
    told: list[object] = []
    runtime = Runtime(loop, lambda kind, channel, payload: None, told.append, Gate(loop))
    container = runtime.containers["c1"] = Container("c1", "c1", "/nowhere", 0)
    process = container.processes[1] = GuestProcess(container, 1)
    process.pid, process.status = 1 << 22, 0
    assert runtime.signal(Signal("c1", 1, 9, False)) == {}
    assert told == [Exited(1, 137, 9)]


@pytest.mark.parametrize("stops", [True, False])
def test_a_pause_is_answered_when_all_stand_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool) -> None:
    """What doesn't stop goes on: a container is paused as a whole or not at all."""
    monkeypatch.setattr(agent_runtime, "_FREEZE_SECONDS", 0.2)
    loop = Loop()
    runtime = Runtime(loop, lambda kind, channel, payload: None, lambda message: None, Gate(loop))
    container = runtime.containers["c1"] = Container("c1", "c1", "/nowhere", 0)
    container.cgroup = str(tmp_path)
    state, events = tmp_path / "cgroup.freeze", tmp_path / "cgroup.events"
    state.write_text("0")
    events.write_text("populated 1\nfrozen 0\n")
    answers: list[object] = []
    runtime.freeze(Freeze("c1", True), answers.append)
    assert (state.read_text(), answers) == ("1", [])
    if stops:
        events.write_text("populated 1\nfrozen 1\n")
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        loop.turn(0.01)
    if stops:
        assert (state.read_text(), answers) == ("1", [{}])
    else:
        assert state.read_text() == "0"
        assert str(answers[0]).startswith("unable to freeze")
