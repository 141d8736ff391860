"""What a VM is to be, as `create` plans it, and what has been started for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor import boot
    from runvm.hypervisor.driver import Driver, Machine
    from runvm.network.networks import HostNetworks
    from runvm.sandbox.registry import Sandbox
    from runvm.shares import virtiofs


class VmPlan(NamedTuple):
    """What `create` hands over to a new supervisor.

    Descriptors, or -1: *namespace* is the first container's network namespace, *held* keeps `image prune` from the
    guest's image.
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


class Started(NamedTuple):
    """What a VM's supervisor has started, all its own; *note* is what the user should know of it."""

    guest: boot.Guest
    daemon: virtiofs.Daemon
    networks: HostNetworks
    note: str = ""
