"""Which VM a container belongs in: that of the containers whose namespaces it joins, else a new one."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runvm.errors import ContainerExistsError, HostError, SpecError, UnsupportedError, reason
from runvm.linux import architecture, process
from runvm.linux.process import Identity
from runvm.records import NamedTuple
from runvm.sandbox import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runvm.config import Config
    from runvm.oci.spec import Spec
    from runvm.sandbox.registry import Sandbox

JOINED = ("network", "ipc", "uts", "pid", "user", "cgroup")
_POD_ANNOTATIONS = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")
_PINNED = ("ipc", "uts")
"""Namespaces that CRI-O makes itself, as it does the network's, and holds by a bind mount: the first container of its
pod that joins one finds that no container owns it. A path below /proc is that of a process of another runtime's."""


class Placement(NamedTuple):
    """The VM to join (or a new one), per namespace type the container of that VM whose namespace is joined, and the
    architecture of the VM."""

    sandbox: Sandbox
    joins: dict[str, str]
    arch: str
    new: bool = False


class Enlisted(NamedTuple):
    """A container that some sandbox has, by its record there."""

    sandbox: Sandbox
    container: str
    shim: Identity
    namespaces: dict[str, int]
    cgroups: tuple[str, ...]
    pod: str
    arch: str


@contextmanager
def placed(config: Config, spec: Spec, cid: str) -> Iterator[Placement]:
    """Find the VM for the container *cid*, and hold its lock until the container is enlisted there.

    Raises: UnsupportedError where the namespaces joined are in different VMs, or in none, or the VM is of another
    architecture than *config* names, ContainerExistsError where the VM has a container of that id (of another --root),
    DeadlineError.
    """
    while True:
        found = _place(config, spec)
        if found is None:
            yield Placement(registry.new(config.state_dir), {}, architecture.chosen(config.arch), new=True)
            return
        with registry.locked(found.sandbox) as there:
            if not there or _place(config, spec) != found:
                continue  # what it was to share has ended meanwhile
            # one that has ended, too: until it is deleted, its id in that VM is taken
            if any(member.container == cid for member in _members(found.sandbox)):
                raise ContainerExistsError()
            yield found
            return


def is_new(config: Config, spec: Spec) -> bool:
    """Whether the container would get a VM of its own, as of now. Raises as placed() does."""
    return _place(config, spec) is None


def _place(config: Config, spec: Spec) -> Placement | None:
    """The VM to join, None for a new one."""
    paths = {kind: path for kind, path in spec.namespaces.items() if path and kind in JOINED}
    pod = pod_of(spec)
    if not paths and not pod:
        return None
    members = all_members(config)
    joins: dict[str, str] = {}
    chosen: Enlisted | None = None
    for kind, path in paths.items():
        if process.same_namespace(path, f"/proc/self/ns/{process.namespace_name(kind)}"):
            continue
        try:
            inode = os.stat(path).st_ino
        except OSError as error:
            raise SpecError(f"config.json: linux.namespaces: {kind}: {path}: {reason(error)}") from error
        owner = next((member for member in members if member.namespaces.get(kind) == inode), None)
        if owner is None:
            if kind == "network" or kind in _PINNED and pod and not path.startswith("/proc/"):
                continue  # a namespace that the engine made, and for the network filled
            raise UnsupportedError(
                f"the {kind} namespace {path} isn't a runvm container's: only containers of one virtual machine can share it"  # noqa: E501
            )
        if chosen is not None and owner.sandbox.name != chosen.sandbox.name:
            raise UnsupportedError("the namespaces to be joined are in different virtual machines")
        chosen = owner
        joins[kind] = owner.container
    if chosen is None and pod:
        chosen = next((member for member in members if member.pod == pod), None)
    if chosen is None:
        return None
    if config.arch not in (architecture.AUTO, chosen.arch):
        raise UnsupportedError(
            f"the container's programs are for {config.arch}, and the virtual machine that it would join is of"
            f" {chosen.arch}",
            do="containers that share namespaces or a pod have to be of one architecture",
        )
    return Placement(chosen.sandbox, joins, chosen.arch)


def pod_of(spec: Spec) -> str:
    """The id of the Kubernetes pod that the container is of, by the annotations of containerd, CRI-O or Podman; '' for
    none."""
    return next((spec.annotations[key] for key in _POD_ANNOTATIONS if spec.annotations.get(key)), "")


def enlist(
    sandbox: Sandbox,
    container: str,
    shim: Identity,
    kinds: tuple[str, ...],
    cgroups: tuple[str, ...],
    pod: str,
    arch: str,
) -> None:
    """Record a container of *sandbox*, with those namespaces of its shim which are its own, its host cgroup, *pod*
    (pod_of()), and the virtual machine's architecture. Raises HostError where the shim has ended, OSError."""
    namespaces = {kind: os.stat(f"/proc/{shim.pid}/ns/{process.namespace_name(kind)}").st_ino for kind in kinds}
    if not process.alive(shim):
        raise HostError("the container's process on the host has ended")
    directory = f"{sandbox.directory}/members"
    os.makedirs(directory, mode=0o700, exist_ok=True)
    temporary = f"{directory}/.{os.getpid()}"
    with open(temporary, "w") as file:
        json.dump(
            {
                "container": container,
                "shim": shim,
                "namespaces": namespaces,
                "cgroups": cgroups,
                "pod": pod or container,
                "arch": arch,
            },
            file,
        )
    os.rename(temporary, f"{directory}/{shim.pid}")


def discharge(sandbox: Sandbox, container: str) -> None:
    """Remove the container's record."""
    for member in _members(sandbox):
        if member.container == container:
            try:
                os.unlink(f"{sandbox.directory}/members/{member.shim.pid}")
            except FileNotFoundError:
                continue


def other(sandbox: Sandbox, container: str) -> Enlisted | None:
    """A container of the sandbox that still lives, besides *container*."""
    members = _members(sandbox)
    return next((member for member in members if member.container != container and process.alive(member.shim)), None)


def all_members(config: Config) -> list[Enlisted]:
    """Every living container of every sandbox, the oldest first: where several share a namespace, a younger one may
    still be under way."""
    base = f"{config.state_dir}/sandboxes"
    try:
        names = os.listdir(base)
    except FileNotFoundError:
        return []
    found = [member for name in names for member in _members(registry.locate(config.state_dir, name))]
    return sorted((member for member in found if process.alive(member.shim)), key=lambda member: member.shim.start)


def _members(sandbox: Sandbox) -> list[Enlisted]:
    try:
        names = os.listdir(f"{sandbox.directory}/members")
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for name in names:
        if name.startswith("."):
            continue
        try:
            with open(f"{sandbox.directory}/members/{name}") as file:
                body = json.load(file)
            namespaces = {str(kind): int(inode) for kind, inode in body["namespaces"].items()}
            cgroups = tuple(str(directory) for directory in body["cgroups"])
            container, pod, arch = str(body["container"]), str(body["pod"]), str(body["arch"])
            found.append(Enlisted(sandbox, container, Identity(*body["shim"]), namespaces, cgroups, pod, arch))
        except (OSError, ValueError, TypeError, KeyError):
            continue  # removed just now
    return found
