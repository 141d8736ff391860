"""What a run found: figures with their samples, breakdowns, what was skipped; as JSON, with machine and versions."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

median = statistics.median


class Figure(NamedTuple):
    """One figure: *value*, in *unit* ('x': a ratio), made of *samples* (by label, in *sample_unit*) as *how* says.

    *at_most* is the target, or None where there is none; a figure that is better the higher it is says so.
    """

    family: str
    name: str
    value: float
    unit: str
    how: str
    at_most: float | None = None
    samples: Mapping[str, list[float]] = MappingProxyType({})
    sample_unit: str = "ms"
    higher_is_better: bool = False

    @property
    def reached(self) -> bool:
        """Whether the target is met; True where there is none."""
        return self.at_most is None or self.value <= self.at_most


class Breakdown(NamedTuple):
    """Where the time of *name* goes: (step, ms that it took) in order, medians."""

    name: str
    steps: list[tuple[str, float]]


class Curve(NamedTuple):
    """Points (x, y) of several lines, for a plot."""

    name: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]


class Results(NamedTuple):
    """All of a run."""

    machine: dict[str, str]
    versions: dict[str, str]
    created: str
    seconds: float
    figures: list[Figure]
    breakdowns: list[Breakdown]
    curves: list[Curve]
    skipped: dict[str, str]


def ratio(a: list[float], b: list[float]) -> float:
    """The median of the ratios of each pair: both of a pair were measured one after the other, under the same load."""
    return median([one / other for one, other in zip(a, b, strict=True)])


def save(results: Results, path: str) -> None:
    """Write *results* as JSON, whole or not at all."""
    body = results._asdict()
    for key in ("figures", "breakdowns", "curves"):
        body[key] = [item._asdict() for item in body[key]]
    for figure in body["figures"]:
        figure["samples"] = dict(figure["samples"])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(body, file, indent=1)
        file.write("\n")
    os.rename(f"{path}.new", path)


def load(path: str) -> Results:
    """What save() wrote. Raises OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        body: dict[str, Any] = json.load(file)
    try:
        body["figures"] = [Figure(**item) for item in body["figures"]]
        body["breakdowns"] = [
            Breakdown(item["name"], [(str(name), float(ms)) for name, ms in item["steps"]])
            for item in body["breakdowns"]
        ]
        body["curves"] = [
            Curve(**item | {"lines": {name: [(x, y) for x, y in line] for name, line in item["lines"].items()}})
            for item in body["curves"]
        ]
        return Results(**body)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of results: {error}") from error


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "processor": f"{os.cpu_count()} x {model}",
        "memory": f"{memory} GiB",
        "kernel": os.uname().release,
        "load at the start": f"{os.getloadavg()[0]:.1f}",
    }


def versions(commands: dict[str, list[str]]) -> dict[str, str]:
    """The first line that each command says."""
    found = {}
    for name, argv in commands.items():
        try:
            answer = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        except FileNotFoundError:
            continue
        lines = (answer.stdout + answer.stderr).strip().splitlines()
        found[name] = lines[0] if lines else "unknown"
    return found


def now() -> str:
    """The date, as results carry it."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
