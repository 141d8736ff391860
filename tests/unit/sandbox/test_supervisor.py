"""What the supervisor tells of its own faults."""

from __future__ import annotations

import pytest

from runvm.sandbox import supervisor


def test_a_fault_that_is_caused_again_and_again_doesnt_fill_the_disk(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first ones are told whole."""
    monkeypatch.setattr(supervisor, "_MAX_REPORTS", 3)
    report = supervisor._Reports()
    for number in range(10):
        report(KeyError(f"fault {number}"))
    told = capfd.readouterr().err
    assert [number for number in range(10) if f"'fault {number}'" in told] == [0, 1, 2]
    assert told.count("internal error: KeyError") == 3
