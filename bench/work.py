"""What people run in containers, on User Mode Linux, by QEMU's emulation and with runc: the `work` family.

User Mode Linux runs a guest's instructions at the processor's own speed, and is slow with system calls; emulation is
slow with both. So the loads are whole programs, as people run them.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from bench.results import Figure, median, ratio
from bench.runner import SECONDS, Bench, Command, Skip
from bench.vms import guest_mib, process_mib, vm_of
from framework.bundle import Bundle
from runvm.config import Config
from runvm.errors import HostError
from runvm.guest import uml_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

FAMILY = "work"
_PARTS = {
    "python": "Python starts three times, with json, re, asyncio and ssl",
    "sqlite": "SQLite, 200 commits",
    "tar": "tar and gzip of Python's library",
    "find": "find in Python's library",
    "sort": "sort 200,000 lines",
    "forks": "100 times fork and exec",
    "http": "200 HTTP requests",
    "files": "1,000 files written and read",
}
_COMPUTED = {"awk": ("an awk loop of ten million", 1.2), "sha256": ("SHA-256 of 64 MiB", 4.0)}
"""What hardly makes system calls: (what it is, at most so many times runc's)."""
_UML, _EMULATED, _RUNC = "runvm, User Mode Linux", "runvm, emulated", "runc"
_ROUNDS = 3
_VMS = 5
Times = dict[str, float]


class Way(NamedTuple):
    """A runtime, and the environment that its commands have."""

    command: Command
    env: dict[str, str]


def run(bench: Bench) -> None:
    """All figures of the family. Raises Skip where something is missing."""
    try:
        uml_kernel.find(bench.config)
    except HostError as error:
        raise Skip(error.message) from error
    runc, mawk = shutil.which("runc"), shutil.which("mawk")
    if runc is None or mawk is None:
        raise Skip(f"{'mawk' if runc else 'runc'} isn't installed")
    ways = {
        _UML: _runvm(bench, "uml", "auto"),
        _EMULATED: _runvm(bench, "qemu", "tcg"),
        _RUNC: Way(Command("runc", [runc, "--root", f"{bench.scratch}/root-runc"]), {}),
    }
    _starts(bench, ways)
    _loads(bench, ways)
    _memory(bench, ways[_UML])


def _runvm(bench: Bench, hypervisor: str, accelerator: str) -> Way:
    path = f"{bench.scratch}/{hypervisor}.toml"
    settings = Config(state_dir=bench.state_dir, data_dir=bench.config.data_dir)
    words = {**settings._asdict(), "hypervisor": hypervisor, "accelerator": accelerator}
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(
            f"{key} = {json.dumps(words[key])}\n" for key in ("state_dir", "data_dir", "hypervisor", "accelerator")
        )
    return Way(bench.runvm, {"RUNVM_CONFIG": path})


# --- the start


def _starts(bench: Bench, ways: dict[str, Way]) -> None:
    """`run true`: against emulation from a template, and gVisor."""
    bundle = bench.bundle("true")
    gvisor = {command.name: Way(command, {}) for command in bench.others() if command.name == "runsc"}
    measured = {label: ways[label] for label in (_UML, _EMULATED)} | gvisor
    samples = bench.side_by_side(
        {
            label: partial(bench.run_container, way.command, bundle, env=way.env or None)
            for label, way in measured.items()
        },
        12,
    )
    for other, at_most, words in ((_EMULATED, 0.8, "emulated, from a template"), ("runsc", 4, "gVisor on ptrace")):
        if other in samples:
            value = ratio(samples[_UML], samples[other])
            name = f"run of a static `true`: User Mode Linux / {words}"
            pair = {label: samples[label] for label in (_UML, other)}
            bench.add(Figure(FAMILY, name, value, "x", "median of pairs", at_most, pair))


# --- the loads


def _loads(bench: Bench, ways: dict[str, Way]) -> None:
    samples: dict[str, dict[str, list[float]]] = {part: {way: [] for way in ways} for part in (*_PARTS, *_COMPUTED)}
    for _ in range(bench.rounds(_ROUNDS)):
        for label, way in ways.items():
            for part, seconds in _times(bench, way).items():
                samples[part][label].append(seconds * 1000)
    ratios = {part: ratio(samples[part][_UML], samples[part][_EMULATED]) for part in _PARTS}
    mean = statistics.mean(ratios.values())
    name = "what people run: the mean ratio of User Mode Linux / emulated"
    how = f"the mean of {len(_PARTS)} loads' medians of pairs, which are below"
    bench.add(Figure(FAMILY, name, mean, "x", how, 0.5))
    for part, (words, at_most) in _COMPUTED.items():
        value = ratio(samples[part][_UML], samples[part][_RUNC])
        name = f"{words}: User Mode Linux / runc"
        bench.add(Figure(FAMILY, name, value, "x", "median of pairs", at_most, samples[part]))
    for part, words in _PARTS.items():
        name = f"{words}: User Mode Linux / emulated"
        bench.add(Figure(FAMILY, name, ratios[part], "x", "median of pairs", None, samples[part]))
        value = median(samples[part][_UML]) / median(samples[part][_RUNC])
        bench.add(Figure(FAMILY, f"{words}: User Mode Linux / runc", value, "x", "of medians"))


def _times(bench: Bench, way: Way) -> Times:
    """Seconds by part, of one container that does them all."""
    bundle = _bundle(bench)
    try:
        done = subprocess.run(
            [*way.command.argv, "run", "--bundle", bundle.path, bench.cid(bundle)],
            env={**os.environ, **way.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=5 * SECONDS,
            check=False,
        )
    finally:
        shutil.rmtree(bundle.path)
    found = {part: float(seconds) for part, seconds in (line.split() for line in done.stdout.decode().splitlines())}
    if found.keys() != {*_PARTS, *_COMPUTED}:
        raise Skip(f"the load stopped after {list(found)}: {done.stderr.decode(errors='replace')[-300:]}")
    return found


def _bundle(bench: Bench) -> Bundle:
    """A bundle with the host's programs, and a directory of its own to work in."""
    bundle = bench.bundle("/usr/bin/python3", "/work.py", "/home/user")
    root = bundle.rootfs
    shutil.copy(f"{os.path.dirname(__file__)}/load.py", f"{root}/work.py")
    for name in ("bin", "lib", "lib64", "sbin"):
        # programs of a merged /usr, as Debian has it, by the names that they have on the host
        if os.path.islink(f"/{name}"):
            if os.path.isdir(f"{root}/{name}") and not os.path.islink(f"{root}/{name}"):
                shutil.rmtree(f"{root}/{name}")
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
    bundle.bind("/usr", "/usr", "rbind", "ro")
    bundle.save()
    return bundle


# --- memory


def _memory(bench: Bench, way: Way) -> None:
    """What each further idle VM takes."""
    count = 3 if bench.quick else _VMS
    ids: list[str] = []
    totals: list[float] = []
    try:
        for cid in _idle(bench, way, count):
            ids.append(cid)
            if len(ids) in (1, count):
                time.sleep(8)  # what the guest frees at its start goes back in some seconds
                vms = [vm_of(bench, cid) for cid in ids]
                totals.append(sum(guest_mib(vm) + sum(process_mib(vm).values()) for vm in vms))
        last = vm_of(bench, ids[-1])
        parts = {label: [mib] for label, mib in (process_mib(last) | {"guest": guest_mib(last)}).items()}
    finally:
        for cid in ids:
            bench.delete(way.command, cid)
    name = "unique memory of each further idle VM with User Mode Linux (everything counted), MiB"
    how = f"({count} VMs - 1 VM) / {count - 1}; the medians are the last VM's parts"
    bench.add(Figure(FAMILY, name, (totals[1] - totals[0]) / (count - 1), "MiB", how, 60, parts, sample_unit="MiB"))


def _idle(bench: Bench, way: Way, count: int) -> Iterator[str]:
    for _ in range(count):
        bundle = bench.bundle("sleep", "1000")
        cid = bench.cid(bundle)
        bench.call([*way.command.argv, "run", "--detach", "--bundle", bundle.path, cid], env=way.env)
        yield cid
