"""What of a config.json must be the same in a bundle that a checkpoint is restored with: the mounts but for their
sources, the devices, the terminal, and what confines the processes, which keep it whatever a new bundle says. The order
of mounts and devices, and how mounts spread on the host, is the new bundle's."""

from __future__ import annotations

import hashlib
import json
import posixpath
from typing import TYPE_CHECKING, Any

from runvm.container import mount_options
from runvm.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runvm.shares.tree import Share

_LAYERS = ("lowerdir=", "upperdir=", "workdir=")


def of(config: dict[str, Any]) -> dict[str, Any]:
    """The shape of a config.json, to be kept as JSON; the mounts in the order of the file, by which they are
    numbered."""
    linux = config.get("linux") or {}
    return {
        "mounts": [_mount(mount) for mount in config.get("mounts") or ()],
        "devices": sorted(
            [device["path"], device.get("type", ""), device.get("major", 0), device.get("minor", 0)]
            for device in linux.get("devices") or ()
        ),
        "terminal": bool((config.get("process") or {}).get("terminal")),
        "confinement": _confinement(config),
    }


def check(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise CheckpointError, naming what differs between two shapes."""
    for kind in ("mounts", "devices"):
        old, new = _sorted(then.get(kind)), _sorted(now[kind])
        if old != new:
            other = [entry[0] for entry in [*new, *old] if new.count(entry) != old.count(entry)]
            raise CheckpointError(
                f"the bundle's {kind} aren't those of the checkpoint: {', '.join(dict.fromkeys(map(str, other)))}"
            )
    if then.get("terminal") != now["terminal"]:
        raise CheckpointError(f"the checkpoint's container had {'a' if then.get('terminal') else 'no'} terminal")
    if then.get("confinement") != now["confinement"]:
        had, has = then.get("confinement"), now["confinement"]
        other = [name for name in has if not isinstance(had, dict) or had.get(name) != has[name]]
        raise CheckpointError(
            f"the bundle's config.json has another {', '.join(other)} than the checkpoint, whose processes keep theirs"
        )


def renamed(shares: Mapping[str, Share], then: dict[str, Any], now: dict[str, Any]) -> dict[str, Share]:
    """*shares*, named by the numbers of their mounts now, under the names that the guest has them by, and in the order
    in which they were shown: those of then. Both shapes have passed check()."""
    numbers: dict[str, list[int]] = {}
    for number, mount in enumerate(then["mounts"]):
        numbers.setdefault(mount[0], []).append(number)
    new_names = {f"m{number}": f"m{numbers[mount[0]].pop(0)}" for number, mount in enumerate(now["mounts"])}
    found = {new_names.get(name, name): share for name, share in shares.items()}
    # those of hooks have higher numbers, each its own
    numbered = [f"m{number}" for number in range(len(then["mounts"]) + len(found))]
    order = [*(found.keys() - {*numbered}), *(name for name in numbered if name in found)]
    return {name: found[name] for name in order}


def _confinement(config: dict[str, Any]) -> dict[str, Any]:
    """By the names of the fields; of the order of words, and of what is left out or empty, nothing depends."""
    process, linux = config.get("process") or {}, config.get("linux") or {}
    user, capabilities = process.get("user") or {}, process.get("capabilities") or {}
    seccomp = linux.get("seccomp")
    return {
        "root.readonly": bool((config.get("root") or {}).get("readonly")),
        "process.user": [user.get("uid", 0), user.get("gid", 0), sorted(user.get("additionalGids") or ())],
        "process.capabilities": {kind: sorted(set(names)) for kind, names in sorted(capabilities.items()) if names},
        "process.noNewPrivileges": bool(process.get("noNewPrivileges")),
        "linux.seccomp": seccomp and hashlib.sha256(json.dumps(seccomp, sort_keys=True).encode()).hexdigest(),
        "linux.maskedPaths": sorted(set(linux.get("maskedPaths") or ())),
        "linux.readonlyPaths": sorted(set(linux.get("readonlyPaths") or ())),
        "linux.uidMappings": linux.get("uidMappings") or [],
        "linux.gidMappings": linux.get("gidMappings") or [],
    }


def _mount(mount: dict[str, Any]) -> list[Any]:
    options = [str(option) for option in mount.get("options") or ()]
    kind = str(mount.get("type") or "")
    if "bind" in options or "rbind" in options:
        kind = "bind"
    kept = (
        option
        for option in options
        if option not in mount_options.PROPAGATION
        and not (kind == "bind" and option in ("bind", "rbind"))
        and not (kind == "overlay" and option.startswith(_LAYERS))
    )
    return [posixpath.normpath(f"/{mount['destination']}").replace("//", "/"), kind, sorted(set(kept))]


def _sorted(entries: Any) -> list[Any]:
    """The *entries* of a shape that may come from anywhere. Raises CheckpointError for what is none."""
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in entries
    ):
        raise CheckpointError("the checkpoint is damaged: it doesn't tell of mounts and devices")
    return sorted(entries, key=str)
