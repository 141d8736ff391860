"""Containers of another architecture against the host's own, both emulated: a start, arithmetic, processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.results import Figure, ratio
from bench.runner import Bench, Skip
from framework import foreign, rootfs
from framework.bundle import Bundle
from framework.foreign import OTHER
from runvm.linux.architecture import host

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILY = "arch"
WORKS = (
    ("run of a static `true`", ("true",), 1.3),
    ("a loop of 300,000 additions in awk", ("awk", "BEGIN { for (i = 0; i < 300000; i++) s += i }"), None),
    ("100 processes, one after the other", ("sh", "-c", "for i in $(seq 100); do /bin/true; done"), None),
)


def run(bench: Bench) -> None:
    """All figures of the family; Skip where no container of another architecture runs here."""
    if why := foreign.lacks(OTHER):
        raise Skip(why)
    template = f"{bench.scratch}/rootfs-{OTHER}"
    rootfs.make(template, OTHER)
    settings = f"{bench.scratch}/emulated.toml"
    with open(bench.config_file, encoding="utf-8") as source, open(settings, "w", encoding="utf-8") as file:
        file.write(f'{source.read()}accelerator = "tcg"\n')
    for number, (what, args, target) in enumerate(WORKS):
        other = Bundle(f"{bench.scratch}/arch{number}", template, f"arch{number}").args(*args)
        other.save()
        measures = {
            f"runvm, {host()}": _measure(bench, bench.bundle(*args), settings),
            f"runvm, {OTHER}": _measure(bench, other, settings),
        }
        samples = bench.side_by_side(measures, 11)
        value = ratio(samples[f"runvm, {OTHER}"], samples[f"runvm, {host()}"])
        how = "median of pairs, both emulated"
        bench.add(Figure(FAMILY, f"{what}: {OTHER} / {host()}", value, "x", how, target, samples))


def _measure(bench: Bench, bundle: Bundle, settings: str) -> Callable[[], float]:
    return lambda: bench.run_container(bench.runvm, bundle, env={"RUNVM_CONFIG": settings})
