"""The agent's answers about containers, without one that crun has made."""

import pytest

from runvm.agent.errors import AgentError
from runvm.agent.processes import Container, GuestProcess
from runvm.agent.runtime import Runtime
from runvm.errors import NOT_RUNNING
from runvm.linux.loop import Loop
from runvm.protocol.messages import Signal


def test_a_signal_to_what_has_just_ended_is_answered_in_runcs_words() -> None:
    """containerd and Docker match them: the host may not have heard of the end yet."""
    runtime = Runtime(Loop(), lambda kind, channel, payload: None, lambda message: None)
    container = runtime.containers["c1"] = Container("c1", "c1", "/nowhere", 0)
    with pytest.raises(AgentError, match=f"^{NOT_RUNNING}$"):
        runtime.signal(Signal("c1", 1, 15, False))
    process = container.processes[1] = GuestProcess(container, 1)
    process.pid, process.status = 1 << 22, 0
    with pytest.raises(AgentError, match=f"^{NOT_RUNNING}$"):
        runtime.signal(Signal("c1", 1, 15, False))
