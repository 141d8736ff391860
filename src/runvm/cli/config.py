"""`runvm config`: the settings in force, and where each comes from."""

from __future__ import annotations

from runvm.cli.common import table, write, write_json
from runvm.cli.grammar import Command, Flag
from runvm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.config import Origin
    from runvm.container.context import Context

COMMAND = Command(
    "config",
    words="[key ...]",
    max_args=-1,
    config=False,
    flags=(
        Flag("json", "print JSON: key, value, origin and meaning of each"),
        Flag("example", "print a configuration file with every key, its meaning and its default"),
    ),
    description="Print the settings in force and where each value comes from: a default, or the configuration file "
    "(/etc/runvm/config.toml, or the one that $RUNVM_CONFIG names). With keys, print the values of these only. A "
    "mistake in the file is an error that names the key and what is allowed.",
    examples=(
        ("", "runvm config"),
        ("", "runvm config accelerator"),
        ("Begin a file:", "runvm config --example > /etc/runvm/config.toml"),
    ),
)


def run(ctx: Context, args: Args) -> int:
    """Print what the settings' module tells."""
    from runvm import config

    if args.on("example"):
        write(config.render_example())
        return 0
    found = config.explain()
    if args.words:
        by_key = {origin.key: origin for origin in found}
        for key in args.words:
            if key not in by_key:
                raise UsageError(f"unknown key {key}", do=f"it is one of {', '.join(by_key)}")
        found = [by_key[key] for key in args.words]
    if args.on("json"):
        write_json([origin._asdict() for origin in found], indent=2)
    elif args.words:
        write("".join(f"{plain(origin)}\n" for origin in found))
    else:
        write(rendered(found))
    return 0


def plain(origin: Origin) -> str:
    """A value as a script wants it: without quotes."""
    return str(origin.value).lower() if isinstance(origin.value, bool) else str(origin.value)


def rendered(found: list[Origin]) -> str:
    """Lines that are valid TOML, the origin as a comment."""
    from runvm.config import toml_value

    rows = [[f"{origin.key} = {toml_value(origin.value)}", f"# {origin.origin}"] for origin in found]
    return table(rows)
