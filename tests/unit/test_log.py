"""log.py: the text format is logrus', which runc writes: quotes only where a value needs them."""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING

import pytest

from runvm.linux import process
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
        ("red \x1b[31m", '"red ?[31m"'),
        ('a "name"\nand more', '"a \\"name\\"\\nand more"'),
    ],
)
def test_a_line_of_text(tmp_path: Path, message: str, wanted: str) -> None:
    log = Log()
    log.configure(path=str(tmp_path / "log"), format="text", debug=False)
    log.warning(message)
    assert re.fullmatch(f"{STAMP}level=warning msg={re.escape(wanted)}\n", (tmp_path / "log").read_text())


def test_a_record_in_json_has_no_control_characters(tmp_path: Path) -> None:
    """An engine decodes it, and shows it on its user's terminal."""
    log = Log()
    log.configure(path=str(tmp_path / "log"), format="json", debug=False)
    log.error("mkdir /red\x1b[31m\x9b0m", "one\r\n\ttwo")
    assert json.loads((tmp_path / "log").read_text())["msg"] == "mkdir /red?[31m?0m: one?\n\ttwo"


def test_debug_lines_on_stderr_are_of_that_form(capfd: pytest.CaptureFixture[str]) -> None:
    """As runc --debug writes them; without --debug a person reads one short line."""
    log = Log()
    log.configure(path="", format="text", debug=True)
    log.error("no such thing")
    assert re.fullmatch(f'{STAMP}level=error msg="no such thing"\n', capfd.readouterr().err)
    log.configure(path="", format="text", debug=False)
    log.error("no such thing")
    assert capfd.readouterr().err == "runvm: no such thing\n"
    log.warning("red \x1b[31m\nand\tmore")
    assert capfd.readouterr().err == "runvm: warning: red ?[31m\nand\tmore\n"


@pytest.mark.parametrize("place", ["no/such/directory/log", "."])
def test_stderr_has_what_the_file_cant_take(tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str) -> None:
    """Errors once, and information not at all, which is for the file only."""
    log = Log()
    log.configure(path=str(tmp_path / place), format="text", debug=False)
    log.warning("careful")
    log.info("by the way")
    log.error("failed", "details")
    assert capfd.readouterr().err == "runvm: warning: careful\nrunvm: failed: details\n"
    log.configure(path=str(tmp_path / "log"), format="text", debug=False)
    log.warning("careful")
    log.error("failed")
    assert capfd.readouterr().err == "runvm: failed\n"
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_a_file_that_stderr_is_grows_to_a_bound(tmp_path: Path) -> None:
    """Whoever writes to it; that something is missing is said once."""

    def child() -> None:
        log = Log()
        log.max_bytes = 2048
        process.redirect(os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT))
        os.write(2, b"a child's\n")
        for number in range(100):
            log.warning(f"{number} {'x' * 500}")
            log.error("short")
            log.debug("step")

    assert process.wait_child(process.fork(child), deadline=time.monotonic() + 10) == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[:20] for line in lines[:2]] == ["a child's", "runvm: warning: 0 xx"]
    assert lines[-1] == "runvm: warning: this log has reached 2 KiB: nothing more is written to it"
    assert sum("reached" in line for line in lines) == 1
    assert (tmp_path / "log").stat().st_size < 2048 + 100
