"""packages.py: what apt's answers mean, and unpacking. The real apt is asked by an image's build."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from runvm.guest import packages
from runvm.guest.commands import CommandError
from runvm.guest.packages import Package
from runvm.host import trial
from runvm.linux import syscalls

SHOWN = """\
Package: crun
Version: 1.8.1-1
Pre-Depends: init-system-helpers
Depends: libc6 (>= 2.34), libyajl2:any | libyajl, awk
Description: a runtime
 SHA256: not a field
Size: 10
SHA256: aa

Package: libc6
Version: 2.36-9
Provides: libc6-2.36, awk (= 1)
Size: 20
SHA256: bb

Package: libyajl
Version: 2.1
Depends: libc6, crun
Size: 30
SHA256: cc

Package: libc6
Version: 2.35-1
Size: 99
SHA256: dd
"""
WANTED = [("crun", "1.8.1-1"), ("libc6", "2.36-9"), ("libyajl", "2.1")]


def test_a_package_needs_those_of_its_alternatives_that_apt_chose() -> None:
    found = packages.read_stanzas(SHOWN, WANTED)
    assert found["crun"] == Package("crun", "1.8.1-1", "aa", 10, ("libc6", "libyajl"))
    assert found["libc6"] == Package("libc6", "2.36-9", "bb", 20, ())


def test_a_package_without_a_hash_is_an_error() -> None:
    with pytest.raises(CommandError, match="no hash of kmod"):
        packages.read_stanzas(SHOWN, [*WANTED, ("kmod", "30")])


def test_packages_needed_by_others_end_with_a_cycle() -> None:
    found = packages.read_stanzas(SHOWN, WANTED)
    assert [package.name for package in packages.needed_by(["crun"], found)] == ["crun", "libc6", "libyajl"]
    assert [package.name for package in packages.needed_by(["libc6"], found)] == ["libc6"]


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="packages are Debian's")
def test_unpacking_keeps_the_merged_usr(tmp_path: Path) -> None:
    """A package that ships /lib as a directory goes through the root's symlink instead of replacing it."""
    source = tmp_path / "source"
    (source / "DEBIAN").mkdir(parents=True)
    (source / "DEBIAN" / "control").write_text(
        "Package: a\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: a\n"
    )
    (source / "lib").mkdir()
    (source / "lib" / "file").write_text("here")
    subprocess.run(
        ("dpkg-deb", "--root-owner-group", "-b", source, tmp_path / "a.deb"), check=True, capture_output=True
    )
    root = tmp_path / "root"
    (root / "usr" / "lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    packages.unpack(str(tmp_path / "a.deb"), str(root))
    assert (root / "usr" / "lib" / "file").read_text() == "here"
    assert (root / "lib").is_symlink()


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="packages are Debian's")
def test_a_broken_package_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.deb", "w") as tar:
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
    with pytest.raises(CommandError, match=r"can't unpack .*a\.deb"):
        packages.unpack(str(tmp_path / "a.deb"), str(tmp_path))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system: needs root")
def test_a_full_disk_is_not_the_packages_fault(tmp_path: Path) -> None:
    """The advice is to make room, not to fetch the package anew; and it is a line, not one for each of its files."""
    source, full = tmp_path / "source", tmp_path / "full"
    (source / "DEBIAN").mkdir(parents=True)
    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    (source / "DEBIAN" / "control").write_text(control)
    for number in range(20):
        (source / str(number)).write_bytes(os.urandom(100_000))
    deb = str(tmp_path / "x.deb")
    subprocess.run(["dpkg-deb", "--build", source, deb], check=True, capture_output=True)
    full.mkdir()

    def attempt() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("full", str(full), "tmpfs", 0, "size=1m")
        packages.unpack(deb, str(full))

    said = trial.in_child(attempt)
    assert said == f"can't unpack {deb}: no space left on device: make room on the file system of {full}"
