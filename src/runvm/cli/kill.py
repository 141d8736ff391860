"""`runvm kill`: send a signal to a container."""

from __future__ import annotations

from runvm.cli.common import ID, container_id, for_each, matching
from runvm.cli.grammar import Command, Flag
from runvm.cli.signals import parse_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "kill",
    words=f"{ID} [signal]",
    min_args=1,
    max_args=2,
    flags=(
        Flag("all", "send it to every process of the container, not only the first", "a"),
        Flag("regex", "the id is a regular expression: send it to every container whose id it is found in", "r"),
    ),
    description="Send a signal to the container's first process; without one, TERM. A signal is a number or a name, "
    "with or without SIG, in either case: 9, KILL, sigkill, RTMIN+3.",
    examples=(("", "runvm kill web1"), ("", "runvm kill --all web1 KILL")),
)


def run(ctx: Context, args: Args) -> int:
    """Call the verb, once or for each match."""
    from runvm.container.kill import kill

    everyone = args.on("all")
    if not args.on("regex"):
        cid, signal = container_id(args), signal_of(args)
        kill(ctx, cid, signal, all=everyone)
        return 0
    from runvm.container.state import load_all

    signal = signal_of(args)
    found = matching(args.words[0], [record.id for record in load_all(ctx)])
    return for_each(found, lambda cid: kill(ctx, cid, signal, all=everyone))


def signal_of(args: Args) -> int:
    """The number of the signal to send."""
    return parse_signal(args.words[1] if len(args.words) > 1 else "")
