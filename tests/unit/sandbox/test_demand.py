"""How much memory a VM gets by need, and gives back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from runvm.linux.loop import Loop
from runvm.sandbox import demand
from runvm.sandbox.demand import step_mib, surplus_mib

if TYPE_CHECKING:
    import pytest

    from runvm.protocol.messages import UseMemory
    from runvm.sandbox.guest_link import GuestLink


def test_a_step_is_a_gib_or_half_of_what_there_is() -> None:
    """In blocks, so that a large one doesn't take many steps."""
    assert step_mib(1024, 24576, 20000, 24576) == 1024
    assert step_mib(8192, 24576, 20000, 24576) == 4096
    assert step_mib(1000, 2000, 20000, 24576) == 896


def test_the_setting_and_the_host_bound_it() -> None:
    """The host keeps a twentieth, or half a GiB."""
    assert step_mib(1024, 1536, 20000, 24576) == 512
    assert step_mib(1024, 1024, 20000, 24576) == 0
    assert step_mib(1024, 24576, 1500, 24576) == 256
    assert step_mib(1024, 24576, 1000, 24576) == 0
    assert step_mib(1024, 4096, 700, 2048) == 128
    assert step_mib(1024, 4096, 0, 0) == 0


def test_half_of_what_is_free_goes_back() -> None:
    """Never more than what came by need, whatever the guest says."""
    assert surplus_mib(2048, 2000) == 896
    assert surplus_mib(512, 1 << 31) == 512
    assert surplus_mib(0, 4096) == 0
    assert surplus_mib(1024, 200) == 0


class Guest:
    """A Demand of a VM of 1 GiB that may have *limit* MiB; what it was told: MiB, and whether that is all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        self.told: list[tuple[int, bool]] = []
        self.limit = limit
        self.available_mib = 0
        self.loop = Loop()
        monkeypatch.setattr(demand, "_host_mib", lambda: (self.available_mib, 24576))
        monkeypatch.setattr(demand, "_STARVED_SECONDS", 0.05)
        self.demand = demand.Demand(
            self.loop,
            cast("GuestLink", self),
            resize=lambda done: done(None),
            total=lambda: 1024 + self.demand.extra_mib,
            limit=lambda: self.limit,
        )

    def ask(self, message: UseMemory, answered: object) -> None:
        self.told.append((message.mib, message.final))

    def pass_time(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.loop.turn(0.01)


def test_a_host_that_had_none_to_give_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the guest has been told isn't for good: memory may come free."""
    guest = Guest(monkeypatch, 4096)
    guest.demand.arm()
    guest.demand.more()
    guest.pass_time(0.2)
    assert guest.told == [(1024, False), (1024, True)]
    guest.available_mib = 20000
    guest.pass_time(0.2)
    assert guest.told[2:] == [(1024, False)]
    guest.demand.more()
    guest.pass_time(0.2)
    assert guest.told[3:] == [(2048, False)]


def test_a_vm_that_has_all_it_may_have_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(monkeypatch, 1100)
    guest.available_mib = 20000
    guest.demand.arm()
    guest.demand.more()
    guest.pass_time(0.3)
    assert guest.told == [(1024, False), (1024, True)]
    guest.limit = 4096
    guest.demand.arm()
    assert guest.told[2:] == [(1024, False)], "its containers have got other limits"
