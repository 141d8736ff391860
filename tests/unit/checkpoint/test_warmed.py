"""What is kept of warm containers: made by one at a time, bounded, pruned; and what tells roots of one image."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runvm.checkpoint import image, overlay, warmed
from runvm.checkpoint.overlay import Overlay
from runvm.config import Config

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = image.Manifest(image.FORMAT, "1", 1, "qemu", "10", "1.13", "argv", "", "key", "c1", "now", {}, {}, {}, {})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config()._replace(data_dir=str(tmp_path))


def kept(config: Config, key: str, used: int) -> str:
    """One that was used *used* seconds after the epoch."""
    path = warmed.directory(config, key)
    for name in ("ram", "more", "state"):
        with open(f"{config.data_dir}/{name}", "wb") as file:
            file.write(b"x" * 4096)
    with image.Writer(path) as writer:
        writer.copy_memory(f"{config.data_dir}/ram", f"{config.data_dir}/more")
        writer.add_state(f"{config.data_dir}/state")
        writer.pack_memory()
        writer.finish(MANIFEST)
    os.utime(path, (used, used))
    return path


def names(config: Config) -> set[str]:
    return {each.name for each in warmed.list_warmed(config)}


def test_one_process_makes_it(config: Config) -> None:
    with warmed.making(config, "k") as first, warmed.making(config, "k") as second, warmed.making(config, "o") as other:
        assert (first, second, other) == (True, False, True)
    kept(config, "k", 1)
    with warmed.making(config, "k") as again:
        assert not again
    assert os.listdir(f"{config.data_dir}/warm") == ["k"]


def test_the_ones_not_used_for_longest_go(config: Config) -> None:
    for number in range(warmed.MAX_KEPT + 3):
        kept(config, f"k{number}", 1000 - number)
    broken = kept(config, "broken", 2000)
    os.truncate(f"{broken}/state", 1)
    warmed.note_use(warmed.directory(config, f"k{warmed.MAX_KEPT + 2}"))
    warmed.trim(config)
    expected = {f"k{number}" for number in range(warmed.MAX_KEPT - 1)} | {f"k{warmed.MAX_KEPT + 2}"}
    assert names(config) == expected
    assert not os.path.exists(broken)


def test_prune_takes_all(config: Config) -> None:
    path = kept(config, "k", 1)
    os.mkdir(f"{config.data_dir}/warm/.k.runvm-99999999")
    assert not warmed.is_hopeless(path)
    warmed.fail(path)
    kept(config, "k", 1)
    warmed.fail(path)
    assert warmed.is_hopeless(path)
    kept(config, "other", 1)
    assert [each.made_from["warm"] for each in warmed.prune(config)] == ["c1"]
    assert os.listdir(f"{config.data_dir}/warm") == []
    assert not warmed.is_hopeless(path)
    assert warmed.prune(Config()._replace(data_dir=f"{config.data_dir}/nothing")) == []


def test_roots_of_one_image_are_told_by_their_layers(tmp_path: Path) -> None:
    """A large layer by itself, small ones by what is in them; what was written before the start counts."""

    def layer(name: str, files: dict[str, str], many: int = 0) -> str:
        path = tmp_path / name
        path.mkdir()
        for file, text in files.items():
            (path / file).write_text(text)
        for number in range(many):
            (path / str(number)).touch()
        return str(path)

    image_layer = layer("image", {}, 300)
    first = overlay.identity(Overlay((layer("init-1", {"hosts": ""}), image_layer), layer("upper-1", {})))
    again = overlay.identity(Overlay((layer("init-2", {"hosts": ""}), image_layer), layer("upper-2", {})))
    assert first == again is not None
    others = [
        Overlay((layer("init-3", {"hosts": "x"}), image_layer), layer("upper-3", {})),
        Overlay((layer("init-4", {"hosts": ""}), layer("image-2", {}, 300)), layer("upper-4", {})),
        Overlay((layer("init-5", {"hosts": ""}), image_layer), layer("upper-5", {"new": ""})),
    ]
    assert len({first, *map(overlay.identity, others)}) == 4
    assert overlay.identity(Overlay((image_layer,), layer("upper-6", {}, 300))) is None
    assert overlay.identity(Overlay((image_layer,), layer("upper-7", {"written": "x"}))) is None
    (tmp_path / "upper-1" / "directory").mkdir()
    assert overlay.identity(Overlay((str(tmp_path / "init-1"), image_layer), str(tmp_path / "upper-1"))) != first


def test_what_is_no_overlay(tmp_path: Path) -> None:
    assert overlay.of(str(tmp_path)) is None
    assert overlay.of("/proc") is None
