"""`runvm image`: what virtual machines boot: the guest's kernel and its initramfs."""

from __future__ import annotations

import time

from runvm.cli.common import size, table, timestamp, write, write_json
from runvm.cli.grammar import Command, Flag
from runvm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context
    from runvm.guest.image import Built

COMMAND = Command(
    "image",
    words="<build|list|prune>",
    children=(
        Command(
            "build",
            help="build the guest image and make it the current one",
            flags=(
                Flag("update", "take the newest packages, security updates among them", "u"),
                Flag("arch", "the processor architecture of the guest", metavar="ARCH", choices=("amd64", "arm64")),
            ),
            description="Build the guest image from Debian's packages: downloaded and unpacked, never installed on "
            "this host, and of the same release on every host. An image that is there is built anew of the packages "
            "that it has, and a warning says when newer ones are there; --update takes those. Fast where nothing has "
            "changed. Prints the image's name. Containers of another architecture than this host's need an image of "
            "that one (--arch), which is kept beside this host's.",
            examples=(
                ("", "runvm image build"),
                ("security updates of the guest", "runvm image build --update"),
                ("for containers of another architecture", "runvm image build --arch arm64"),
            ),
        ),
        Command(
            "list",
            help="list the guest images",
            flags=(
                Flag("format", "what to print", "f", metavar="FORMAT", default="table", choices=("table", "json")),
                Flag("quiet", "print names only", "q"),
            ),
            examples=(("", "runvm image list"),),
        ),
        Command(
            "prune",
            help="remove old guest images",
            flags=(Flag("keep", "how many of the newest stay", metavar="N", default="1", number=True),),
            description="Remove all but the newest images. The current one stays, and those that a virtual machine "
            "runs from, and --keep counts for each architecture. Prints the names of the removed ones.",
            examples=(("", "runvm image prune --keep 2"),),
        ),
    ),
    description="Manage guest images: the kernel, modules and initramfs that virtual machines boot. The "
    "configuration's key image chooses one; without it the one built last is used.",
)


def run(ctx: Context, args: Args) -> int:
    """Call the subcommand's verb."""
    from runvm.guest import image
    from runvm.linux import architecture

    if args.command.name == "build":
        from runvm.log import log, progress

        config = ctx.config._replace(arch=args.text("arch") or architecture.chosen(ctx.config.arch))
        write(image.build(config, progress, log.warning, update=args.on("update")).name + "\n")
    elif args.command.name == "list":
        built = image.list_images(ctx.config)
        if args.on("quiet"):
            write("".join(f"{each.name}\n" for each in built))
        elif args.text("format") == "json":
            write_json([each._asdict() for each in built])
        else:
            write(rendered(built))
    else:
        write("".join(f"{name}\n" for name in image.prune(ctx.config, keep_of(args))))
    return 0


def keep_of(args: Args) -> int:
    """How many images `prune` leaves."""
    keep = args.number("keep")
    if keep < 0:
        raise UsageError(f'invalid value "{keep}" for flag --keep', do="it takes a number from 0")
    return keep


def rendered(built: list[Built]) -> str:
    """The table of `image list`."""
    rows = [["NAME", "ARCH", "KERNEL", "PACKAGES OF", "CREATED", "SIZE", "CURRENT"]]
    rows += [
        [
            each.name,
            each.architecture,
            each.kernel_version,
            age(each.packages_taken),
            timestamp(each.created),
            size(each.size),
            "yes" if each.current else "",
        ]
        for each in built
    ]
    return table(rows)


def age(taken: int) -> str:
    """How long ago an image's packages were the newest."""
    if not taken:
        return "unknown"
    days = int(time.time() - taken) // 86400
    return "today" if days < 1 else "yesterday" if days == 1 else f"{days} days ago"
