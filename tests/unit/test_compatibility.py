"""docs/compatibility.md has a row for every option that the client knows, and the tests that its rows name exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGE = f"{TOP}/docs/compatibility.md"
CLIENT = "/usr/bin/docker"
"""Debian's; a newer client on PATH has other options."""


def _sections() -> dict[str, list[list[str]]]:
    """The page's tables by their headings: a list of cells a row."""
    found: dict[str, list[list[str]]] = {}
    rows: list[list[str]] = []
    with open(PAGE, encoding="utf-8") as file:
        for line in file:
            if line.startswith("## "):
                rows = found[line[3:].strip()] = []
            elif line.startswith("| `") or (line.startswith("| ") and " | | " not in line):
                rows.append([cell.strip() for cell in line.strip().strip("|").split(" | ")])
    return found


def _help(*command: str) -> str:
    if not shutil.which(CLIENT):
        pytest.skip(f"{CLIENT} isn't installed: apt-get install docker.io")
    return subprocess.run([CLIENT, *command, "--help"], capture_output=True, text=True, check=True, timeout=20).stdout


@pytest.mark.parametrize("command", ["run", "create", "exec", "update"])
def test_every_option_has_a_row(command: str) -> None:
    """The options of `docker run` and `create` are spread over the sections; exec and update have one each."""
    sections = _sections()
    own = sections.get(f"`docker {command}`")
    rows = own if own else [row for name, rows in sections.items() if not name.startswith("`docker ") for row in rows]
    listed = set(re.findall(r"--[a-z0-9-]+", " ".join(row[0] for row in rows)))
    options = set(re.findall(r"^ +(?:-[a-zA-Z], )?(--[a-z0-9-]+)", _help(command), re.MULTILINE)) - {"--help"}
    assert options - listed == set()


def test_every_container_command_has_a_row() -> None:
    """`docker container …`, in the sections on commands."""
    listed = {name for section, rows in _sections().items() if "ommands" in section for row in rows
              for name in re.findall(r"`([a-z]+)", row[0])}  # fmt: skip
    commands = re.findall(r"^  ([a-z]+) ", _help("container").split("Commands:")[1], re.MULTILINE)
    assert set(commands) - listed == set()


def test_what_works_has_a_test_that_exists() -> None:
    """A row that says *works* names its test; every test that a row names is there."""
    for rows in _sections().values():
        for row in rows:
            named = re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)`", row[-1])
            assert named or not row[1].startswith("works"), f"{row[0]} names no test"
            for file, test in named:
                path = file if "/" in file else f"integration/docker/{file}"
                with open(f"{TOP}/tests/{path}", encoding="utf-8") as source:
                    assert f"def {test}(" in source.read(), f"{row[0]}: no {test} in {file}"
