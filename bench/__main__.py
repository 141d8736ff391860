"""`make bench`: measure, write the results; `report` makes the documentation of them; `check` compares two of them."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time

from bench import (
    arch,
    commands,
    compare,
    density,
    files,
    host_cost,
    idle,
    memory,
    network,
    report,
    results,
    start,
    streams,
    work,
)
from bench.runner import Bench, Skip

FAMILIES = {
    module.FAMILY: module
    for module in (start, commands, host_cost, memory, idle, streams, files, network, density, arch, work)
}
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUTPUT = f"{HERE}/build/bench/results.json"
KEPT = f"{HERE}/docs/benchmarks/results.json"


def main() -> int:
    """Carry out the command line."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="measure; without a family, all of them")
    run.add_argument("family", nargs="*", choices=[[], *FAMILIES], help=", ".join(FAMILIES))
    run.add_argument("--library", default=f"{HERE}/src", help="the directory of the package runvm that is measured")
    run.add_argument("--output", default=OUTPUT, help="the file of results (default: %(default)s)")
    run.add_argument("--docs", action="store_true", help="also write docs/benchmarks.md; not with single families")
    run.add_argument("--quick", action="store_true", help="a quarter of the rounds: to try it out")
    make = verbs.add_parser("report", help="write docs/benchmarks.md from a file of results")
    make.add_argument("results", nargs="?", default=KEPT)
    check = verbs.add_parser("check", help="compare two files of results; 1 where a figure got worse")
    check.add_argument("old", nargs="?", default=KEPT)
    check.add_argument("new", nargs="?", default=OUTPUT)
    check.add_argument("--tolerance", type=float, default=0.15, help="how much worse is still the same")
    args = parser.parse_args()
    if args.verb == "check":
        return compare.check(results.load(args.old), results.load(args.new), args.tolerance)
    if args.verb == "report":
        report.write(results.load(args.results), f"{HERE}/docs")
        return 0
    if os.geteuid() != 0:
        sys.stderr.write("it makes virtual machines, namespaces and control groups: run it as root\n")
        return 1
    found = measure(args.family or list(FAMILIES), os.path.abspath(args.library), quick=args.quick)
    results.save(found, args.output)
    sys.stdout.write(report.table(found))
    sys.stderr.write(f"written: {args.output}\n")
    if args.docs:
        if args.family or args.quick:
            sys.stderr.write("the documentation isn't written: that wants a whole run\n")
        else:
            results.save(found, KEPT)
            report.write(found, f"{HERE}/docs")
            sys.stderr.write("written: docs/benchmarks.md\n")
    return 0


def measure(families: list[str], library: str, *, quick: bool) -> results.Results:
    """Run the *families*; one that can't be measured is skipped, and its reason kept."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what runs is tidied up
    begun = time.monotonic()
    machine = results.machine()
    scratch = tempfile.mkdtemp(prefix="rvb-", dir="/tmp")
    os.chmod(scratch, 0o755)
    try:
        with Bench(scratch, library, quick=quick) as bench:
            for family in families:
                bench.say(f"== {family}")
                try:
                    FAMILIES[family].run(bench)
                except (Skip, RuntimeError, OSError, AssertionError) as error:
                    bench.skip(family, (str(error) or repr(error))[:1000])
            machine["accelerator"] = bench.floor.machine.accelerator if bench.has_floor else "not asked"
            return results.Results(
                machine,
                results.versions(
                    {
                        "runvm": [*bench.runvm.argv, "--version"],
                        "QEMU": ["qemu-system-x86_64", "--version"],
                        "Python": ["/usr/bin/python3", "--version"],
                        "runc": ["runc", "--version"],
                        "crun": ["crun", "--version"],
                        "gVisor": ["runsc", "--version"],
                        "Docker": ["dockerd", "--version"],
                    }
                ),
                results.now(),
                round(time.monotonic() - begun, 1),
                bench.figures,
                bench.breakdowns,
                bench.curves,
                bench.skipped,
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
