"""Work on many small files and a big one on a bind mount, against the floor's virtiofs mount, and runc on the host."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from bench.floor import MOUNT
from bench.results import Figure, median, ratio
from bench.runner import SECONDS, Bench, Command, Skip

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILY = "files"
_COUNT = 5000
_MIB = 64
_PARTS = {
    "walk": "walk {count} small files",
    "stat": "stat them",
    "read": "read them",
    "create": "create as many",
    "remove": "remove these",
    "git-status": "a load like `git status`",
    "pip-install": "a load like `pip install`",
    "write": "write {mib} MiB in a row",
    "read-big": "read {mib} MiB in a row",
    "read-4k": "4,000 random reads of 4 KiB",
    "write-4k": "4,000 random writes of 4 KiB",
}
Times = dict[str, float]


def run(bench: Bench) -> None:
    """All figures of the family."""
    count, mib = (1000, 16) if bench.quick else (_COUNT, _MIB)
    ways: dict[str, Callable[[str], Times]] = {
        "bare virtiofs": lambda work: _bare(bench, work, count, mib),
        "runvm": lambda work: _contained(bench, bench.runvm, work, count, mib),
    }
    runc = shutil.which("runc")
    if runc:
        command = Command("runc", [runc, "--root", f"{bench.scratch}/root-runc"])
        ways["runc"] = lambda work: _contained(bench, command, work, count, mib)
    samples: dict[str, dict[str, list[float]]] = {part: {way: [] for way in ways} for part in _PARTS}
    for number in range(2):
        for way, measure in ways.items():
            work = f"{bench.scratch}/work-{number}-{way.replace(' ', '-')}"
            _fill(work, count, mib)
            for part, seconds in measure(work).items():
                samples[part][way].append(seconds * 1000)
            shutil.rmtree(work)
    everything = {
        way: [sum(times) for times in zip(*(samples[part][way] for part in _PARTS), strict=True)] for way in ways
    }
    value = ratio(everything["runvm"], everything["bare virtiofs"])
    bench.add(Figure(FAMILY, "files, all loads: runvm / bare virtiofs", value, "x", "median of pairs", 1.1, everything))
    for part, words in _PARTS.items():
        value = ratio(samples[part]["runvm"], samples[part]["bare virtiofs"])
        name = f"{words.format(count=count, mib=mib)}: runvm / bare virtiofs"
        bench.add(Figure(FAMILY, name, value, "x", "median of pairs", None, samples[part]))
    if runc:
        value = median(everything["runvm"]) / median(everything["runc"])
        bench.add(Figure(FAMILY, "files, all loads: runvm / runc", value, "x", "of medians"))


def _fill(work: str, count: int, mib: int) -> None:
    """What a load finds: `count` files in 50 directories, two big files, an index. It is in the host's page cache."""
    for number in range(50):
        os.makedirs(f"{work}/files/{number:02}")
    for number in range(count):
        with open(f"{work}/files/{number % 50:02}/file-{number}", "wb") as file:
            file.write(b"x" * (500 + number % 2000))
    for name in ("big", "other"):
        with open(f"{work}/{name}", "wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))
    with open(f"{work}/index", "wb") as file:
        file.write(bytes(400000))
    os.sync()


def _contained(bench: Bench, command: Command, work: str, count: int, mib: int) -> Times:
    bundle = bench.bundle("perl", "/load.pl", "/work", str(count), str(mib)).bind(work, "/work")
    bundle.save()
    done = subprocess.run(
        [*command.argv, "run", "--bundle", bundle.path, bench.cid(bundle)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    shutil.rmtree(bundle.path)
    return _times(done.stdout.decode(), done.stderr.decode(errors="replace"))


def _bare(bench: Bench, work: str, count: int, mib: int) -> Times:
    """The same program in the floor's guest, in a chroot of the same files on a virtiofs mount."""
    root = f"{bench.scratch}/bare"
    if not os.path.exists(root):
        shutil.copytree(bench.template, root, symlinks=True)
    os.rename(work, f"{root}/work")
    vm = bench.floor.start(root, first=MOUNT)
    try:
        vm.answer()
        vm.send(f"chroot /run/share /usr/bin/perl /load.pl /work {count} {mib} >/run/share/times 2>/run/share/words")
        code = vm.answer()
    finally:
        vm.close()
        os.rename(f"{root}/work", work)
    with open(f"{root}/times", encoding="utf-8") as file, open(f"{root}/words", encoding="utf-8") as words:
        return _times(file.read(), f"code {code}: {words.read()}")


def _times(said: str, words: str) -> Times:
    found = {part: float(seconds) for part, seconds in (line.split() for line in said.splitlines())}
    if found.keys() != _PARTS.keys():
        raise Skip(f"the load stopped after {list(found)}: {words[-300:]}")
    return found
