"""A container's root and mounts as the host sees them: made by its shim, in the shim's own mount namespace.

Who joins that namespace (podman cp, nsenter -m) finds the container's volumes at their places. Mount points that the
root lacks are made here, as runc makes them, before the guest's runtime looks for them: so the root may be read-only
for the guest, and an error reads as runc's. What the guest has of its own (tmpfs, /dev, /sys) is an empty directory
that nothing can be written to.

Every path is followed as a process whose root is the container's would: the image's links lead nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from runvm.container import environment
from runvm.errors import HostError
from runvm.linux import syscalls
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LINKS = 255
"""How many symlinks one path may have."""
_KERNELS = ("proc", "sysfs", "cgroup", "cgroup2")
_SPECIAL = ("proc", "sysfs")
_PROC_FILES = {
    "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",  # noqa: E501
}  # fmt: skip
"""What may be covered below /proc: files that LXCFS and some engines have their own of."""


class ViewEntry(NamedTuple):
    """A mount of the config. A *source* that is '' is not shown: a tmpfs, or what only the guest has (*directory* or
    file). One that is *inside* is a path in the container's root, with what has been mounted there before it.
    *of_proc*: a bind of something on a proc file system. *copied*: a tmpfs that gets what it covers."""

    destination: str
    type: str
    source: str
    recursive: bool = False
    read_only: bool = False
    submounts_too: bool = False
    inside: bool = False
    directory: bool = True
    of_proc: bool = False
    copied: bool = False


class View(NamedTuple):
    """What is to be shown: the root *rootfs* and the *entries*, mounted at the directory *at*. *owner*: of mount points
    that are made. *working_directory* is made, too. *uid*: whose home is looked for."""

    rootfs: str
    at: str
    entries: tuple[ViewEntry, ...]
    read_only: bool
    working_directory: str
    owner: tuple[int, int]
    uid: int


class ViewPlace(NamedTuple):
    """Where an entry was mounted: the destination without symlinks, and for a tmpfs the mode of the directory that was
    there before, or -1."""

    path: str
    mode: int


class Made(NamedTuple):
    """The *places* of the entries by their number, where they say more than these, and the home of the view's uid."""

    places: dict[int, ViewPlace]
    home: str


def make(view: View) -> tuple[Made, list[int]]:
    """Mount all of it; with it come the descriptors for protect(). Raises HostError, with the mount that failed."""
    umask = os.umask(0o022)
    try:
        tree = syscalls.clone_tree(view.rootfs, recursive=True)
        syscalls.attach_tree(tree, view.at)
        os.close(tree)
        root = os.open(view.at, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"mount the container's root {view.rootfs}: {reason(error)}") from error
    places: dict[int, ViewPlace] = {}
    stand_ins: list[int] = []
    covered: dict[str, int] = {}
    # what is mounted in those only the guest can see
    kernels = tuple(f"{entry.destination}/" for entry in view.entries if entry.type in _KERNELS)
    try:
        # else a bind of the host's / had all of this once more
        syscalls.set_attributes(root, 0, recursive=False, propagation=syscalls.MS_UNBINDABLE)
        for number, entry in enumerate(view.entries):
            try:
                if entry.destination.startswith(kernels) and not entry.type.startswith("cgroup"):
                    _check_proc(view, entry, "/".join(_resolve(root, view, entry.destination)))
                    continue
                place = _show(view, root, entry, stand_ins, covered)
            except OSError as error:
                shown = entry.source or entry.type
                raise HostError(
                    "unable to start container process: error during container init: error mounting"
                    f' "{shown}" to rootfs at "{entry.destination}": {reason(error)}'
                ) from error
            if place != (entry.destination, -1):
                places[number] = place
        _make_working_directory(root, view)
        return Made(places, environment.home_in(root, view.uid)), [root, *stand_ins]
    except BaseException:
        for fd in (root, *stand_ins):
            os.close(fd)
        raise
    finally:
        for fd in covered.values():
            if fd >= 0:
                os.close(fd)
        os.umask(umask)


def _show(view: View, root: int, entry: ViewEntry, stand_ins: list[int], covered: dict[str, int]) -> ViewPlace:
    """Mount one. *covered* has by their paths what mounts have covered and copy, or -1. Raises OSError."""
    tree = -1
    if entry.source:
        tree = _source(view, root, entry)
    try:
        directory = entry.directory if tree < 0 else stat.S_ISDIR(os.fstat(tree).st_mode)
        if entry.type in _SPECIAL:
            _check_ordinary(root, entry)
        target, mode = _mount_point(
            root,
            view,
            entry.destination,
            directory=directory,
            allowed=lambda path: _check_proc(view, entry, path),
        )
        try:
            path = _path(view, target)
            if entry.type == "tmpfs":
                mode = _cover(covered, path, target, mode, entry)
            else:
                covered[path] = -1
            if tree >= 0:
                _attach(tree, target, entry)
            elif directory:
                # the kernel's links below /proc/self are no part of the container's paths
                flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
                syscalls.mount("runvm", f"/proc/self/fd/{target}", "tmpfs", flags, "mode=755,size=64k")
                stand_ins.append(syscalls.open_in_root(root, entry.destination, os.O_PATH | os.O_DIRECTORY))
        finally:
            os.close(target)
    finally:
        if tree >= 0:
            os.close(tree)
    return ViewPlace(path, mode if entry.type == "tmpfs" else -1)


def _cover(covered: dict[str, int], path: str, target: int, mode: int, entry: ViewEntry) -> int:
    """Note that a tmpfs covers *path*, which is *target* here with the *mode*: the mode of it that the guest has, where
    a tmpfs above gets a copy of the image's."""
    top = max((each for each in covered if path.startswith(f"{each}/")), key=len, default="")
    image = -1
    if covered.get(top, -1) >= 0:
        try:
            image = syscalls.open_beneath(covered[top], path[len(top) + 1 :], os.O_PATH | os.O_DIRECTORY)
            mode = stat.S_IMODE(os.fstat(image).st_mode)
        except OSError:  # the image hasn't got it
            pass
    if image < 0:
        image = os.dup(target)
    if covered.get(path, -1) >= 0:
        os.close(covered[path])
    covered[path] = image if entry.copied else -1
    if not entry.copied:
        os.close(image)
    return mode


def _check_ordinary(root: int, entry: ViewEntry) -> None:
    """Raise OSError for a mount point of a proc or sysfs that the image has made a link to somewhere else."""
    try:
        fd = syscalls.open_in_root(root, entry.destination, os.O_PATH | os.O_NOFOLLOW)
    except OSError:  # it isn't there yet, or whoever goes there says so
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, f'filesystem "{entry.type}" must be mounted on ordinary directory')
    finally:
        os.close(fd)


def _check_proc(view: View, entry: ViewEntry, path: str) -> None:
    """Raise OSError for a mount that would cover what the kernel says and takes in /proc: programs believe it, and
    protect themselves by what they write there. *path* is where the destination leads to."""
    top, _, inner = path.strip("/").partition("/")
    if top != "proc" or entry.type in _SPECIAL or inner in _PROC_FILES:
        return
    if inner:
        why = "it is inside /proc"
    elif entry.of_proc:
        return
    else:
        why = "it is not of type proc"
    raise OSError(errno.EPERM, f'"{view.rootfs}/{path.strip("/")}" cannot be mounted because {why}')


def _source(view: View, root: int, entry: ViewEntry) -> int:
    """A bind of the source, mounted nowhere yet."""
    if not entry.inside:
        try:
            return syscalls.clone_tree(entry.source, recursive=entry.recursive)
        except FileNotFoundError as error:
            raise _because(error, f"stat {entry.source}") from error
    path = entry.source.removeprefix(view.rootfs).lstrip("/")
    try:
        fd = syscalls.open_beneath(root, path, os.O_PATH) if path else os.dup(root)
    except OSError as error:
        raise _because(error, f"stat {entry.source}") from error
    try:
        syscalls.set_attributes(root, 0, recursive=False, propagation=syscalls.MS_PRIVATE)
        return syscalls.clone_tree(f"/proc/self/fd/{fd}", recursive=entry.recursive)
    finally:
        syscalls.set_attributes(root, 0, recursive=False, propagation=syscalls.MS_UNBINDABLE)
        os.close(fd)


def _attach(tree: int, target: int, entry: ViewEntry) -> None:
    if entry.read_only:
        syscalls.set_attributes(tree, syscalls.ATTR_RDONLY, recursive=entry.submounts_too)
    if stat.S_ISDIR(os.fstat(tree).st_mode) != stat.S_ISDIR(os.fstat(target).st_mode):
        # move_mount(2) says EINVAL; docker looks for this text
        raise _because(NotADirectoryError(errno.ENOTDIR, ""), f"mount {entry.source}:{entry.destination}")
    syscalls.attach_tree(tree, target)


def _mount_point(
    root: int, view: View, path: str, *, directory: bool, allowed: Callable[[str], None]
) -> tuple[int, int]:
    """An O_PATH descriptor of *path*, made if it isn't there, and its mode if it was, or -1. *allowed* is called with
    where it leads to, before it is made."""
    try:
        fd = syscalls.open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        parts = _resolve(root, view, path)
        allowed("/".join(parts))
        return _make(root, view, parts, directory=directory), -1
    except OSError as error:
        said = "SecureJoin" if error.errno == errno.ELOOP else "open o_path procfd: open"
        raise _because(error, f"{said} {view.rootfs}/{path.lstrip('/')}") from error
    try:
        allowed(_path(view, fd))
    except OSError:
        os.close(fd)
        raise
    return fd, stat.S_IMODE(os.fstat(fd).st_mode)


def _path(view: View, fd: int) -> str:
    """Where in the root the file of a descriptor is."""
    return os.readlink(f"/proc/self/fd/{fd}").removeprefix(view.at) or "/"


def _resolve(root: int, view: View, path: str) -> list[str]:
    """The names that *path* leads through once its symlinks are followed, also those that lead nowhere yet."""
    todo = path.split("/")
    done: list[str] = []
    links = 0
    while todo:
        name = todo.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            done = done[:-1]
            continue
        try:
            fd = syscalls.open_in_root(root, "/".join((*done, name)), os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            done.append(name)
            continue
        try:
            target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else ""
        finally:
            os.close(fd)
        if not target:
            done.append(name)
            continue
        links += 1
        if links > _LINKS:
            raise _because(OSError(errno.ELOOP, ""), f"SecureJoin {view.rootfs}/{path.lstrip('/')}")
        todo = [*target.split("/"), *todo]
        if target.startswith("/"):
            done = []
    return done


def _make(root: int, view: View, parts: list[str], *, directory: bool) -> int:
    """The descriptor of the directory or file that the names *parts* lead to, made with all above it."""
    current = os.dup(root)
    try:
        for number, name in enumerate(parts):
            shown = "/".join((view.rootfs, *parts[: number + 1]))
            if not directory and number == len(parts) - 1:
                _make_file(current, name, view.owner, shown)
                following = syscalls.open_beneath(current, name, os.O_PATH | os.O_NOFOLLOW)
            else:
                following = _enter(current, name, view.owner, shown)
            os.close(current)
            current = following
        return os.dup(current)
    finally:
        os.close(current)


def _enter(current: int, name: str, owner: tuple[int, int], shown: str) -> int:
    try:
        try:
            return syscalls.open_beneath(current, name, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            os.mkdir(name, 0o755, dir_fd=current)
            _give(current, name, owner)
            return syscalls.open_beneath(current, name, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise _because(error, f"mkdir {shown}") from error


def _make_file(current: int, name: str, owner: tuple[int, int], shown: str) -> None:
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o755, dir_fd=current))
        _give(current, name, owner)
    except OSError as error:
        raise _because(error, f"open {shown}") from error


def _give(current: int, name: str, owner: tuple[int, int]) -> None:
    if owner != (0, 0):
        os.chown(name, *owner, dir_fd=current, follow_symlinks=False)


def protect(view: View, made: Sequence[int]) -> None:
    """Make what is to be so read-only, now that all mount points are made, and close the descriptors *made*. Raises
    HostError."""
    try:
        for fd in made if view.read_only else made[1:]:
            syscalls.set_attributes(fd, syscalls.ATTR_RDONLY, recursive=False)
    except OSError as error:
        raise HostError(f"mount the container's root read-only: {reason(error)}") from error
    finally:
        for fd in made:
            os.close(fd)


def _make_working_directory(root: int, view: View) -> None:
    """As runc, which leaves an error to the chdir(2) that follows."""
    try:
        os.close(_mount_point(root, view, view.working_directory, directory=True, allowed=lambda path: None)[0])
    except OSError:
        pass


def _because(error: OSError, what: str) -> OSError:
    return OSError(error.errno, f"{what}: {os.strerror(error.errno or 0).lower()}")


def reason(error: OSError) -> str:
    """An error's text, without its number."""
    return error.strerror or str(error)
