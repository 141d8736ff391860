"""The manual page runvm(8), in man(7) macros, made of the tables that --help is made of: `python3 -m runvm.cli.manual`.

Also `runvm help --man`. `make` builds the page from it, so that the page and --help can't differ.
"""

from __future__ import annotations

import runvm
from runvm.cli.commands import COMMANDS
from runvm.cli.globals import GLOBAL
from runvm.cli.grammar import Command, Flag
from runvm.cli.usage import find, listed_flags, shown_default, summary, synopsis

_DESCRIPTION = (
    "runvm is a runtime as the Open Container Initiative specifies it, and a drop-in for runc and crun: the same "
    "commands, flags, exit codes and output. Each container runs in a virtual machine with a kernel of its own; "
    "containers that share a namespace share the machine.",
    "Containers are configured by bundles: a directory with a file config.json and, as a rule, the root filesystem. "
    "Most often it is an engine that calls runvm: Docker, Podman, or containerd for Kubernetes; 'runvm install' adds "
    "it to their runtimes.",
    "A flag may be written --flag value, --flag=value or -flag value, those of one letter -f value or -fvalue; a "
    "switch is turned off by --switch=false. Flags may stand before or after the container id, except where the words "
    "after it are another program's (exec, ps, debug shell).",
)

_EXIT_STATUS = (
    ("0", "Success."),
    (
        "1",
        "The command failed, or the command line is wrong; the message is on stderr, and in the file that --log names.",
    ),
    ("3", "There is no such command."),
    ("130", "Interrupted by ctrl-C."),
    ("255", "exec: the process couldn't be run."),
    ("other", "run and exec: what the process ended with; 128 and the signal's number if a signal ended it."),
)

_ENVIRONMENT = (
    ("RUNVM_CONFIG", "The configuration file to read instead of /etc/runvm/config.toml."),
    (
        "RUNVM_TRACE",
        "A file to which each step of a command, of a container's supervisor and of its start is appended: "
        "seconds of the monotonic clock, process id, step.",
    ),
    ("XDG_RUNTIME_DIR", "For an unprivileged user, state is kept in the directory runvm below it."),
)

_FILES = (
    ("/etc/runvm/config.toml", "The configuration; 'runvm config --example' prints one with every key."),
    ("/run/runvm", "The state of containers and virtual machines (the configuration's state_dir)."),
    ("/var/lib/runvm", "Guest images, templates and checkpoints of warm containers (the configuration's data_dir)."),
)


def manual() -> str:
    """The page's source."""
    lines = [f'.TH RUNVM 8 "" "runvm {runvm.__version__}" "System Administration"', ".nh"]
    lines += [".SH NAME", r"runvm \- run containers in virtual machines"]
    lines += [".SH SYNOPSIS", ".B runvm", _escaped("[global flag ...] <command> [argument ...]")]
    lines.append(".SH DESCRIPTION")
    for paragraph in _DESCRIPTION:
        lines += [".PP", _escaped(paragraph)]
    lines += [".SH GLOBAL FLAGS", "They stand before the command.", *_flags(listed_flags(GLOBAL))]
    lines.append(".SH COMMANDS")
    for name in COMMANDS:
        lines += _command([name])
    lines += [".SH CONFIGURATION", *_configuration()]
    for title, entries in (("EXIT STATUS", _EXIT_STATUS), ("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES)):
        lines.append(f".SH {title}")
        for head, text in entries:
            lines += [".TP", f".B {_escaped(head)}", _escaped(text)]
    lines += [".SH SEE ALSO", ".BR runc (8),", ".BR crun (1),", ".BR docker (1),", ".BR podman (1)"]
    return "\n".join(lines) + "\n"


def _command(path: list[str]) -> list[str]:
    command = find(path)
    lines = [f'.SS "{_quoted(" ".join(path))}"', f".B runvm {_escaped(synopsis(path, command))}"]
    said = summary(path, command)
    lines += [".PP", _escaped(f"{said[:1].upper()}{said[1:]}.")]
    if command.description:
        lines += [".PP", _escaped(command.description)]
    flags = listed_flags(command)[:-1]  # --help is said once
    if flags:
        lines += _flags(flags)
    lines += _examples(command)
    for child in command.children:
        lines += _command([*path, child.name])
    return lines


def _flags(flags: list[Flag]) -> list[str]:
    lines = []
    for flag in flags:
        spelled = ", ".join(rf"\fB{_escaped(spelling)}\fP" for spelling in flag.spellings)
        metavar = rf" \fI{_escaped(flag.metavar)}\fP" if flag.metavar else ""
        said = flag.help + shown_default(flag)
        lines += [".TP", spelled + metavar, _escaped(f"{said[:1].upper()}{said[1:]}.")]
    return lines


def _examples(command: Command) -> list[str]:
    lines = []
    for text, commands in command.examples:
        lines += [".PP"]
        if text:
            lines += [_escaped(text), ".PP"]
        lines += [".RS", ".nf", *(_escaped(line) for line in commands.split("\n")), ".fi", ".RE"]
    return lines


def _configuration() -> list[str]:
    from runvm.config import ANNOTATION_PREFIX, CONTAINER_KEYS, SETTINGS, Config, toml_value

    chosen = ", ".join(ANNOTATION_PREFIX + key for key in CONTAINER_KEYS)
    lines = [
        _escaped(
            "The file is TOML, with these keys; each may be left out. A key that isn't known, or a bad value, is an "
            f"error. A container may choose some of them for itself by annotations in its config.json: {chosen}."
        )
    ]
    for key, setting in SETTINGS.items():
        default = toml_value(Config._field_defaults[key])
        lines += [".TP", rf"\fB{_escaped(key)}\fP = \fI{_escaped(default)}\fP", _escaped(f"{setting.meaning}.")]
    return lines


def _escaped(text: str) -> str:
    """*text* as roff prints it unchanged."""
    escaped = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha").replace("~", "\\(ti")
    )
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _quoted(text: str) -> str:
    """*text* inside a macro's quoted argument."""
    return _escaped(text).replace('"', "\\(dq")


if __name__ == "__main__":
    from runvm.cli.common import write

    write(manual())
