"""`runvm pause`: stop a container's processes where they are."""

from __future__ import annotations

from runvm.cli.common import ID, container_id
from runvm.cli.grammar import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "pause",
    words=ID,
    min_args=1,
    max_args=1,
    description="Suspend every process of the container until 'runvm resume'.",
    examples=(("", "runvm pause web1"),),
)


def run(ctx: Context, args: Args) -> int:
    """Call the verb."""
    from runvm.container.pause import pause

    pause(ctx, container_id(args))
    return 0
