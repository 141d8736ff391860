"""commands.py: what a failing program's error carries."""

import pytest

from runvm.errors import HostError
from runvm.guest import commands
from runvm.guest.commands import CommandError


def test_a_failing_program_says_what_it_said() -> None:
    with pytest.raises(CommandError, match="ls /nowhere ended with 2") as caught:
        commands.run(("ls", "/nowhere"))
    assert "No such file" in caught.value.details


def test_a_program_that_is_not_installed_points_to_own_files() -> None:
    with pytest.raises(HostError, match=r"apt-nowhere isn't installed.*config\.toml"):
        commands.run(("apt-nowhere", "update"))


def test_a_program_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror, or a proxy, may let a download hang for ever."""
    monkeypatch.setattr(commands, "_SECONDS", 0.2)
    with pytest.raises(CommandError, match="timed out after 0 s waiting for sleep 60"):
        commands.run(("sleep", "60"))
