"""bash's completion, made of the grammar's tables: `python3 -m runvm.cli.completion`, `runvm help --completion`.

Commands, flags, the values of flags (choices, files, directories), container ids, signals, keys of the configuration.
"""

from __future__ import annotations

import shlex

from runvm.cli.commands import COMMANDS
from runvm.cli.common import ID
from runvm.cli.globals import GLOBAL
from runvm.cli.grammar import HELP, Command
from runvm.cli.usage import find

_HEAD = """\
# bash completion for runvm; made by `python3 -m runvm.cli.completion`, don't edit

_runvm_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}

_runvm_files() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen "$1" -- "$cur")
}

_runvm_ids() {
    _runvm_words "$("${COMP_WORDS[0]}" "${root[@]}" list --quiet 2>/dev/null)"
}

_runvm_value() {
    # Complete the value of flag $2 of command $1; fails if the flag takes none
    case "$1 $2" in
"""

_MIDDLE = """\
    *) return 1 ;;
    esac
}

_runvm() {
    local cur="" path="" given=0 at joined=0 word
    local -a words=() root=()
    # Readline splits --flag=value at the =
    for ((at = 1; at <= COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        if [[ ($word == = || $joined == 1) && ${#words[@]} -gt 0 && ${words[-1]} == -* ]]; then
            words[-1]+=$word
            joined=$((1 - joined))
        else
            words+=("$word")
            joined=0
        fi
    done
    local last=$((${#words[@]} - 1)) flag=""
    for ((at = 0; at < last; at++)); do
        word=${words[at]}
        if [[ $word == -* ]]; then
            [[ $word == --root=* && -z $path ]] && root=("$word")
            if [[ $word != *=* ]] && _runvm_value "$path" "$word"; then
                if ((at + 1 == last)); then
                    flag=$word
                else
                    [[ $word == --root && -z $path ]] && root=(--root "${words[at + 1]}")
                    ((at += 1))
                fi
            fi
        elif [[ -z $path || " @GROUPS@ " == *" $path "* ]]; then
            path="${path:+$path }$word"
        else
            ((given += 1))
        fi
    done
    cur=${words[last]}
    COMPREPLY=()
    if [[ $cur == --*=* ]]; then
        flag=${cur%%=*}
        cur=${cur#*=}
    fi
    if [[ -n $flag ]]; then
        _runvm_value "$path" "$flag"
        return
    fi
"""

_TAIL = """\
}

complete -F _runvm runvm
"""

_FILES = ("FILE", "SOCKET")


def completion() -> str:
    """The script."""
    paths = _paths()
    lines = []
    for path, command in paths.items():
        for flag in command.flags:
            if flag.metavar and not flag.hidden:
                patterns = " | ".join(shlex.quote(f"{path} {spelling}") for spelling in flag.spellings)
                lines.append(f"    {patterns}) {_value(flag.metavar, flag.choices)} ;;")
    body = ["    if [[ $cur == -* ]]; then", '        case "$path" in']
    for path, command in paths.items():
        body.append(f"        {shlex.quote(path)}) _runvm_words {shlex.quote(' '.join(_spellings(command)))} ;;")
    body += ["        esac", "        return", "    fi", '    case "$path $given" in']
    for path, command in paths.items():
        body += [f"    {shlex.quote(f'{path} {given}')}) {action} ;;" for given, action in _word_actions(path, command)]
    body += ["    esac"]
    groups = " ".join(path for path, command in paths.items() if command.children and path)
    return f"{_HEAD}{_joined(lines)}{_MIDDLE}{_joined(body)}{_TAIL}".replace("@GROUPS@", groups)


def _paths() -> dict[str, Command]:
    """Every command by its path; '' is runvm itself."""
    paths = {"": GLOBAL}
    for name in COMMANDS:
        command = find([name])
        paths[name] = command
        paths |= {f"{name} {child.name}": child for child in command.children}
    return paths


def _spellings(command: Command) -> list[str]:
    flags = [*(flag for flag in command.flags if not flag.hidden), HELP]
    return [f"--{flag.name}" for flag in flags]


def _value(metavar: str, choices: tuple[str, ...]) -> str:
    if choices:
        return f"_runvm_words {shlex.quote(' '.join(choices))}"
    if metavar == "DIR":
        return "_runvm_files -d"
    if metavar in _FILES:
        return "_runvm_files -f"
    return "COMPREPLY=()"


def _word_actions(path: str, command: Command) -> list[tuple[int, str]]:
    """What completes the word number n (from 0) after the command."""
    if not path:
        return [(0, f"_runvm_words {shlex.quote(' '.join(COMMANDS))}")]
    if command.children:
        return [(0, f"_runvm_words {shlex.quote(' '.join(child.name for child in command.children))}")]
    if path == "help":
        return [(0, f"_runvm_words {shlex.quote(' '.join(COMMANDS))}")]
    if path == "config":
        from runvm.config import SETTINGS

        return [(given, f"_runvm_words {shlex.quote(' '.join(SETTINGS))}") for given in range(3)]
    if path in ("install", "uninstall"):
        return [(0, "_runvm_words 'docker podman containerd'")]
    if not command.words.startswith(ID) or path in ("create", "run", "checkpoint", "restore"):
        return []
    actions = [(0, "_runvm_ids")]
    if path == "kill":
        from runvm.cli.signals import NUMBERS

        actions.append((1, f"_runvm_words {shlex.quote(' '.join(NUMBERS))}"))
    if command.hands_on:
        actions += [(given, "_runvm_files -f") for given in (1, 2, 3)]
    return actions


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    from runvm.cli.common import write

    write(completion())
