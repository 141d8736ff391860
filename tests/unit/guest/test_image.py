"""image.py and store.py: which image a start gets, what its key follows, and what `image prune` may remove."""

import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runvm import __version__
from runvm.config import Config
from runvm.errors import ConfigError, HostError
from runvm.guest import contents, image, store
from runvm.linux.architecture import KNOWN, host


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A data directory of its own, without images."""
    return Config(data_dir=str(tmp_path / "data"))


def add(
    config: Config,
    name: str,
    *,
    created: int = 1,
    packages: tuple[str, ...] = (),
    agent: str = __version__,
    arch: str = host(),
) -> Path:
    """An image as the builder leaves one, with next to nothing in its files."""
    directory = Path(config.data_dir, "images", name)
    (directory / "modules").mkdir(parents=True)
    for file in ("vmlinuz", "initramfs"):
        (directory / file).write_text(file)
    manifest = {
        "hash": name * 5,
        "kernel": "6.1.0-1-amd64",
        "created": created,
        "agent": agent,
        "architecture": arch,
        "sizes": {"vmlinuz": 7, "initramfs": 9, "modules": 0},
        "packages": [{"name": "a", "sha256": package} for package in packages],
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    store.make_current(str(directory.parent), str(directory))
    return directory


def bzimage(path: Path, release: str) -> str:
    """A file with an x86 boot header that names *release*, as `file` reads it."""
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = struct.pack("<H", 0x100)
    words = f"{release} (debian-kernel@lists.debian.org) #1 SMP\0".encode()
    head[0x300 : 0x300 + len(words)] = words
    path.write_bytes(head)
    return str(path)


def test_without_an_image_the_error_says_how_to_build_one(config: Config) -> None:
    with pytest.raises(HostError) as caught:
        image.resolve(config)
    assert caught.value.do == "run 'runvm image build'"


def test_an_image_of_another_version_is_refused(config: Config) -> None:
    add(config, "old", agent="0.0.9")
    with pytest.raises(HostError, match=r"the guest image old was built by runvm 0\.0\.9, this is"):
        image.resolve(config)


def test_the_image_built_last_is_taken(config: Config) -> None:
    add(config, "older", created=2)
    newer = add(config, "newer", created=1)
    found = image.resolve(config)
    assert found == image.Image(
        name="newer",
        directory=str(newer),
        kernel=str(newer / "vmlinuz"),
        initramfs=str(newer / "initramfs"),
        modules=str(newer / "modules"),
        kernel_version="6.1.0-1-amd64",
        key="newer" * 5,
        agent=__version__,
    )


def test_an_image_is_chosen_by_name_or_path(config: Config) -> None:
    chosen = add(config, "chosen")
    add(config, "other")
    assert image.resolve(config._replace(image="chosen")).directory == str(chosen)
    assert image.resolve(config._replace(image=str(chosen))).directory == str(chosen)


def test_an_image_for_another_architecture_is_refused(config: Config) -> None:
    """QEMU's words about such a kernel are no help."""
    other = next(name for name in KNOWN if name != host())
    add(config, "other", arch=other)
    with pytest.raises(ConfigError, match=f"image: the guest image other is for {other}, not for {host()}"):
        image.resolve(config._replace(image="other"))


def test_an_image_that_is_not_there_is_named(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"image: there is no guest image .*/gone"):
        image.resolve(config._replace(image="gone"))


def test_a_broken_manifest_says_which_file_and_what_to_do(config: Config) -> None:
    (add(config, "broken") / "manifest.json").write_text("{")
    with pytest.raises(HostError, match=r"broken/manifest\.json.*run 'runvm image build'"):
        image.resolve(config)


def test_own_files_need_no_image_and_change_the_key(config: Config, tmp_path: Path) -> None:
    """The key follows path, size and time of each own file: a template made with another kernel is never restored."""
    kernel = bzimage(tmp_path / "kernel", "6.9.1")
    (tmp_path / "initramfs").write_text("one")
    own = config._replace(kernel=kernel, initramfs=str(tmp_path / "initramfs"))
    first = image.resolve(own)
    assert (first.kernel, first.modules, first.kernel_version, first.directory) == (kernel, "", "6.9.1", "")
    assert image.resolve(own).key == first.key
    os.utime(tmp_path / "initramfs", ns=(5, 5))
    assert image.resolve(own).key != first.key


def test_another_kernel_gets_no_modules_of_the_image(config: Config, tmp_path: Path) -> None:
    """The image's modules go with the image's release only; with modules of its own a kernel gets those."""
    directory = add(config, "image")
    other = config._replace(kernel=bzimage(tmp_path / "other", "6.9.1"))
    assert image.resolve(other).modules == ""
    assert image.resolve(other._replace(modules=str(tmp_path))).modules == str(tmp_path)
    same = config._replace(kernel=bzimage(tmp_path / "same", "6.1.0-1-amd64"))
    assert image.resolve(same).modules == str(directory / "modules")
    assert image.resolve(same).initramfs == str(directory / "initramfs")


def test_user_mode_linux_gets_its_own_kernel_and_the_initramfs_without_modules(config: Config, tmp_path: Path) -> None:
    """The image's other one where it has none, and one of the user's own in any case."""
    directory = add(config, "image")
    kernel = Path(config.data_dir, "kernels/uml/current")
    kernel.mkdir(parents=True)
    (kernel / "linux").touch(mode=0o755)
    (kernel / "manifest.json").write_text(json.dumps({"kernel": "6.1.9", "sha256": "f" * 64}))
    found = image.resolve(config, "uml")
    assert (found.kernel, found.modules, found.kernel_version) == (str(kernel / "linux"), "", "6.1.9")
    assert found.initramfs == str(directory / "initramfs")
    (directory / "initramfs-uml").touch()
    assert image.resolve(config, "uml").initramfs == str(directory / "initramfs-uml")
    (tmp_path / "own").touch()
    assert image.resolve(config._replace(initramfs=str(tmp_path / "own")), "uml").initramfs == str(tmp_path / "own")


def test_an_own_file_that_is_not_there_is_named_by_its_key(config: Config) -> None:
    add(config, "image")
    with pytest.raises(ConfigError, match="initramfs: can't read /nowhere: No such file"):
        image.resolve(config._replace(initramfs="/nowhere"))


def test_a_kernel_that_is_no_bzimage_has_no_version(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF")
    assert image.kernel_version(str(tmp_path / "vmlinux")) == ""


def test_images_are_listed_newest_first(config: Config) -> None:
    add(config, "old", created=10)
    add(config, "new", created=20)
    Path(config.data_dir, "images", ".build-half").mkdir()
    listed = image.list_images(config)
    assert [(built.name, built.current, built.size) for built in listed] == [("new", True, 16), ("old", False, 16)]


def test_nothing_built_lists_and_prunes_nothing(config: Config) -> None:
    assert image.list_images(config) == []
    assert image.prune(config) == []


def test_prune_keeps_the_newest_and_the_current(config: Config) -> None:
    for number, name in enumerate(("a", "b", "c")):
        add(config, name, created=number)
    store.make_current(str(Path(config.data_dir, "images")), str(Path(config.data_dir, "images", "a")))
    assert image.prune(config, keep=1) == ["b"]
    assert {built.name for built in image.list_images(config)} == {"a", "c"}


def test_prune_keeps_what_a_vm_runs_from(config: Config) -> None:
    add(config, "used", created=1)
    held = image.take(config)[1]
    add(config, "new", created=2)
    assert image.prune(config) == []
    os.close(held)
    assert image.prune(config) == ["used"]


def test_prune_removes_packages_that_no_image_needs(config: Config) -> None:
    add(config, "old", created=1, packages=("aa", "bb"))
    add(config, "new", created=2, packages=("bb",))
    cache = Path(config.data_dir, "cache")
    cache.mkdir()
    for name in ("aa.deb", "bb.deb", "cc.deb"):
        (cache / name).touch()
    image.prune(config)
    assert [path.name for path in cache.iterdir()] == ["bb.deb"]


def test_what_a_killed_build_left_is_removed_by_the_next(config: Config) -> None:
    base = Path(config.data_dir, "images")
    (base / ".build-killed" / "root").mkdir(parents=True)
    with store.locked(str(base), lambda _: None):
        assert [path.name for path in base.iterdir()] == [".lock"]


def test_a_second_build_waits_and_says_so(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(config.data_dir, "images")
    base.mkdir(parents=True)
    fd = os.open(base / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    said: list[str] = []

    def let_go(message: str) -> None:
        said.append(message)
        os.close(fd)

    with store.locked(str(base), let_go):
        assert said == ["waiting for another build to end"]


def described(directory: Path) -> dict[str, object]:
    """The manifest that the builder would write for the files in *directory*, written there."""
    (directory / "modules" / "kernel").mkdir(parents=True)
    (directory / "modules" / "modules.dep").write_text("index")
    (directory / "modules" / "kernel" / "one.ko").write_text("module")
    for name in ("vmlinuz", "initramfs"):
        (directory / name).write_text(name)
    files = contents.hashes(str(directory), ["vmlinuz", "initramfs"])
    manifest: dict[str, object] = {
        "hash": contents.digest(str(directory), files, "6.1", ["k"]),
        "kernel": "6.1",
        "packages": [{"sha256": "k", "kernel": True}, {"sha256": "u", "kernel": False}],
        "sizes": {"modules": contents.modules_size(str(directory))},
        "files": files,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return manifest


@pytest.mark.parametrize(
    "damage",
    [
        lambda image: (image / "vmlinuz").write_text("vmlinuX"),
        lambda image: (image / "initramfs").unlink(),
        lambda image: (image / "modules/modules.dep").write_text("inde"),
        lambda image: (image / "modules/kernel/one.ko").write_text("modul"),
        lambda image: (image / "modules/kernel/one.ko").unlink(),
    ],
    ids=["bits", "no file", "an index cut short", "a module cut short", "no module"],
)
def test_a_damaged_image_is_replaced_by_a_build(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """One that is whole only gets the new manifest: virtual machines run from it."""
    there, result = tmp_path / "abc", tmp_path / "work"
    manifest = described(there)
    assert contents.is_whole(str(there), manifest)
    inode = there.stat().st_ino
    for expected in (True, False):
        described(result)
        if not expected:
            damage(there)
            assert not contents.is_whole(str(there), manifest)
        store.publish(str(tmp_path), str(result), "abc", "current")
        assert (there.stat().st_ino == inode) is expected
        assert contents.is_whole(str(there), manifest)
        shutil.rmtree(result)


@pytest.mark.parametrize("noise", [{}, {"packages": 5}, {"packages": [5], "files": {"x": 1}, "sizes": {}}])
def test_a_manifest_of_noise_describes_no_image(tmp_path: Path, noise: dict[str, object]) -> None:
    manifest = described(tmp_path / "abc")
    assert not contents.is_whole(str(tmp_path / "abc"), {**manifest, "packages": None, **noise})


def test_resolving_loads_nothing_of_the_builder(config: Config) -> None:
    """`create` resolves the image: a start must not pay for subprocess, tempfile or the builder."""
    code = (
        "import sys; from runvm.guest import image; from runvm.config import Config\n"
        "image.resolve(Config(data_dir=sys.argv[1]))\n"
        "slow = {'subprocess', 'tempfile', 'shutil', 'hashlib', 'ctypes', 'ast'} & sys.modules.keys()\n"
        "print(sorted(slow), [name for name in sys.modules if name.startswith('runvm.guest.')])"
    )
    add(config, "image")
    source = str(Path(image.__file__).parents[2])
    python = (sys.executable, "-SI", "-c", f"import sys; sys.path.insert(0, {source!r})\n{code}", config.data_dir)
    done = subprocess.run(python, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['runvm.guest.image']"
