"""Work in another network namespace for a moment: the supervisor does in a container's, the agent in the guest's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from runvm.linux.syscalls import CLONE_NEWNET, setns

T = TypeVar("T")


def in_namespace(netns: int, function: Callable[[], T]) -> T:
    """Call *function* in the network namespace of the descriptor *netns*, come back, and return what it returned.

    No child is forked for it: sockets, taps and sysctl files belong to the namespace in which they were opened, and go
    on working from outside. Only the calling thread moves. Raises OSError.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(netns, CLONE_NEWNET)
        try:
            return function()
        finally:
            try:
                setns(home, CLONE_NEWNET)
            except OSError:
                # to go on would mean to set up the next container's network in this one's namespace
                os.abort()
    finally:
        os.close(home)
