"""Templates on disk: how they are named, which are whole, what is listed and swept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from runvm.config import Config, load
from runvm.hypervisor import proof, template
from runvm.hypervisor.driver import Machine
from runvm.hypervisor.qemu.driver import Qemu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def make(base: Path, name: str) -> Path:
    """A template as far as its files go."""
    made = base / "templates" / name
    made.mkdir(parents=True)
    files = {}
    for part in ("state", "ram"):
        (made / part).write_bytes(bytes(8192))
        status = (made / part).stat()
        files[part] = [status.st_size, status.st_mtime_ns]
    body = {"made_from": {"kernel": "/vmlinuz"}, "created": 1.0, "files": files}
    (made / "meta.json").write_text(json.dumps(body))
    return made


DAMAGE: dict[str, Callable[[Path], object]] = {
    "ram cut short": lambda made: (made / "ram").write_bytes(bytes(4096)),
    "ram written again": lambda made: (made / "ram").write_bytes(bytes(8192)),
    "state emptied": lambda made: (made / "state").write_bytes(b""),
    "state gone": lambda made: (made / "state").unlink(),
    "description cut": lambda made: (made / "meta.json").write_text('{"made_from": {'),
    "description a list": lambda made: (made / "meta.json").write_text("[]"),
    "description of no files": lambda made: (made / "meta.json").write_text('{"made_from": {}, "created": 1}'),
    "description no text": lambda made: (made / "meta.json").write_bytes(b"\xff\xfe"),
    "description gone": lambda made: (made / "meta.json").unlink(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen(tmp_path: Path, name: str) -> None:
    """Each of a template's files: what shows in its length, times or sense."""
    made = make(tmp_path, "one")
    assert template.is_whole(str(made))
    DAMAGE[name](made)
    assert not template.is_whole(str(made))
    template.list_templates(Config(data_dir=str(tmp_path)))  # raises nothing


def test_sweep_takes_what_killed_makers_left_and_nothing_else(tmp_path: Path) -> None:
    """Half-made templates and proofs of KVM go, whole templates and other state stay; twice is no error."""
    config = Config(data_dir=str(tmp_path), state_dir=str(tmp_path / "state"))
    template.sweep(config)
    whole = make(tmp_path, "one")
    (tmp_path / "templates" / ".two.77" / "jail").mkdir(parents=True)
    (tmp_path / "state" / "prove-77" / "jail").mkdir(parents=True)
    (tmp_path / "state" / "kvm.json").write_text("{}")
    for _ in range(2):
        template.sweep(config)
        proof.sweep(config)
        assert template.is_whole(str(whole))
        assert {path.name for path in (tmp_path / "templates").iterdir()} == {"one", ".lock"}
        assert {path.name for path in (tmp_path / "state").iterdir()} == {"kvm.json"}


MACHINE = Machine("tcg", 1, 2, 512, 1024, "/kernel", "/initramfs", "image", "console=ttyS0")


class OneDeviceMore(Qemu):
    """As after an upgrade whose machines have another device."""

    def hardware(self, machine: Machine) -> str:
        """The built-in driver's machine and a device."""
        return f"{super().hardware(machine)} -device another"


def test_a_machine_with_other_devices_has_another_template() -> None:
    """Its device state doesn't fit: a guest restored so would see no share plugged in."""
    config = load()._replace(qemu="/bin/true")
    assert template.key(Qemu(config), MACHINE) == template.key(Qemu(config), MACHINE)
    assert template.key(Qemu(config), MACHINE) != template.key(OneDeviceMore(config), MACHINE)
    assert template.key(Qemu(config), MACHINE) != template.key(Qemu(config), MACHINE._replace(vcpus=2))


def test_a_template_counts_as_good_from_its_first_use_to_a_doubt(tmp_path: Path) -> None:
    """Slowness is the host's once a template has served; one that has gone serves nobody."""
    directory = str(tmp_path)
    assert not template.has_served(directory)
    template.note_served(directory)
    template.note_served(directory)
    assert template.has_served(directory)
    template.doubt(directory)
    template.doubt(directory)
    assert not template.has_served(directory)
    template.note_served(f"{directory}/gone")
    assert not template.has_served(f"{directory}/gone")


CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 23
model\t\t: 1
model name\t: AMD EPYC Processor
stepping\t: 2
microcode\t: 0x8001230
cpu MHz\t\t: 2595.124
bogomips\t: 5190.24
flags\t\t: fpu svm
"""


@pytest.mark.parametrize("change", ["23|25", "0x8001230|0x8001250", "svm|svm npt", "stepping\t: 2|stepping\t: 3"])
def test_another_processor_or_microcode_is_another_template(change: str) -> None:
    before, _, after = change.partition("|")
    assert template.processor(CPUINFO.replace(before, after, 1)) != template.processor(CPUINFO)


def test_what_changes_from_look_to_look_is_no_part_of_a_template() -> None:
    """Frequency and the number of processors."""
    more = CPUINFO.replace("2595.124", "1200.000") + "\n" + CPUINFO.replace("processor\t: 0", "processor\t: 1")
    assert template.processor(more) == template.processor(CPUINFO)
    assert "EPYC" in template.processor(CPUINFO)
