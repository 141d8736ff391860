"""A running container's limits: the VM grows as they ask, then the guest enforces them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import UnsupportedError
from runvm.protocol.messages import Done, Failed, Update, UseCpus
from runvm.sandbox import sizes

if TYPE_CHECKING:
    from collections.abc import Collection

    from runvm.errors import RunvmError
    from runvm.protocol.messages import Json
    from runvm.sandbox.clients import Reply
    from runvm.sandbox.members import Member
    from runvm.sandbox.running import RunningVm


def enforce(vm: RunningVm, members: Collection[Member], member: Member, resources: Json, reply: Reply) -> None:
    """Give *member*, one of *members*, the limits *resources*. Raises UnsupportedError for what the VM can't have."""
    growth, agent = vm.growth, vm.agent
    request = Update(member.name, resources)
    before = member.limit_mib
    if resources.get("memory", {}).get("limit"):
        member.limit_mib = sizes.limit_mib(resources)

    def enforced(answer: Done | Failed) -> None:
        if isinstance(answer, Done):
            growth.demand.arm()  # what had a limit may have none by now
        reply(answer)

    def resized(error: RunvmError | None, plugged: bool) -> None:
        if error is not None:
            reply(Failed(str(error)))
        elif plugged:
            agent.ask(UseCpus(growth.vcpus), used)
        else:
            agent.ask(request, enforced)

    def used(answer: Done | Failed) -> None:
        if isinstance(answer, Failed):
            reply(answer)
        else:
            agent.ask(request, enforced)

    try:
        growth.fit(members, resources, resized)
    except UnsupportedError:
        member.limit_mib = before
        raise
