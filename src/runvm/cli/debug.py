"""`runvm debug`: a look into a container's virtual machine."""

from __future__ import annotations

from runvm.cli.common import ID, checked_id, container_id
from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "debug",
    words="<console|shell|logs>",
    children=(
        Command(
            "console",
            help="show the guest kernel's console",
            words=ID,
            min_args=1,
            max_args=1,
            description="Print what the guest's kernel and agent wrote on the console. The configuration's "
            "debug_console makes that more than warnings.",
            examples=(("", "runvm debug console web1"),),
        ),
        Command(
            "shell",
            help="run a shell in the guest, outside the container",
            words=f"{ID} [command [argument ...]]",
            min_args=1,
            max_args=-1,
            hands_on=True,
            description="Run a command in the virtual machine itself, next to the agent, not in the container; without "
            "one, a shell, on a terminal if it is called from one. Its programs are busybox's and the agent's. "
            "Ends with the command's exit code.",
            examples=(("", "runvm debug shell web1"), ("", "runvm debug shell web1 cat /proc/meminfo")),
        ),
        Command(
            "logs",
            help="show what runvm wrote while it ran the container",
            words=ID,
            min_args=1,
            max_args=1,
            flags=(Flag("follow", "go on as lines are added", "f"),),
            description="Print the logs of the container's virtual machine: supervisor, hypervisor, shares, agent.",
            examples=(("", "runvm debug logs --follow web1"),),
        ),
    ),
    description="Look into a container's virtual machine when something is wrong with it.",
)


def run(ctx: Context, args: Args) -> int:
    """Call the subcommand's verb."""
    from runvm.container import debug

    if args.command.name == "console":
        return debug.console(ctx, container_id(args))
    if args.command.name == "shell":
        return debug.shell(ctx, checked_id(args.words[0]), args.words[1:])
    return debug.logs(ctx, container_id(args), follow=args.on("follow"))
