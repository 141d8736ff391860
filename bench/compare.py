"""`make bench-check`: is a run worse than an earlier one?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.results import Figure, Results


def check(old: Results, new: Results, tolerance: float) -> int:
    """Say each figure of both, and which got worse by more than *tolerance* (a part of the old value); 1 if any did.

    Figures of one run only are named and don't count: another runtime may be missing on this machine.
    """
    before = {(figure.family, figure.name): figure for figure in old.figures}
    after = {(figure.family, figure.name): figure for figure in new.figures}
    worse = 0
    for key, figure in after.items():
        if key not in before:
            sys.stdout.write(f"  new     {key[0]}: {key[1]}: {figure.value:.2f} {figure.unit}\n")
            continue
        change = _worsening(before[key], figure)
        verdict = "WORSE" if change > tolerance else "better" if change < -tolerance else "same"
        worse += verdict == "WORSE"
        values = f"{before[key].value:.2f} -> {figure.value:.2f} {figure.unit}"
        sys.stdout.write(f"  {verdict:7} {key[0]}: {key[1]}: {values} ({change:+.0%})\n")
    for key in before.keys() - after.keys():
        sys.stdout.write(f"  not run {key[0]}: {key[1]}\n")
    if not before.keys() & after.keys():
        sys.stdout.write("the two have no figure in common\n")
        return 1
    sys.stdout.write(f"{worse} worse by more than {tolerance:.0%}\n")
    return 1 if worse else 0


def _worsening(old: Figure, new: Figure) -> float:
    """By which part of the old value the new one is worse; values near nothing count as equal."""
    if abs(old.value) < 0.01 and abs(new.value) < 0.01:
        return 0.0
    change = (new.value - old.value) / max(abs(old.value), 0.01)
    return -change if new.higher_is_better else change
