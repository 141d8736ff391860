"""The command line's grammar: tables of flags, and the parser that reads argv by them.

Every command has one Command table; --help, the manual page, the completion and the parser all read it. argparse costs
15 ms on each call (about as much as all of `runvm state`), hence this module, which imports nothing but our errors.

What is accepted is what runc (Go's urfave/cli) or crun (GNU argp) accept: `--flag value`, `--flag=value`,
`-flag value`, `--b value`, `-b value`, `-bvalue`, `-qf json`, `--bool=false`; a flag before or after the container id,
until `--`; the last of several values counts unless the flag takes many. Where a command hands words on (exec, ps),
everything after the first word that is no flag is the handed-on command's.
"""

from __future__ import annotations

from runvm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# Go's strconv.ParseBool, which reads what follows `--flag=`
_TRUE = ("true", "t", "1", "T", "TRUE", "True")
_FALSE = ("false", "f", "0", "F", "FALSE", "False")


class Flag:
    """One flag. With a *metavar* it takes a value, else it is a switch.

    *name* is the long name; *aliases* are more names, of one letter or more. *number* values are checked as they are
    read; *choices* are all the values allowed; *many* keeps each value given; *hidden* ones are accepted, not listed.
    """

    __slots__ = ("aliases", "choices", "default", "help", "hidden", "many", "metavar", "name", "number")

    def __init__(
        self,
        name: str,
        help: str,
        *aliases: str,
        metavar: str = "",
        default: str = "",
        number: bool = False,
        many: bool = False,
        choices: tuple[str, ...] = (),
        hidden: bool = False,
    ) -> None:
        self.name = name
        self.help = help
        self.aliases = aliases
        self.metavar = metavar
        self.default = default
        self.number = number
        self.many = many
        self.choices = choices
        self.hidden = hidden

    @property
    def spellings(self) -> list[str]:
        """As the user types it, short ones first: ['-b', '--bundle']. GNU's -? works and isn't told of."""
        names = sorted((name for name in (self.name, *self.aliases) if name != "?"), key=lambda name: len(name) > 1)
        return [("--" if len(name) > 1 else "-") + name for name in names]


HELP = Flag("help", "show this help", "h", "?")
_USAGE = Flag("usage", "show this help", hidden=True)  # GNU argp's


class Command:
    """One command: its flags and words, and what --help and the manual page say of it.

    *words* is how the words after the flags are written; there are from *min_args* to *max_args* of them (-1: any
    number). *hands_on*: the words after the first one are another program's, dashes and all. *children* are
    subcommands.
    *config*: whether the command needs the configuration file read.
    """

    __slots__ = (
        "children",
        "config",
        "description",
        "examples",
        "flags",
        "hands_on",
        "help",
        "max_args",
        "min_args",
        "name",
        "words",
    )

    def __init__(
        self,
        name: str,
        *,
        flags: tuple[Flag, ...] = (),
        words: str = "",
        min_args: int = 0,
        max_args: int = 0,
        hands_on: bool = False,
        children: tuple[Command, ...] = (),
        config: bool = True,
        help: str = "",
        description: str = "",
        examples: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.name = name
        self.flags = flags
        self.words = words
        self.min_args = min_args
        self.max_args = max_args
        self.hands_on = hands_on
        self.children = children
        self.config = config
        self.help = help
        self.description = description
        self.examples = examples


class Args:
    """What the user gave to *command*: flags by name, and the words in order."""

    __slots__ = ("_values", "command", "words")

    def __init__(self, command: Command, values: dict[str, list[str]], words: list[str]) -> None:
        self.command = command
        self.words = words
        self._values = values

    def given(self, name: str) -> bool:
        """Whether the flag is on the command line."""
        return name in self._values

    def on(self, name: str) -> bool:
        """Whether the switch is on."""
        return self.text(name) == "true"

    def text(self, name: str) -> str:
        """The flag's value, or its default."""
        values = self._values.get(name)
        return values[-1] if values else self._flag(name).default

    def number(self, name: str) -> int:
        """The flag's value as a number; 0 if it has none."""
        return parse_number(self.text(name) or "0")

    def texts(self, name: str) -> list[str]:
        """All values of a flag that may be given many times."""
        return list(self._values.get(name, ()))

    def _flag(self, name: str) -> Flag:
        return next(flag for flag in (*self.command.flags, HELP) if flag.name == name)


def parse(command: Command, argv: list[str], *, prefix: str = "") -> Args:
    """Read *argv* by the table *command*; *prefix* is the path of commands before it, for messages.

    With --help among the flags, nothing else is checked. Raises: UsageError.
    """
    path = f"{prefix} {command.name}".strip()
    if command.children:
        for at, word in enumerate(argv):
            if not word.startswith("-"):
                return parse(_child(command, word, path), argv[:at] + argv[at + 1 :], prefix=path)
    values, words = _Reader(command, path).read(argv)
    args = Args(command, values, words)
    if args.on(HELP.name):
        return args
    if command.children:
        _refuse(f'"{path}" requires a command', path, f"one of {', '.join(child.name for child in command.children)}; ")
    _check_count(command, len(words), path)
    return args


def parse_number(text: str) -> int:
    """A whole number as Go's ParseInt reads it: decimal, or with 0x, 0o, 0b. Raises: ValueError."""
    if not text.isascii() or text.strip() != text or len(text) > 64:
        raise ValueError(text)
    return int(text, 0) if text.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else int(text)


def nearest(name: str, names: list[str]) -> str:
    """'did you mean …? ' where one of *names* is near, else ''."""
    import difflib

    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}? " if near else ""


class _Reader:
    """Reads one command's argv."""

    __slots__ = ("_by_name", "_command", "_path")

    def __init__(self, command: Command, path: str) -> None:
        self._command = command
        self._path = path
        self._by_name = {name: flag for flag in (*command.flags, HELP, _USAGE) for name in (flag.name, *flag.aliases)}

    def read(self, argv: list[str]) -> tuple[dict[str, list[str]], list[str]]:
        values: dict[str, list[str]] = {}
        words: list[str] = []
        at = 0
        while at < len(argv):
            word = argv[at]
            at += 1
            if word == "--":
                words += argv[at:]
                break
            if word == "-" or not word.startswith("-"):
                words.append(word)
                if self._command.hands_on:
                    # runc's manual has `exec ID [--] COMMAND`; after a command's name they are that command's to read
                    words += argv[at + 1 :] if self._path and argv[at : at + 1] == ["--"] else argv[at:]
                    break
                continue
            at += self._flag(word, argv[at:], values)
        return values, words

    def _flag(self, word: str, following: list[str], values: dict[str, list[str]]) -> int:
        """Take the flag *word*; how many of the *following* words were its value."""
        name, equals, value = word.lstrip("-").partition("=")
        flag = self._by_name.get(name)
        if flag is not None and word[:3] != "---":
            if equals:
                self._set(flag, name, value if flag.metavar else self._switch(name, value), values)
            elif not flag.metavar:
                self._set(flag, name, "true", values)
            elif not following:
                _refuse(f"flag needs an argument: {_dashed(name)}", self._path)
            else:
                self._set(flag, name, following[0], values)
                return 1
            return 0
        if not word.startswith("--"):
            return self._cluster(word, following, values)
        return self._unknown(word)

    def _cluster(self, word: str, following: list[str], values: dict[str, list[str]]) -> int:
        """GNU's -qf json, -qfjson: switches of one letter, the last of which may take a value."""
        for at, letter in enumerate(word[1:], start=1):
            flag = self._by_name.get(letter)
            if flag is None:
                return self._unknown(word)
            if flag.metavar:
                rest = word[at + 1 :]
                if not rest and not following:
                    _refuse(f"flag needs an argument: -{letter}", self._path)
                self._set(flag, letter, rest or following[0], values)
                return 0 if rest else 1
            self._set(flag, letter, "true", values)
        return 0

    def _set(self, flag: Flag, name: str, value: str, values: dict[str, list[str]]) -> None:
        if flag.choices and value not in flag.choices:
            self._invalid(name, value, f"it is one of {', '.join(flag.choices)}; ")
        if flag.number:
            try:
                parse_number(value)
            except ValueError:
                self._invalid(name, value, "it takes a whole number; ")
        target = HELP if flag is _USAGE else flag
        values.setdefault(target.name, []).append(value)

    def _switch(self, name: str, value: str) -> str:
        if value not in _TRUE + _FALSE:
            self._invalid(name, value, "it is true or false; ")
        return "true" if value in _TRUE else "false"

    def _invalid(self, name: str, value: str, allowed: str) -> NoReturn:
        _refuse(f'invalid value "{value}" for flag {_dashed(name)}', self._path, allowed)

    def _unknown(self, word: str) -> NoReturn:
        name = word.partition("=")[0]
        listed = [spelling for flag in self._command.flags if not flag.hidden for spelling in flag.spellings]
        do = nearest(name, listed)
        if self._path and name.lstrip("-") in GLOBAL_NAMES:
            do = "a global flag stands before the command; "
        _refuse(f"flag provided but not defined: {name}", self._path, do)


# The flags before the command; in globals.py they have their meaning, here they only make a message better
GLOBAL_NAMES = (
    "root",
    "log",
    "log-format",
    "log-level",
    "debug",
    "systemd-cgroup",
    "cgroup-manager",
    "rootless",
    "version",
)


def _dashed(name: str) -> str:
    return ("--" if len(name) > 1 else "-") + name


def _child(command: Command, word: str, path: str) -> Command:
    children = {child.name: child for child in command.children}
    if word not in children:
        _refuse(f'"{path}" has no command "{word}"', path, f"it is one of {', '.join(children)}; ")
    return children[word]


def _check_count(command: Command, count: int, path: str) -> None:
    """Runc's words: it, too, counts arguments."""
    if count < command.min_args or 0 <= command.max_args < count:
        if command.min_args == command.max_args:
            wanted = f"exactly {command.min_args}"
        elif count < command.min_args:
            wanted = f"a minimum of {command.min_args}"
        else:
            wanted = f"a maximum of {command.max_args}"
        _refuse(f'"{path}" requires {wanted} argument(s)', path)


def _refuse(message: str, path: str, do: str = "") -> NoReturn:
    """Raise UsageError: *do* and then where to read on."""
    raise UsageError(message, do=f"{do}see 'runvm help{' ' + path if path else ''}'")
