"""The directory that a VM's virtiofsd serves: binds of what its containers need, in the supervisor's own mount
namespace.

Nothing of it shows in the host's mount table, and it goes when the supervisor goes. The tree is a shared mount, so that
virtiofsd, in a namespace below, sees binds that come later; what it binds stay slaves of the host, so that the host's
later mounts come through as well, unless they are asked to be private.

The guest is the enemy here: what it may only read is read-only on virtiofsd's mounts before these can be reached (flags
that are changed later don't propagate), and the directory itself, with the names and links in it, is read-only always.
Here it is changed by a descriptor of a mount that is nowhere.

What several containers of the VM have of one source is one mount, below `shared`, that their names lead to by symbolic
links: for the guest's kernel two mounts are two file systems, and a FIFO, socket or lock of one is none in the other.
For the same reason a source within another one's is no mount of its own (shares.within).
"""

from __future__ import annotations

import json
import os
import stat

from runvm.errors import HostError, reason
from runvm.linux import mounts, patience, syscalls
from runvm.log import log
from runvm.protocol import names
from runvm.records import NamedTuple
from runvm.shares import within

ROOT = "rootfs"
"""The name of a container's root."""
_SECONDS = 1.0
"""How long the server of a file system below a source may take to answer."""
_LAYERS = 64
"""Mounts on top of each other that are taken away."""

Below = tuple[str, str, str, frozenset[str]]
"""A mount below a source: where, its file system's device, the directory of it, and its options."""


class Share(NamedTuple):
    """A directory or file of the host that the guest gets under a name, or an overlay (its options) of such.
    *submounts_too*: what is mounted below is read-only as well; *private*: what the host mounts below later doesn't
    come."""

    source: str
    recursive: bool
    read_only: bool
    overlay: str = ""
    submounts_too: bool = False
    private: bool = False


class _Identity(NamedTuple):
    """What makes two sources one: the directory or file, the flags of the mount that it is seen through, how it is
    shared, and where the host's later mounts don't come (*fixed*) what is mounted *below*."""

    device: int
    inode: int
    flags: int
    recursive: bool
    read_only: bool
    submounts_too: bool
    private: bool
    below: frozenset[Below] = frozenset()

    @property
    def fixed(self) -> bool:
        return self.recursive and (self.private or self.submounts_too)


class _Shared(NamedTuple):
    """A mount below `shared`, by its path in the tree, and the containers that use it."""

    name: str
    users: set[str]


class Tree:
    """The served directory *path*."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._scratch = f"{path}.scratch"
        for directory in (path, self._scratch):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        syscalls.mount("runvm-share", path, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=16m")
        self._own = syscalls.clone_tree(path, recursive=False)
        flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
        syscalls.mount("none", path, "", flags | syscalls.MS_NOSUID | syscalls.MS_NODEV)
        syscalls.mount("none", path, "", syscalls.MS_SHARED)
        for name in (names.CONTAINERS, "shared"):
            os.mkdir(name, 0o755, dir_fd=self._own)
        self._shared: dict[_Identity, _Shared] = {}
        self._number = 0

    def show_modules(self, source: str) -> None:
        """Show the guest's tree of kernel modules, read-only. Raises HostError."""
        try:
            tree = syscalls.clone_tree(source, recursive=False)
            self._attach(tree, names.MODULES, Share(source, False, True, private=True))
        except OSError as error:
            raise HostError(f"share {source} with the virtual machine: {reason(error)}") from error

    def add(self, container: str, shares: dict[str, Share], pid: int) -> None:
        """Show each of *shares* by its name, as process *pid* sees the sources now.

        Raises: HostError where a source is missing or can't be bound.
        """
        os.mkdir(f"{names.CONTAINERS}/{container}", 0o755, dir_fd=self._own)
        try:
            sources = [mounts.Source(share.source, share.recursive, share.overlay) for share in shares.values()]
            trees = mounts.clone_from(pid, sources, scratch=self._scratch)
            places = {}
            new: list[tuple[_Identity, _Shared]] = []
            for (name, share), tree in zip(shares.items(), trees, strict=True):
                places[name] = self._show(container, name, share, tree, new)
            table = mounts.table(self.path)
            self._link(container, places, self._settle(container, places, new, table), table)
            self._list(container, places, table, shares, pid)
        except OSError as error:
            raise HostError(f"share the container's files with the virtual machine: {reason(error)}") from error

    def _show(self, container: str, name: str, share: Share, tree: int, new: list[tuple[_Identity, _Shared]]) -> str:
        """Mount *tree*, which is closed, unless it is mounted already: where. What may turn out to be mounted already,
        or to lie within another, is put in *new*."""
        if name == ROOT or share.overlay:
            place = f"{names.CONTAINERS}/{container}/{name}"
            self._attach(tree, place, share)  # nobody else's
            return place
        found = os.fstat(tree)
        flags = os.fstatvfs(tree).f_flag
        identity = _Identity(
            found.st_dev, found.st_ino, flags, share.recursive, share.read_only, share.submounts_too, share.private
        )
        known = None if identity.fixed else self._shared.get(identity)
        if known is not None:
            os.close(tree)
            known.users.add(container)
            return known.name
        self._number += 1
        shared = _Shared(f"shared/{self._number}", {container})
        self._attach(tree, shared.name, share)
        if not identity.fixed:
            self._shared[identity] = shared
        new.append((identity, shared))
        return shared.name

    def _settle(
        self, container: str, places: dict[str, str], new: list[tuple[_Identity, _Shared]], table: list[mounts.Mounted]
    ) -> list[_Identity]:
        """Take away the mounts of those *new* ones that are there already, with the same below: the others."""
        kept = []
        for identity, shared in new:
            if identity.fixed:
                identity = identity._replace(below=self._below(shared.name, table))
            known = self._shared.setdefault(identity, shared)
            if known is shared:
                kept.append(identity)
                continue
            self._detach(shared.name)
            known.users.add(container)
            for name, place in places.items():
                if place == shared.name:
                    places[name] = known.name
        return kept

    def _below(self, place: str, table: list[mounts.Mounted]) -> frozenset[Below]:
        top = f"{self.path}/{place}/"
        return frozenset(
            (mount.point[len(top) :], mount.device, mount.root, mount.options)
            for mount in table
            if mount.point.startswith(top)
        )

    def _link(self, container: str, places: dict[str, str], new: list[_Identity], table: list[mounts.Mounted]) -> None:
        """Have the names lead to their *places*, and take away the mounts of those *new* ones that others contain."""
        root = f"{self.path}/{places[ROOT]}" if ROOT in places else ""
        hosts = {f"{self.path}/{shared.name}" for shared in self._shared.values()} | {root}
        fresh = {f"{self.path}/{self._shared[identity].name}": identity for identity in new}
        read_only = {place for place, identity in fresh.items() if identity.read_only}
        found = within.places(table, set(fresh), read_only, hosts)
        for place, (host, path) in found.items():
            shared = self._shared.pop(fresh[place])
            self._detach(shared.name)
            for other in self._shared.values():
                if f"{self.path}/{other.name}" == host:
                    other.users.add(container)
            for name, old in places.items():
                if old == shared.name:
                    places[name] = os.path.relpath(path, self.path)
        for name, place in places.items():
            if place != f"{names.CONTAINERS}/{container}/{name}":
                os.symlink(f"../../{place}", f"{names.CONTAINERS}/{container}/{name}", dir_fd=self._own)

    def _list(
        self,
        container: str,
        places: dict[str, str],
        table: list[mounts.Mounted],
        shares: dict[str, Share],
        pid: int,
    ) -> None:
        """Write down what is mounted below the *places*, from the top, with its flags as process *pid* sees them."""
        found: dict[str, list[str]] = {}
        wanted = {name: below for name, place in places.items() if (below := self._below(place, table))}
        theirs = mounts.tables_of(pid, [shares[name].source for name in wanted]) if wanted else []
        for (name, below), table_there in zip(wanted.items(), theirs, strict=True):
            for inner, _, _, options in below:
                # here all are nodev
                flags = (options - {"nodev"}) | (table_there.get(inner, frozenset()) & {"nodev"})
                found[f"{places[name]}/{inner}"] = sorted(flags & names.MOUNT_FLAGS)
        remote = [path for path in mounts.remote_below(self.path) if os.path.relpath(path, self.path) in found]
        for path in patience.visit(remote, lambda path: _look(f"{path}/."), seconds=_SECONDS):
            inner = os.path.relpath(path, self.path)
            log.warning(f"container {container}: the file system at {inner} in its share doesn't answer")
            del found[inner]  # the guest would wait for it before the container is made
        if found:
            path = f"{names.CONTAINERS}/{container}/{names.SUBMOUNTS}"
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=self._own), "w") as file:
                json.dump(dict(sorted(found.items())), file)

    def _attach(self, tree: int, name: str, share: Share) -> None:
        """Mount *tree*, a descriptor of mounts.clone_from() that is closed here, at *name* in the tree."""
        try:
            if stat.S_ISDIR(os.fstat(tree).st_mode):
                os.mkdir(name, 0o755, dir_fd=self._own)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=self._own))
            # nodes that the guest makes are devices of its own kernel: the daemon is to open none of the host's
            propagation = syscalls.MS_PRIVATE if share.private or share.submounts_too else 0
            syscalls.set_attributes(tree, syscalls.ATTR_NODEV, recursive=True, propagation=propagation)
            if share.read_only:
                syscalls.set_attributes(tree, syscalls.ATTR_RDONLY, recursive=share.submounts_too)
            syscalls.attach_tree(tree, f"{self.path}/{name}")
        finally:
            os.close(tree)

    def layout(self, container: str) -> dict[str, str]:
        """Where each name of a container's leads: for its own mounts to '', else to a mount below `shared`."""
        found = {}
        with os.scandir(f"{self.path}/containers/{container}") as entries:
            for entry in entries:
                found[entry.name] = os.path.basename(os.readlink(entry.path)) if entry.is_symlink() else ""
        return found

    def remove(self, container: str) -> None:
        """Take away everything of *container*; what is still busy goes when its last user does."""
        directory = f"{names.CONTAINERS}/{container}"
        try:
            found = os.listdir(f"{self.path}/{directory}")
        except FileNotFoundError:
            return
        for name in found:
            self._detach(f"{directory}/{name}")
        try:
            os.rmdir(directory, dir_fd=self._own)
        except OSError as error:
            log.warning(f"the share's {directory} stays: {reason(error)}")
        for identity, shared in list(self._shared.items()):
            shared.users.discard(container)
            if not shared.users:
                self._detach(shared.name)
                del self._shared[identity]

    def _detach(self, name: str) -> None:
        """Take a mount away, with what the host has mounted onto its source meanwhile, and its mount point."""
        path = f"{self.path}/{name}"
        try:
            for _ in range(_LAYERS):
                syscalls.unmount(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError:
            pass  # no more: or none, for a link, or a create that failed half-way
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                os.rmdir(name, dir_fd=self._own)
            else:
                os.unlink(name, dir_fd=self._own)
        except OSError as error:  # the host has just mounted there: nobody is to wait for that
            log.warning(f"the share's {name} stays: {reason(error)}")


def _look(path: str) -> None:
    os.stat(path)
