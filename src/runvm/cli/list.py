"""`runvm list`: the containers under a root."""

from __future__ import annotations

from runvm.cli.common import table, write, write_json
from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context
    from runvm.container.state import ContainerRecord

COMMAND = Command(
    "list",
    flags=(
        Flag("format", "what to print", "f", metavar="FORMAT", default="table", choices=("table", "json")),
        Flag("quiet", "print ids only", "q"),
    ),
    description="List the containers under --root. Engines have a root of their own each; Docker's, for one, is "
    "/var/run/docker/runtime-runc/moby.",
    examples=(
        ("", "runvm list"),
        ("Those of Docker:", "runvm --root /var/run/docker/runtime-runc/moby list"),
        ("Ids of what runs:", "runvm list --format json | jq -r '.[] | select(.status == \"running\").id'"),
    ),
)


def run(ctx: Context, args: Args) -> int:
    """Print what the verb finds."""
    from runvm.container import state

    records = state.load_all(ctx)
    if args.on("quiet"):
        write("".join(f"{record.id}\n" for record in records))
    elif args.text("format") == "json":
        from runvm.cli.state import describe

        write_json([{**describe(record), "owner": owner(ctx, record)} for record in records])
    else:
        write(rendered([(record, owner(ctx, record)) for record in records]))
    return 0


def rendered(records: list[tuple[ContainerRecord, str]]) -> str:
    """runc's table, of containers with their owners."""
    rows = [["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]]
    rows += [[each.id, str(each.pid), each.status, each.bundle, each.created, owner] for each, owner in records]
    return table(rows)


def owner(ctx: Context, record: ContainerRecord) -> str:
    """The user whose container it is, by the owner of its directory, as runc has it; one without a name as '#1000'."""
    import os
    import pwd

    from runvm.container import state

    try:
        uid = os.stat(state.directory(ctx, record.id)).st_uid
    except FileNotFoundError:
        return ""  # deleted meanwhile
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
