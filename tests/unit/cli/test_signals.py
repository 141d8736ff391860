"""signals.py: the names are the C library's."""

import signal

import pytest

from runvm.cli.signals import NUMBERS, parse_signal
from runvm.errors import UsageError


def test_names_are_the_systems() -> None:
    own = {name.removeprefix("SIG"): number for name, number in signal.__dict__.items() if name.startswith("SIG")}
    real_time = {"RTMIN", "RTMAX", "_BLOCK", "_UNBLOCK", "_SETMASK", "_DFL", "_IGN"}
    wanted = {name: int(number) for name, number in own.items() if name not in real_time and isinstance(number, int)}
    assert wanted.items() <= NUMBERS.items()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 15),
        ("0", 0),
        ("9", 9),
        ("KILL", 9),
        ("SIGKILL", 9),
        ("sigwinch", 28),
        ("term", 15),
        ("RTMIN", 34),
        ("RTMIN+1", 35),
        ("SIGRTMAX-14", 50),
        ("rtmax", 64),
        ("64", 64),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text", ["FOO", "65", "999", "-9", "SIG", "SIGSIGKILL", "RTMIN+31", "RTMIN+1x", "RTMIN+", "٩", " 9"]
)
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(UsageError, match="unknown signal"):
        parse_signal(text)
