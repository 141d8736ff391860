"""Warm starts: the first container with the annotation io.runvm.warm is checkpointed once it is ready
(container.warming), and later ones that are alike go on from there.

What makes them alike is in the key: the image's layers, config.json without what each container has of its own, the
settings, and the versions of all that runs. A restored container waits, as one that was created does, for its start.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from runvm import __version__
from runvm.checkpoint import image, layer, overlay, support, warmed
from runvm.config import ANNOTATION_PREFIX, WARM, WARM_VOLUMES
from runvm.container import create as creating
from runvm.container import restore, state, wishes
from runvm.container.checkpoint import cpu_of
from runvm.errors import CheckpointError, HostError, UnsupportedError, reason
from runvm.hypervisor import drivers
from runvm.linux import files, process
from runvm.log import log
from runvm.protocol import version
from runvm.records import NamedTuple
from runvm.sandbox import placement
from runvm.shares import virtiofs

if TYPE_CHECKING:
    from runvm.container.context import Context
    from runvm.container.options import CreateOptions
    from runvm.container.plans import ContainerPlan
    from runvm.container.restore import Saved
    from runvm.container.wishes import Wish
    from runvm.hypervisor.driver import Driver
    from runvm.oci.spec import Mount, Spec

_ENGINES = (
    "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/run/.containerenv", "/var/run/.containerenv",
    "/run/secrets", "/var/run/secrets", "/dev/termination-log",
)  # fmt: skip
"""Where engines mount files that they make for each container: no volumes, and no container is told by their names."""
_HOOKS = ("createContainer", "startContainer")
"""Those that see the container, and have run in the warmed one already."""
_OWN_SETTINGS = ("state_dir", "log_file", "log_format", "log_level", "debug_console", "boot_timeout_s")
"""Settings that don't show in a guest."""


class Chance(NamedTuple):
    """A container that can be started warm: its *plan*, by a hypervisor that can do it, its *key*, the *upper*
    directory of its root's overlay, and what it is to go on from, None where it is the first."""

    plan: ContainerPlan
    key: str
    upper: str
    saved: Saved | None


def look(ctx: Context, plan: ContainerPlan) -> Chance | None:
    """Whether the container can be started warm; None, and the log has the reason, where it starts as any other. Raises
    ConfigError."""
    wanted = wishes.read(plan.spec.annotations)
    # 'auto' may mean one that makes no checkpoints
    plan = plan._replace(config=plan.config._replace(hypervisor=drivers.with_checkpoints(plan.config)))
    try:
        driver = drivers.load(plan.config)
        found = overlay.of(plan.spec.root_path)
        identity = None if found is None else overlay.identity(found)
        why = _unfit(plan, wanted, driver, identity)
        if why or found is None or identity is None:
            log.warning(f"{WARM}: no warm start: {why}")
            return None
        name = key(plan, driver, identity)
        directory = warmed.directory(plan.config, name)
        saved = _saved(plan, driver, directory)
        if saved is None:  # else it has been found out
            support.check(plan.config, "a warm start", "")
    except (OSError, HostError, UnsupportedError) as error:
        log.warning(f"{WARM}: no warm start: {error}")
        return None
    if warmed.is_hopeless(directory):
        log.warning(f"{WARM}: no warm start: it has failed repeatedly; 'runvm template prune' makes it be tried again")
        return None
    return Chance(plan, name, found.upper, saved)


def key(plan: ContainerPlan, driver: Driver, identity: str) -> str:
    """The name of the checkpoint of a warm container like this one. Raises OSError, HostError."""
    from runvm.guest import image as guests

    settings = {name: value for name, value in plan.config._asdict().items() if name not in _OWN_SETTINGS}
    daemon = virtiofs.program(plan.config)
    status = os.stat(daemon)
    parts = {
        "versions": [image.FORMAT, __version__, version.PROTOCOL, driver.name, driver.version_key()],
        "virtiofsd": [daemon, status.st_size, status.st_mtime_ns],
        "guest": guests.resolve(plan.config, driver.capabilities.kernel_format).key,
        "settings": settings,
        "processors": len(os.sched_getaffinity(0)),
        "root": identity,
        # a program that has seen the end of its input never reads it again
        "input": not files.is_null(0),
        "config": alike(plan.spec),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def alike(spec: Spec) -> dict[str, Any]:
    """What of a config.json two containers have in common that can go on from one checkpoint. Raises OSError for a
    volume that isn't there."""
    raw = spec.raw
    found = {name: value for name, value in raw.items() if name not in ("hostname", "domainname", "hooks", "root")}
    found["root"] = spec.root_readonly
    found["hooks"] = {kind: value for kind, value in raw.get("hooks", {}).items() if kind in _HOOKS}
    found["annotations"] = {
        name: value for name, value in spec.annotations.items() if name.startswith((ANNOTATION_PREFIX, "run.oci."))
    }
    host_name = f"HOSTNAME={spec.hostname}"
    found["process"] = {
        **{name: value for name, value in raw["process"].items() if name not in ("consoleSize", "selinuxLabel")},
        # Podman has environment and mounts in another order each time; of one name the last counts
        "env": sorted((entry for entry in spec.process.env if entry != host_name), key=lambda e: e.partition("=")[0]),
    }
    linux = raw.get("linux", {})
    found["linux"] = {
        **{name: value for name, value in linux.items() if name not in ("cgroupsPath", "mountLabel", "namespaces")},
        "namespaces": sorted(kind for kind, path in spec.namespaces.items() if not _is_hosts(kind, path)),
    }
    mounts = ([mount.destination, mount.type, sorted(mount.options), _source(mount)] for mount in spec.mounts)
    found["mounts"] = sorted(mounts, key=lambda entry: str(entry[0]))
    return found


def create(ctx: Context, cid: str, options: CreateOptions, chance: Chance, terminal_master: list[int] | None) -> None:
    """`create` of a container that goes on from a warm one, once it is started; or is as any other, where that doesn't
    come up. Raises: RunvmError; nothing half-made is left then."""
    saved, plan = chance.saved, chance.plan
    assert saved is not None  # else there is nothing to go on from
    journal = state.journal(ctx, cid)
    with creating.making(ctx, cid) as (failed, held):
        restoration = restore.Restoration(ctx, cid, plan, failed, held)
        place = restoration.prepare()
        _show_layer(saved, plan, journal)
        restoration.make_view()
        restoration.restore_vm(saved, fall_back=True)
        with creating.explaining(place.sandbox):
            failure = restoration.await_vm(place)
            if failure:
                _fall_back(plan, saved, journal, failure)
                if not warmed.is_hopeless(saved.directory):
                    restoration.keep_warm(chance.key, chance.upper)
                restoration.create_in_guest(place)
            else:
                restoration.take_up(place, saved, at_start=True)
        warmed.note_use(saved.directory)
        restoration.release(options, terminal_master)
        with suppress(FileNotFoundError):  # it isn't there after a fall-back
            os.unlink(journal)
    log.debug("create: done, warm")


def _show_layer(saved: Saved, plan: ContainerPlan, journal: str) -> None:
    """Before anything is mounted in the root: what is replaced there would take a mount along. Where `create` fails, or
    is killed, delete.clear() undoes it. Raises HostError, UnsupportedError."""
    keep = set()
    for mount in plan.spec.mounts:
        path = mount.destination
        while path != "/":
            keep.add(path)
            path = os.path.dirname(path)
    try:
        layer.apply(f"{saved.directory}/{layer.NAME}", plan.spec.root_path, journal, keep)
    except OSError as error:
        raise HostError(f"what the warm container had written can't be copied: {reason(error)}") from error


def _fall_back(plan: ContainerPlan, saved: Saved, journal: str, failure: str) -> None:
    """The checkpoint is no good: have the root as it was, but for what mounts lie on. Raises HostError where that can't
    be."""
    warmed.fail(saved.directory)
    log.warning(f"{WARM}: no warm start, the checkpoint is dropped: {failure}")
    try:
        layer.undo(plan.spec.root_path, journal)
    except (OSError, UnsupportedError) as error:
        raise HostError(f"the warm start has failed, and {error}", do="start it again", details=failure) from error


def _unfit(plan: ContainerPlan, wanted: Wish, driver: Driver, identity: str | None) -> str:
    """Why the container can't be started warm, '' where it can."""
    spec = plan.spec
    if not driver.capabilities.checkpoint:
        return f"hypervisor '{driver.name}' makes no checkpoints"
    if placement.pod_of(spec) or not placement.is_new(plan.config, spec):
        return "the container shares a virtual machine with others"
    if identity is None:
        return "its root file system is no overlay, or one that had been written to before"
    volumes = [mount.destination for mount in spec.mounts if _is_volume(mount) and not _is_read_only(mount)]
    if volumes and not wanted.volumes:
        return (
            f"it has volumes that can be written to: {', '.join(volumes)} (annotation {WARM_VOLUMES} would allow them)"
        )
    return ""


def _saved(plan: ContainerPlan, driver: Driver, directory: str) -> Saved | None:
    """The checkpoint to go on from. One that is no good is dropped."""
    if not os.path.exists(directory):
        return None
    try:
        saved = restore.read(directory)
        restore.check_bundle(saved, plan)
        machine = saved.machine
        if saved.manifest.hardware != driver.hardware(machine) or saved.manifest.cpu != cpu_of(machine):
            raise CheckpointError("it is of another machine")
        if not os.path.isdir(f"{directory}/{layer.NAME}"):
            raise CheckpointError("it has no layer")
    except CheckpointError as error:
        log.warning(f"the checkpoint of a warm container is dropped: {error}")
        warmed.drop(directory)
        return None
    return saved


def _is_hosts(kind: str, path: str) -> bool:
    return bool(path) and process.same_namespace(path, f"/proc/self/ns/{process.namespace_name(kind)}")


def _is_volume(mount: Mount) -> bool:
    return (mount.is_bind or mount.type == "overlay") and mount.destination not in _ENGINES


def _is_read_only(mount: Mount) -> bool:
    return any(option in ("ro", "rro") for option in mount.options)


def _source(mount: Mount) -> Any:
    if not _is_volume(mount):
        return "" if mount.is_bind else mount.source
    found = os.stat(mount.source)
    return [mount.source, found.st_dev, found.st_ino]
