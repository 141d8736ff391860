"""How long a container takes from nothing to its end, against the floor and other runtimes; where the time goes."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from bench.results import Breakdown, Figure, median, ratio
from bench.runner import Bench, Command, Skip, milliseconds
from framework.docker import IMAGE, RUNTIME

if TYPE_CHECKING:
    from collections.abc import Callable

    from framework.bundle import Bundle

FAMILY = "start"
STEPS = (
    ("command: arguments read", "Python, command line"),
    ("create: config.json read", "settings, config.json"),
    ("create: shim started", "cgroup, shim"),
    ("supervisor: tap made", "supervisor, virtiofsd, tap"),
    ("supervisor: QEMU answers", "QEMU's start"),
    ("supervisor: template's memory copied", "what is left of copying the template's memory"),
    ("supervisor: VMM up and paused", "restore"),
    ("supervisor: guest resumed", "share's device"),
    ("supervisor: Initialize answered by the guest", "guest awake, share mounted"),
    ("supervisor: Create answered by the guest", "crun create in the guest"),
    ("supervisor: Start answered by the guest", "start"),
    ("supervisor: Exited from the guest", "the program runs, ends"),
    ("supervisor: VMM ended", "end of the VM"),
    ("end", "delete, end of the command"),
)
"""Where one part of a start ends and the next begins: the trace's words, and what came before them."""


def run(bench: Bench) -> None:
    """All figures of the family."""
    others = bench.others()
    bundle = bench.bundle("true")
    bench.say("making runvm's template, if it isn't there")
    bench.run_container(bench.runvm, bundle)
    _run_true(bench, bundle, others)
    _breakdown(bench, bundle)
    try:
        _docker(bench, bundle)
    except Skip as error:
        bench.skip("docker run", str(error))


def floor_run(bench: Bench, bundle: Bundle) -> Callable[[], float]:
    """The floor's way to run a bundle's `true`: what it takes."""
    floor = bench.floor
    return lambda: milliseconds(lambda: floor.run_once(bundle.path, "chroot /run/share/rootfs /bin/true"))


def _run_true(bench: Bench, bundle: Bundle, others: list[Command]) -> None:
    measures: dict[str, Callable[[], float]] = {
        "floor": floor_run(bench, bundle),
        "runvm": lambda: bench.run_container(bench.runvm, bundle),
    }
    for command in others:
        measures[command.name] = partial(bench.run_container, command, bundle)
    samples = bench.side_by_side(measures, 15)
    what = "run of a static `true`"
    value = ratio(samples["runvm"], samples["floor"])
    bench.add(Figure(FAMILY, f"{what}: runvm / floor", value, "x", "median of pairs", 2.0, samples))
    for command in others:
        value = ratio(samples["runvm"], samples[command.name])
        bench.add(Figure(FAMILY, f"{what}: runvm / {command.name}", value, "x", "median of pairs"))


def _breakdown(bench: Bench, bundle: Bundle) -> None:
    trace = f"{bench.scratch}/trace"
    parts: dict[str, list[float]] = defaultdict(list)
    for _ in range(bench.rounds(11)):
        with open(trace, "w", encoding="utf-8"):
            pass
        begun = time.monotonic()
        bench.run_container(bench.runvm, bundle, env={"RUNVM_TRACE": trace})
        moments = {"end": time.monotonic()}
        with open(trace, encoding="utf-8") as file:
            for line in file:
                when, _, step = line.rstrip("\n").split(" ", 2)
                moments.setdefault(step, float(when))
        last = begun
        for step, label in STEPS:
            if step in moments:
                # processes work side by side: a step that another one had overtaken took no time of its own
                parts[label].append(max(0.0, moments[step] - last) * 1000)
                last = max(last, moments[step])
    os.unlink(trace)
    steps = [(label, median(parts[label])) for _, label in STEPS if label in parts]
    bench.breakdowns.append(Breakdown("runvm run true", steps))
    for label, took in steps:
        bench.say(f"{FAMILY}: {took:7.1f} ms {label}")


def _docker(bench: Bench, bundle: Bundle) -> None:
    docker = bench.docker

    def measured(runtime: str) -> Callable[[], float]:
        return lambda: milliseconds(lambda: docker.ok("run", "--rm", f"--runtime={runtime}", IMAGE, "true"))

    measures = {"runvm": measured(RUNTIME), "runc": measured("runc"), "floor": floor_run(bench, bundle)}
    if "runsc" in (name for name, _ in docker.others.items()) and "runsc" not in bench.skipped:
        try:
            measured("runsc")()
            measures["runsc"] = measured("runsc")
        except AssertionError as error:
            bench.skip("docker run with runsc", str(error).partition("stderr: ")[2].partition("\n")[0])
    samples = bench.side_by_side(measures, 9)
    what = "`docker run --rm busybox true`"
    more = zip(samples["runvm"], samples["runc"], samples["floor"], strict=True)
    value = median([(ours - theirs) / floor for ours, theirs, floor in more])
    bench.add(Figure(FAMILY, f"{what}: (runvm - runc) / floor", value, "x", "median of triples", 2.0, samples))
    for name in ("runc", "runsc"):
        if name in samples:
            value = ratio(samples["runvm"], samples[name])
            bench.add(Figure(FAMILY, f"{what}: runvm / {name}", value, "x", "median of pairs"))
