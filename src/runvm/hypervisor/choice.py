"""What `hypervisor = "auto"` means on this host: QEMU with KVM where a guest boots with it, else User Mode Linux where
a kernel for it is there and boots, else QEMU's emulation."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NamedTuple

from runvm.errors import DeadlineError, HostError, RunvmError
from runvm.guest import uml_kernel
from runvm.hypervisor import proof
from runvm.linux import files
from runvm.log import log, progress

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor.driver import Driver


class Choice(NamedTuple):
    """The hypervisor's name, and why it is this one."""

    name: str
    reason: str


def choose(config: Config, qemu: Driver, uml: Driver) -> Choice:
    """The choice, each candidate proved by a boot once per host boot. Raises DeadlineError, OSError."""
    if config.accelerator == "tcg":
        return Choice("qemu", "accelerator is tcg")
    if config.accelerator == "kvm":
        return Choice("qemu", "accelerator is kvm")
    kvm = proof.verdict(config, qemu)
    if kvm.works:
        return Choice("qemu", "KVM works")
    try:
        kernel = uml_kernel.find(config)
    except HostError as error:
        return Choice("qemu", f"KVM does not work ({kvm.reason}), and {error.message}")
    failure = _failure(config, uml, kernel.key)
    if failure:
        return Choice("qemu", f"KVM does not work ({kvm.reason}), nor does User Mode Linux: {failure}")
    return Choice("uml", f"KVM does not work: {kvm.reason}")


def _failure(config: Config, uml: Driver, key: str) -> str:
    """Why no guest boots as User Mode Linux; '' where one does. Remembered for this boot of the host and that kernel,
    but for one that was only late."""
    memo = f"{config.state_dir}/uml.json"
    stamp = {"boot": files.read("/proc/sys/kernel/random/boot_id").strip(), "kernel": key}
    try:
        body = json.loads(files.read(memo))
        if {name: body[name] for name in stamp} == stamp:
            return str(body["failure"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not found out yet
    progress("finding out whether a guest boots as User Mode Linux, once per host boot")
    failure = ""
    try:
        proof.prove(config, uml, uml.capabilities.accelerators[0], timeout=config.boot_timeout_s)
    except DeadlineError as error:
        return error.message
    except RunvmError as error:
        last = error.details.strip().rpartition("\n")[2]
        failure = error.message + (f": {last}" if last else "")
    files.make_directories(config.state_dir, 0o711, exist_ok=True)
    temporary = f"{memo}.{os.getpid()}"
    with open(temporary, "w", opener=files.private) as file:
        json.dump({**stamp, "failure": failure}, file)
    os.rename(temporary, memo)
    log.debug(f"User Mode Linux {'does not work here: ' + failure if failure else 'works'}")
    return failure
