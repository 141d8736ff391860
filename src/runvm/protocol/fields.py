"""What a field of a message may be, whoever sends it: its type and its size."""

from __future__ import annotations

from typing import Any

from runvm.protocol.frames import FrameError

Json = dict[str, Any]

MAX_TEXT = 64 << 10
"""Characters of a string field; of an error or a log line, too."""
MAX_ITEMS = 4096
"""Items of a list field."""
MAX_DEPTH = 32
"""Objects and lists within each other in a message from one who isn't trusted: json can read more than it can write."""


class MessageError(FrameError):
    """A message that isn't one of these, or has a bad field; *number* is its own, 0 where that can't be read."""

    number = 0


def is_deep(body: object) -> bool:
    """Whether more objects and lists lie within each other than MAX_DEPTH."""
    level = [body]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True


def check(where: str, value: object, hint: Any) -> None:
    """Raise MessageError unless the field *where* has a *value* of its type, *hint*, within the limits."""
    expected = {int: int, str: str, bool: bool, Json: dict}.get(hint, list)
    if type(value) is not expected:
        raise MessageError(f"{where} should be a {expected.__name__}")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise MessageError(f"{where} is too long")
    if isinstance(value, list) and len(value) > MAX_ITEMS:
        raise MessageError(f"{where} has too many items")
    if type(value) is int and not -(1 << 63) <= value < 1 << 64:
        raise MessageError(f"{where} is out of range")
