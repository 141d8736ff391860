"""`runvm help`: what --help prints, of all or of one command."""

from __future__ import annotations

from runvm.cli.common import write
from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "help",
    words="[command ...]",
    max_args=2,
    config=False,
    flags=(
        Flag("man", "print the manual page's source", hidden=True),
        Flag("completion", "print the completion of bash", hidden=True),
    ),
    description="Print the list of commands, or what one command does, its flags, and examples.",
    examples=(("", "runvm help exec"), ("", "runvm help image build")),
)


def run(ctx: Context, args: Args) -> int:
    """Print it."""
    if args.on("man"):
        from runvm.cli.manual import manual

        write(manual())
    elif args.on("completion"):
        from runvm.cli.completion import completion

        write(completion())
    else:
        from runvm.cli.usage import usage

        write(usage(args.words))
    return 0
