"""What `hypervisor = "auto"` means on this host: QEMU with KVM where a guest boots with it, else User Mode Linux where
a kernel for it is there and boots, else QEMU's emulation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from runvm.errors import DeadlineError, HostError, RunvmError
from runvm.guest import uml_kernel
from runvm.hypervisor import proof
from runvm.linux import files
from runvm.log import log, progress
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor.driver import Driver

    Drivers = Callable[[str], Driver]
    """A built-in driver by its name, made where it is needed: each import counts at a start."""

QEMU, UML = "qemu", "uml"


class Choice(NamedTuple):
    """The hypervisor's name, and why it is this one; *emulated*: each of the guest's instructions is translated."""

    name: str
    reason: str
    emulated: bool = False


def choose(config: Config, drivers: Drivers) -> Choice:
    """The choice, each candidate proved by a boot once per host boot. Raises DeadlineError, OSError."""
    found = _decide(
        config,
        lambda: _kvm_verdict(config, drivers(QEMU)),
        lambda kernel: _failure(config, drivers(UML), kernel),
    )
    assert found is not None, "whoever boots a guest finds out"
    return found


def known(config: Config) -> Choice | None:
    """The choice where no guest has to be booted to find it out, else None. Raises OSError."""
    return _decide(config, lambda: proof.known(config), lambda kernel: _remembered(config, kernel.key))


def _decide(
    config: Config,
    kvm_verdict: Callable[[], proof.Verdict | None],
    uml_failure: Callable[[uml_kernel.Kernel], str | None],
) -> Choice | None:
    """None where one of the two doesn't know."""
    if config.accelerator in ("tcg", "kvm"):
        return Choice(QEMU, f"accelerator is {config.accelerator}", emulated=config.accelerator == "tcg")
    if config.kernel:
        return Choice(QEMU, "kernel names one of your own, which is taken for one that QEMU boots")
    kvm = kvm_verdict()
    if kvm is None:
        return None
    if kvm.works:
        return Choice(QEMU, "KVM works")
    without = f"KVM does not work here: {kvm.reason}"
    try:
        kernel = uml_kernel.find(config)
    except HostError as error:
        return Choice(QEMU, f"{without}; {error.message}", emulated=True)
    failure = uml_failure(kernel)
    if failure is None:
        return None
    if failure:
        return Choice(QEMU, f"{without}; User Mode Linux does not either: {failure}", emulated=True)
    return Choice(UML, without)


def _kvm_verdict(config: Config, qemu: Driver) -> proof.Verdict:
    try:
        qemu.version_key()
    except HostError as error:
        return proof.Verdict(False, error.message)
    return proof.verdict(config, qemu)


def _failure(config: Config, uml: Driver, kernel: uml_kernel.Kernel) -> str:
    """Why no guest boots as User Mode Linux; '' where one does. Remembered for this boot of the host and that kernel,
    but for one that was only late; who comes meanwhile waits for the answer."""
    found = _remembered(config, kernel.key)
    if found is not None:
        return found
    with proof.alone(config, "uml", "whether User Mode Linux works"):
        found = _remembered(config, kernel.key)
        return found if found is not None else _find_out(config, uml, kernel)


def _find_out(config: Config, uml: Driver, kernel: uml_kernel.Kernel) -> str:
    progress("finding out whether a guest boots as User Mode Linux, once per host boot")
    failure = ""
    try:
        proof.prove(config, uml, uml.capabilities.accelerators[0], timeout=config.boot_timeout_s)
    except DeadlineError as error:
        return error.message
    except RunvmError as error:
        last = error.details.strip().rpartition("\n")[2]
        failure = error.message + (f": {last}" if last else "")
    memo = _memo(config)
    temporary = f"{memo}.{os.getpid()}"
    with open(temporary, "w", opener=files.private) as file:
        json.dump({**_stamp(kernel.key), "failure": failure}, file)
    os.rename(temporary, memo)
    log.debug(f"User Mode Linux {'does not work here: ' + failure if failure else 'works'}")
    return failure


def _remembered(config: Config, key: str) -> str | None:
    """What _failure() found for the kernel *key* on this boot of the host, None where it hasn't yet."""
    try:
        body = json.loads(files.read(_memo(config)))
        stamp = _stamp(key)
        if {name: body[name] for name in stamp} == stamp:
            return str(body["failure"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _memo(config: Config) -> str:
    return f"{config.state_dir}/uml.json"


def _stamp(key: str) -> dict[str, str]:
    return {"boot": files.read("/proc/sys/kernel/random/boot_id").strip(), "kernel": key}
