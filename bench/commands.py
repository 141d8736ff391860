"""What each command takes, against Python with three modules, and against runc; `exec` against crun in the guest."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING

from bench.floor import MOUNT
from bench.results import Figure, ratio
from bench.runner import Bench, Command, Skip, milliseconds
from framework import process

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.floor import FloorVm

FAMILY = "commands"
PYTHON = ["/usr/bin/python3", "-c", "import argparse,json,socket"]
PYTHON_LABEL = "python3 -c 'import argparse,json,socket'"
# The guest's agent runs crun from a sealed copy in memory; so does the floor
_SEALED_CRUN = (
    "import os,fcntl,time;"
    'fd=os.memfd_create("crun",os.MFD_ALLOW_SEALING);'
    'os.write(fd,open("/usr/bin/crun","rb").read());'
    "fcntl.fcntl(fd,1033,15);"
    'open("/run/crun.pid","w").write("/proc/%d/fd/%d"%(os.getpid(),fd));'
    "time.sleep(1e6)"
)


def run(bench: Bench) -> None:
    """All figures of the family."""
    _exec(bench)
    path = shutil.which("runc")
    runc = Command("runc", [path, "--root", f"{bench.scratch}/root-runc"]) if path else None
    if runc is None:
        bench.skip("commands against runc", "isn't installed")
    _small(bench, runc)
    if runc is not None:
        _lifecycle(bench, runc)


def _exec(bench: Bench) -> None:
    cid = bench.launch(bench.runvm, bench.bundle("sleep", "1000"))
    inside = bench.bundle("sleep", "1000")
    vm = bench.floor.start(inside.path, first=MOUNT)
    try:
        vm.answer()
        vm.run("set -- /usr/bin/python3.*")
        vm.run(f"$1 -SI -c '{_SEALED_CRUN}' & until [ -s /run/crun.pid ]; do usleep 10000; done")
        vm.run('crun=$(cat /run/crun.pid); crun() { $crun --cgroup-manager=cgroupfs "$@" </dev/null; }')
        vm.run("crun run --detach --bundle /run/share inside >/run/log 2>&1")
        measures: dict[str, Callable[[], float]] = {
            "crun exec in the guest": lambda: _in_guest(vm),
            "runvm exec": lambda: bench.call([*bench.runvm.argv, "exec", cid, "true"]),
        }
        samples = bench.side_by_side(measures, 21)
    finally:
        vm.close()
        bench.delete(bench.runvm, cid)
    value = ratio(samples["runvm exec"], samples["crun exec in the guest"])
    name = "`runvm exec ID true` / `crun exec ID true` in the guest"
    bench.add(Figure(FAMILY, name, value, "x", "median of pairs", 1.6, samples))


def _in_guest(vm: FloorVm) -> float:
    return milliseconds(lambda: vm.run("crun exec inside true"))


def _small(bench: Bench, runc: Command | None) -> None:
    """Those that only look: state and list, with one container there; kill with a signal that does nothing."""
    runtimes = [bench.runvm, *([runc] if runc else [])]
    ids = {command.name: bench.launch(command, bench.bundle("sleep", "1000")) for command in runtimes}
    for name, arguments in (("state", ["ID"]), ("list", ["--quiet"]), ("kill", ["ID", "CONT"])):
        measures: dict[str, Callable[[], float]] = {PYTHON_LABEL: lambda: bench.call(PYTHON)}
        for command in runtimes:
            words = [ids[command.name] if word == "ID" else word for word in arguments]
            argv = [*command.argv, name, *words]
            measures[command.name] = partial(bench.call, argv)
        samples = bench.side_by_side(measures, 41)
        value = ratio(samples["runvm"], samples[PYTHON_LABEL])
        target = 1.5 if name == "state" else None
        bench.add(Figure(FAMILY, f"`runvm {name}` / `{PYTHON_LABEL}`", value, "x", "median of pairs", target, samples))
        if runc:
            value = ratio(samples["runvm"], samples["runc"])
            bench.add(Figure(FAMILY, f"`{name}`: runvm / runc", value, "x", "median of pairs"))
    for command in runtimes:
        bench.delete(command, ids[command.name])


def _lifecycle(bench: Bench, runc: Command) -> None:
    """create, start, exec, delete of a container each time."""
    samples: dict[str, dict[str, list[float]]] = {}
    for _ in range(bench.rounds(9)):
        for command in (bench.runvm, runc):
            bundle = bench.bundle("sleep", "1000")
            cid = bench.cid(bundle)
            try:
                for name, arguments in (
                    ("create", ["--bundle", bundle.path, cid]),
                    ("start", [cid]),
                    ("exec", [cid, "true"]),
                    ("kill", [cid, "KILL"]),
                    ("delete", [cid]),
                ):
                    taken = bench.call([*command.argv, name, *arguments])
                    samples.setdefault(name, {}).setdefault(command.name, []).append(taken)
                    if name == "kill":
                        _wait_stopped(bench, command, cid)
            finally:
                bench.delete(command, cid)
                shutil.rmtree(bundle.path)
    for name, found in samples.items():
        if name != "kill":
            value = ratio(found["runvm"], found["runc"])
            bench.add(Figure(FAMILY, f"`{name}`: runvm / runc", value, "x", "median of pairs", None, found))


def _wait_stopped(bench: Bench, command: Command, cid: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        process.reap_orphans()
        answer = subprocess.run([*command.argv, "state", cid], capture_output=True, timeout=20, check=True)
        if json.loads(answer.stdout)["status"] == "stopped":
            return
        time.sleep(0.02)
    raise Skip(f"{command.name}: {cid} isn't stopped 20 s after its SIGKILL")
