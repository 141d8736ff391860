"""What a VM is to be, as `create` plans it, and what has been started for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor import boot
    from runvm.hypervisor.driver import Driver, Machine
    from runvm.linux.process import Identity
    from runvm.network.networks import HostNetworks
    from runvm.sandbox.registry import Sandbox
    from runvm.shares import virtiofs
    from runvm.shares.tree import Share


_SLOW_DISK = 20e6
"""Bytes a second that are read from the slowest disk that an image is restored from."""


class Restore(NamedTuple):
    """A checkpoint that a VM comes from: its *directory*, the *hashes* of its memory, and what its container was.

    It was called *before*, its directory in the share is *place*, which leads to *shares* as the process *shim* sees
    them and once led where *layout* says; its channel and network namespace have the same numbers again. *input* is
    what was on its way to it. Its memory takes *size* bytes in the image.
    """

    directory: str
    hashes: dict[str, str]
    size: int
    before: str
    place: str
    shares: dict[str, Share]
    shim: Identity
    layout: dict[str, str]
    channel: int
    network: int
    grown_mib: int
    extra_mib: int
    watched: bool
    input: bytes
    input_ended: bool

    @property
    def copy_seconds(self) -> float:
        """How long its memory may take to be copied, beside what a start may take."""
        return self.size / _SLOW_DISK


class VmPlan(NamedTuple):
    """What `create` hands over to a new supervisor.

    Descriptors, or -1: *namespace* is the first container's network namespace, *held* keeps `image prune` from the
    guest's image. *fallback* is a VM to start instead where the one of *restore* doesn't come up.
    """

    config: Config
    driver: Driver
    machine: Machine
    max_mib: int
    template: str
    sandbox: Sandbox
    modules: str
    namespace: int
    held: int
    restore: Restore | None = None
    fallback: VmPlan | None = None


class Started(NamedTuple):
    """What a VM's supervisor has started, all its own; *note* is what the user should know of it."""

    guest: boot.Guest
    daemon: virtiofs.Daemon
    networks: HostNetworks
    note: str = ""
