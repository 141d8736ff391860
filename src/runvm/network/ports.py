"""What a network namespace's range of local ports was before a VM took it (see tap.wire): kept beside the sandbox's
records, so that whoever clears up after a supervisor that was killed can restore it."""

from __future__ import annotations

import json
import os

from runvm.linux import files

_NAME = "ports.json"


def save(directory: str, ports: dict[int, tuple[int, int]]) -> None:
    """Keep the ranges of the namespaces with these inodes. Raises OSError."""
    path = f"{directory}/{_NAME}"
    with open(f"{path}.new", "w", opener=files.private) as file:
        json.dump(ports, file)
    os.rename(f"{path}.new", path)


def saved(directory: str) -> dict[int, tuple[int, int]]:
    """What save() kept; empty where there is nothing."""
    try:
        with open(f"{directory}/{_NAME}") as file:
            return {int(inode): (int(low), int(high)) for inode, (low, high) in json.load(file).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
