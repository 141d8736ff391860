"""Virtual CPUs that are plugged in while the guest runs (kernel's cpu_hotplug.rst)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from runvm.agent.errors import AgentError
from runvm.linux.loop import Loop
from runvm.protocol.messages import Json

_DIRECTORY = "/sys/devices/system/cpu"
_SECONDS = 10.0


def use(loop: Loop, count: int, done: Callable[[Json | AgentError], None]) -> None:
    """Take *count* CPUs into use, waiting for those that the kernel hasn't found yet; *done* gets {} or the error."""
    deadline = time.monotonic() + _SECONDS

    def look() -> None:
        online = _bring_online()
        if online >= count:
            done({})
        elif time.monotonic() > deadline:
            done(AgentError(f"the guest has taken {online} of {count} virtual CPUs into use within {_SECONDS:.0f} s"))
        else:
            loop.call_later(0.02, look)

    look()


def _bring_online() -> int:
    """Bring up each CPU that is there; how many are in use."""
    for name in os.listdir(_DIRECTORY):
        switch = f"{_DIRECTORY}/{name}/online"
        if name.startswith("cpu") and name[3:].isdigit() and os.path.exists(switch):  # the first has no switch
            try:
                with open(switch, "r+") as file:
                    if file.read().strip() == "0":
                        file.write("1")
            except OSError:
                continue  # it is just coming: the next look finds it
    return len(os.sched_getaffinity(0))
