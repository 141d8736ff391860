"""pythonpath.py: the agent's files and imports are found wherever in the source they stand."""

import ast
from pathlib import Path

import pytest

from runvm.guest import pythonpath

SOURCE = """
from __future__ import annotations
import os.path as path, json
from typing import TYPE_CHECKING
from . import sibling
from ..linux import syscalls
from runvm.protocol.frames import Frame
if TYPE_CHECKING:
    import decimal
else:
    import array
def late():
    try:
        import zlib
    except ImportError:
        from uuid import uuid4
"""


def test_imports_are_found_at_any_depth_and_not_for_types_alone() -> None:
    found = set(pythonpath.imported_by(ast.parse(SOURCE), "runvm.agent"))
    assert {"os.path", "json", "typing", "array", "zlib", "uuid"} <= found
    assert {"runvm.agent", "runvm.agent.sibling", "runvm.linux.syscalls", "runvm.protocol.frames"} <= found
    assert "decimal" not in found


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `runvm` of three modules, of which the agent needs two."""
    files = {
        "__init__.py": "",
        "agent/__init__.py": "",
        "agent/init.py": "from runvm.linux import loop\nimport select\n",
        "linux/__init__.py": "",
        "linux/loop.py": "def late():\n    import mmap\n",
        "linux/unused.py": "import decimal\n",
    }
    for name, text in files.items():
        path = tmp_path / "runvm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(pythonpath, "package_directory", lambda: str(tmp_path))
    return tmp_path / "runvm"


def test_only_modules_that_the_agent_reaches_go_into_the_image(package: Path) -> None:
    found = pythonpath.agent()
    assert found.files == (
        *("runvm/__init__.py", "runvm/agent/__init__.py", "runvm/agent/init.py"),
        *("runvm/linux/__init__.py", "runvm/linux/loop.py"),
    )
    assert found.imports == ("mmap", "select")


def test_the_agents_hash_follows_its_own_files_alone(package: Path) -> None:
    before = pythonpath.agent_hash(pythonpath.agent())
    (package / "linux" / "unused.py").write_text("import fractions\n")
    assert pythonpath.agent_hash(pythonpath.agent()) == before
    (package / "linux" / "loop.py").write_text("")
    assert pythonpath.agent_hash(pythonpath.agent()) != before


def test_the_real_agent_needs_nothing_beyond_the_standard_library() -> None:
    import sys

    found = pythonpath.agent()
    assert "runvm/agent/init.py" in found.files
    assert {name.partition(".")[0] for name in found.imports} <= sys.stdlib_module_names
