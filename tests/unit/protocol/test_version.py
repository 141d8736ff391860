"""The protocol's version: what a command and a supervisor of two releases tell each other."""

from __future__ import annotations

import pytest

from runvm import __version__
from runvm.protocol import frames, version


def test_ones_own_is_no_mismatch() -> None:
    """It is understood as it was meant, and fits its frame."""
    assert version.parse(version.own()) == (version.PROTOCOL, __version__)
    assert version.mismatch(version.own()) == ""
    frame = frames.encode(frames.VERSION, 0, version.own())
    assert frames.Decoder(max_message=0).feed(frame)[0].payload == version.own()


@pytest.mark.parametrize("told", [b"1 0.1", b"2 0.9", b"99999 1.0"])
def test_another_one_is_told_with_both_releases(told: bytes) -> None:
    """The release, not the protocol's number, is what the reader knows."""
    said = version.mismatch(told)
    assert told.decode().split()[1] in said
    assert f"runvm {__version__}" in said


@pytest.mark.parametrize("told", [b"", b"\xff\xfe", b"two 0.2", b"-1 0.2", "²".encode(), b"2\x00 0.2", b"3 \x1b[2J"])
def test_what_makes_no_sense_is_taken_for_the_first_release(told: bytes) -> None:
    """Which told none; nothing of it reaches a terminal."""
    assert version.parse(told) == (1, "0.1")
