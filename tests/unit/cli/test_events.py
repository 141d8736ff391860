"""`runvm events`: durations, and the shape of a line."""

import json

import pytest

from runvm.cli.events import event, parse_duration
from runvm.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("1h1m1s", 3661),
        ("0", 0),
        ("0s", 0),
        ("-1s", -1),
        ("+2s", 2),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "foo", "s", "1s2", "1.2.3s", "5 s", "-", "1d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="--interval"):
        parse_duration(text)


def test_lines_are_runcs() -> None:
    assert json.dumps(event("stats", "c1", {"pids": {}})) == '{"type": "stats", "id": "c1", "data": {"pids": {}}}'
    assert event("oom", "c1") == {"type": "oom", "id": "c1"}
