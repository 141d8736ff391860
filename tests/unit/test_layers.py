"""Imports go one way: a room may import only from rooms below its own, and no two modules import each other in a
circle. What is read are the imports themselves, also those for types and those inside of functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "runvm"
# Top to bottom: each room with those beside it, which it may not import either
LAYERS = (
    ("__main__",),
    ("cli",),
    ("container", "host"),
    ("sandbox",),
    ("checkpoint",),
    ("hypervisor",),
    ("network", "shares", "cgroup", "guest", "agent"),
    ("oci",),
    ("protocol",),
    ("linux",),
    ("config", "log"),
    ("errors", "records"),
    ("__init__",),
)
DEPTH = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
# The agent runs in the guest, which has no other rooms; a driver's folder is its own
ONLY = {"agent": {"protocol", "linux", "errors", "records", "__init__"}}
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 450


def name_of(path: Path) -> str:
    """The module's name without the package's: sandbox.registry."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path) -> set[str]:
    """The package's own modules that *path* imports, by name_of()."""
    known = {name_of(each) for each in MODULES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for full in names:
            if full.split(".")[0] != "runvm":
                continue
            inner = full.removeprefix("runvm").lstrip(".") or "__init__"
            found.add(next((name for name in (inner, inner.rpartition(".")[0]) if name in known), "__init__"))
    return found - {name_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_from_below_only(path: Path) -> None:
    room = name_of(path).split(".")[0]
    for name in imports_of(path):
        other = name.split(".")[0]
        if other == room:
            continue
        assert DEPTH[other] > DEPTH[room], f"{name_of(path)} imports {name}, which is not below it"
        assert other in ONLY.get(room, {other}), f"{name_of(path)} imports {name}"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name_of(path): imports_of(path) for path in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' → '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_fits_in_a_head(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines"


def test_a_class_is_known_by_its_name_alone() -> None:
    classes = [
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert {name for name in classes if classes.count(name) > 1} == set()


def test_a_hypervisor_is_known_by_name_in_its_own_folder_and_the_table_only() -> None:
    for path in MODULES:
        name = name_of(path)
        for other in imports_of(path):
            if other.startswith("hypervisor.qemu"):
                assert name.startswith("hypervisor.qemu"), f"{name} imports {other}"
