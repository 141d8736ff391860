"""QEMU's command line: what is the same for each architecture's machine, and what is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runvm.config import Config
from runvm.errors import ConfigError, HostError
from runvm.hypervisor import drivers, proof
from runvm.hypervisor.driver import Machine
from runvm.hypervisor.qemu.arguments import arguments, cmdline
from runvm.hypervisor.qemu.boards import BOARDS
from runvm.hypervisor.qemu.driver import Qemu
from runvm.linux.architecture import KNOWN, host
from runvm.shares import virtiofs

if TYPE_CHECKING:
    from pathlib import Path

FDS = {"qmp": 3, "agent": 4, "console": 5, "tap": 6}
MACHINE = Machine("tcg", 1, 2, 512, 1024, "/k", "/i", "key", "quiet")
OTHER = next(name for name in KNOWN if name != host())


def values(argv: list[str], option: str) -> list[str]:
    """What comes after each *option*."""
    return [argv[number + 1] for number, word in enumerate(argv) if word == option]


@pytest.mark.parametrize("architecture", BOARDS)
def test_each_board_has_its_machine_processor_and_console(architecture: str) -> None:
    board = BOARDS[architecture]
    argv = arguments(MACHINE._replace(architecture=architecture), FDS, program="/qemu", restore=False)
    assert values(argv, "-machine") == [f"{board.machine}{board.emulated},memory-backend=ram"]
    assert values(argv, "-cpu") == [board.processor]
    assert values(argv, "-append") == [f"{board.kernel_args} quiet maxcpus=1"]
    devices = {device.partition(",")[0] for device in values(argv, "-device")}
    assert {"virtio-mem-pci", "virtio-serial-pci", "virtio-net-pci", "virtio-balloon-pci"} <= devices
    assert ("vmgenid" in devices) == (architecture == "amd64")


@pytest.mark.parametrize("architecture", BOARDS)
def test_under_kvm_the_processor_is_the_hosts(architecture: str) -> None:
    board = BOARDS[architecture]
    machine = MACHINE._replace(architecture=architecture, accelerator="kvm")
    argv = arguments(machine, FDS, program="/qemu", restore=True)
    assert values(argv, "-machine") == [f"{board.machine}{board.under_kvm},memory-backend=ram"]
    assert values(argv, "-cpu") == ["host"]
    assert not values(argv, "-append")


def test_what_the_kernel_is_told_counts_for_a_template() -> None:
    driver = Qemu(Config())
    assert driver.hardware(MACHINE).endswith(cmdline(MACHINE))
    assert driver.hardware(MACHINE) != driver.hardware(MACHINE._replace(architecture="arm64"))


@pytest.mark.parametrize("accelerator", ["auto", "kvm", "tcg"])
def test_another_architecture_is_emulated_in_any_case(accelerator: str) -> None:
    config = Config(arch=OTHER, accelerator=accelerator)
    assert proof.accelerator(config, Qemu(config)) == "tcg"


def test_the_program_of_another_architecture_isnt_the_one_that_the_settings_name(tmp_path: Path) -> None:
    own = tmp_path / "qemu"
    own.write_text("")
    own.chmod(0o755)
    assert Qemu(Config(qemu=str(own), arch=host())).program() == str(own)
    assert Qemu(Config(qemu=str(own))).program() == str(own)
    try:
        assert Qemu(Config(qemu=str(own), arch=OTHER)).program().endswith(BOARDS[OTHER].program)
    except Exception as error:
        assert str(error).startswith(f"{BOARDS[OTHER].program} isn't installed")


@pytest.mark.parametrize("kind", ["nothing", "a directory", "not executable"])
def test_settings_that_name_no_program_are_an_error(tmp_path: Path, kind: str) -> None:
    """Which says so before anything is started; it was a traceback of the child that couldn't execute it."""
    own = tmp_path / "own"
    if kind == "a directory":
        own.mkdir()
    elif kind == "not executable":
        own.write_text("")
    with pytest.raises(HostError, match=r"qemu: .*/own is no program: set qemu in"):
        Qemu(Config(qemu=str(own))).program()
    with pytest.raises(HostError, match=r"virtiofsd: .*/own is no program: set virtiofsd in"):
        virtiofs.program(Config(virtiofsd=str(own)))


def test_a_hypervisor_without_that_architecture_says_so() -> None:
    with pytest.raises(ConfigError, match=f"hypervisor 'uml' runs containers for {host()} alone, not for {OTHER}"):
        drivers.load(Config(hypervisor="uml", arch=OTHER))
    assert drivers.load(Config(hypervisor="auto", arch=OTHER)).name == "qemu"
    assert drivers.likely(Config(hypervisor="auto", arch=OTHER)).name == "qemu"
