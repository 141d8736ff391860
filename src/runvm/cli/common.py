"""What several commands share: the container id, the flags of create and run, and output."""

from __future__ import annotations

import os

from runvm.cli.globals import absolute
from runvm.cli.grammar import Flag
from runvm.errors import RunvmError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.options import CreateOptions

ID = "<container-id>"

# runc's ^[\w+-\.]+$, in which +-\. is a range that has the comma, too
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+,-.")
# An id names a directory
_ID_MAX = 255

WITHOUT_EFFECT = "accepted for the callers of runc and crun, without effect"
"""How the help begins of a flag that is taken and does nothing."""

CONSOLE_SOCKET = Flag(
    "console-socket", "a Unix socket that is sent the master end of the container's terminal", metavar="SOCKET"
)
PID_FILE = Flag("pid-file", "write the process id into this file", metavar="FILE")
PIDFD_SOCKET = Flag(
    "pidfd-socket", "a Unix socket that is sent a pidfd of the container's process on the host", metavar="SOCKET"
)
PRESERVE_FDS = Flag(
    "preserve-fds",
    "hand this many more file descriptors on, those after stdio",
    metavar="N",
    default="0",
    number=True,
)
CREATE_FLAGS = (
    Flag("bundle", "the bundle's directory (default: the current one)", "b", metavar="DIR"),
    Flag("config", "another file than the bundle's config.json", "f", metavar="FILE"),
    CONSOLE_SOCKET,
    PID_FILE,
    PIDFD_SOCKET,
    PRESERVE_FDS,
    Flag("no-pivot", f"{WITHOUT_EFFECT}: pivot_root works in the guest"),
    Flag("no-new-keyring", f"{WITHOUT_EFFECT}: a container always has a session keyring of its own"),
)


def container_id(args: Args) -> str:
    """The first word, checked. Raises: UsageError with runc's message."""
    return checked_id(args.words[0])


def checked_id(text: str) -> str:
    """*text* if a container may be called so, which also means that it is one plain name of a directory."""
    if not text:
        raise UsageError("container id cannot be empty")
    if text in (".", "..") or len(text) > _ID_MAX or not _ID_CHARACTERS.issuperset(text):
        raise UsageError(
            "invalid container ID format", do=f"letters, digits and _+,-. make an id, {_ID_MAX} of them at most"
        )
    return text


def path_of(args: Args, flag: str) -> str:
    """The absolute path that *flag* gives, or ''."""
    given = args.text(flag)
    return absolute(given) if given else ""


def preserved_fds(args: Args) -> int:
    """--preserve-fds, which can't be negative."""
    count = args.number(PRESERVE_FDS.name)
    if count < 0:
        raise UsageError(f'invalid value "{count}" for flag --{PRESERVE_FDS.name}', do="it takes a number from 0")
    return count


def create_options(args: Args) -> CreateOptions:
    """The options of `create` and `run`. Relative paths are the caller's, not the bundle's."""
    from runvm.container.options import CreateOptions

    return CreateOptions(
        bundle=absolute(args.text("bundle") or "."),
        config_file=path_of(args, "config"),
        console_socket=path_of(args, "console-socket"),
        pid_file=path_of(args, "pid-file"),
        pidfd_socket=path_of(args, "pidfd-socket"),
        preserve_fds=preserved_fds(args),
    )


def write(text: str) -> None:
    """*text* to stdout, all of it and at once: nothing is left in a buffer that a fork would print again."""
    rest = memoryview(text.encode(errors="surrogateescape"))
    while rest:
        rest = rest[os.write(1, rest) :]


def write_json(value: object, *, indent: int | None = None) -> None:
    """*value* and a line end; without *indent* in one line without spaces, as Go's encoder writes it."""
    import json

    write(json.dumps(value, indent=indent, separators=None if indent else (",", ":")) + "\n")


def table(rows: list[list[str]]) -> str:
    """Rows in columns as Go's tabwriter sets them for runc: 12 wide at least, 3 apart, the last one open."""
    widths = [max(max(len(row[at]) for row in rows) + 3, 12) for at in range(len(rows[0]) - 1)]
    return "".join("".join(map(str.ljust, row, widths)) + row[-1] + "\n" for row in rows)


def size(count: int) -> str:
    """Bytes for people: '56.3 MiB'."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as the date and time in UTC."""
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def matching(pattern: str, ids: list[str]) -> list[str]:
    """crun's --regex: the *ids* in which the extended regular expression is found anywhere."""
    import re

    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f'"{pattern}" is not a regular expression: {error}') from error
    return [each for each in ids if compiled.search(each)]


def for_each(ids: list[str], action: Action) -> int:
    """What crun does with --regex: try all, warn of those that failed, and succeed."""
    from runvm.log import log

    for each in ids:
        try:
            action(each)
        except RunvmError as error:
            log.warning(f"{each}: {error}")
    return 0


if TYPE_CHECKING:
    from collections.abc import Callable

    Action = Callable[[str], None]
