"""What the QEMU driver needs of the host, for `runvm doctor`: a QEMU that is new enough, with a VM's devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import HostError
from runvm.hypervisor.driver import Finding
from runvm.linux.command import ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.hypervisor.qemu.boards import Board

OLDEST = (6, 2)
DEVICES = (
    "vhost-user-fs-pci",
    "virtio-serial-pci",
    "virtserialport",
    "virtio-net-pci",
    "virtio-balloon-pci",
    "virtio-mem-pci",
    "pcie-root-port",
)


def findings(find: Callable[[], str], board: Board) -> list[Finding]:
    """One finding: the program for *board*, which *find* gives the path of, its version, its devices."""
    fix = f"apt-get install {board.package}"
    try:
        program = find()
        said = ask([program, "--version"])
    except HostError as error:
        return [Finding("QEMU", False, error.message, error.do or fix)]
    version = said.partition("version ")[2].split()[0] if "version " in said else "of unknown version"
    numbers = version.split(".")
    if not all(number.isdigit() for number in numbers[:2]) or tuple(map(int, numbers[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return [Finding("QEMU", False, f"{program} is {version}, older than {oldest}", fix)]
    devices = ask([program, "-device", "help"])
    wanted = (*DEVICES, *(device.partition(",")[0] for device in board.devices))
    missing = [device for device in wanted if f'name "{device}"' not in devices]
    if missing:
        return [Finding("QEMU", False, f"{program} {version} has no {', '.join(missing)}", fix)]
    return [Finding("QEMU", True, f"{program} {version}")]
