"""`events`: what the guest's cgroup counts, in the shape of runc's statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from runvm.container import state
from runvm.errors import NotRunningError, RunvmError
from runvm.protocol import messages
from runvm.records import NamedTuple
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from runvm.container.context import Context
    from runvm.sandbox.registry import Sandbox


_UNLIMITED = (1 << 64) - 1
_MAX_DIGITS = 19
"""Of a number that is believed: engines read 64 bits, and a guest may say anything."""


def stats(ctx: Context, cid: str) -> dict[str, Any]:
    """The container's statistics (runc's `events --stats`, data), and in `vm` what its virtual machine takes of the
    host. Raises NotRunningError, GuestError."""
    from runvm.container import io_figures, vm_use

    sandbox = _sandbox(ctx, cid)
    with cpu_limits.lifted(sandbox):
        files = registry.call(sandbox, messages.Stats(cid))
        sums = _sums(vm_use.containers(sandbox))
    cpu, memory = _pairs(files.get("cpu.stat", "")), _pairs(files.get("memory.stat", ""))
    current = _number(files.get("memory.current", ""))
    limit = _number(files.get("memory.max", ""))
    return {
        "cpu": {
            "usage": {
                "total": _nanoseconds(cpu, "usage_usec"),
                "kernel": _nanoseconds(cpu, "system_usec"),
                "user": _nanoseconds(cpu, "user_usec"),
            },
            "throttling": {
                "periods": cpu.get("nr_periods", 0),
                "throttledPeriods": cpu.get("nr_throttled", 0),
                "throttledTime": _nanoseconds(cpu, "throttled_usec"),
            },
            **io_figures.pressure(files, "cpu"),
        },
        "cpuset": io_figures.CPUSET,
        "memory": {
            "cache": memory.get("file", 0),
            "usage": {"limit": limit, "usage": current, "max": _number(files.get("memory.peak", "")), "failcnt": 0},
            # memory and swap together, as cgroups of version 1 count it, and runc for both
            "swap": {
                "limit": min(limit + _number(files.get("memory.swap.max", "")), _UNLIMITED),
                "usage": min(current + _number(files.get("memory.swap.current", "")), _UNLIMITED),
                "failcnt": 0,
            },
            "kernel": {"limit": 0, "usage": memory.get("kernel", 0), "failcnt": 0},
            "kernelTCP": {"limit": 0, "usage": memory.get("sock", 0), "failcnt": 0},
            "raw": memory,
            **io_figures.pressure(files, "memory"),
        },
        "pids": _pids(files),
        "blkio": {**io_figures.blkio(files.get("io.stat", "")), **io_figures.pressure(files, "io")},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": _interfaces(files.get("net/dev", "")),
        "vm": vm_use.of_vm(sandbox, *sums),
    }


def _sums(containers: Iterator[dict[str, str]]) -> tuple[int, int]:
    """Nanoseconds of CPU time and bytes of memory of all."""
    found = [
        (_nanoseconds(_pairs(files.get("cpu.stat", "")), "usage_usec"), _number(files.get("memory.current", "")))
        for files in containers
    ]
    return sum(cpu for cpu, _ in found), sum(memory for _, memory in found)


class MemoryUse(NamedTuple):
    """Bytes in use, the most there were, and those that can't be freed by dropping cached files."""

    current: int
    peak: int
    needed: int


def memory_use(files: dict[str, str]) -> MemoryUse:
    """Out of the files that messages.Stats gives."""
    current, cached = _number(files.get("memory.current", "")), _pairs(files.get("memory.stat", "")).get("file", 0)
    return MemoryUse(current, _number(files.get("memory.peak", "")), max(0, current - cached))


def cpu_seconds(files: dict[str, str]) -> float:
    """The CPU time that was used, out of the files that messages.Stats gives."""
    return _pairs(files.get("cpu.stat", "")).get("usage_usec", 0) / 1e6


def watch_oom(ctx: Context, cid: str, callback: Callable[[], None]) -> None:
    """Call *callback* when processes were killed for the container's memory limit, until the container ends: once each
    time that is looked, since how many there were is the guest's word."""
    seen = 0
    while True:
        try:
            kills = _pairs(_files(ctx, cid).get("memory.events", "")).get("oom_kill", 0)
        except RunvmError:
            return
        if kills > seen:
            callback()
        seen = max(seen, kills)
        time.sleep(0.5)


def _files(ctx: Context, cid: str) -> dict[str, str]:
    return registry.call(_sandbox(ctx, cid), messages.Stats(cid))


def _sandbox(ctx: Context, cid: str) -> Sandbox:
    record = state.load(ctx, cid)
    if record.pid == 0:
        raise NotRunningError()
    return registry.locate(ctx.config.state_dir, record.sandbox)


def _pids(files: dict[str, str]) -> dict[str, int]:
    found = {"current": _number(files.get("pids.current", ""))}
    limit = _number(files.get("pids.max", ""))
    return found if limit == _UNLIMITED else {**found, "limit": limit}  # without a limit runc has no key


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if _is_number(text) else _UNLIMITED if text == "max" else 0


def _is_number(text: str) -> bool:
    """Whether the guest's *text* is one that the kernel could have written."""
    return text.isdecimal() and text.isascii() and len(text) <= _MAX_DIGITS


def _pairs(text: str) -> dict[str, int]:
    words = [line.split() for line in text.splitlines()]
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and _is_number(pair[1])}


def _nanoseconds(cpu: dict[str, int], name: str) -> int:
    return min(cpu.get(name, 0) * 1000, _UNLIMITED)


def _interfaces(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines()[2:]:
        name, _, counts = line.partition(":")
        numbers = [int(word) for word in counts.split() if _is_number(word)]
        if name.strip() != "lo" and len(numbers) >= 12:
            keys = ("RxBytes", "RxPackets", "RxErrors", "RxDropped", "TxBytes", "TxPackets", "TxErrors", "TxDropped")
            found.append({"Name": name.strip(), **dict(zip(keys, (*numbers[:4], *numbers[8:12]), strict=True))})
    return found
