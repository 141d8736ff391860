"""`runvm resume`: let a paused container's processes go on."""

from __future__ import annotations

from runvm.cli.common import ID, container_id
from runvm.cli.grammar import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "resume",
    words=ID,
    min_args=1,
    max_args=1,
    description="Let the processes of a container that 'runvm pause' suspended go on.",
    examples=(("", "runvm resume web1"),),
)


def run(ctx: Context, args: Args) -> int:
    """Call the verb."""
    from runvm.container.pause import resume

    resume(ctx, container_id(args))
    return 0
