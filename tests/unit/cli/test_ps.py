"""`ps`, with a host's ps that doesn't do as it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from runvm.cli import ps
from runvm.errors import DeadlineError, HostError, UsageError


def host_ps(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the only ps on PATH does."""
    program = directory / "ps"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))


def test_one_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the host's does where a process hangs whose memory it reads."""
    host_ps(tmp_path, "exec /bin/sleep 60", monkeypatch)
    monkeypatch.setattr(ps, "_PS_SECONDS", 0.3)
    with pytest.raises(DeadlineError, match="waiting for the host's ps"):
        ps._host_ps(["-ef"])


def test_one_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mostly for the options that it was given."""
    host_ps(tmp_path, "echo 'no such option' >&2; exit 1", monkeypatch)
    with pytest.raises(UsageError, match="ps exited with 1") as caught:
        ps._host_ps(["--bad"])
    assert caught.value.details == "no such option"


def test_a_host_without_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pids can be had without it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="no ps"):
        ps._host_ps(["-ef"])
