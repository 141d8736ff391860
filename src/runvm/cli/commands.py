"""The table of commands: name → one line of help; a command's module is imported when it is called."""

from __future__ import annotations

from runvm.cli.grammar import nearest
from runvm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

# A command's module is runvm.cli.<name>; it has COMMAND (the grammar) and run(ctx, args) -> int
CONTAINER_COMMANDS = {
    "create": "create a container",
    "start": "start a created container",
    "run": "create and start a container",
    "exec": "run one more process in a container",
    "state": "show a container's state",
    "list": "list containers",
    "ps": "list a container's processes",
    "kill": "send a signal to a container",
    "delete": "delete a container",
    "pause": "suspend a container's processes",
    "resume": "let a paused container go on",
    "update": "change a container's limits",
    "events": "show a container's statistics and out-of-memory events",
    "spec": "write a config.json to begin with",
    "features": "show what this runtime can, as JSON",
    "checkpoint": "save a running container",
    "restore": "let a saved container go on",
}
HOST_COMMANDS = {
    "doctor": "check whether a container would start on this host",
    "install": "add runvm to an engine's runtimes",
    "uninstall": "take runvm out of an engine's runtimes",
    "config": "show the settings in force",
    "image": "build, list and remove guest images",
    "template": "list, make and remove snapshots of booted guests",
    "debug": "look into a container's virtual machine",
    "help": "show help on a command",
    "version": "show the version",
}
COMMANDS = {**CONTAINER_COMMANDS, **HOST_COMMANDS}

_UNKNOWN_COMMAND = 3


def command_module(name: str) -> ModuleType:
    """The module of the command *name*, imported now. Raises: UsageError if there is none."""
    if name not in COMMANDS:
        hint = f"{nearest(name, list(COMMANDS))}see 'runvm help'"
        raise UsageError(f"No help topic for '{name}'", do=hint, exit_code=_UNKNOWN_COMMAND)
    return __import__(f"runvm.cli.{name}", fromlist=["COMMAND"])
