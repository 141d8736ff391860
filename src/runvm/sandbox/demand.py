"""Memory beyond what containers' limits ask for: plugged in when the guest needs it, and taken back when it is free.

What the guest says is no more than a hint: one step at a time is made, as far as setting and host allow.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from runvm.log import log
from runvm.protocol.messages import UseMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.errors import RunvmError
    from runvm.linux.loop import Loop
    from runvm.protocol.messages import Done, Failed
    from runvm.sandbox.guest_link import GuestLink

STEP_MIB = 1024
"""A step is that at least, and half of what there is."""
BLOCK_MIB = 128
"""Memory comes and goes by this, Linux' own step on x86."""
HOST_RESERVE_MIB = 512
"""What is left to the host, at least; else 1/_HOST_SHARE of its memory."""
_HOST_SHARE = 20
_STARVED_SECONDS = 5.0
"""How often the host's memory is looked at where there was none for a VM that needed it."""
_STEP_SECONDS = 0.05
"""The least time between two steps, whatever the guest says."""


def step_mib(total_mib: int, limit_mib: int, available_mib: int, host_mib: int) -> int:
    """How much more a VM of *total_mib* gets, which may have *limit_mib*, from a host that has *available_mib* left of
    *host_mib*: 0 where there is none to give."""
    spare = available_mib - max(HOST_RESERVE_MIB, host_mib // _HOST_SHARE)
    wanted = max(STEP_MIB, total_mib // 2)
    return max(0, min(wanted, limit_mib - total_mib, spare)) // BLOCK_MIB * BLOCK_MIB


def surplus_mib(extra_mib: int, free_mib: int) -> int:
    """How much of the *extra_mib* that a VM got by need is taken back where *free_mib* are free: half of those."""
    return max(0, min(extra_mib, free_mib // 2)) // BLOCK_MIB * BLOCK_MIB


class Demand:
    """Of one VM. *extra_mib* is what it has got by need, *told* whether the guest watches. *resize* makes the VM as
    large as that asks for, *total* says how large it is, *limit* how large it may be (0: it doesn't grow by need)."""

    def __init__(
        self,
        loop: Loop,
        agent: GuestLink,
        *,
        resize: Callable[[Callable[[RunvmError | None], None]], None],
        total: Callable[[], int],
        limit: Callable[[], int],
    ) -> None:
        self.extra_mib = 0
        self._loop = loop
        self._agent = agent
        self._resize = resize
        self._total = total
        self._limit = limit
        self.told = False
        self._busy = False
        self._final = False
        self._next = 0.0
        self._look = 0

    def resume(self, extra_mib: int, *, told: bool) -> None:
        """The guest comes from a checkpoint, where it has got *extra_mib* and may have been *told* to watch."""
        self.extra_mib = extra_mib
        self.told = told

    def arm(self) -> None:
        """A container may run from now on, or has got other limits: where the VM can grow by need, the guest is told to
        watch; once, unless it has been told since that there is no more."""
        if (self._final or not self.told) and self._limit() > self._total():
            self.told = True
            self._tell(final=False)

    def more(self) -> None:
        """The guest needs more. One that was told that there is none asks no more."""
        if self._busy or self._final or not self.told:
            return
        self._busy = True
        self._loop.call_later(max(0.0, self._next - time.monotonic()), self._step)

    def less(self, free_mib: int) -> None:
        """The guest has had *free_mib* free for some time."""
        back = surplus_mib(self.extra_mib, free_mib)
        if self._busy or not back:
            return
        self._busy = True
        self.extra_mib -= back
        log.info(f"{back} MiB of the virtual machine's memory are free: the host takes them back")
        self._resize(self._resized)

    def _step(self) -> None:
        self._next = time.monotonic() + _STEP_SECONDS
        available_mib, host_mib = _host_mib()
        step = step_mib(self._total(), self._limit(), available_mib, host_mib)
        if not step:
            log.info(f"the virtual machine can't grow beyond {self._total()} MiB of memory")
            self._busy = False
            self._tell(final=True)
            self._look_later()
            return
        self.extra_mib += step
        log.info(f"the virtual machine needs memory: it grows by {step} to {self._total()} MiB")
        self._resize(self._resized)

    def _look_at_host(self) -> None:
        """Where it was the host that had no memory to give, it may have some by now."""
        if not self._final or self._limit() - self._total() < BLOCK_MIB:
            return
        if step_mib(self._total(), self._limit(), *_host_mib()):
            self._tell(final=False)
        else:
            self._look_later()

    def _look_later(self) -> None:
        self._loop.cancel(self._look)
        self._look = self._loop.call_later(_STARVED_SECONDS, self._look_at_host)

    def _resized(self, error: RunvmError | None) -> None:
        self._busy = False
        if error is not None:
            log.warning(f"the virtual machine can't grow: {error}")
        self._tell(final=error is not None)

    def _tell(self, *, final: bool) -> None:
        self._final = final
        self._agent.ask(UseMemory(self._total(), final), _warn)


def _warn(answer: Done | Failed) -> None:
    error = getattr(answer, "error", "")
    if error:
        log.warning(error)


def _host_mib() -> tuple[int, int]:
    """(what can still be used, all) of the host's memory."""
    found = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, value = line.partition(":")
            found[name] = int(value.split()[0]) >> 10
    return found.get("MemAvailable", 0), found["MemTotal"]
