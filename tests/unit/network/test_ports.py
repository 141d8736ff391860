"""What is kept of the namespaces' port ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

from runvm.network import ports


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    """By inode; the last one saved counts."""
    ports.save(str(tmp_path), {1: (2, 3)})
    ports.save(str(tmp_path), {1: (2, 3), 4026532000: (32768, 60999)})
    assert ports.saved(str(tmp_path)) == {1: (2, 3), 4026532000: (32768, 60999)}


@pytest.mark.parametrize("text", [None, "", "[]", '{"a": [1, 2]}', '{"1": [1]}', '{"1": 7}'])
def test_where_nothing_is_saved_or_it_is_broken_nothing_is_known(tmp_path: Path, text: str | None) -> None:
    """Clearing up goes on."""
    if text is not None:
        (tmp_path / "ports.json").write_text(text)
    assert ports.saved(str(tmp_path)) == {}
