"""`runvm template`: snapshots of booted guests, from which virtual machines start."""

from __future__ import annotations

from runvm.cli.common import size, table, timestamp, write, write_json
from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context
    from runvm.hypervisor.template import Template

_SHOWN = ("warm", "driver", "accelerator", "architecture", "vcpus", "memory_mib")

COMMAND = Command(
    "template",
    words="<list|build|prune>",
    children=(
        Command(
            "list",
            help="list the templates",
            flags=(
                Flag("format", "what to print", "f", metavar="FORMAT", default="table", choices=("table", "json")),
                Flag("quiet", "print names only", "q"),
            ),
            examples=(("", "runvm template list"),),
        ),
        Command(
            "build",
            help="make the template of the default machine",
            flags=(
                Flag("arch", "the processor architecture of the guest", metavar="ARCH", choices=("amd64", "arm64")),
            ),
            description="Boot a guest now and leave a template of it, so that not even the first container waits for a "
            "boot. Prints the template's name.",
            examples=(("", "runvm template build"),),
        ),
        Command(
            "prune",
            help="remove all templates",
            description="Remove all templates, and all checkpoints of warm containers; the next start that wants one "
            "makes it anew. Prints the names of the removed ones.",
            examples=(("", "runvm template prune"),),
        ),
    ),
    description="Manage templates: snapshots of a booted guest, one for each size of machine, from which later virtual "
    "machines start without booting. They are made, renewed and dropped as needed. With them are the checkpoints of "
    "warm containers (annotation io.runvm.warm), shown as 'warm=CONTAINER'.",
)


def run(ctx: Context, args: Args) -> int:
    """Call the subcommand's verb."""
    from runvm.checkpoint import warmed
    from runvm.hypervisor import template

    if args.command.name == "build":
        from runvm.linux import architecture
        from runvm.sandbox import launch

        config = ctx.config._replace(arch=args.text("arch") or architecture.chosen(ctx.config.arch))
        write(launch.build_template(config).name + "\n")
    elif args.command.name == "prune":
        write("".join(f"{each.name}\n" for each in template.prune(ctx.config) + warmed.prune(ctx.config)))
    else:
        found = template.list_templates(ctx.config) + warmed.list_warmed(ctx.config)
        if args.on("quiet"):
            write("".join(f"{each.name}\n" for each in found))
        elif args.text("format") == "json":
            write_json([each._asdict() for each in found])
        else:
            write(rendered(found))
    return 0


def rendered(templates: list[Template]) -> str:
    """The table of `template list`: of what each was made from, that by which people tell them apart."""
    rows = [["NAME", "CREATED", "SIZE", "MADE FROM"]]
    for each in templates:
        shown = {key: each.made_from[key] for key in _SHOWN if key in each.made_from}
        shown["image"] = each.made_from.get("image_key", "")[:12]  # `image list`'s name of it
        made_from = " ".join(f"{key}={value}" for key, value in shown.items())
        rows.append([each.name, timestamp(each.created), size(each.size), made_from])
    return table(rows)
