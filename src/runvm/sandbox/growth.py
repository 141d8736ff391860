"""A VM's growth while it runs: memory and virtual CPUs, as its containers' limits ask. They never shrink, but what is
free of the memory goes back to the host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from runvm.errors import RunvmError, UnsupportedError
from runvm.sandbox import sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runvm.config import Config
    from runvm.hypervisor.driver import Capabilities, Machine, Vm
    from runvm.sandbox.members import Member

    Done = Callable[[RunvmError | None, bool], None]


class Growth:
    """Of one VM, *machine* at its start."""

    def __init__(self, config: Config, machine: Machine, max_mib: int, vm: Vm, capabilities: Capabilities) -> None:
        self._config = config
        self._machine = machine
        self._max_mib = max_mib
        self._vm = vm
        self._capabilities = capabilities
        self._grown_mib = 0
        self.vcpus = machine.vcpus

    def fit(self, members: Iterable[Member], limits: dict[str, Any], done: Done) -> None:
        """Give the VM the memory that its containers may use, and the virtual CPUs that the *limits* of one of them
        call for (an OCI resources object, in which the host's CPUs are made the guest's).

        *done* gets an error or None, and whether CPUs were plugged in, which the guest has to take into use. Raises
        UnsupportedError for more CPUs than it can have.
        """
        mib = self._wanted_mib(members)
        vcpus = self._wanted_vcpus(limits)
        plugged = vcpus > self.vcpus
        steps: list[Callable[[Callable[[RunvmError | None], None]], None]] = []
        if mib > self._grown_mib:
            steps.append(lambda answered: self._vm.grow(mib, answered))
            self._grown_mib = mib
        if plugged:
            steps.append(lambda answered: self._vm.plug_vcpus(vcpus, answered))
            self.vcpus = vcpus

        def proceed(error: RunvmError | None) -> None:
            if error is not None or not steps:
                done(error, plugged)
            else:
                steps.pop(0)(proceed)

        proceed(None)

    def _wanted_mib(self, members: Iterable[Member]) -> int:
        """Beyond what it started with, in MiB."""
        if not self._capabilities.hotplug_memory:
            return 0
        members = list(members)
        limits = [member.limit_mib for member in members]
        pod = [member.pod_mib for member in members if member.pod_mib]
        if pod:
            limits = [max(pod[0], sum(limits))]  # the pod's is the sum of its containers' to come
        wanted = sizes.memory_mib(self._config, limits, self._max_mib)
        return min(wanted - self._machine.memory_mib, self._machine.growth_mib)

    def _wanted_vcpus(self, limits: dict[str, Any]) -> int:
        cpu = limits.get("cpu", {})
        # not those that this process may use: its cgroup is the container's, whose limits are just being changed
        available = os.cpu_count() or 1
        wanted = self.vcpus if self._config.vcpus else sizes.wanted_vcpus(cpu, available) or self.vcpus
        if not self._capabilities.hotplug_cpu:
            wanted = min(wanted, self.vcpus)
        if wanted > self._machine.max_vcpus:
            raise UnsupportedError(
                f"the virtual machine can have {self._machine.max_vcpus} CPUs at most, and {wanted} are asked for",
                do="set the limit when the container is created",
            )
        if cpu.get("cpus"):
            count = min(sizes.count_cpus(str(cpu["cpus"])), max(wanted, self.vcpus))
            limits["cpu"] = {**cpu, "cpus": f"0-{count - 1}"}
        return max(wanted, self.vcpus)
