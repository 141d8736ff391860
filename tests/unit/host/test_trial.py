"""trial.py: system calls are tried under a deadline, and every way to fail is told."""

import os
import signal
import time

import pytest

from runvm.host import trial


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


def test_what_a_child_failed_for_is_told_in_words() -> None:
    """Not in Python's."""
    assert trial.in_child(lambda: os.close(os.open("/no/such", os.O_RDONLY))) == "/no/such: no such file or directory"
