"""A layer saved and applied: everything of a file comes along, deletions too, and links lead nowhere."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest

from runvm.checkpoint import layer
from runvm.errors import UnsupportedError
from runvm.linux import process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """What an overlay's upper directory may hold: trusted attributes take root and a file system that has them."""
    path = tmp_path / "upper"
    path.mkdir()
    try:
        os.setxattr(path, "trusted.overlay.origin", b"x")
    except OSError:
        pytest.skip("this file system has no trusted attributes, or this user can't set them")
    return path


def carried(upper: Path, root: Path) -> None:
    """From the one to the other, by a copy."""
    saved = root.parent / "saved"
    layer.save(str(upper), str(saved))
    layer.apply(str(saved), str(root), str(root.parent / "journal"))


def whiteout(path: Path) -> None:
    """As overlayfs makes one."""
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def test_files_come_with_all_that_they_have(upper: Path, tmp_path: Path) -> None:
    """Mode, owner, times, attributes, holes, hard links, symlinks, FIFOs, sockets, devices."""
    (upper / "d").mkdir(mode=0o751)
    file = upper / "d" / "file"
    with open(file, "wb") as out:
        out.write(b"begin")
        out.seek(1 << 20)
        out.write(b"end")
    os.setxattr(file, "user.mine", b"\0value")
    os.chown(file, 12, 34)
    os.chmod(file, 0o4711)
    os.link(file, upper / "again")
    os.symlink("/etc/passwd", upper / "link")
    os.mkfifo(upper / "fifo", 0o620)
    os.mknod(upper / "socket", stat.S_IFSOCK | 0o700)
    os.mknod(upper / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.utime(file, ns=(10**18, 10**18 + 5))
    os.utime(upper / "d", ns=(10**18, 10**18 + 7))
    root = tmp_path / "root"
    root.mkdir()
    carried(upper, root)
    for name in ("d", "d/file", "again", "link", "fifo", "socket", "device"):
        there, here = os.lstat(upper / name), os.lstat(root / name)
        for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_rdev", "st_mtime_ns"):
            assert getattr(there, field) == getattr(here, field), (name, field)
    assert (root / "d" / "file").read_bytes() == file.read_bytes()
    assert os.stat(root / "d" / "file").st_blocks * 512 < 1 << 20
    assert os.path.samefile(root / "again", root / "d" / "file")
    assert os.getxattr(root / "d" / "file", "user.mine") == b"\0value"
    assert os.readlink(root / "link") == "/etc/passwd"


def test_deletions_and_replacements(upper: Path, tmp_path: Path) -> None:
    """Whiteouts, opaque directories, a file where a directory was and the other way round."""
    root = tmp_path / "root"
    for name in ("gone", "opaque", "kept", "tofile"):
        (root / name).mkdir(parents=True)
        (root / name / "old").write_text("old")
    (root / "todirectory").write_text("old")
    whiteout(upper / "gone")
    whiteout(upper / "never")
    (upper / "opaque").mkdir()
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    (upper / "opaque" / "new").write_text("new")
    (upper / "kept").mkdir()
    whiteout(upper / "kept" / "other")
    (upper / "tofile").write_text("new")
    (upper / "todirectory").mkdir()
    carried(upper, root)
    assert not any(stat.S_ISCHR(os.lstat(path).st_mode) for path in (tmp_path / "saved").rglob("*"))
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert found == ["kept", "kept/old", "opaque", "opaque/new", "todirectory", "tofile"]
    assert not any(key.startswith("trusted.overlay") for key in os.listxattr(root / "opaque"))


def test_links_are_followed_nowhere(upper: Path, tmp_path: Path) -> None:
    """A root that has links where the layer has directories and files: they are replaced, what they lead to stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    (outside / "file").chmod(0o600)
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(outside, root / "directory")
    os.symlink(outside / "file", root / "file")
    (upper / "directory").mkdir()
    (upper / "directory" / "file").write_text("from the layer")
    (upper / "file").write_text("from the layer")
    (upper / "file").chmod(0o777)
    carried(upper, root)
    assert (outside / "file").read_text() == "untouched"
    assert stat.S_IMODE((outside / "file").stat().st_mode) == 0o600
    assert not os.path.islink(root / "directory")
    assert (root / "file").read_text() == "from the layer"


def test_what_was_saved_early_comes_from_there_unless_it_has_changed(
    upper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data are copied once only, and the layer is that of the second moment."""
    monkeypatch.setattr(layer, "_SETTLED_NS", -(10**12))
    (upper / "d").mkdir()
    for name in ("kept", "written", "replaced", "gone", "d/moved", "mode", "grown"):
        (upper / name).write_text(f"the first {name}")
    os.link(upper / "kept", upper / "d" / "again")
    early = layer.save(str(upper), str(tmp_path / "early"))
    time.sleep(0.02)  # the clock of a file system may tick slowly
    with open(upper / "written", "r+") as file:
        file.write("another")
    os.utime(upper / "written", ns=(5, os.stat(tmp_path / "early" / "written").st_mtime_ns))
    (tmp_path / "new").write_text("the first replacer")
    os.rename(tmp_path / "new", upper / "replaced")
    (upper / "gone").unlink()
    os.rename(upper / "d", upper / "e")
    os.rename(upper / "e" / "moved", upper / "moved")
    (upper / "mode").chmod(0o600)
    with open(upper / "grown", "a") as file:
        file.write(" more")
    layer.save(str(upper), str(tmp_path / "saved"), early)

    def described(top: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in sorted(top.rglob("*")):
            status = os.lstat(path)
            content = path.read_text() if path.is_file() else ""
            found[str(path.relative_to(top))] = (status.st_mode, status.st_mtime_ns, content)
        return found

    assert described(tmp_path / "saved") == described(upper)
    assert os.path.samefile(tmp_path / "saved" / "kept", tmp_path / "early" / "kept")
    assert os.path.samefile(tmp_path / "saved" / "kept", tmp_path / "saved" / "e" / "again")
    for name in ("written", "replaced", "grown"):
        assert not os.path.samefile(tmp_path / "saved" / name, tmp_path / "early" / name)


def test_what_was_written_a_moment_ago_isnt_taken_from_there(upper: Path, tmp_path: Path) -> None:
    """Within a tick of the file system's clock it may be written again, and no time tells."""
    (upper / "file").write_text("x")
    early = layer.save(str(upper), str(tmp_path / "early"))
    assert early.files == {}


def test_a_device_that_takes_a_files_place_isnt_opened(upper: Path) -> None:
    """A container that still runs may do that between two looks."""
    (upper / "file").write_text("x")
    place = layer._Place(os.open(upper, os.O_RDONLY), "", 0)
    found = os.stat(upper / "file")
    (upper / "file").unlink()
    os.mkfifo(upper / "file")
    try:
        with pytest.raises(OSError, match="another file has come"):
            layer._open_found(place, "file", found)
    finally:
        os.close(place.fd)


def test_what_is_too_much_is_refused(upper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories within each other without end, too many files, too many bytes, parts of other layers' files."""
    deep = os.open(upper, os.O_RDONLY)
    for _ in range(150):
        os.mkdir("d", dir_fd=deep)
        inner = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    with pytest.raises(UnsupportedError, match="deep"):
        layer.save(str(upper), str(tmp_path / "deep"))
    many = tmp_path / "many"
    many.mkdir()
    for number in range(4):
        (many / str(number)).write_bytes(bytes(100))
    for name, limit in (("MAX_ENTRIES", 3), ("MAX_BYTES", 399)):
        with monkeypatch.context() as patch:
            patch.setattr(layer, name, limit)
            with pytest.raises(UnsupportedError, match="more than"):
                layer.save(str(many), str(tmp_path / name))
    os.setxattr(many / "0", "trusted.overlay.metacopy", b"")
    with pytest.raises(UnsupportedError, match="metacopy"):
        layer.save(str(many), str(tmp_path / "part"))


def test_what_was_made_is_taken_away_again(upper: Path, tmp_path: Path) -> None:
    """But for what is to stay, and for directories that others have put something into; replaced is replaced."""
    for name in ("new", "used", "kept"):
        (upper / name).mkdir()
        (upper / name / "file").write_text("new")
    (upper / "old").mkdir()
    (upper / "old" / "file").write_text("new")
    root, saved, journal = tmp_path / "root", str(tmp_path / "saved"), str(tmp_path / "journal")
    (root / "old").mkdir(parents=True)
    layer.save(str(upper), saved)
    layer.apply(saved, str(root), journal, {"/kept", "/kept/file"})
    (root / "used" / "theirs").write_text("x")
    layer.undo(str(root), journal)
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert found == ["kept", "kept/file", "old", "used", "used/theirs"]
    assert not os.path.exists(journal)
    layer.apply(saved, str(root), journal)
    with pytest.raises(UnsupportedError):
        layer.undo(str(root), journal)


def test_what_was_made_before_it_failed_is_taken_away(upper: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (upper / name).mkdir()
        (upper / name / "file").write_text("new")
    root, saved, journal = tmp_path / "root", tmp_path / "saved", tmp_path / "journal"
    root.mkdir()
    layer.save(str(upper), str(saved))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "MAX_ENTRIES", 4)
        with pytest.raises(UnsupportedError):
            layer.apply(str(saved), str(root), str(journal))
    assert list(root.iterdir()) != []
    layer.undo(str(root), str(journal))
    assert list(root.iterdir()) == []


def test_what_a_killed_process_has_made_is_taken_away(upper: Path, tmp_path: Path) -> None:
    """By another one, which reads what was written down before it was done; also where that has been killed, too."""
    for number in range(20):
        (upper / f"d{number}").mkdir()
        (upper / f"d{number}" / "file").write_text("new")
    root, saved, journal = tmp_path / "root", tmp_path / "saved", tmp_path / "journal"
    root.mkdir()
    layer.save(str(upper), str(saved))

    def killed(work: Callable[[], None], call: str, number: int) -> None:
        """*work* in a process that is killed at the *number*th time that it makes a system call."""
        real, calls = getattr(os, call), itertools.count(1)

        def counted(*arguments: Any, **named: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        def child() -> None:
            setattr(os, call, counted)
            work()

        assert os.waitpid(process.fork(child), 0)[1] == signal.SIGKILL

    killed(lambda: layer.apply(str(saved), str(root), str(journal)), "mkdir", 12)
    assert len(os.listdir(root)) > 8
    killed(lambda: layer.undo(str(root), str(journal)), "rmdir", 4)
    assert 0 < len(os.listdir(root)) < 11
    layer.undo(str(root), str(journal))
    assert list(root.iterdir()) == []
