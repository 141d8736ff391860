"""mountinfo read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.linux import mounts
from runvm.shares import within

if TYPE_CHECKING:
    import pytest


def test_paths_are_escaped_as_in_mountinfo() -> None:
    """Blanks, newlines and backslashes as octal numbers (proc(5))."""
    path = "/a b\\c\td\ne"
    assert mounts._escaped(path) == "/a\\040b\\134c\\011d\\012e"
    assert mounts._unescaped(mounts._escaped(path)) == path


def test_the_mounts_of_this_process_are_found() -> None:
    """The root is there, with its options; a path that is no mount has none."""
    table = {mount.point: mount for mount in mounts.table("/proc")}
    assert table["/proc"].root == "/"
    assert mounts.table("/proc/no such") == []


def mounted(root: str, point: str, device: str = "8:1", options: str = "rw") -> mounts.Mounted:
    """A line of mountinfo."""
    return mounts.Mounted(device, root, point, frozenset(options.split(",")))


def test_a_source_within_another_is_a_path_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file system's directories; never where that would give more or fewer rights, or other mounts below."""
    monkeypatch.setattr(within, "_is", lambda top, path, other: True)

    def found(*table: mounts.Mounted, read_only: str = "") -> dict[str, tuple[str, str]]:
        points = {mount.point for mount in table if mount.point.count("/") == 2}
        return within.places(list(table), points, {read_only}, points)

    outer, inner = mounted("/v", "/s/1"), mounted("/v/x/y", "/s/2")
    assert found(outer, inner) == {"/s/2": ("/s/1", "/s/1/x/y")}
    assert found(inner, outer, mounted("/v/x", "/s/3")) == {
        "/s/2": ("/s/1", "/s/1/x/y"),
        "/s/3": ("/s/1", "/s/1/x"),
    }
    assert found(mounted("/", "/s/1"), inner) == {"/s/2": ("/s/1", "/s/1/v/x/y")}
    assert found(outer, mounted("/vx", "/s/2")) == {}
    assert found(outer, mounted("/v/x", "/s/2", device="8:2")) == {}
    assert found(outer, mounted("/v/x", "/s/2", options="rw,noexec")) == {}
    assert found(mounted("/v", "/s/1", options="ro"), inner) == {}
    assert found(outer, mounted("/v/x", "/s/2", options="ro")) == {}
    assert found(outer, mounted("/v/x", "/s/2", options="ro"), read_only="/s/2") == {"/s/2": ("/s/1", "/s/1/x")}
    # the inner one isn't recursive, or has something mounted that the outer one hasn't
    assert found(outer, inner, mounted("/", "/s/1/x/y/m", device="0:9")) == {}
    assert found(outer, inner, mounted("/", "/s/2/m", device="0:9")) == {}
    below = (mounted("/", "/s/1/x/y/m", device="0:9"), mounted("/", "/s/2/m", device="0:9"))
    assert found(outer, inner, *below) == {"/s/2": ("/s/1", "/s/1/x/y")}
    # what is mounted in the outer one contains it
    assert found(outer, mounted("/d", "/s/1/m", device="0:9"), mounted("/d/e", "/s/2", device="0:9")) == {
        "/s/2": ("/s/1", "/s/1/m/e")
    }
