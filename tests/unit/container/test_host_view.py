"""What may be mounted where, as the host's side of a container's root is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from framework.apart import apart
from runvm.container import host_view
from runvm.container.host_view import Made, View, ViewEntry
from runvm.errors import HostError
from runvm.linux import syscalls

if TYPE_CHECKING:
    pass

PROC = ViewEntry("/proc", "proc", "")
SYS = ViewEntry("/sys", "sysfs", "")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


class Root:
    """An image's root, with a file and a directory of the host beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "rootfs"
        self.at = path / "at"
        self.file = path / "file"
        self.directory = path / "directory"
        for each in (self.path, self.at, self.directory, *(self.path / name for name in ("proc", "sys", "etc"))):
            each.mkdir()
        self.file.write_text("file\n")

    def make(self, *entries: ViewEntry) -> tuple[Made, list[int]]:
        """The view, in this mount namespace."""
        return host_view.make(View(str(self.path), str(self.at), entries, False, "/", (0, 0), 0))

    def bind(self, destination: str) -> ViewEntry:
        """A bind of the file."""
        return ViewEntry(destination, "bind", str(self.file))

    def error(self, *entries: ViewEntry) -> str:
        """What making the view says, without what stands before each error."""
        said = self.path.parent / "said"

        def look() -> None:
            said.write_text("")
            try:
                self.make(*entries)
            except HostError as error:
                said.write_text(str(error))

        apart(look)
        return said.read_text().partition(": error mounting ")[2]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A fresh one."""
    return Root(tmp_path)


@pytest.mark.parametrize(
    ("link", "target", "destination", "leads"),
    [
        ("", "", "/proc/version", "/proc/version"),
        ("", "", "/proc/sys/kernel/hostname", "/proc/sys/kernel/hostname"),
        ("", "", "/proc/self/attr/current", "/proc/self/attr/current"),
        ("", "", "/proc/nothing/there", "/proc/nothing/there"),
        ("", "", "/proc/sys", "/proc/sys"),
        ("evil", "/proc/sys/kernel", "/evil/hostname", "/proc/sys/kernel/hostname"),
        ("evil", "proc", "/evil/version", "/proc/version"),
        ("evil", "etc/../../proc/../proc", "/evil/version", "/proc/version"),
        ("etc/mtab", "/proc/mounts", "/etc/mtab", "/proc/mounts"),
        ("etc/mtab", "../proc/self/mounts", "/etc/mtab", "/proc/self/mounts"),
        ("etc/twice", "/second", "/etc/twice/x", ""),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["proc-first", "proc-last"])
def test_nothing_is_mounted_inside_proc(
    root: Root, link: str, target: str, destination: str, leads: str, first: bool
) -> None:
    """Whether by its name or by the image's links, and whether proc is mounted before it or not."""
    if link:
        (root.path / link).symlink_to(target)
    (root.path / "second").symlink_to("/proc/sys")
    leads = leads or "/proc/sys/x"
    bind = root.bind(destination)
    entries = (PROC, bind) if first else (bind, PROC)
    assert root.error(*entries) == (
        f'"{root.file}" to rootfs at "{destination}": "{root.path}{leads}" cannot be mounted because it is inside /proc'
    )
    assert os.listdir(root.path / "proc") == []


@pytest.mark.parametrize("kind", ["tmpfs", "mqueue", "cgroup"])
def test_nor_is_another_file_system(root: Root, kind: str) -> None:
    """Later versions of runc refuse these as well."""
    assert "cannot be mounted because it is inside /proc" in root.error(PROC, ViewEntry("/proc/scsi", kind, ""))


@pytest.mark.parametrize("link", ["", "evil"])
def test_nothing_but_a_proc_is_mounted_at_proc(root: Root, link: str) -> None:
    """By its name or by a link."""
    if link:
        (root.path / link).symlink_to("proc")
    at = f"/{link or 'proc'}"
    entry = ViewEntry(at, "bind", str(root.directory))
    assert root.error(entry) == (
        f'"{root.directory}" to rootfs at "{at}": "{root.path}/proc" cannot be mounted because it is not of type proc'
    )
    assert "not of type proc" in root.error(ViewEntry(at, "tmpfs", ""))
    assert root.error(ViewEntry(at, "bind", "", of_proc=True)) == ""


@pytest.mark.parametrize("name", ["cpuinfo", "meminfo", "uptime", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled"])
def test_what_lxcfs_has_its_own_of_may_be_covered(root: Root, name: str) -> None:
    """By its name, or by the image's link."""
    (root.path / "link").symlink_to(f"proc/{name}")
    assert root.error(PROC, root.bind(f"/proc/{name}")) == ""
    assert root.error(PROC, root.bind("/link")) == ""


@pytest.mark.parametrize("kind", ["proc", "sysfs"])
@pytest.mark.parametrize("made", ["link", "relative", "dangling", "file"])
def test_proc_and_sysfs_are_mounted_on_directories(root: Root, kind: str, made: str) -> None:
    """An image's link would have them somewhere else, and leave the real place to the image."""
    place = root.path / kind.removesuffix("fs")
    place.rmdir()
    if made == "file":
        place.touch()
    else:
        place.symlink_to({"link": "/etc", "relative": "etc", "dangling": "/gone"}[made])
    assert root.error(ViewEntry(f"/{place.name}", kind, "")) == (
        f'"{kind}" to rootfs at "/{place.name}": filesystem "{kind}" must be mounted on ordinary directory'
    )


def test_proc_and_sysfs_need_no_directory_and_other_places_are_free(root: Root) -> None:
    """One that isn't there is made; /sys may be covered, and what is only called alike."""
    (root.path / "proc").rmdir()
    entries = (PROC, SYS, ViewEntry("/sys/firmware", "tmpfs", ""), root.bind("/process"), root.bind("/etc/proc/x"))
    assert root.error(*entries, ViewEntry("/sys", "bind", str(root.directory))) == ""


def test_a_tmpfs_in_one_that_copies_has_the_mode_of_the_images_directory(root: Root) -> None:
    """As under runc, where the copy is there before the second is mounted; also two levels down, and not below an
    empty one."""
    for number, path in enumerate(("var", "var/lib", "var/lib/x", "var/lib/x/y", "var/empty", "var/empty/z", "plain")):
        (root.path / path).mkdir()
        (root.path / path).chmod(0o750 + number)
    kinds = [("/var", True), ("/var/lib/x", False), ("/var/lib", True), ("/var/lib/x", True), ("/var/lib/x/y", False)]
    kinds += [("/var/empty", False), ("/var/empty/z", False), ("/var/new", False), ("/plain", False)]

    def modes() -> None:
        made, _ = root.make(*(ViewEntry(path, "tmpfs", "", copied=copied) for path, copied in kinds))
        found = [made.places[number].mode if number in made.places else -1 for number in range(len(kinds))]
        assert found == [0o750, 0o752, 0o751, 0o752, 0o753, 0o754, -1, -1, 0o756]

    apart(modes)


def test_a_bind_of_the_hosts_root_has_no_view_in_it(root: Root) -> None:
    """Neither the one that is being made, nor what is bound later, as the supervisor does."""

    def look() -> None:
        host = ViewEntry("/host", "bind", "/", recursive=True)
        root.make(root.bind("/before"), host, ViewEntry("/in", "bind", f"{root.path}/etc", inside=True))
        (root.directory / "later").mkdir()
        later = syscalls.clone_tree("/", recursive=True)
        syscalls.attach_tree(later, str(root.directory / "later"))
        for top in (root.at / "host", root.directory / "later"):
            assert os.listdir(f"{top}{root.at}") == []
        assert os.listdir(f"{root.at}/in") == []

    apart(look)
