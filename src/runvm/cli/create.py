"""`runvm create`: make a container and leave it waiting for `start`."""

from __future__ import annotations

from runvm.cli.common import CREATE_FLAGS, ID, WITHOUT_EFFECT, container_id, create_options
from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "create",
    words=ID,
    min_args=1,
    max_args=1,
    flags=(*CREATE_FLAGS, Flag("no-subreaper", f"{WITHOUT_EFFECT}: create doesn't wait for the container")),
    description="Make the container that the bundle describes, in a virtual machine, and leave it waiting: its process "
    "runs once 'runvm start' is called. A bundle is a directory with config.json (see 'runvm spec') and, as a rule, "
    "the root filesystem. The id must be new under this --root. stdin, stdout and stderr become the container's; a "
    "container with a terminal needs --console-socket.",
    examples=(
        ("The bundle is the current directory:", "runvm create web1"),
        ("As an engine calls it:", "runvm create --bundle /run/b/web1 --pid-file /run/b/web1/init.pid web1"),
    ),
)


def run(ctx: Context, args: Args) -> int:
    """Call the verb."""
    from runvm.container.interrupts import caught
    from runvm.container.verbs import create

    with caught():
        create(ctx, container_id(args), create_options(args))
    return 0
