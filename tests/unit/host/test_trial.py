"""trial.py: programs and system calls are tried under a deadline, and every way to fail has words."""

import os
import signal
import time

import pytest

from runvm.errors import HostError
from runvm.host import trial


def test_a_program_answers() -> None:
    assert trial.ask(["/bin/echo", "yes"]) == "yes\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["/nonexistent"], "/nonexistent: No such file or directory"),
        (["/bin/sh", "-c", "echo one >&2; echo two >&2; exit 3"], "failed: two"),
        (["/bin/false"], "'/bin/false' failed: exit code 1"),
        (["/bin/sleep", "60"], "'/bin/sleep 60' did not end within 0 s"),
    ],
)
def test_a_program_that_fails_is_told_with_its_last_words(argv: list[str], message: str) -> None:
    with pytest.raises(HostError, match=message):
        trial.ask(argv, timeout=0.3)


def test_an_attempt_that_goes_well_says_nothing() -> None:
    assert trial.in_child(lambda: None) == ""


def test_an_attempt_that_fails_gives_its_words() -> None:
    def fail() -> None:
        raise OSError(1, "mount at /x: not permitted")

    assert "mount at /x: not permitted" in trial.in_child(fail)


def test_an_attempt_that_dies_is_told() -> None:
    assert "died" in trial.in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_an_attempt_that_hangs_is_ended() -> None:
    begin = time.monotonic()
    assert trial.in_child(lambda: time.sleep(60), timeout=0.2) == "no answer within 0 s"
    assert time.monotonic() - begin < 5


def test_nothing_of_an_attempt_is_left() -> None:
    trial.in_child(lambda: None)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
