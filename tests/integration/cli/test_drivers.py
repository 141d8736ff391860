"""A hypervisor driver that an installed package adds: found by its entry point, and a container runs through it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from framework.runtime import HYPERVISOR, SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box

pytestmark = pytest.mark.only("runvm", "its drivers")

MODULE = """
from runvm.hypervisor.qemu.driver import Qemu


class Parrot(Qemu):
    "QEMU, whose guests are told who runs them."

    name = "parrot"
    kernel_args = Qemu.kernel_args + " run.by=parrot"
"""
# The interpreter of the installed command, which leaves the site's packages out, and of a pip installation
COMMANDS = {
    "make install": [
        *("/usr/bin/python3", "-SI", "-c"),
        f"import sys; sys.path.insert(0, {SOURCE!r}); from runvm.__main__ import entry; sys.exit(entry())",
    ],
    "pip install": [
        *("python3", "-c"),
        f"import sys; sys.path.insert(0, {SOURCE!r}); from runvm.__main__ import entry; sys.exit(entry())",
    ],
}


def wheel(directory: Path) -> Path:
    """A package of one module with one entry point, built by hand: no build tool is needed (PEP 427)."""
    info = "runvm_parrot-1.0.dist-info"
    files = {
        "runvm_parrot.py": MODULE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: runvm-parrot\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[runvm.hypervisors]\nparrot = runvm_parrot:Parrot\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    path = directory / "runvm_parrot-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(params=list(COMMANDS))
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """A runvm beside which the package is installed."""
    package = wheel(tmp_path)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"]
    if request.param == "make install":
        asked = [COMMANDS[request.param][0], "-c", "import site; print(site.getsitepackages()[0])"]
        target = Path(subprocess.run(asked, check=True, capture_output=True, text=True, timeout=30).stdout.strip())
        subprocess.run([*pip, "--target", str(target), str(package)], check=True, timeout=120)
        try:
            yield COMMANDS[request.param]
        finally:
            (target / "runvm_parrot.py").unlink()
            for left in (*target.glob("runvm_parrot-*"), *target.glob("__pycache__/runvm_parrot.*")):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    else:
        subprocess.run(["/usr/bin/python3", "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
        python = str(tmp_path / "venv/bin/python3")
        subprocess.run([python, *pip[1:], str(package)], check=True, timeout=120)
        yield [python, *COMMANDS[request.param][1:]]


def test_a_packages_driver_runs_a_container(box: Box, command: list[str], tmp_path: Path) -> None:
    """`hypervisor = "parrot"`: the guest's command line is the one that the package's driver gives."""
    container = box("cat", "/proc/cmdline")
    container.bundle.save()
    runtime = box.runtime
    config = tmp_path / "config.toml"
    settings = Path(runtime.config_file).read_text().replace(f'hypervisor = "{HYPERVISOR}"', 'hypervisor = "parrot"')
    config.write_text(f"{settings}template = false\n")
    call = [*command, "--root", runtime.root, "run", "--bundle", container.bundle.path, container.id]
    done = subprocess.run(
        call, env={"PATH": "/usr/bin:/bin", "RUNVM_CONFIG": str(config)}, capture_output=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"run.by=parrot" in done.stdout


def test_an_unknown_hypervisor_is_named(box: Box, tmp_path: Path) -> None:
    """One line that says what there is."""
    config = tmp_path / "config.toml"
    config.write_text(f'hypervisor = "none-such"\nstate_dir = {json.dumps(box.runtime.state_dir)}\n')
    box("true").bundle.save()
    container = box.containers[-1]
    result = box.runtime.call(
        "run", "--bundle", container.bundle.path, container.id, env={"RUNVM_CONFIG": str(config), "PATH": "/usr/bin"}
    )
    assert result.code == 1
    assert b"hypervisor 'none-such' isn't installed" in result.stderr
