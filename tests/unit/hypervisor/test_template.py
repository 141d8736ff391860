"""A template is found by a key of all that it depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.config import load
from runvm.hypervisor import template
from runvm.hypervisor.driver import Machine
from runvm.hypervisor.qemu import Qemu

if TYPE_CHECKING:
    from pathlib import Path

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
