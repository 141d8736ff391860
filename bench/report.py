"""docs/benchmarks.md and its plots, made of a file of results and nothing else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench.results import median

if TYPE_CHECKING:
    from bench.results import Breakdown, Curve, Figure, Results

_HEAD = """# Benchmarks

Made by `make bench`, not by hand; `make bench-check` compares another run with these results
([results.json](benchmarks/results.json)).

Times depend on the machine and on what else it does; so each figure is a ratio of things that were measured in turns in
the same run (A B A B …), the median of the ratios of the pairs. *The floor* is the smallest program that does the same
with bare QEMU: it restores the same guest image from a template of its own with the same machine and devices, plugs a
virtiofs share in, mounts it, runs the program, ends. Its guest has a busybox shell for PID 1 in place of an agent and
crun; its host side has no jail, no namespaces, no cgroup, no state, and its Python is warm. Like runvm it copies the
template's memory: virtiofsd needs the guest's memory shared, so a private mapping of the template's file won't do.
gVisor is Debian's `runsc`, on ptrace and without a network.

"""


def write(results: Results, docs: str) -> None:
    """Write benchmarks.md and its plots below *docs*."""
    folder = f"{docs}/benchmarks"
    os.makedirs(folder, exist_ok=True)
    plots = _plots(results, folder)
    text = _HEAD + _about(results) + _targets(results)
    families = list(dict.fromkeys(figure.family for figure in results.figures))
    for family in families:
        text += f"## {family}\n\n" + _table([figure for figure in results.figures if figure.family == family])
        if family == "start":
            for breakdown in results.breakdowns:
                text += _steps(breakdown)
        for title, plot in plots.get(family, []):
            text += f"![{title}](benchmarks/{plot})\n\n"
    if results.skipped:
        text += "## Not measured\n\n" + "".join(f"- {what}: {why}\n" for what, why in results.skipped.items())
    with open(f"{docs}/benchmarks.md", "w", encoding="utf-8") as file:
        file.write(text.rstrip("\n") + "\n")


def table(results: Results) -> str:
    """The figures for a terminal."""
    lines = []
    for figure in results.figures:
        target = (
            "" if figure.at_most is None else f"  {'reached' if figure.reached else 'NOT REACHED'}: {figure.at_most:g}"
        )
        lines.append(f"{figure.family:10} {figure.name:75} {figure.value:8.2f} {figure.unit}{target}\n")
    lines += [f"{'skipped':10} {what}: {why.splitlines()[0]}\n" for what, why in results.skipped.items()]
    return "".join(lines)


def _about(results: Results) -> str:
    rows = [*results.machine.items(), *results.versions.items(), ("date", results.created)]
    rows.append(("duration", f"{results.seconds / 60:.0f} minutes"))
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows) + "\n"


def _targets(results: Results) -> str:
    wanted = [figure for figure in results.figures if figure.at_most is not None]
    text = "## Targets\n\n| figure | at most | measured | |\n|---|---|---|---|\n"
    for figure in wanted:
        verdict = "reached" if figure.reached else "**not reached**"
        text += f"| {figure.name} | {figure.at_most:g} | {figure.value:.2f} {figure.unit} | {verdict} |\n"
    missed = [figure for figure in wanted if not figure.reached]
    text += "\n"
    if missed:
        text += "What stands in the way, measured in the same run:\n\n"
        text += "".join(f"- {figure.name}: {_in_the_way(figure, results)}\n" for figure in missed) + "\n"
    return text


def _in_the_way(figure: Figure, results: Results) -> str:
    parts = [
        f"{label} takes {_number(median(values))} {figure.sample_unit}" for label, values in figure.samples.items()
    ]
    said = ", ".join(parts) + (f" ({figure.how})" if figure.how else "")
    steps = [breakdown for breakdown in results.breakdowns if breakdown.name.split()[1] in figure.name.split()]
    for breakdown in steps:
        largest = sorted(breakdown.steps, key=lambda step: -step[1])[:4]
        said += f"; of `{breakdown.name}`: " + ", ".join(f"{label} {_number(ms)} ms" for label, ms in largest)
    return said


def _table(figures: list[Figure]) -> str:
    text = "| figure | value | medians | how |\n|---|---|---|---|\n"
    for figure in figures:
        medians = "; ".join(
            f"{label.replace('|', ' ')} {_number(median(values))} {figure.sample_unit}"
            for label, values in figure.samples.items()
            if values
        )
        text += f"| {figure.name} | {figure.value:.2f} {figure.unit} | {medians} | {figure.how} |\n"
    return text + "\n"


def _steps(breakdown: Breakdown) -> str:
    total = sum(ms for _, ms in breakdown.steps)
    text = f"Where the time of `{breakdown.name}` goes: {_number(total)} ms, medians of runs with `RUNVM_TRACE`.\n\n"
    text += "| step | ms |\n|---|---|\n" + "".join(f"| {label} | {_number(ms)} |\n" for label, ms in breakdown.steps)
    return text + "\n"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def _plots(results: Results, folder: str) -> dict[str, list[tuple[str, str]]]:
    """(title, file) of each plot, by family."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "runvm"  # the same results give the same files
    made: dict[str, list[tuple[str, str]]] = {}
    for family in dict.fromkeys(figure.family for figure in results.figures):
        with_samples = [figure for figure in results.figures if figure.family == family and len(figure.samples) > 1]
        if with_samples:
            file = f"{family.replace(' ', '-')}.svg"
            _bars(with_samples, f"{folder}/{file}")
            made.setdefault(family, []).append((f"{family}: medians, with quartiles", file))
    for breakdown in results.breakdowns:
        _stack(breakdown, f"{folder}/breakdown.svg")
        made.setdefault("start", []).append((f"where the time of {breakdown.name} goes", "breakdown.svg"))
    for curve in results.curves:
        family = curve.name.split(":")[0]
        file = f"{family.replace(' ', '-')}-curve.svg"
        _curve(curve, f"{folder}/{file}")
        made.setdefault(family, []).append((curve.name, file))
    return made


def _bars(figures: list[Figure], path: str) -> None:
    from statistics import quantiles

    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(figures), 1, figsize=(8, 1.0 + sum(0.6 + 0.3 * len(f.samples) for f in figures)))
    for one, axis in zip(figures, axes if len(figures) > 1 else [axes], strict=True):
        labels = list(one.samples)
        values = [median(one.samples[label]) for label in labels]
        spread = [
            quantiles(one.samples[label], n=4) if len(one.samples[label]) > 1 else [one.samples[label][0]] * 3
            for label in labels
        ]
        low = [max(0.0, value - quarters[0]) for value, quarters in zip(values, spread, strict=True)]
        high = [max(0.0, quarters[2] - value) for value, quarters in zip(values, spread, strict=True)]
        axis.barh(labels, values, xerr=[low, high], color=["#4c72b0" if "runvm" in n else "#bbbbbb" for n in labels])
        axis.invert_yaxis()
        axis.set_title(f"{one.name.replace('`', '')} ({one.sample_unit})", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _stack(breakdown: Breakdown, path: str) -> None:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    begun = 0.0
    for label, took in breakdown.steps:
        axis.barh([label], [took], left=begun, color="#4c72b0")
        begun += took
    axis.invert_yaxis()
    axis.set_xlabel("ms since the command began")
    axis.set_title(breakdown.name, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _curve(curve: Curve, path: str) -> None:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4))
    for label, points in curve.lines.items():
        axis.plot([x for x, _ in points], [y for _, y in points], label=label, marker="." if len(points) < 50 else "")
    axis.set_xlabel(curve.x)
    axis.set_ylabel(curve.y)
    axis.set_ylim(bottom=0)
    axis.set_title(curve.name, fontsize=9, loc="left")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
