"""Options of a mount in the form that the guest's crun takes: what it doesn't know it passes on to the file system,
which fails at it or, for a bind, says nothing.

Options count in their order, as in runc: the last of two that contradict each other wins.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runvm.errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

WITHOUT_EFFECT = frozenset(
    ("acl", "noacl", "iversion", "noiversion", "lazytime", "nolazytime", "loud", "silent", "symfollow", "rsymfollow")
)
"""Options of runc's about how a file system works inside: nothing of a shared one, or of a tmpfs, depends on them."""
RECURSIVE_TIMES = frozenset(
    ("ratime", "rnoatime", "rdiratime", "rnodiratime", "rrelatime", "rnorelatime", "rstrictatime", "rnostrictatime")
)
"""crun gives these to mount_setattr(2) in a form that it refuses. What is mounted below has the host's access times."""
_REFUSED = ("nosymfollow", "rnosymfollow")
_TO_HOST = ("shared", "rshared")
_PLAIN = (
    ("ro", "rw"),
    ("suid", "nosuid"),
    ("dev", "nodev"),
    ("exec", "noexec"),
    ("sync", "async"),
    ("mand", "nomand"),
    ("atime", "noatime"),
    ("diratime", "nodiratime"),
    ("relatime", "norelatime"),
    ("strictatime", "nostrictatime"),
)
_OPPOSITE = {a: b for one, other in _PLAIN for a, b in ((one, other), (other, one))}
_OPPOSITE |= {f"r{a}": f"r{b}" for a, b in _OPPOSITE.items()}
_OF_MOUNT = {"nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC, "noatime": os.ST_NOATIME}
PRIVATE = frozenset(("private", "rprivate", "unbindable", "runbindable"))
PROPAGATION = PRIVATE | {"slave", "rslave", "shared", "rshared"}
_OF_BINDS = (
    frozenset(("bind", "rbind", "remount", "defaults", "dirsync", "rdirsync", "tmpcopyup", "copy-symlink"))
    | frozenset(("copy", "nocopy", "no-dereference", "O", "U", "z", "Z"))  # what Podman means for itself, and passes on
    | frozenset(_OPPOSITE)
    | WITHOUT_EFFECT
    | RECURSIVE_TIMES
    | PROPAGATION
)
_PODMANS_OWN = ("subpath=", "volume-opt=")
_READ_ONLY = {"ro": True, "rro": True, "rw": False, "rrw": False}


def for_guest(options: Sequence[str], field: str, *, bind: bool = False) -> list[str]:
    """*options* for crun, without those that a later one takes back (crun keeps ro of [ro, rw]), empty ones, and those
    of a tmpfs that runc takes for a *bind* as well.

    Raises: UnsupportedError, naming *field*, for what would protect and can't be had.
    """
    found: list[str] = []
    for given in options:
        if given in _REFUSED:
            raise UnsupportedError(f"{field}: {given}: the guest's runtime can't mount so")
        option = given[1:] if given in RECURSIVE_TIMES else given
        if option in _OPPOSITE:
            found = [earlier for earlier in found if earlier != _OPPOSITE[option]]
        if given and given not in WITHOUT_EFFECT and not (bind and given == "tmpcopyup"):
            found.append(option)
    return found


def check_bind(options: Sequence[str], field: str) -> None:
    """Raise SpecError, naming *field*, for options of a file system: a bind has no file system of its own, and a kernel
    would say nothing. runc refuses them since 1.3."""
    for option in options:
        if option and option not in _OF_BINDS and not option.startswith(_PODMANS_OWN):
            raise SpecError(f"{field}: bind mounts cannot have any filesystem-specific options applied: {option}")


def of_source(source: str, options: Sequence[str]) -> list[str]:
    """What a bind of *source* keeps of the mount that this lies on, as in a kernel, unless *options* say otherwise."""
    try:
        flags = os.statvfs(source).f_flag
    except OSError:  # who mounts it says so
        return []
    said = {option.removeprefix("r") if option.removeprefix("r") in _OPPOSITE else option for option in options}
    return [name for name, flag in _OF_MOUNT.items() if flags & flag and not said & {name, _OPPOSITE[name]}]


def check_pods_bind(options: Sequence[str], field: str) -> None:
    """Raise UnsupportedError, naming *field*, for a bind whose mounts the host should see."""
    for option in options:
        if option in _TO_HOST:
            raise UnsupportedError(
                f"{field}: {option}: what is mounted in a virtual machine can't be seen on the host",
                do="rslave (HostToContainer in Kubernetes) shows the container what the host mounts",
            )


def read_only(options: Sequence[str]) -> bool:
    """Whether the mount is read-only: the last option about it says."""
    return next((_READ_ONLY[option] for option in reversed(options) if option in _READ_ONLY), False)


def recursively_read_only(options: Sequence[str]) -> bool:
    """Whether what is mounted below is read-only as well."""
    return next((option == "rro" for option in reversed(options) if option in ("rro", "rrw")), False)


def private(options: Sequence[str]) -> bool:
    """Whether what the host mounts below later is not to come: runc's mounts are slaves unless they are told so."""
    return next((option in PRIVATE for option in reversed(options) if option in PROPAGATION), False)
