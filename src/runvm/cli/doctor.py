"""`runvm doctor`: would a container start on this host?"""

from __future__ import annotations

from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "doctor",
    flags=(Flag("json", "print the results as JSON"),),
    description="Check what this host needs: QEMU, virtiofsd, a guest image, network devices, memory, cgroups, and KVM "
    "by booting a guest with it. For each thing that is missing, the command that mends it is shown. Ends with 0 "
    "only if a container would start.",
    examples=(("", "runvm doctor"),),
)


def run(ctx: Context, args: Args) -> int:
    """Run the checks; 1 if one that is needed fails."""
    from runvm.host import doctor

    return doctor.run(ctx.config, json=args.on("json"))
