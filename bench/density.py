"""Many containers: twenty started at the same moment, and two hundred one after the other without getting slower."""

from __future__ import annotations

import shutil
import subprocess
import time

from bench.results import Curve, Figure, median
from bench.runner import SECONDS, Bench, Command, Skip

FAMILY = "density"
_AT_ONCE = 20
_CYCLES = 200
_WINDOW = 20


def run(bench: Bench) -> None:
    """All figures of the family."""
    _at_once(bench)
    _cycles(bench)


def _at_once(bench: Bench) -> None:
    count = 5 if bench.quick else _AT_ONCE
    bundle = bench.bundle("true")
    bench.run_container(bench.runvm, bundle)
    one: list[float] = []
    together: list[float] = []
    for _ in range(1 if bench.quick else 2):
        one.append(bench.run_container(bench.runvm, bundle))
        together.append(_together(bench, bench.runvm, count))
    samples = {"one": one, f"{count} at once": together}
    value = median(together) / count / median(one)
    name = f"time per container of {count} started at once / of one alone"
    bench.add(Figure(FAMILY, name, value, "x", f"({count} at once / {count}) / one", None, samples))
    runc = shutil.which("runc")
    if runc:
        command = Command("runc", [runc, "--root", f"{bench.scratch}/root-runc"])
        took = [_together(bench, command, count) for _ in one]
        value = median(together) / median(took)
        both = {"runvm": together, "runc": took}
        bench.add(Figure(FAMILY, f"{count} started at once: runvm / runc", value, "x", "of medians", None, both))


def _together(bench: Bench, command: Command, count: int) -> float:
    """Milliseconds from the first `run` to the end of the last."""
    bundles = [bench.bundle("true") for _ in range(count)]
    begun = time.perf_counter()
    started = [
        subprocess.Popen(
            [*command.argv, "run", "--bundle", bundle.path, bench.cid(bundle)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for bundle in bundles
    ]
    failed = ""
    for running in started:
        _, words = running.communicate(timeout=SECONDS)
        if running.returncode != 0:
            failed = failed or words.decode(errors="replace")
    taken = (time.perf_counter() - begun) * 1000
    for bundle in bundles:
        shutil.rmtree(bundle.path)
    if failed:
        raise Skip(f"one of {count} {command.name} containers started at once failed: {failed.strip()[-300:]}")
    return taken


def _cycles(bench: Bench) -> None:
    count = 40 if bench.quick else _CYCLES
    bundle = bench.bundle("true")
    took = []
    for number in range(1, count + 1):
        took.append(bench.run_container(bench.runvm, bundle))
        if number % 50 == 0:
            bench.say(f"{FAMILY}: {number} cycles, the last {took[-1]:.0f} ms")
    # the first few fill caches
    first, last = took[5 : 5 + _WINDOW], took[-_WINDOW:] if count >= 2 * _WINDOW + 5 else took[-10:]
    samples = {f"cycles 6 to {5 + _WINDOW}": first, f"the last {len(last)} of {count}": last}
    value = median(last) / median(first)
    name = f"time of the {count}th cycle / of the 10th"
    bench.add(Figure(FAMILY, name, value, "x", "medians of the cycles around them", 1.1, samples))
    points = [(float(number), taken) for number, taken in enumerate(took, 1)]
    bench.curves.append(Curve(f"{FAMILY}: start/stop cycles", "cycle", "ms", {"runvm run true": points}))
