"""What the QEMU driver needs of the host, for `runvm doctor`: a QEMU that is new enough, with a VM's devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import HostError
from runvm.hypervisor.driver import Finding
from runvm.linux.command import ask

if TYPE_CHECKING:
    from collections.abc import Callable

OLDEST = (6, 2)
PACKAGE = "qemu-system-x86"
DEVICES = (
    "vhost-user-fs-pci",
    "virtio-serial-pci",
    "virtserialport",
    "virtio-net-pci",
    "virtio-balloon-pci",
    "pcie-root-port",
    "vmgenid",
)
_FIX = f"apt-get install {PACKAGE}"


def findings(find: Callable[[], str]) -> list[Finding]:
    """One finding: the program, which *find* gives the path of, its version, its devices."""
    try:
        program = find()
        said = ask([program, "--version"])
    except HostError as error:
        return [Finding("QEMU", False, error.message, _FIX)]
    version = said.partition("version ")[2].split()[0] if "version " in said else "of unknown version"
    numbers = version.split(".")
    if not all(number.isdigit() for number in numbers[:2]) or tuple(map(int, numbers[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return [Finding("QEMU", False, f"{program} is {version}, older than {oldest}", _FIX)]
    devices = ask([program, "-device", "help"])
    missing = [device for device in DEVICES if f'name "{device}"' not in devices]
    if missing:
        return [Finding("QEMU", False, f"{program} {version} has no {', '.join(missing)}", _FIX)]
    return [Finding("QEMU", True, f"{program} {version}")]
