"""The benchmark's results: files, comparison of two runs, the documentation made of them."""

from pathlib import Path

import pytest

from bench import compare, report, results
from bench.results import Breakdown, Curve, Figure, Results


def made(*figures: Figure) -> Results:
    return Results(
        machine={"processor": "2 x some"},
        versions={"QEMU": "7"},
        created="today",
        seconds=60.0,
        figures=list(figures),
        breakdowns=[Breakdown("runvm run true", [("restore", 7.0), ("crun create in the guest", 400.0)])],
        curves=[Curve("memory: idle VMs", "VMs", "MiB", {"all": [(1, 90.0), (2, 170.0)]})],
        skipped={"gVisor": "isn't installed"},
    )


def figure(value: float, *, name: str = "run of true: runvm / floor", higher: bool = False) -> Figure:
    samples = {"floor": [1.0, 2.0, 3.0], "runvm": [2.0, 4.0, 6.0]}
    return Figure("start", name, value, "x", "median of pairs", 2.0, samples, higher_is_better=higher)


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    """One slow moment spoils one pair, not the ratio of the medians."""
    assert results.ratio([2.0, 2.0, 40.0], [1.0, 1.0, 20.0]) == 2.0
    with pytest.raises(ValueError, match="zip"):
        results.ratio([1.0], [1.0, 2.0])


def test_a_file_of_results_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "results.json")
    results.save(made(figure(1.5)), path)
    assert results.load(path) == made(figure(1.5))


def test_what_is_no_file_of_results_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"figures": []}')
    with pytest.raises(ValueError, match="no file of results"):
        results.load(str(path))


@pytest.mark.parametrize(
    ("before", "after", "higher", "code"),
    [(2.0, 2.2, False, 0), (2.0, 2.4, False, 1), (2.0, 1.0, False, 0), (90.0, 60.0, True, 1), (60.0, 90.0, True, 0)],
)
def test_only_what_got_worse_beyond_the_tolerance_fails(before: float, after: float, higher: bool, code: int) -> None:
    old, new = made(figure(before, higher=higher)), made(figure(after, higher=higher))
    assert compare.check(old, new, 0.15) == code


def test_figures_of_one_run_only_are_named_and_dont_fail(capsys: pytest.CaptureFixture[str]) -> None:
    old = made(figure(1.0), figure(1.0, name="with gVisor"))
    new = made(figure(1.0), figure(9.0, name="another"))
    assert compare.check(old, new, 0.15) == 0
    said = capsys.readouterr().out
    assert "not run start: with gVisor" in said
    assert "new     start: another" in said


def test_runs_with_nothing_in_common_fail() -> None:
    assert compare.check(made(figure(1.0)), made(figure(1.0, name="another")), 0.15) == 1


def test_the_documentation_has_targets_and_what_stands_in_their_way(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.write(made(figure(1.5), figure(3.0, name="run of another: runvm / floor")), str(tmp_path))
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| run of true: runvm / floor | 2 | 1.50 x | reached |" in text
    assert "| run of another: runvm / floor | 2 | 3.00 x | **not reached** |" in text
    assert "- run of another: runvm / floor: floor takes 2.0 ms, runvm takes 4.0 ms" in text
    assert "crun create in the guest 400 ms" in text
    assert "- gVisor: isn't installed" in text
    for name in ("start.svg", "breakdown.svg"):
        assert f"(benchmarks/{name})" in text
        assert (tmp_path / "benchmarks" / name).read_text().startswith("<?xml")
