"""A VM's growth while it runs: memory and virtual CPUs, as its containers' limits ask, and memory without a limit as it
is needed (demand). Virtual CPUs are never taken away."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from runvm.errors import RunvmError, UnsupportedError
from runvm.sandbox import sizes
from runvm.sandbox.demand import Demand

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from runvm.config import Config
    from runvm.hypervisor.driver import Answered, Capabilities, Machine, Vm
    from runvm.linux.loop import Loop
    from runvm.sandbox.guest_link import GuestLink
    from runvm.sandbox.members import Member

    Done = Callable[[RunvmError | None, bool], None]


class Growth:
    """Of one VM, *machine* at its start."""

    def __init__(
        self,
        loop: Loop,
        config: Config,
        machine: Machine,
        max_mib: int,
        vm: Vm,
        agent: GuestLink,
        capabilities: Capabilities,
    ) -> None:
        self._config = config
        self._machine = machine
        self._max_mib = max_mib
        self._vm = vm
        self._capabilities = capabilities
        self.grown_mib = 0
        self._members: Collection[Member] = ()
        self.demand = Demand(loop, agent, resize=self._resize, total=self._total_mib, limit=self._limit_mib)
        self.vcpus = machine.vcpus

    def resume(self, members: Collection[Member], grown_mib: int, extra_mib: int, *, watched: bool) -> None:
        """The VM comes from a checkpoint: it has grown by *grown_mib*, *extra_mib* of those by need, for which the
        guest may have been told to watch."""
        self._members = members
        self.grown_mib = grown_mib
        self.demand.resume(extra_mib, told=watched)

    def fit(self, members: Collection[Member], limits: dict[str, Any], done: Done) -> None:
        """Give the VM the memory that its containers may use, and the virtual CPUs that the *limits* of one of them
        call for (an OCI resources object, in which the host's CPUs are made the guest's).

        *done* gets an error or None, and whether CPUs were plugged in, which the guest has to take into use. Raises
        UnsupportedError for more CPUs or memory than it can have.
        """
        self._members = members
        if not self._capabilities.hotplug_memory:
            self._check_fixed(max((member.limit_mib for member in members), default=0))
        mib = self._wanted_mib()
        vcpus = self._wanted_vcpus(limits)
        plugged = vcpus > self.vcpus
        steps: list[Callable[[Callable[[RunvmError | None], None]], None]] = []
        if mib > self.grown_mib:
            steps.append(lambda answered: self._vm.grow(mib, answered))
            self.grown_mib = mib
        if plugged:
            steps.append(lambda answered: self._vm.plug_vcpus(vcpus, answered))
            self.vcpus = vcpus

        def proceed(error: RunvmError | None) -> None:
            if error is not None or not steps:
                done(error, plugged)
            else:
                steps.pop(0)(proceed)

        proceed(None)

    def _wanted_mib(self) -> int:
        """Beyond what it started with, in MiB."""
        if not self._capabilities.hotplug_memory:
            return 0
        limits = [member.limit_mib for member in self._members]
        pod = self._pod_mib()
        if pod:
            limits = [max(pod, sum(limits))]  # the pod's is the sum of its containers' to come
        wanted = sizes.memory_mib(self._config, limits, self._max_mib) + self.demand.extra_mib
        return max(0, min(wanted - self._machine.memory_mib, self._machine.growth_mib))

    def _pod_mib(self) -> int:
        return next((member.pod_mib for member in self._members if member.pod_mib), 0)

    def _total_mib(self) -> int:
        """What the VM has, or is about to have."""
        return self._machine.memory_mib + max(self.grown_mib, self._wanted_mib())

    def _limit_mib(self) -> int:
        """What it may come to have by need; 0 where its containers' limits say how much that is."""
        config = self._config
        if not self._capabilities.hotplug_memory or config.memory_mib or self._pod_mib():
            return 0
        if all(member.limit_mib for member in self._members):
            return 0
        limit = self._machine.memory_mib + self._machine.growth_mib
        return min(limit, config.max_memory_mib or limit, self._max_mib or limit)

    def _resize(self, answered: Answered) -> None:
        """As large as it should be by now, which may be less than it is."""
        self.grown_mib = self._wanted_mib()
        self._vm.grow(self.grown_mib, answered)

    def _check_fixed(self, limit_mib: int) -> None:
        """Raise UnsupportedError where a limit is above the memory of a VM that can't grow."""
        if limit_mib > self._machine.memory_mib and not self._config.memory_mib:
            raise UnsupportedError(
                f"the virtual machine has {self._machine.memory_mib} MiB of memory and can't grow, and {limit_mib} MiB"
                " are asked for",
                do="set the limit when the virtual machine's first container is created",
            )

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
        if self._capabilities.max_vcpus == 1 and cpu.get("cpus"):
            limits["cpu"] = {key: value for key, value in cpu.items() if key not in ("cpus", "mems")}  # of the only one
        elif cpu.get("cpus"):
            count = min(sizes.count_cpus(str(cpu["cpus"])), max(wanted, self.vcpus))
            limits["cpu"] = {**cpu, "cpus": f"0-{count - 1}"}
        return max(wanted, self.vcpus)
