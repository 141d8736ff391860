"""--help, the manual page and the completion: all from the grammar's tables, complete and well-formed."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from runvm.__main__ import resolve
from runvm.cli.commands import COMMANDS
from runvm.cli.completion import completion
from runvm.cli.globals import GLOBAL
from runvm.cli.grammar import Command
from runvm.cli.manual import manual
from runvm.cli.usage import find, listed_flags, overview, usage
from runvm.config import SETTINGS


def all_paths() -> list[list[str]]:
    return [[name, *child] for name in COMMANDS for child in [[], *([each.name] for each in find([name]).children)]]


PATHS = all_paths()


WITHOUT_EFFECT = {
    "create": ["no-pivot", "no-new-keyring", "no-subreaper"],
    "run": ["no-pivot", "no-new-keyring"],
    "exec": ["process-label", "apparmor"],
    "update": ["kernel-memory", "kernel-memory-tcp", "cpu-rt-period"],
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_is_taken_and_does_nothing_says_so(name: str) -> None:
    """And nothing else does."""
    said = [flag.name for flag in find([name]).flags if "without effect" in flag.help]
    assert sorted(said) == sorted(WITHOUT_EFFECT[name])


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_names_every_flag_and_word(path: list[str]) -> None:
    text = usage(path)
    command = find(path)
    assert text.startswith(f"Usage: runvm {' '.join(path)}")
    for flag in listed_flags(command):
        for spelling in flag.spellings:
            assert re.search(rf"(^|\s){re.escape(spelling)}[\s,]", text, re.MULTILINE), spelling
    for child in command.children:
        assert f"  {child.name} " in text
    assert max(len(line) for line in text.splitlines()) <= 110


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_listed_flag_is_explained(path: list[str]) -> None:
    for flag in listed_flags(find(path)):
        assert flag.help
        assert not flag.help.endswith(".")


def examples() -> list[str]:
    found: list[str] = []

    def collect(command: Command) -> None:
        found.extend(line for _, commands in command.examples for line in commands.split("\n"))
        for child in command.children:
            collect(child)

    for name in COMMANDS:
        collect(find([name]))
    return found


@pytest.mark.parametrize("line", [line for line in examples() if "runvm " in line])
def test_examples_are_right(line: str) -> None:
    """Each call of runvm in an example is one that the parser takes."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    argv = words[words.index("runvm") + 1 :]
    end = next((at for at, word in enumerate(argv) if set(word) <= set("|&;<>")), len(argv))
    resolve(argv[:end])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name: str) -> None:
    command = find([name])
    assert command.examples or all(child.examples for child in command.children)


def test_the_overview_has_every_command_and_global_flag() -> None:
    text = overview()
    for name, help in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(help)}$", text, re.MULTILINE)
    for flag in listed_flags(GLOBAL):
        assert f"--{flag.name}" in text


# --- the manual page


def plain(page: str) -> str:
    """The page's text without roff's escapes and macros."""
    text = re.sub(r"\\f[BIP]", "", page)
    for escape, character in (
        ("\\-", "-"),
        ("\\(aq", "'"),
        ("\\(dq", '"'),
        ("\\&", ""),
        ("\\(ha", "^"),
        ("\\(ti", "~"),
    ):
        text = text.replace(escape, character)
    return text.replace("\\e", "\\")


def test_the_manual_page_has_what_help_has() -> None:
    page = plain(manual())
    for path in PATHS:
        assert f'.SS "{" ".join(path)}"' in page
        for flag in listed_flags(find(path))[:-1]:
            assert ", ".join(flag.spellings) in page
    for line in examples():
        assert line in page
    for key in SETTINGS:
        assert f"{key} = " in page


def test_the_manual_page_is_sound_roff() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff isn't installed")
    done = subprocess.run([groff, "-man", "-ww", "-Tutf8"], input=manual(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = re.sub("\x1b\\[[0-9;]*m|.\x08", "", done.stdout)
    for wanted in ("NAME", "runvm exec [flag ...] <container-id> <command>", "EXIT STATUS", "/etc/runvm/config.toml"):
        assert wanted in text


# --- the completion


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "runvm"
    path.write_text(completion())
    return path


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of *words*, split as readline does; `list` answers box1, or in and its root."""
    code = (
        f". {shlex.quote(str(script))}\n"
        'runvm() { case $1 in list) echo box1 ;; --root) echo "in$2" ;; --root=*) echo "in${1#*=}" ;; esac; }\n'
        f"COMP_WORDS=({shlex.join(words)})\nCOMP_CWORD={len(words) - 1}\n_runvm\n"
        '((${#COMPREPLY[@]})) && printf "%s\\n" "${COMPREPLY[@]}"\ntrue'
    )
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_are_completed(script: Path) -> None:
    assert complete(script, "runvm", "") == list(COMMANDS)
    assert complete(script, "runvm", "--debug", "st") == ["start", "state"]


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_flags_are_completed(script: Path, path: list[str]) -> None:
    wanted = {f"--{flag.name}" for flag in listed_flags(find(path))}
    assert set(complete(script, "runvm", *path, "--")) == wanted


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--log-format", ""], ["text", "json"]),
        (["--log-format", "=", "j"], ["json"]),
        (["--log-format", "="], ["text", "json"]),
        (["list", "-f", "t"], ["table"]),
        (["state", ""], ["box1"]),
        (["--root", "/r", "state", ""], ["in/r"]),
        (["--root", "=", "/r", "kill", ""], ["in/r"]),
        (["kill", "--all", "box1", "KI"], ["KILL"]),
        (["create", ""], []),
        (["image", "pr"], ["prune"]),
        (["debug", "shell", ""], ["box1"]),
        (["exec", "--user", "0", ""], ["box1"]),
        (["install", "po"], ["podman"]),
        (["config", "boot"], ["boot_timeout_s"]),
        (["help", "upd"], ["update"]),
        (["create", "--bundle", "/us"], ["/usr"]),
    ],
)
def test_words_and_values_are_completed(script: Path, words: list[str], wanted: list[str]) -> None:
    assert complete(script, "runvm", *words) == wanted
