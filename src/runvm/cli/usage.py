"""What --help and `runvm help` print, made of the grammar's tables."""

from __future__ import annotations

import textwrap

from runvm.cli.commands import COMMANDS, CONTAINER_COMMANDS, HOST_COMMANDS, command_module
from runvm.cli.globals import GLOBAL
from runvm.cli.grammar import HELP, Command, Flag, nearest
from runvm.errors import UsageError

_WIDTH = 96
_NAME_WIDTH = 14


def usage(path: list[str]) -> str:
    """The help of the command *path* (['image', 'build']), or of all without one. Raises: UsageError."""
    if not path:
        return overview()
    command = find(path)
    lines = [f"Usage: runvm {synopsis(path, command)}", ""]
    lines += _wrapped(_capital(summary(path, command)) + ".", "")
    if command.description:
        lines += ["", *_wrapped(command.description, "")]
    if command.children:
        lines += ["", "Commands:"]
        lines += [line for child in command.children for line in _entry(child.name, child.help, _NAME_WIDTH)]
    lines += ["", "Flags:", *_flags(listed_flags(command))]
    lines += _examples(command)
    return "\n".join(lines) + "\n"


def overview() -> str:
    """The commands and the global flags."""
    lines = [
        "runvm: an OCI container runtime that runs containers in virtual machines, called as runc and crun are",
        "",
        "Usage: runvm [global flag ...] <command> [argument ...]",
    ]
    for title, commands in (("Containers", CONTAINER_COMMANDS), ("Host and virtual machines", HOST_COMMANDS)):
        lines += ["", f"{title}:"]
        lines += [line for name, help in commands.items() for line in _entry(name, help, _NAME_WIDTH)]
    lines += ["", "Global flags:", *_flags(listed_flags(GLOBAL))]
    lines += ["", "'runvm help COMMAND' says more, with examples."]
    return "\n".join(lines) + "\n"


def find(path: list[str]) -> Command:
    """The command's table. Raises: UsageError for a name that isn't one."""
    name = path[0]
    command: Command = command_module(name).COMMAND
    for word in path[1:]:
        children = {child.name: child for child in command.children}
        if word not in children:
            raise UsageError(
                f'"{name}" has no command "{word}"', do=f"{nearest(word, list(children))}see 'runvm help {name}'"
            )
        command = children[word]
    return command


def summary(path: list[str], command: Command) -> str:
    """The one line that the list of commands has of it."""
    return command.help or COMMANDS[path[0]]


def synopsis(path: list[str], command: Command) -> str:
    """How a call is written, from the command's name on."""
    flags = "" if command.children or not command.flags else "[flag ...]"
    return " ".join(part for part in (*path, flags, command.words) if part)


def listed_flags(command: Command) -> list[Flag]:
    """The flags that help shows, by name; --help is the last one."""
    return [*sorted((flag for flag in command.flags if not flag.hidden), key=lambda flag: flag.name), HELP]


def shown_default(flag: Flag) -> str:
    """'(a or b; default: a)' for a flag with such; '' if there is nothing to say."""
    notes = [" or ".join(flag.choices)] if flag.choices else []
    if flag.default and flag.default != "0":
        notes.append(f"default: {flag.default}")
    return f" ({'; '.join(notes)})" if notes else ""


def _flags(flags: list[Flag]) -> list[str]:
    heads = []
    for flag in flags:
        spelled = ", ".join(flag.spellings)
        indent = "" if len(flag.spellings[0]) == 2 else "    "
        heads.append(f"{indent}{spelled}{' ' + flag.metavar if flag.metavar else ''}")
    width = min(max(len(head) for head in heads) + 2, 34)
    lines = []
    for head, flag in zip(heads, flags, strict=True):
        lines += _entry(head, flag.help + shown_default(flag), width)
    return lines


def _entry(head: str, text: str, width: int) -> list[str]:
    """*head* and beside it the wrapped *text*; below it where the head is too long."""
    lines = textwrap.wrap(text, _WIDTH - width - 2) or [""]
    if len(head) + 2 > width:
        return [f"  {head}", *(f"  {'':{width}}{line}" for line in lines)]
    return [f"  {head:{width}}{lines[0]}", *(f"  {'':{width}}{line}" for line in lines[1:])]


def _examples(command: Command) -> list[str]:
    if not command.examples:
        return []
    lines = ["", "Examples:"]
    for number, (text, commands) in enumerate(command.examples):
        if number and text:
            lines.append("")
        if text:
            lines += _wrapped(text, "  ")
        lines += [f"    {line}" for line in commands.split("\n")]
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
