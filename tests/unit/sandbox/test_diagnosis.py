"""What the parts of a virtual machine said last, as a person sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from runvm.container import debug
from runvm.sandbox import diagnosis
from runvm.sandbox.registry import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from runvm.container.context import Context

SAID = b"a file \x1b]0;owned\x07\r\nand\x9b31m more\n"


def test_logs_are_told_without_control_characters(tmp_path: Path) -> None:
    """A guest chooses names that its virtiofsd writes."""
    (tmp_path / "virtiofsd.log").write_bytes(SAID.replace(b"\x9b", b"\xc2\x9b"))
    (tmp_path / "console.log").write_bytes(b"\x1b[2J")
    assert diagnosis.last_lines(str(tmp_path)).splitlines() == [
        "virtiofsd: a file ?]0;owned?",
        "virtiofsd: and?31m more",
        "console: ?[2J",
    ]


def test_debug_logs_print_no_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "supervisor.log").write_bytes(SAID)
    monkeypatch.setattr(debug, "_sandbox", lambda ctx, cid: Sandbox("s", str(tmp_path)))
    debug.logs(cast("Context", None), "c", follow=False)
    assert capsys.readouterr().out == "supervisor: a file ?]0;owned?\nsupervisor: and\ufffd31m more\n"
