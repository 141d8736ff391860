"""How long a checkpoint lasts and what it takes, a restore against a start, and a program's warm start against a cold
one."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.results import Figure, median, ratio
from bench.runner import SECONDS, Bench, Skip
from framework import process
from runvm.checkpoint import support

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.bundle import Bundle

FAMILY = "checkpoint"
# A program with 64 MiB of its own that says something every 5 ms
TICKS = '$| = 1; my $used = "x" x (64 << 20); while (1) { print "t\\n"; select(undef, undef, undef, 0.005) }'
FIRST_SECONDS = 1.0
"""How long the program ticks before it is looked at."""
# As much work as a Python program's imports that take half a second on the host
WEB = """
$| = 1; my $n = 0; $n += $_ % 7 for 1 .. 6000000; open my $f, ">", "/ready";
while (1) { print "answer\n"; select(undef, undef, undef, 0.02) }
"""


def run(bench: Bench) -> None:
    """All figures of the family."""
    if lacks := support.lacks(bench.config):
        raise Skip(f"it takes {'; and '.join(lacks)}")
    _standstill(bench)
    _restore(bench)
    _warm(bench)


class _Running:
    """A container whose standard output is a pipe of ours."""

    def __init__(self, bench: Bench, bundle: Bundle, *command: str) -> None:
        self._bench = bench
        self.cid = bench.cid(bundle)
        self._reader, writer = os.pipe()
        self.begun = time.perf_counter()
        try:
            with open(f"{bundle.path}/stderr", "w+b") as stderr:
                argv = [*bench.runvm.argv, *command, "--detach", "--bundle", bundle.path, self.cid]
                code = subprocess.call(argv, stdin=subprocess.DEVNULL, stdout=writer, stderr=stderr, timeout=SECONDS)
                stderr.seek(0)
                if code:
                    raise Skip(f"'{' '.join(command)}' ended with {code}: {stderr.read()[-400:].decode()}")
        finally:
            os.close(writer)

    def said(self, seconds: float) -> float:
        """When it has said something, by the clock of `begun`. Raises Skip where it says nothing for so long."""
        if not select.select([self._reader], [], [], seconds)[0]:
            raise Skip(f"{self.cid} has said nothing for {seconds:.0f} s")
        os.read(self._reader, 1 << 16)
        return time.perf_counter()

    def end(self) -> None:
        """Take the container away."""
        self._bench.delete(self._bench.runvm, self.cid)
        process.reap_orphans()
        os.close(self._reader)


def _standstill(bench: Bench) -> None:
    """The longest silence of a program that is checkpointed, and what the checkpoint takes of the disk."""
    gaps: dict[str, list[float]] = {"with a checkpoint": [], "without": []}
    disk: list[float] = []
    image = f"{bench.scratch}/image"
    running = _Running(bench, bench.bundle("perl", "-e", TICKS), "run")
    try:
        time.sleep(FIRST_SECONDS)
        for _ in range(bench.rounds(9)):
            gaps["without"].append(_longest_gap(running, ["sleep", "1"]))
            command = [*bench.runvm.argv, "checkpoint", "--leave-running", "--image-path", image, running.cid]
            gaps["with a checkpoint"].append(_longest_gap(running, command))
            argv = [*bench.runvm.argv, "exec", running.cid, "cat", "/proc/meminfo"]
            told = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=SECONDS).stdout
            with open(f"{image}/checkpoint.json", encoding="utf-8") as file:
                memory = json.load(file)["vm"]["machine"]["memory_mib"] << 10
            used = memory - int(told.partition("MemFree:")[2].split()[0])
            disk.append(sum(entry.stat().st_blocks / 2 for entry in os.scandir(image)) / used)
    finally:
        running.end()
        shutil.rmtree(image, ignore_errors=True)
    name = "a container with 64 MiB stands still for a checkpoint with `--leave-running`"
    bench.add(Figure(FAMILY, name, median(gaps["with a checkpoint"]), "ms", "median", 250, gaps))
    bench.add(Figure(FAMILY, "a checkpoint's disk / memory that its guest uses", median(disk), "x", "median", 1.1))


def _longest_gap(running: _Running, argv: list[str]) -> float:
    """Milliseconds between two things said while a command runs, at most."""
    command = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    longest, last = 0.0, running.said(SECONDS)
    while command.poll() is None:
        now = running.said(SECONDS)
        longest, last = max(longest, now - last), now
    if command.returncode:
        raise Skip(f"'{' '.join(argv[-5:])}' ended with {command.returncode}")
    return longest * 1000


def _restore(bench: Bench) -> None:
    """From the command to the program's next output, against `run true` with as much memory used."""
    image = f"{bench.scratch}/image"
    first = _Running(bench, bench.bundle("perl", "-e", TICKS), "run")
    try:
        time.sleep(FIRST_SECONDS)
        bench.call([*bench.runvm.argv, "checkpoint", "--image-path", image, first.cid])
    finally:
        first.end()

    def restored() -> float:
        running = _Running(bench, bench.bundle("perl", "-e", TICKS), "restore", "--image-path", image)
        try:
            return (running.said(SECONDS) - running.begun) * 1000
        finally:
            running.end()

    same = 'my $used = "x" x (64 << 20)'
    started = lambda: bench.run_container(bench.runvm, bench.bundle("perl", "-e", same))  # noqa: E731
    samples = bench.side_by_side({"runvm restore": restored, "runvm run": started}, 11)
    shutil.rmtree(image)
    value = ratio(samples["runvm restore"], samples["runvm run"])
    name = "`runvm restore` to the next output / `runvm run` of a program that takes 64 MiB"
    bench.add(Figure(FAMILY, name, value, "x", "median of pairs", 1.0, samples))


def _warm(bench: Bench) -> None:
    """A program that works for half a second before it answers."""
    lower = f"{bench.scratch}/warm-lower"
    shutil.copytree(bench.template, lower, symlinks=True)
    annotations = {"io.runvm.warm": "/ready"}
    before = _kept(bench)
    with _overlaid(bench, lower, annotations) as running:
        running.said(SECONDS)
        deadline = time.monotonic() + SECONDS
        while _kept(bench) == before:
            if time.monotonic() > deadline:
                raise Skip("no checkpoint of the warm program was made")
            time.sleep(0.2)

    def first_answer(annotations: dict[str, str]) -> float:
        with _overlaid(bench, lower, annotations) as running:
            return (running.said(SECONDS) - running.begun) * 1000

    try:
        measures = {"warm": lambda: first_answer(annotations), "cold": lambda: first_answer({})}
        samples = bench.side_by_side(measures, 7)
    finally:
        for directory in _kept(bench) - before:
            shutil.rmtree(directory)
        shutil.rmtree(lower)
    name = "a program that prepares itself for half a second: first answer, warm start / cold start"
    bench.add(Figure(FAMILY, name, ratio(samples["warm"], samples["cold"]), "x", "median of pairs", 0.2, samples))


def _kept(bench: Bench) -> set[str]:
    """The directories of the warm containers' checkpoints."""
    argv = [*bench.runvm.argv, "template", "list", "--format", "json"]
    found = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=SECONDS).stdout)
    return {entry["directory"] for entry in found if "warm" in entry["made_from"]}


@contextmanager
def _overlaid(bench: Bench, lower: str, annotations: dict[str, str]) -> Iterator[_Running]:
    """A container that runs WEB and whose root is an overlay, as engines make it."""
    bundle = bench.bundle("perl", "-e", WEB)
    bundle.config["annotations"] = annotations
    bundle.save()
    top = f"/dev/shm/{os.path.basename(bench.scratch)}-{os.path.basename(bundle.path)}"
    for name in ("upper", "work"):
        os.makedirs(f"{top}/{name}")
    shutil.rmtree(bundle.rootfs)
    os.mkdir(bundle.rootfs)
    options = f"lowerdir={lower},upperdir={top}/upper,workdir={top}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, bundle.rootfs], check=True, timeout=10)
    try:
        running = _Running(bench, bundle, "run")
        try:
            yield running
        finally:
            running.end()
    finally:
        subprocess.run(["umount", bundle.rootfs], check=True, timeout=10)
        shutil.rmtree(top)
