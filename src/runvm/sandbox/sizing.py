"""How large a VM is, and what its containers' limits make of that while it runs: memory and virtual CPUs only grow."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from runvm.errors import UnsupportedError
from runvm.sandbox import resources

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runvm.config import Config
    from runvm.hypervisor.driver import Machine, Vm
    from runvm.sandbox.members import Member

_SECONDS = 5.0
"""How long the VMM may take to answer."""


class Sizing:
    """The size of one VM, *machine* at its start."""

    def __init__(self, config: Config, machine: Machine, most_mib: int, vm: Vm) -> None:
        self._config = config
        self._machine = machine
        self._most_mib = most_mib
        self._vm = vm
        self._grown_mib = 0
        self.vcpus = machine.vcpus

    def memory(self, members: Iterable[Member]) -> None:
        """Give the VM the memory that its containers may use; it never shrinks, but what is free goes back to the
        host. Raises VmmError, DeadlineError."""
        limits = [member.limit_mib for member in members]
        pod = [member.pod_mib for member in members if member.pod_mib]
        if pod:
            limits = [max(pod[0], sum(limits))]  # the pod's is the sum of its containers' to come
        wanted = resources.memory_mib(self._config, limits, self._most_mib)
        wanted = min(wanted - self._machine.memory_mib, self._machine.growth_mib)
        if wanted > self._grown_mib:
            self._vm.grow(wanted, deadline=time.monotonic() + _SECONDS)
            self._grown_mib = wanted

    def processors(self, limits: dict[str, Any]) -> bool:
        """Give the VM the virtual CPUs that a container's *limits* (an OCI resources object, changed) call for, and
        make the host's CPUs in it the guest's. True where some were plugged in, which the guest has to take into use.

        Raises UnsupportedError for more than it can have, VmmError, DeadlineError.
        """
        cpu = limits.get("cpu", {})
        # not those that this process may use: its cgroup is the container's, whose limits are just being changed
        available = os.cpu_count() or 1
        wanted = self.vcpus if self._config.vcpus else resources.wanted_vcpus(cpu, available) or self.vcpus
        if wanted > self._machine.most_vcpus:
            raise UnsupportedError(
                f"the virtual machine can have {self._machine.most_vcpus} CPUs at most, and {wanted} are asked for",
                do="set the limit when the container is created",
            )
        plugged = wanted > self.vcpus
        if plugged:
            self._vm.plug_vcpus(wanted, deadline=time.monotonic() + _SECONDS)
            self.vcpus = wanted
        if cpu.get("cpus"):
            count = min(resources.count_cpus(str(cpu["cpus"])), self.vcpus)
            limits["cpu"] = {**cpu, "cpus": f"0-{count - 1}"}
        return plugged
