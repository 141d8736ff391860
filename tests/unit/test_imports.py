"""What a call imports: each command pays for its own module only, and engines make four calls for one `docker run`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runvm.cli.commands import COMMANDS

SOURCE = str(Path(__file__).parents[2] / "src")

# What the parser's side of each command may load besides its own module
COMMON = {
    "runvm",
    "runvm.__main__",
    "runvm.cli",
    "runvm.cli.commands",
    "runvm.cli.globals",
    "runvm.cli.grammar",
    "runvm.errors",
    "runvm.log",
}
SHARED = {"runvm.cli.common"}
MORE = {
    "checkpoint": SHARED,
    "config": SHARED,
    "create": SHARED,
    "debug": SHARED,
    "delete": SHARED,
    "doctor": set(),
    "events": SHARED,
    "exec": SHARED,
    "features": SHARED,
    "help": SHARED,
    "image": SHARED,
    "install": set(),
    "kill": SHARED | {"runvm.cli.signals"},
    "list": SHARED,
    "pause": SHARED,
    "ps": SHARED,
    "restore": SHARED | {"runvm.cli.checkpoint"},
    "resume": SHARED,
    "run": SHARED,
    "spec": SHARED,
    "start": SHARED,
    "state": SHARED,
    "template": SHARED,
    "uninstall": {"runvm.cli.install"},
    "update": SHARED,
    "version": SHARED | {"runvm.oci"},
}
# All of the standard library that the parser may load; os brings the rest. errno is built in: Python 3.11 has loaded it
# before the program begins, 3.13 loads it with os
STANDARD = {
    "_collections_abc",
    "_stat",
    "errno",
    "gc",
    "genericpath",
    "os",
    "os.path",
    "posixpath",
    "stat",
    "__future__",
}

# What no frequent command may load, verb included; with what each costs over argparse, json and socket together (17 ms)
DEAR = {
    "argparse": 8,
    "asyncio": 30,
    "concurrent": 10,
    "dataclasses": 7,
    "email": 20,
    "importlib.metadata": 22,
    "inspect": 6,
    "logging": 8,
    "multiprocessing": 10,
    "pathlib": 3,
    "shutil": 5,
    "subprocess": 6,
    "tempfile": 3,
    "tomllib": 4,
    "urllib": 5,
}


def modules_after(code: str) -> set[str]:
    """What is loaded once *code* has run, its output dropped, in the interpreter that the installed command has."""
    program = (
        f"import sys; before = set(sys.modules); sys.path.insert(0, {SOURCE!r})\n{code}\n"
        "after = set(sys.modules) - before\nimport json, os\nos.write(9, json.dumps(sorted(after)).encode())"
    )
    command = ["sh", "-c", 'exec 9>&1 >/dev/null 2>&1; exec "$@"', "sh", sys.executable, "-SI", "-B", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return set(json.loads(done.stdout))


def test_every_command_is_pinned() -> None:
    assert set(MORE) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_parser_loads_one_commands_module(name: str) -> None:
    loaded = modules_after(f"from runvm.__main__ import command_module\ncommand_module({name!r})")
    own = {module for module in loaded if module.split(".")[0] == "runvm"}
    assert own == COMMON | MORE[name] | {f"runvm.cli.{name}"}
    assert loaded - own <= STANDARD


@pytest.mark.parametrize(
    "argv",
    [
        ["create", "--bundle", "/nonexistent", "x"],
        ["start", "x"],
        ["state", "x"],
        ["kill", "x", "9"],
        ["delete", "x"],
        ["delete", "--force", "x"],
        ["exec", "--process", "/nonexistent", "x"],
        ["exec", "x", "ls"],
        ["list"],
        ["pause", "x"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_frequent_commands_load_nothing_dear(argv: list[str], tmp_path: Path) -> None:
    call = ["--root", str(tmp_path), *argv]
    loaded = modules_after(f"from runvm.__main__ import main\nmain({call!r})")
    assert not loaded & set(DEAR)
    # a verb that doesn't get so far as to raise its error would prove nothing
    assert "traceback" not in loaded
