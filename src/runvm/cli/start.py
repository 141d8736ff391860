"""`runvm start`: let the process of a created container run."""

from __future__ import annotations

from runvm.cli.common import ID, container_id
from runvm.cli.grammar import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "start",
    words=ID,
    min_args=1,
    max_args=1,
    description="Run the process of a container that 'runvm create' made. Returns as soon as it runs.",
    examples=(("", "runvm create web1\nrunvm start web1"),),
)


def run(ctx: Context, args: Args) -> int:
    """Call the verb."""
    from runvm.container.verbs import start

    start(ctx, container_id(args))
    return 0
