"""command.py: programs run under a deadline, and every way to fail is told."""

import pytest

from runvm.errors import HostError
from runvm.linux import command


def test_a_program_answers() -> None:
    assert command.ask(["/bin/echo", "yes"]) == "yes\n"


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
        command.ask(argv, timeout=0.3)
