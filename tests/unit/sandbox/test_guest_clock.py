"""How far a guest's clock is moved, from what it answers and how soon."""

from __future__ import annotations

import pytest

from runvm.sandbox.guest_clock import Answer, correction

MS = 1_000_000


@pytest.mark.parametrize(
    ("answers", "moved"),
    [
        ([], 0),
        ([Answer(2 * MS, 0)], 0),
        ([Answer(MS, -20 * MS)], 20 * MS),
        ([Answer(MS, 20 * MS)], -20 * MS),
        ([Answer(60 * MS, 29 * MS)], 0),  # it may well be right: the answer took longer
        ([Answer(60 * MS, 29 * MS), Answer(2 * MS, 5 * MS), Answer(9 * MS, 7 * MS)], -5 * MS),  # the quickest counts
        ([Answer(MS, MS)], 0),
    ],
)
def test_the_quickest_answer_tells_by_how_much(answers: list[Answer], moved: int) -> None:
    assert correction(answers) == moved
