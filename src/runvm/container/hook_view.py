"""What the hooks of `create` find of a container's mounts, and what they mount themselves.

As under runc they see the container's mounts at the root's path, in the mount namespace of the container's process:
createContainer hooks run there, the others may enter it. So what host_view.make() has mounted lies there while they
run. What they mount is given to the guest as further mounts. All but end() is run by the shim.
"""

from __future__ import annotations

import os

from runvm.container.host_view import View, reason
from runvm.errors import HostError
from runvm.linux import mounts, syscalls
from runvm.records import NamedTuple

_MAX = 256
"""Mounts of the hooks."""
_OPTIONS = ("ro", "nosuid", "nodev", "noexec", "noatime")


class HookMount(NamedTuple):
    """A mount of a hook: where in the container's root, and its options."""

    path: str
    options: tuple[str, ...]


class HookView:
    """The view *view*, whose root has the descriptor *root*, at the place of the container's root. Raises HostError."""

    def __init__(self, view: View, root: int) -> None:
        self._view = view
        self._root = root
        try:
            # hooks may bind parts of it
            syscalls.set_attributes(root, 0, recursive=False, propagation=syscalls.MS_PRIVATE)
            syscalls.attach_tree(root, view.rootfs)
            self._top = os.readlink(f"/proc/self/fd/{root}")
            self._before = {*mounts.table(self._top)}
        except OSError as error:
            raise HostError(f"show the container's mounts to its hooks: {reason(error)}") from error

    def end(self) -> list[HookMount]:
        """Take it back to its own place, the hooks being done: what they have mounted, which is there, too. Raises
        HostError."""
        try:
            new = sorted(
                (mount for mount in mounts.table(self._top) if mount.point != self._top and mount not in self._before),
                key=lambda mount: mount.point,
            )
            syscalls.attach_tree(self._root, self._view.at)
            syscalls.set_attributes(self._root, 0, recursive=False, propagation=syscalls.MS_UNBINDABLE)
        except OSError as error:
            raise HostError(f"take over what the container's hooks have mounted: {reason(error)}") from error
        found: list[HookMount] = []
        for mount in new:
            path = mount.point[len(self._top) :]
            if not found or not path.startswith(f"{found[-1].path}/"):  # else it comes with that
                found.append(HookMount(path, tuple(option for option in _OPTIONS if option in mount.options)))
        if len(found) > _MAX:
            raise HostError(f"the container's hooks have made {len(found)} mounts, and {_MAX} are the most")
        return found
