"""Directories of the host that several containers of the VM may have: mounted here once, before crun binds them.

A directory of the share that is a mount on the host becomes a mount of the guest where somebody first walks into it, in
the walker's mount namespace (kernel's fuse_dentry_automount). Left to each crun it would be a file system of each.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runvm.linux import syscalls

if TYPE_CHECKING:
    from runvm.protocol.messages import Json

_PLACE = "/run/share/shared/"
"""Where the share has what containers may have in common (shares.tree)."""


def mount(spec: Json) -> set[str]:
    """Have the binds' sources of *spec* mounted; their places."""
    places = {os.path.realpath(entry.get("source", "")) for entry in spec.get("mounts", [])}
    found = {place for place in places if place.startswith(_PLACE)}
    for place in found:
        os.path.isdir(f"{place}/.")  # walks into it
    return found


def unmount(places: set[str]) -> None:
    """Let go of places that no container has any more; what is still busy goes when its last user does."""
    for place in places:
        try:
            syscalls.unmount(place, syscalls.MNT_DETACH)
        except OSError:
            continue  # a file is no mount
