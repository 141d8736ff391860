"""`runvm delete`: remove what is left of a container, or with --force all of it."""

from __future__ import annotations

from runvm.cli.common import ID, container_id, for_each, matching
from runvm.cli.grammar import Command, Flag
from runvm.errors import ContainerNotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "delete",
    words=ID,
    min_args=1,
    max_args=1,
    flags=(
        Flag("force", "kill it first if it runs; succeed if there is no such container", "f"),
        Flag("regex", "the id is a regular expression: delete every container whose id it is found in", "r"),
    ),
    description="Remove a stopped container's state, and its virtual machine if that ran no other container.",
    examples=(("", "runvm delete web1"), ("Every test container, running or not:", "runvm delete -f --regex '^test-'")),
)


def run(ctx: Context, args: Args) -> int:
    """Call the verb, once or for each match."""
    from runvm.container.delete import delete

    force = args.on("force")
    if args.on("regex"):
        from runvm.container.state import load_all

        found = matching(args.words[0], [record.id for record in load_all(ctx)])
        return for_each(found, lambda cid: delete(ctx, cid, force=force))
    try:
        delete(ctx, container_id(args), force=force)
    except ContainerNotFoundError:
        # containerd calls `delete`, then `delete --force` to be sure: that one must not fail
        if not force:
            raise
    return 0
