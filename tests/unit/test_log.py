"""log.py: the text format is logrus', which runc writes: quotes only where a value needs them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from runvm.log import Log

if TYPE_CHECKING:
    from pathlib import Path

STAMP = r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ" '


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("plain", "plain"),
        ("a/b_c-1.2@x", "a/b_c-1.2@x"),
        ("two words", '"two words"'),
        ("", '""'),
        ('a "name"\nand more', '"a \\"name\\"\\nand more"'),
    ],
)
def test_a_line_of_text(tmp_path: Path, message: str, wanted: str) -> None:
    log = Log()
    log.configure(path=str(tmp_path / "log"), format="text", debug=False)
    log.warning(message)
    assert re.fullmatch(f"{STAMP}level=warning msg={re.escape(wanted)}\n", (tmp_path / "log").read_text())


def test_debug_lines_on_stderr_are_of_that_form(capfd: pytest.CaptureFixture[str]) -> None:
    """As runc --debug writes them; without --debug a person reads one short line."""
    log = Log()
    log.configure(path="", format="text", debug=True)
    log.error("no such thing")
    assert re.fullmatch(f'{STAMP}level=error msg="no such thing"\n', capfd.readouterr().err)
    log.configure(path="", format="text", debug=False)
    log.error("no such thing")
    assert capfd.readouterr().err == "runvm: no such thing\n"
