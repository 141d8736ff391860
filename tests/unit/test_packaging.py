"""Makefile, packaging/: what is installed, that all of it goes again, and that systemd takes the unit."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
INSTALLED = {
    "sbin/runvm",
    "lib/runvm/runvm/__main__.py",
    "lib/runvm/runvm/config.py",
    "lib/systemd/system/runvm@.service",
    "share/bash-completion/completions/runvm",
    "share/doc/runvm/LICENSE",
    "share/doc/runvm/config.toml.example",
    "share/man/man8/runvm.8",
}


def knows_its_packages() -> bool:
    """Not where they have only been unpacked, and not without dpkg."""
    return bool(shutil.which("dpkg-query")) and subprocess.run(["dpkg-query", "--show", "dpkg"]).returncode == 0


needs_dpkg = pytest.mark.skipif(not knows_its_packages(), reason="dpkg hasn't installed this system's packages")


def run(*argv: str, **environment: str) -> str:
    """What a command prints that has to succeed."""
    done = subprocess.run(argv, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads, so that it leaves nothing in this checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("src", "packaging"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    return copy


@pytest.fixture(scope="module")
def installed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory below which `make install DESTDIR=… PREFIX=/opt/x` has put everything."""
    destination = tmp_path_factory.mktemp("destination")
    run("make", "-C", str(checkout), "install", f"DESTDIR={destination}", "PREFIX=/opt/x")
    return destination


def test_install_puts_all_below_prefix(installed: Path) -> None:
    """And nothing elsewhere; the package with its bytecode beside it, nobody but the owner may write."""
    assert os.listdir(installed) == ["opt"]
    there = files(installed / "opt/x")
    assert there >= INSTALLED
    for name in there:
        assert not (installed / "opt/x" / name).stat().st_mode & 0o022, name
    sources = {name for name in there if name.endswith(".py")}
    compiled = {name for name in there if name.endswith(".pyc")}
    assert len(compiled) == len(sources)
    assert {name for name in there - sources - compiled if name.startswith("lib/runvm")} == {"lib/runvm/runvm/py.typed"}


def test_the_installed_bytecode_is_used_as_it_is(installed: Path) -> None:
    """Each file's time is that which its bytecode knows: no start compiles anything again."""
    package = installed / "opt/x/lib/runvm"
    for source in package.rglob("*.py"):
        bytecode = source.parent / "__pycache__" / f"{source.stem}.cpython-{_tag()}.pyc"
        head = bytecode.read_bytes()[:16]
        assert int.from_bytes(head[4:8], "little") == 0, "timestamps, not hashes"
        assert int.from_bytes(head[8:12], "little") == int(source.stat().st_mtime)


def test_the_installed_command_runs_by_the_distributions_python(installed: Path) -> None:
    script = (installed / "opt/x/sbin/runvm").read_text()
    assert script.startswith("#!/usr/bin/python3 -SI\n")
    assert 'sys.path.insert(0, "/opt/x/lib/runvm")' in script


def test_the_installed_unit_names_the_installed_command(installed: Path) -> None:
    unit = (installed / "opt/x/lib/systemd/system/runvm@.service").read_text()
    assert "\nExecStart=/opt/x/sbin/runvm run --detach " in unit
    assert "@SBINDIR@" not in unit


def test_install_twice_is_the_same_as_once(checkout: Path, installed: Path) -> None:
    before = files(installed)
    run("make", "-C", str(checkout), "install", f"DESTDIR={installed}", "PREFIX=/opt/x")
    assert files(installed) == before


def test_another_prefix_builds_anew(checkout: Path, tmp_path: Path) -> None:
    run("make", "-C", str(checkout), "install", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    assert 'sys.path.insert(0, "/usr/lib/runvm")' in (tmp_path / "usr/sbin/runvm").read_text()


def test_uninstall_takes_all_away(checkout: Path, tmp_path: Path) -> None:
    """What other packages have in the same directories stays."""
    other = tmp_path / "usr/local/share/man/man8/other.8"
    other.parent.mkdir(parents=True)
    other.write_text("")
    run("make", "-C", str(checkout), "install", f"DESTDIR={tmp_path}")
    run("make", "-C", str(checkout), "uninstall", f"DESTDIR={tmp_path}")
    assert files(tmp_path) == {"usr/local/share/man/man8/other.8"}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze: apt-get install systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify`, which looks for the programs as well, hence a stand-in for runvm's path."""
    program = tmp_path / "runvm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = (REPOSITORY / "packaging/systemd/runvm@.service").read_text().replace("@SBINDIR@", str(tmp_path))
    unit = tmp_path / "runvm@web.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_dpkg
def test_the_list_of_packages_that_are_there_needs_no_root_and_no_network(tmp_path: Path) -> None:
    """`make deps` on a machine that has them: nothing is run as root, nothing fetched."""
    shutil.copy(REPOSITORY / "packaging/deps/install", tmp_path)
    (tmp_path / "some.txt").write_text("# a comment\ndpkg  # another\n\nno-such-package-at-all?\n")
    run(str(tmp_path / "install"), "some")


@needs_dpkg
def test_a_package_for_other_architectures_is_left_out(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "packaging/deps/install", tmp_path)
    own = run("dpkg", "--print-architecture").strip()
    (tmp_path / "some.txt").write_text(
        f"dpkg [{own}]\nno-such-package [sh4]\nno-such-package-either [sh4 m68k] # why\n"
    )
    run(str(tmp_path / "install"), "some")
    # where one is missing, who isn't root is told so
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for mine in (f"[{own}]", f"[sh4 {own}]", f"[{own} sh4] # why"):
        (tmp_path / "some.txt").write_text(f"no-such-package {mine}\n")
        done = subprocess.run([tmp_path / "install", "some"], env=environment, capture_output=True, text=True)
        assert (done.returncode, "run as root: apt-get install no-such-package" in done.stderr) == (1, True)


def _tag() -> str:
    return run("/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2], sep='', end='')")
