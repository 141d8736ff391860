"""The verbs `create` and `start` as commands call them, with what a container's wish for warm starts adds to them: it
may go on from a checkpoint of another one that is alike, or be the one that such a checkpoint is taken of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.config import WARM
from runvm.container import create as creating
from runvm.container import plans
from runvm.container import start as starting

if TYPE_CHECKING:
    from runvm.container.context import Context
    from runvm.container.options import CreateOptions


def create(ctx: Context, cid: str, options: CreateOptions, *, terminal_master: list[int] | None = None) -> None:
    """See container.create. Raises: RunvmError; nothing half-made is left then."""
    plan = plans.plan(ctx, cid, options, own_terminal=terminal_master is not None)
    record = ("", "")
    if WARM in plan.spec.annotations:
        from runvm.container import warm

        chance = warm.look(ctx, plan)
        if chance is not None and chance.saved is not None:
            warm.create(ctx, cid, options, chance, terminal_master)
            return
        if chance is not None:
            plan, record = chance.plan, (chance.key, chance.upper)
    creating.create(ctx, cid, plan, options, terminal_master=terminal_master, warm=record)


def start(ctx: Context, cid: str) -> None:
    """See container.start."""
    record = starting.start(ctx, cid)
    if record.warm:
        from runvm.container import warming

        warming.begin(ctx, record)
