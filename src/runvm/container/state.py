"""A container on disk: `<root>/<id>/state.json`, its lock, and the status, which is derived from what lives and
never believed.

The file is replaced atomically, by whoever holds the lock; reading takes no lock.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from runvm.errors import (
    ContainerExistsError,
    ContainerNotFoundError,
    DeadlineError,
    HostError,
    RunvmError,
    reason,
)
from runvm.linux import files, locking, process
from runvm.linux.process import Identity
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.container.context import Context

LOCK_SECONDS = 120.0
"""How long a command waits for another one on the same container; a create that has to boot a template takes
longest."""
_NAME = "state.json"
_CONFIG = "config.json"


class ContainerRecord(NamedTuple):
    """What is known of a container. *status* and *pid* are derived when it is loaded; *pid* is 0 unless the
    container lives. *cgroup_shared*: others were in its cgroup on the host before it."""

    id: str
    status: str
    pid: int
    bundle: str
    rootfs: str
    created: str
    annotations: dict[str, str]
    oci_version: str
    sandbox: str
    shim: Identity
    started: bool
    paused: bool
    terminal: bool
    cgroups: tuple[str, ...]
    namespaces: dict[str, str]
    complete: bool
    cgroup_shared: bool = False
    scope: str = ""
    """The unit of systemd's that its cgroup is, '' where systemd doesn't manage it."""
    hypervisor: str = ""
    """What its VM runs on, and what runs the guest's instructions; '' until that is known."""
    accelerator: str = ""
    arch: str = "auto"
    """Its VM's architecture."""
    warm: str = ""
    """The name of the checkpoint that is to be made of it once it is warm ('' for none), and the upper directory of its
    root's overlay."""
    upper: str = ""


class Lock:
    """The container's lock, held until closed: a context manager."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def directory(ctx: Context, cid: str) -> str:
    """Where the container's files are."""
    return f"{ctx.root}/{cid}"


def journal(ctx: Context, cid: str) -> str:
    """The file that is there while a warm start of the container changes its root (checkpoint.layer)."""
    return f"{directory(ctx, cid)}/layer"


def claim(ctx: Context, cid: str) -> Lock:
    """Make the directory of a new container and lock it. Raises ContainerExistsError."""
    files.make_directories(ctx.root, 0o711, exist_ok=True)
    path = directory(ctx, cid)
    while True:
        try:
            os.mkdir(path, 0o711)
        except FileExistsError:
            raise ContainerExistsError() from None
        try:
            return lock(ctx, cid)
        except ContainerNotFoundError:
            continue  # a delete had the lock first, and took this for what a killed create has left
        except HostError:
            os.rmdir(path)
            raise


def lock(ctx: Context, cid: str, *, timeout: float = LOCK_SECONDS) -> Lock:
    """Lock a container against other commands. Raises ContainerNotFoundError, DeadlineError, HostError."""
    path = directory(ctx, cid)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise ContainerNotFoundError() from None
    except OSError as error:
        raise HostError(f"{path}: {reason(error)}") from error
    deadline = time.monotonic() + timeout
    late = f"timed out after {timeout:.0f} s waiting for another command on container {cid}"
    try:
        locking.lock(fd, deadline=deadline, timeout_message=late)
    except DeadlineError:
        os.close(fd)
        raise
    # whoever held it may have deleted the container, and another one may have made one of the same name
    try:
        current = os.stat(path)
    except FileNotFoundError:
        os.close(fd)
        raise ContainerNotFoundError() from None
    if not os.path.samestat(current, os.fstat(fd)):
        os.close(fd)
        return lock(ctx, cid, timeout=max(0.0, deadline - time.monotonic()))
    return Lock(fd)


def save(ctx: Context, record: ContainerRecord) -> None:
    """Write the record, whole or not at all. Raises HostError."""
    prepare(ctx, record)()


def prepare(ctx: Context, record: ContainerRecord) -> Callable[[], None]:
    """Write the record beside the one in force, for what is about to be done; the function that is returned puts it in
    force once that has been done, and doesn't fail for want of space. Raises HostError."""
    body = record._asdict()
    for derived in ("id", "status", "pid"):
        del body[derived]
    path = f"{directory(ctx, record.id)}/{_NAME}"
    try:
        with open(f"{path}.new", "w", opener=files.private) as file:
            json.dump(body, file)
    except OSError as error:
        raise HostError(f"write {path}: {reason(error)}") from error
    return lambda: os.rename(f"{path}.new", path)


def save_config(ctx: Context, cid: str, text: bytes) -> None:
    """Keep the config.json that `create` has checked: later changes of the bundle's have no effect (runtime.md,
    Create)."""
    with open(f"{directory(ctx, cid)}/{_CONFIG}", "wb", opener=files.private) as file:
        file.write(text)


def load_config(ctx: Context, cid: str) -> dict[str, Any]:
    """What save_config() kept; {} where there is none. Raises RunvmError where it can't be read."""
    path = f"{directory(ctx, cid)}/{_CONFIG}"
    try:
        try:
            return _read_object(path)
        except FileNotFoundError:
            # runvm 0.1 kept none, but where the bundle's was
            path = str(_read_object(f"{directory(ctx, cid)}/{_NAME}").get("config_path", ""))
            return _read_object(path) if path else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunvmError(f"{path} can't be read: {error}", do=f"runvm delete --force {cid}") from error


def _read_object(path: str) -> dict[str, Any]:
    """Raises OSError, ValueError."""
    with open(path, "rb") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def load(ctx: Context, cid: str) -> ContainerRecord:
    """The container's record, its status as of now. Raises ContainerNotFoundError, RunvmError for a record that
    can't be read."""
    path = directory(ctx, cid)
    try:
        with open(f"{path}/{_NAME}") as file:
            body: dict[str, Any] = json.load(file)
        body["shim"] = Identity(*body["shim"])
        body["cgroups"] = tuple(body["cgroups"])
        known = {
            key: value for key, value in body.items() if key in ContainerRecord._fields
        }  # another version's record
        record = ContainerRecord(id=cid, status="stopped", pid=0, **known)
    except FileNotFoundError:
        if not os.path.isdir(path):
            raise ContainerNotFoundError() from None
        return _unfinished(cid)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunvmError(
            f"the state of container {cid} can't be read: {error}", do=f"runvm delete --force {cid}"
        ) from error
    if not record.shim.pid:
        return record._replace(status="creating")
    if not process.alive(record.shim):
        return record
    if not record.complete:
        return record._replace(status="creating")
    status = "paused" if record.paused else "running" if record.started else "created"
    return record._replace(status=status, pid=record.shim.pid)


def load_all(ctx: Context) -> list[ContainerRecord]:
    """Every container under the root, by name."""
    try:
        names = sorted(os.listdir(ctx.root))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        try:
            found.append(load(ctx, name))
        except RunvmError:
            continue
    return found


def _unfinished(cid: str) -> ContainerRecord:
    """A create is under way, or was killed before it had written anything."""
    return ContainerRecord(
        cid, "creating", 0, "", "", "0001-01-01T00:00:00Z", {}, "", "", Identity(0, 0), False, False, False, (), {}, False,  # noqa: E501
    )  # fmt: skip
