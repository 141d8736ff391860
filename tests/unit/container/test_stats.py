"""What a guest says that its cgroups count."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from runvm.container import stats
from runvm.errors import NotRunningError

if TYPE_CHECKING:
    from runvm.container.context import Context


@pytest.mark.parametrize("text", ["²", "1" * 5000, "1" * 20, "-1", "1.5", "٣", "", "x", "1_0"])
def test_what_is_no_number_of_the_kernels_is_none(text: str) -> None:
    """Python would take some for digits, and fail to read them."""
    files = {"memory.current": text, "memory.peak": f" {text}\n", "memory.stat": f"file {text}\nanon 3"}
    assert stats.memory_use(files) == (0, 0, 0)
    assert stats.cpu_seconds({"cpu.stat": f"usage_usec {text}"}) == 0
    line = f"eth0: {text} " + " ".join("1" for _ in range(11))
    assert stats._interfaces(f"\n\n{line}") == []


def test_numbers_are_read() -> None:
    files = {"memory.current": "4096\n", "memory.peak": "max", "memory.stat": "anon 1\nfile 96\n"}
    assert stats.memory_use(files) == (4096, (1 << 64) - 1, 4000)


def test_no_sum_is_more_than_engines_read() -> None:
    """Microseconds of 64 bits are nanoseconds of more."""
    assert stats._nanoseconds({"usage_usec": 10**18}, "usage_usec") == (1 << 64) - 1


def test_kills_are_told_once_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many the guest says that there were."""
    counts = iter(["0", "1", "1", str(10**18), "3", str(10**18 + 1)])

    def files(ctx: Context, cid: str) -> dict[str, str]:
        try:
            return {"memory.events": f"oom 7\noom_kill {next(counts)}"}
        except StopIteration:
            raise NotRunningError() from None

    monkeypatch.setattr(stats, "_files", files)
    monkeypatch.setattr("runvm.container.stats.time.sleep", lambda seconds: None)
    told: list[int] = []
    stats.watch_oom(cast("Context", None), "c", lambda: told.append(1))
    assert len(told) == 3
