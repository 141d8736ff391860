"""An image on disk: written whole or not at all, and read without trust."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from runvm.checkpoint import image
from runvm.container import restore
from runvm.errors import CheckpointError, HostError
from runvm.hypervisor.driver import Machine
from runvm.sandbox.checkpointing import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MACHINE = Machine("tcg", 2, 2, 8, 16, "/vmlinuz", "/initramfs", "key", "quiet")
STOPPED = Stopped(
    pid=1,
    state="/s",
    machine=MACHINE._asdict(),
    grown_mib=0,
    extra_mib=0,
    watched=False,
    channel=1,
    network=1,
    place="c1.0a",
    layout={"rootfs": ""},
    input="aGVsbG8=",
    input_ended=False,
    updated=False,
    execs=0,
)
MANIFEST = image.Manifest(
    format=image.FORMAT,
    release="1",
    protocol=1,
    driver="qemu",
    vmm="10",
    daemon="1.13",
    hardware="argv",
    cpu="",
    guest="key",
    container="c1",
    created="now",
    shape={"mounts": []},
    resources={},
    vm=STOPPED._asdict(),
    files={},
)


def written(directory: Path, name: str = "image") -> str:
    """A small image."""
    for file in ("ram", "more", "state"):
        with open(directory / f"{file}.src", "wb") as out:
            out.write(b"x" * 4096 if file != "more" else b"")
    with image.Writer(f"{directory}/{name}") as writer:
        writer.copy_memory(f"{directory}/ram.src", f"{directory}/more.src")
        writer.catch_up()
        writer.add_state(f"{directory}/state.src")
        writer.pack_memory()
        writer.finish(MANIFEST)
    return f"{directory}/{name}"


def rewrite(path: str, change: Any) -> None:
    """Change the manifest."""
    with open(f"{path}/checkpoint.json") as file:
        body = json.load(file)
    change(body)
    with open(f"{path}/checkpoint.json", "w") as file:
        json.dump(body, file)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    saved = restore.read(written(tmp_path))
    assert saved.machine == MACHINE
    assert saved.stopped == STOPPED
    assert saved.input == b"hello"
    assert sorted(os.listdir(saved.directory)) == ["checkpoint.json", "inventory.img", "more", "ram", "state"]
    assert os.stat(saved.directory).st_mode & 0o777 == 0o700
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_an_image_takes_the_place_of_an_older_one_or_of_an_empty_directory(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "empty")
    for name in ("empty", "image", "image"):
        restore.read(written(tmp_path, name))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "image")
    (tmp_path / "image" / "mine").write_text("x")
    with pytest.raises(HostError, match="no checkpoint's"):
        written(tmp_path)
    assert (tmp_path / "image" / "mine").read_text() == "x"


def test_what_was_not_finished_goes(tmp_path: Path) -> None:
    """Whether the command failed, or was killed and another comes."""
    with pytest.raises(RuntimeError), image.Writer(f"{tmp_path}/image"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    os.mkdir(tmp_path / ".image.runvm-99999999")
    os.mkdir(tmp_path / ".another.runvm-99999998")
    written(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_device_state_that_is_too_large_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is left out without a word."""
    monkeypatch.setattr(image, "_MAX_STATE", 4095)
    with pytest.raises(HostError, match="device state is larger"):
        written(tmp_path)
    assert not os.path.exists(tmp_path / "image")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(format=1),
        lambda body: body.update(format="1"),
        lambda body: body.pop("format"),
        lambda body: body.pop("vmm"),
        lambda body: body.update(more=1),
        lambda body: body.update(release=None),
        lambda body: body.update(vm=[]),
        lambda body: body.update(files={}),
        lambda body: body["files"].update(ram=[1, "x"]),
        lambda body: body["files"].update(state=[4096, "x"]),
        lambda body: body["vm"].pop("place"),
        lambda body: body["vm"].update(place="../x"),
        lambda body: body["vm"].update(place=".."),
        lambda body: body["vm"].update(channel=-1),
        lambda body: body["vm"].update(channel=True),
        lambda body: body["vm"].update(input="%"),
        lambda body: body["vm"].update(network=1 << 20),
        lambda body: body["vm"].update(grown_mib=1 << 20),
        lambda body: body["vm"]["machine"].update(vcpus=0),
        lambda body: body["vm"]["machine"].update(accelerator="x,y"),
        lambda body: body["vm"]["machine"].pop("vcpus"),
        lambda body: body["vm"]["machine"].update(memory_mib=1 << 40),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path: Path, change: Any) -> None:
    path = written(tmp_path)
    rewrite(path, change)
    with pytest.raises(CheckpointError):
        restore.read(path)


@pytest.mark.parametrize("name", ["ram", "more", "state", "checkpoint.json"])
def test_links_directories_fifos_and_missing_files_are_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path)
    file = f"{path}/{name}"
    os.rename(file, tmp_path / "aside")
    puts: list[Callable[[], None]] = [
        lambda: os.symlink(tmp_path / "aside", file),
        lambda: os.mkdir(file),
        lambda: os.mkfifo(file),
    ]
    for put in puts:
        put()
        with pytest.raises(CheckpointError):
            restore.read(path)
        os.rmdir(file) if os.path.isdir(file) and not os.path.islink(file) else os.unlink(file)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        restore.read(path)


def test_a_manifest_of_noise_is_refused(tmp_path: Path) -> None:
    """Whatever bytes change: an image that reads well, or CheckpointError."""
    path = written(tmp_path)
    with open(f"{path}/checkpoint.json", "rb") as file:
        whole = file.read()
    chance = random.Random(5)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        with open(f"{path}/checkpoint.json", "wb") as file:
            file.write(data)
        try:
            restore.read(path)
        except CheckpointError:
            pass
    with open(f"{path}/checkpoint.json", "wb") as file:
        file.write(b"[" * 100_000)
    with pytest.raises(CheckpointError):
        restore.read(path)
