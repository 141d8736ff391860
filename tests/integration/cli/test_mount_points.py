"""Where mounts go: mount points that an image lacks or that are symlinks, of any kind, and what the host sees of it."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.runtime import facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from framework.bundle import Bundle
    from framework.runtime import Box


def directory(bundle: Bundle, name: str) -> str:
    """A new directory of the host with a file of its own name."""
    path = f"{bundle.path}/{name}"
    os.makedirs(path)
    file(bundle, f"{name}/{name}")
    return path


def file(bundle: Bundle, name: str) -> str:
    """A new file of the host that holds its name."""
    path = f"{bundle.path}/{name}"
    with open(path, "w", encoding="ascii") as made:
        made.write(f"{os.path.basename(name)}\n")
    return path


def link(bundle: Bundle, target: str, path: str) -> Bundle:
    """A symlink of the image."""
    os.symlink(target, bundle.rootfs + path)
    return bundle


def made(bundle: Bundle, path: str, mode: int, *, gid: int = 0) -> None:
    """A directory of the image."""
    os.makedirs(bundle.rootfs + path)
    os.chown(bundle.rootfs + path, 0, gid)
    os.chmod(bundle.rootfs + path, mode)


@pytest.fixture(scope="module")
def seen(module_box: Box) -> Iterator[dict[str, str]]:
    """What a container sees that has mounts at many kinds of places."""
    container = module_box()
    bundle = container.bundle
    os.mkfifo(f"{bundle.path}/fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{bundle.path}/socket")
    for name, source in (
        ("fifo", f"{bundle.path}/fifo"),
        ("socket", f"{bundle.path}/socket"),
        ("null", "/dev/null"),
        ("file", file(bundle, "file")),
        ("directory/deep", directory(bundle, "plain")),
    ):
        bundle.bind(source, f"/new/{name}", "bind")
    for name, target in (
        ("to-directory", "/gone/directory"),
        ("to-file", "../../../../x/../gone/file"),
        ("on-the-way", "/gone/way"),
        ("twice", "to-directory2"),
        ("to-directory2", "/gone/second"),
    ):
        os.symlink(target, f"{bundle.rootfs}/{name}")
    bundle.bind(directory(bundle, "linked"), "/to-directory", "bind")
    bundle.bind(file(bundle, "linked-file"), "/to-file", "bind")
    bundle.bind(directory(bundle, "way"), "/on-the-way/further/down", "bind")
    bundle.bind(directory(bundle, "second"), "/twice", "bind")
    bundle.bind(directory(bundle, "up"), "/../../nowhere/../up", "bind")
    made(bundle, "/setgid", 0o2775, gid=77)
    bundle.bind(directory(bundle, "below-setgid"), "/setgid/a/b", "bind")
    bundle.bind(file(bundle, "file-below-setgid"), "/setgid/c/f", "bind")
    made(bundle, "/tmpfs700", 0o700)
    made(bundle, "/tmpfs3771", 0o3771, gid=5)
    bundle.mount("/tmpfs700", "tmpfs", "tmpfs")
    bundle.mount("/tmpfs3771", "tmpfs", "tmpfs", "size=1m")
    bundle.mount("/tmpfs-new", "tmpfs", "tmpfs")
    bundle.mount("/tmpfs-new-750", "tmpfs", "tmpfs", "mode=750")
    made(bundle, "/copied", 0o751)
    made(bundle, "/copied/sub", 0o711)
    bundle.file("/copied/sub/file", "copied")
    os.chown(f"{bundle.rootfs}/copied/sub/file", 7, 8)
    bundle.mount("/copied", "tmpfs", "tmpfs", "tmpcopyup")
    made(bundle, "/of-root", 0o755)
    bundle.file("/of-root/one", "of root")
    bundle.bind(f"{bundle.rootfs}/of-root", "/first", "bind")
    bundle.bind(f"{bundle.rootfs}/first", "/second", "bind")
    bundle.bind(f"{bundle.rootfs}/of-root/one", "/third", "bind")
    bundle.process["cwd"] = "/work/in/here"
    commands = {
        "kinds": "cd /new; for f in *; do stat -c '%n %F' $f; done; cat file; echo x >null; ls directory/deep",
        "links": "cat /gone/directory/linked /gone/file /gone/way/further/down/way /gone/second/second /up/up; ls /x",
        "setgid": "stat -c '%a %g' /setgid/a /setgid/c",
        "tmpfs": "stat -c '%a %u %g' /tmpfs700 /tmpfs3771 /tmpfs-new /tmpfs-new-750",
        "copied": "cd /copied; stat -c '%a %u %g' . sub sub/file; cat sub/file; grep -c ' /copied ' /proc/mounts",
        "in-root": "echo more >/first/two; cat /second/one; cat /second/two /of-root/two; cat /third",
        "cwd": "pwd; umask",
    }
    yield facts(container, commands) | {"rootfs": bundle.rootfs}


def test_any_kind_of_file_is_bound_where_there_is_nothing(seen: dict[str, str]) -> None:
    """A FIFO, a socket, a device, a file, a directory; what is made for it on the host is 0755."""
    assert seen["kinds"].splitlines() == [
        "directory directory",
        "fifo fifo",
        "file regular file",
        "null character special file",
        "socket socket",
        "file",
        "plain",
    ]
    for path in ("new", "new/fifo", "new/socket", "new/file", "new/directory", "new/directory/deep"):
        assert stat.S_IMODE(os.lstat(f"{seen['rootfs']}/{path}").st_mode) == 0o755


def test_a_symlink_that_leads_nowhere_is_followed_inside_the_root(seen: dict[str, str]) -> None:
    """Its target is made, wherever in the path it is; `..` stops at the root."""
    assert seen["links"].splitlines()[:5] == ["linked", "linked-file", "way", "second", "up"]
    assert "No such file" in seen["links"].splitlines()[5]
    assert os.path.islink(f"{seen['rootfs']}/to-file")


def test_directories_made_below_a_setgid_one_inherit_it(seen: dict[str, str]) -> None:
    """Group and bit."""
    assert seen["setgid"].split() == ["2755", "77", "2755", "77"]


def test_a_tmpfs_has_the_mode_of_what_it_covers(seen: dict[str, str]) -> None:
    """1777 where nothing was, unless it is given."""
    assert seen["tmpfs"].splitlines() == ["700 0 0", "3771 0 0", "1777 0 0", "750 0 0"]


def test_tmpcopyup_fills_a_tmpfs_with_what_it_covers(seen: dict[str, str]) -> None:
    """With modes and owners."""
    assert seen["copied"].splitlines() == ["751 0 0", "711 0 0", "644 7 8", "copied1"]


def test_a_bind_of_the_containers_own_root_sees_earlier_mounts(seen: dict[str, str]) -> None:
    """Mounts are made in their order; both paths are one directory."""
    assert seen["in-root"].splitlines() == ["of rootmore", "more", "of root"]


def test_the_working_directory_is_made(seen: dict[str, str]) -> None:
    """And the umask is what it was."""
    assert seen["cwd"].splitlines() == ["/work/in/here", "0022"]


REFUSED: dict[str, tuple[Callable[[Bundle], object], str]] = {
    "a directory in a read-only bind": (
        lambda b: b.bind(directory(b, "a"), "/a", "ro", "bind").bind(directory(b, "b"), "/a/new", "bind"),
        "/a/new: read-only file system",
    ),
    "a file in a read-only bind": (
        lambda b: b.bind(directory(b, "a"), "/a", "ro", "rbind").bind(file(b, "f"), "/a/new", "bind"),
        "/a/new: read-only file system",
    ),
    "a tmpfs in a read-only bind": (
        lambda b: b.bind(directory(b, "a"), "/a", "ro", "rbind").mount("/a/deep/new", "tmpfs", "tmpfs"),
        "/a/deep: read-only file system",
    ),
    "a directory on a file": (lambda b: b.bind(directory(b, "a"), "/etc/passwd", "bind"), "not a directory"),
    "a file on a directory": (lambda b: b.bind(file(b, "f"), "/etc", "bind"), "not a directory"),
    "below a file": (lambda b: b.bind(file(b, "f"), "/etc/passwd/x", "bind"), "/etc/passwd/x: not a directory"),
    "a circle of symlinks": (
        lambda b: link(b, "circle", "/circle").bind(file(b, "f"), "/circle", "bind"),
        "too many levels of symbolic links",
    ),
    "no source": (lambda b: b.bind("/no/such", "/mnt", "bind"), "stat /no/such: no such file or directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_mounted_is_refused_as_by_runc(box: Box, name: str) -> None:
    """The error names source, destination and reason, and nothing is made on the host."""
    prepare, said = REFUSED[name]
    container = box("true")
    prepare(container.bundle)
    result = container.try_create()
    assert result.code == 1
    assert "error during container init: error mounting" in result.error
    assert said in result.error
    assert os.listdir(f"{container.bundle.path}/a") == ["a"] if "read-only" in name else True


def test_a_bind_onto_the_root_replaces_it(box: Box) -> None:
    """Where it is the first mount."""
    container = box.sh("cat /mark; cat /proc/self/comm")
    bundle = container.bundle
    other = f"{bundle.path}/other"
    subprocess.run(["cp", "-a", bundle.rootfs, other], check=True, timeout=10)
    file(bundle, "other/mark")
    bundle.config["mounts"].insert(0, {"destination": "/", "type": "bind", "source": other, "options": ["rbind"]})
    assert container.run().expect(0).text == "mark\ncat"
    assert not os.path.exists(f"{bundle.rootfs}/mark")


def test_a_read_only_root_gets_its_mount_points(box: Box) -> None:
    """They are made before it becomes read-only; what is mounted there is as writable as it says."""
    container = box.sh("touch /made /new/made; touch /new/directory/made; cat /new/file; touch /scratch/x && pwd")
    bundle = container.bundle
    bundle.config["root"]["readonly"] = True
    bundle.process["cwd"] = "/work/here"
    bundle.bind(directory(bundle, "plain"), "/new/directory", "bind")
    bundle.bind(file(bundle, "file"), "/new/file", "bind", "ro")
    bundle.mount("/scratch", "tmpfs", "tmpfs")
    result = container.run()
    assert result.text == "file\n/work/here"
    assert result.stderr.count(b"Read-only file system") == 2
    assert os.path.exists(f"{bundle.path}/plain/made")


@rootfs.host_runs_its_programs
def test_who_joins_the_mount_namespace_sees_the_containers_mounts(box: Box) -> None:
    """As podman cp and nsenter do: volumes at their places, writable or not, also by the image's symlinks, which lead
    nowhere outside of the root."""
    container = box.idle()
    bundle = container.bundle
    os.symlink("/etc", f"{bundle.rootfs}/outside")
    os.symlink("../../../../../../../../../../../../escape", f"{bundle.rootfs}/relative")
    bundle.bind(directory(bundle, "volume"), "/volume", "rbind")
    bundle.bind(directory(bundle, "fixed"), "/fixed", "rbind", "ro")
    bundle.bind(directory(bundle, "inner"), "/volume/inner", "rbind")
    bundle.bind(file(bundle, "single"), "/outside/single", "bind")
    bundle.bind(directory(bundle, "far"), "/relative", "bind")
    container.launch()

    def entered(script: str) -> str:
        argv = ["nsenter", "-t", str(container.init_pid), "-m", "/bin/sh", "-c", script]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout

    assert entered("cat /volume/volume /volume/inner/inner /fixed/fixed /etc/single /escape/far").split() == [
        "volume", "inner", "fixed", "single", "far",
    ]  # fmt: skip
    entered("echo x >/volume/made; echo x >/fixed/made; echo x >/etc/made")
    assert os.path.exists(f"{bundle.path}/volume/made")
    assert not os.path.exists(f"{bundle.path}/fixed/made")
    assert os.path.exists(f"{bundle.rootfs}/etc/made")
    assert not os.path.exists("/etc/single")
    assert not os.path.exists("/escape")
    assert container.sh("cat /volume/made") == "x"
