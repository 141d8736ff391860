"""bash's completion, made of the grammar's tables: `python3 -m runvm.cli.completion`, `runvm help --completion`.

Commands, flags, the values of flags (choices, files, directories), container ids, signals, keys of the configuration.
"""

from __future__ import annotations

import shlex

from runvm.__main__ import COMMANDS
from runvm.cli.common import ID
from runvm.cli.globals import GLOBAL
from runvm.cli.grammar import HELP, Command
from runvm.cli.usage import find

_HEAD = """\
# bash completion for runvm; made by `python3 -m runvm.cli.completion`, don't edit

_runvm_ids() {
    COMPREPLY=($(compgen -W "$("${words[0]}" "${root[@]}" list --quiet 2>/dev/null)" -- "$cur"))
}

_runvm_words() {
    COMPREPLY=($(compgen -W "$1" -- "$cur"))
}

_runvm_value() {
    # The value of flag $2 of command $1; fails if the flag takes none
    case "$1 $2" in
"""

_MIDDLE = """\
    *) return 1 ;;
    esac
}

_runvm() {
    local cur prev words cword command="" child="" given=0 at word split=false
    local -a root=()
    COMPREPLY=()
    _init_completion -s -n : || return

    for ((at = 1; at < cword; at++)); do
        word=${words[at]}
        if [[ $word == -* ]]; then
            if [[ $word == --root=* ]]; then
                root=("$word")
            elif [[ $word != *=* ]] && _runvm_value "$command${child:+ $child}" "$word" 2>/dev/null; then
                COMPREPLY=()
                ((at++))
                [[ $word == --root && -z $command ]] && root=(--root "${words[at]}")
            fi
        elif [[ -z $command ]]; then
            command=$word
        elif [[ -z $child && " $_runvm_groups " == *" $command "* ]]; then
            child=$word
        else
            ((given++))
        fi
    done
    COMPREPLY=()
    local path="$command${child:+ $child}"

    if [[ $prev == -* ]] && _runvm_value "$path" "$prev"; then
        return
    fi
    $split && return
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
    return f"{_HEAD}{_joined(lines)}{_MIDDLE}{_joined(body)}{_TAIL}".replace("$_runvm_groups", groups)


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
        return "_filedir -d"
    if metavar in _FILES:
        return "_filedir"
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
        actions += [(given, "_filedir") for given in (1, 2, 3)]
    return actions


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    from runvm.cli.common import write

    write(completion())
