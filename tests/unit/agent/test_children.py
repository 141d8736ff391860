"""Process 1 collects its children whatever is wrong with one of them."""

from __future__ import annotations

import os
import time

from runvm.agent.children import Children
from runvm.linux.loop import Loop


def test_a_callback_that_fails_leaves_the_others() -> None:
    """Both end before either is collected; the first one's callback has a fault."""
    told: list[Exception] = []
    ended: list[int] = []
    children = Children(Loop(on_error=told.append))

    def fail(status: int) -> None:
        ended.append(status)
        if len(ended) == 1:
            raise KeyError("a fault")

    pids = [children.spawn(["/bin/true"], fail) for _ in range(2)]
    deadline = time.monotonic() + 10
    for pid in pids:
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    children.reap()
    assert ended == [0, 0]
    assert [type(error) for error in told] == [KeyError]
