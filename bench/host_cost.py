"""What a call costs the host's processors, the guest's own left out: where KVM can't be timed, this can be counted.

On a host with KVM it is nearly all of a start. The guest's are QEMU's vCPU threads, which bear names ("CPU 0/TCG").
"""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from bench.accounting import Accounting
from bench.commands import PYTHON, PYTHON_LABEL
from bench.results import Figure, ratio
from bench.runner import Bench, Command, Skip
from framework.docker import IMAGE, RUNTIME

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILY = "host cost"
_SETTLE_SECONDS = 0.4
"""How long after a call its last threads may take to end."""
_PARTS = {
    "runvm": "the command line",
    "runvm-sandbox": "the supervisor",
    "runvm-shim": "the shim",
    "virtiofsd": "virtiofsd",
    "qemu-system-x86": "QEMU",
    "call_rcu": "QEMU",
    "IO mon_iothread": "QEMU",
    "live_migration": "QEMU",
}
"""What the threads of a start belong to, by their names."""
_COUNTED = ("clone", "clone3", "fork", "vfork", "execve", "open", "openat", "openat2")


def run(bench: Bench) -> None:
    """All figures of the family."""
    bundle = bench.bundle("true")
    bench.run_container(bench.runvm, bundle)
    path = shutil.which("runc")
    runc = Command("runc", [path, "--root", f"{bench.scratch}/root-runc"]) if path else None
    measures: dict[str, Callable[[], float]] = {PYTHON_LABEL: lambda: bench.call(PYTHON)}
    measures["runvm run true"] = lambda: bench.run_container(bench.runvm, bundle)
    if runc is not None:
        measures["runc run true"] = lambda: bench.run_container(runc, bundle)
    cid = bench.launch(bench.runvm, bench.bundle("sleep", "1000"))
    measures["runvm exec true"] = lambda: bench.call([*bench.runvm.argv, "exec", cid, "true"])
    try:
        docker = bench.docker
        for label, runtime in (("docker run, runvm", RUNTIME), ("docker run, runc", "runc")):
            argv = [*docker.argv("run", "--rm", f"--runtime={runtime}", "--network=none", IMAGE, "true")]
            measures[label] = lambda argv=argv: bench.call(argv)  # type: ignore[misc]
    except Skip as error:
        bench.skip("host cost of docker run", str(error))
    samples, parts = _sample(bench, measures, 9)
    bench.delete(bench.runvm, cid)
    targets = {"runvm run true": 6.0, "docker run, runvm": 9.0, "runvm exec true": 2.5}
    for label, target in targets.items():
        if label in samples:
            value = ratio(samples[label], samples[PYTHON_LABEL])
            shown = {name: samples[name] for name in (label, PYTHON_LABEL)} | parts[label]
            name = f"processor time of `{label}` / `{PYTHON_LABEL}`"
            bench.add(Figure(FAMILY, name, value, "x", "median of pairs", target, shown))
    for ours, theirs in (("runvm run true", "runc run true"), ("docker run, runvm", "docker run, runc")):
        if ours in samples and theirs in samples:
            value = ratio(samples[ours], samples[theirs])
            name = f"processor time of `{ours}` / `{theirs}`"
            bench.add(Figure(FAMILY, name, value, "x", "median of pairs", None, {}))
    _count(bench, [*bench.runvm.argv, "run", "--bundle", bundle.path, bench.cid(bundle)])


def _sample(
    bench: Bench, measures: dict[str, Callable[[], float]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, list[float]]]]:
    """Milliseconds of processor time, vCPU threads left out, of what each call started and what ended after it: in all,
    and of each part of runvm."""
    found: dict[str, list[float]] = {label: [] for label in measures}
    parts: dict[str, dict[str, list[float]]] = {label: {} for label in measures}
    for _ in range(bench.rounds(rounds)):
        for label, measure in measures.items():
            with Accounting() as accounting:
                begun = time.monotonic()
                measure()
                threads = accounting.ended(since=begun - 0.005, settle=_SETTLE_SECONDS)
            threads = [each for each in threads if not each.name.startswith("CPU ")]
            found[label].append(sum(each.cpu_ns for each in threads) / 1e6)
            for part in dict.fromkeys(_PARTS.values()):
                if spent := sum(each.cpu_ns for each in threads if _PARTS.get(each.name) == part):
                    parts[label].setdefault(part, []).append(spent / 1e6)
    return found, parts


def _count(bench: Bench, argv: list[str]) -> None:
    """Processes and threads made, programs executed, files opened by one call (strace(1))."""
    if shutil.which("strace") is None:
        bench.skip("counts of processes, programs and files", "strace isn't installed")
        return
    log = f"{bench.scratch}/strace"
    command = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={','.join(_COUNTED)}", *argv]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    with open(log, encoding="utf-8", errors="replace") as file:
        calls = [line.split(None, 1)[1].partition("(")[0] for line in file if "(" in line and " = -1 " not in line]
    kinds = {
        "processes and threads made": ("clone", "clone3", "fork", "vfork"),
        "programs executed": ("execve",),
        "files opened": ("open", "openat", "openat2"),
    }
    for name, wanted in kinds.items():
        value = float(sum(call in wanted for call in calls))
        bench.add(Figure(FAMILY, f"{name} by `runvm run true`", value, "", "one run", None, {}))
