"""Whether this process is in a user namespace below the host's, as rootless Podman calls it, and the ids that it has
there (user_namespaces(7))."""

from __future__ import annotations

import os

_EVERY = 4294967295
"""How many ids the first user namespace maps."""


def limited() -> bool:
    """Whether root here is some user of the host's, or no root at all."""
    return os.geteuid() != 0 or not any(count == _EVERY for _, count in _mapped("uid"))


def spare_id(number: int) -> int:
    """A user and group id of this namespace for something that shall be nobody else; 0 where it has just one.

    Those of the upper half of the last range, which few images use; the same *number* gives the same id.
    """
    ranges = _mapped("uid")
    first, count = max(ranges, default=(0, 0))
    if count < 2 or ranges != _mapped("gid"):
        return 0
    return first + count - 1 - number % (count // 2)


def _mapped(kind: str) -> list[tuple[int, int]]:
    """The ranges of ids: (first, how many)."""
    with open(f"/proc/self/{kind}_map") as file:
        return [(int(fields[0]), int(fields[2])) for line in file if len(fields := line.split()) == 3]
