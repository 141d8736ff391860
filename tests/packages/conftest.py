"""The package as built from this checkout, and copies of this host on which it is installed and removed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPOSITORY = Path(__file__).parents[2]
# What the build reads; what it writes must not end up in this checkout
FOLDERS = ("docs", "packaging", "src")
FILES = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml")
# Books of dpkg, apt and others that the installation of any package changes
BOOKS = ("var/cache/", "var/lib/apt/", "var/lib/dpkg/", "var/log/", "tmp/")

_COPY = """
set -eu
mount -t tmpfs copy "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o lowerdir=/,upperdir="$1/upper",workdir="$1/work" overlay "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 tmp tmp
rm -rf etc/runvm var/lib/runvm usr/local/sbin/runvm
echo ready
exec sleep infinity
"""


def run(*argv: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints, errors included; it has to succeed, unless not *check*."""
    done = subprocess.run(
        argv,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 or not check, f"{argv} ended with {done.returncode}\n{done.stdout}"
    return done.stdout


def copy_of_checkout(target: Path) -> Path:
    """A copy of what is built from, in *target*."""
    target.mkdir()
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in FILES:
        shutil.copy(REPOSITORY / name, target)
    return target


def build_deb(checkout: Path, **environment: str) -> Path:
    """`make deb` there: the package."""
    epoch = {"SOURCE_DATE_EPOCH": "1790000000"}
    run("make", "-C", str(checkout), "--no-print-directory", "deb", environment=epoch | environment)
    (deb,) = (checkout / "dist").glob("*.deb")
    return deb


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, to build in."""
    return copy_of_checkout(tmp_path_factory.mktemp("packages") / "checkout")


@pytest.fixture(scope="session")
def deb(checkout: Path) -> Path:
    """The package."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("no dpkg-deb here")
    return build_deb(checkout)


class HostCopy(NamedTuple):
    """This host's root file system, copied on write, seen by a process *pid* in namespaces of its own."""

    pid: int
    root: Path
    area: Path

    def run(self, *argv: str, check: bool = True) -> str:
        """What a command prints in the copy, errors included; it has to succeed, unless not *check*."""
        within = ("nsenter", f"--target={self.pid}", "--mount", "--pid", "chroot", str(self.area / "root"))
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "PATH": path}
        return run(*within, *argv, check=check, environment=environment)

    def changed(self) -> set[str]:
        """The files that are new, other or gone in the copy, and its new directories; books are left out."""
        top = Path(f"/proc/{self.pid}/root{self.area}/upper")
        found: set[str] = set()
        for directory, folders, files in os.walk(top):
            here = Path(directory).relative_to(top)
            found.update(str(here / name) for name in files)
            found.update(f"{here / name}/" for name in folders if not Path("/", here, name).is_dir())
        return {name for name in found if not name.startswith(BOOKS)}


@pytest.fixture
def host_copy(tmp_path: Path) -> Iterator[HostCopy]:
    """A copy of this host without runvm; it is gone afterwards, with whatever runs in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _COPY, "sh", str(tmp_path)]
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"no overlay of this host's root: {holder.stderr.read()}")
        child = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
        copy = HostCopy(child, Path(f"/proc/{child}/root{tmp_path}/root"), tmp_path)
        if "install ok" in copy.run("dpkg-query", "-W", "-f", "${Status}", "runvm", check=False):
            pytest.skip("runvm's package is installed on this host")
        yield copy
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
