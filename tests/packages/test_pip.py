"""`make wheel`: the wheel and the sdist are complete, and work from wherever pip and pipx install them."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from runvm import __version__

from .conftest import FILES, FOLDERS, REPOSITORY, run

if TYPE_CHECKING:
    from collections.abc import Callable

SYSTEM_PYTHON = "/usr/bin/python3"


class Built(NamedTuple):
    """The two files that are published."""

    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(checkout: Path) -> Built:
    """What `make wheel` makes: the wheel is made from the sdist."""
    pytest.importorskip("build", reason="packaging/deps/python-test.txt isn't installed")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(checkout / "dist"), str(checkout))
    (wheel,), (sdist,) = (checkout / "dist").glob("*.whl"), (checkout / "dist").glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="module")
def by_pip(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runvm in an environment of its own."""
    environment = tmp_path_factory.mktemp("pip") / "environment"
    run(SYSTEM_PYTHON, "-m", "venv", str(environment))
    run(str(environment / "bin/pip"), "install", "--no-index", "--quiet", str(built.wheel))
    return environment / "bin/runvm"


def sources(folder: Path) -> set[str]:
    """The files below *folder* that are neither compiled nor setuptools' own."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parent.name != "__pycache__" and ".egg-info" not in str(path)}


def test_the_wheel_has_the_package_and_the_command(built: Built) -> None:
    assert built.wheel.name == f"runvm-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(built.wheel) as wheel:
        names = wheel.namelist()
        info = f"runvm-{__version__}.dist-info"
        commands = wheel.read(f"{info}/entry_points.txt").decode()
        metadata = wheel.read(f"{info}/METADATA").decode()
    assert {name for name in names if not name.startswith(info)} == sources(REPOSITORY / "src")
    assert "[console_scripts]\nrunvm = runvm.__main__:entry\n" in commands
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert not [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]


def test_the_sdist_has_the_source_tree(built: Built, checkout: Path) -> None:
    """What is built and tested from a checkout is so from an sdist."""
    top = f"runvm-{__version__}/"
    with tarfile.open(built.sdist) as sdist:
        names = {name.removeprefix(top) for name in sdist.getnames()}
    expected = set(FILES) | {f"{folder}/{name}" for folder in FOLDERS for name in sources(checkout / folder)}
    assert names >= expected
    assert not [name for name in names if "__pycache__" in name]


def test_the_manifest_names_each_folder_of_the_repository() -> None:
    """A new folder that MANIFEST.in doesn't know would be missing in the sdist."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git here")
    tracked = run("git", "-C", str(REPOSITORY), "ls-files").splitlines()
    known = {line.split()[1] for line in (REPOSITORY / "MANIFEST.in").read_text().splitlines() if "graft" in line}
    assert {name.split("/")[0] for name in tracked if "/" in name} == known
    included = (REPOSITORY / "MANIFEST.in").read_text().split("include ", 1)[1].splitlines()[0].split()
    assert {name for name in tracked if "/" not in name} == {*included, "MANIFEST.in", "pyproject.toml", ".gitignore"}


def test_an_unpacked_sdist_builds_and_installs(built: Built, tmp_path: Path) -> None:
    run("tar", "-C", str(tmp_path), "-xzf", str(built.sdist))
    tree = tmp_path / f"runvm-{__version__}"
    run("make", "-C", str(tree), "install", f"DESTDIR={tmp_path}/root", "PREFIX=/usr")
    assert (tmp_path / "root/usr/sbin/runvm").exists()


def test_the_command_of_pip_has_manual_completion_and_settings(by_pip: Path) -> None:
    """The wheel has no files outside of the package: what others install for a user, the command prints."""
    assert run(str(by_pip), "--version").startswith(f"runvm version {__version__}\n")
    assert run(str(by_pip), "help", "--man").startswith(".TH RUNVM 8")
    assert "complete -F" in run(str(by_pip), "help", "--completion")
    assert "data_dir" in run(str(by_pip), "config")


def test_engines_are_told_of_the_command_of_pip(by_pip: Path) -> None:
    assert f'"path": "{by_pip}"' in run(str(by_pip), "install", "docker", "--dry-run")


def test_the_guest_gets_the_agent_that_pip_installed(by_pip: Path) -> None:
    """The same files as in a checkout, found in site-packages."""
    program = (
        "from runvm.guest import pythonpath as p; found = p.agent()\n"
        "print(p.package_directory(), p.agent_hash(found), len(found.files))"
    )
    python = by_pip.parent / "python"
    directory, digest, count = run(str(python), "-I", "-c", program).split()
    assert directory.startswith(str(by_pip.parents[1])) and directory.endswith("site-packages")
    here = run(SYSTEM_PYTHON, "-c", program, environment={"PYTHONPATH": str(REPOSITORY / "src")}).split()
    assert [digest, count] == here[1:] and int(count) > 10


@pytest.mark.slow  # pipx fetches a pip of its own
@pytest.mark.skipif(not shutil.which("pipx"), reason="no pipx: apt-get install pipx")
@pytest.mark.parametrize("which", [lambda built: built.wheel, lambda built: built.sdist], ids=["wheel", "sdist"])
def test_pipx_installs_it(built: Built, tmp_path: Path, which: Callable[[Built], Path]) -> None:
    home = {"PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    run("pipx", "install", "--python", SYSTEM_PYTHON, str(which(built)), environment=home)
    program = tmp_path / "bin/runvm"
    assert run(str(program), "--version").startswith(f"runvm version {__version__}\n")
    assert f'"path": "{program}"' in run(str(program), "install", "docker", "--dry-run")
    run("pipx", "uninstall", "runvm", environment=home)
    assert not program.exists()
