"""KVM that opens and doesn't serve: what the race of a guest with it and one by emulation shows. The guests are real;
what stands for KVM is emulation, too, with a fault."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from framework import process
from runvm import config
from runvm.errors import VmmError
from runvm.hypervisor import proof
from runvm.hypervisor.qemu.driver import Qemu

if TYPE_CHECKING:
    from collections.abc import Callable

    from framework.runtime import Runtime
    from runvm.config import Config
    from runvm.hypervisor.driver import Endpoints, Machine
    from runvm.hypervisor.qemu.driver import QemuVm

pytestmark = pytest.mark.only("runvm", "there is KVM")


class Faulty(Qemu):
    """The built-in driver, with *fault* applied to what it starts by 'kvm'."""

    def __init__(self, settings: Config, fault: Callable[[QemuVm], None], *, everywhere: bool = False) -> None:
        super().__init__(settings)
        self._fault = fault
        self._everywhere = everywhere

    def launch(
        self,
        machine: Machine,
        endpoints: Endpoints,
        *,
        jail: str,
        state: int = -1,
        ram_ready: Callable[[], None],
        deadline: float,
    ) -> QemuVm:
        """See Driver.launch."""
        vm = super().launch(
            machine._replace(accelerator="tcg"),
            endpoints,
            jail=jail,
            state=state,
            ram_ready=ram_ready,
            deadline=deadline,
        )
        if self._everywhere or machine.accelerator == "kvm":
            self._fault(vm)
        return vm


def hang(vm: QemuVm) -> None:
    """As a guest does whose processor doesn't come out of its first instructions."""
    os.kill(vm.pid, signal.SIGSTOP)


def end(vm: QemuVm) -> None:
    """As a QEMU does that KVM refuses a register."""
    vm.kill()
    raise VmmError("QEMU went away")


@pytest.fixture
def settings(runtime: Runtime) -> Config:
    """Those of the tests."""
    return config.load(file=runtime.config_file)


def test_a_guest_that_hangs_is_kvms_fault_once_emulations_is_up(settings: Config) -> None:
    """Judged when it has had twice the time that the other needed, and 10 s at least: long before the boot's limit."""
    begun = time.monotonic()
    found = proof.race(settings, Faulty(settings, hang))
    assert (found.works, found.certain) == (False, True), found
    assert "hangs" in found.reason
    assert proof.LEAST_SECONDS <= time.monotonic() - begun < settings.boot_timeout_s


def test_a_hypervisor_that_ends_is_kvms_fault_at_once(settings: Config) -> None:
    """Emulation's has come further: nobody waits until its guest has booted."""
    begun = time.monotonic()
    found = proof.race(settings, Faulty(settings, end))
    assert (found.works, found.certain) == (False, True), found
    assert "QEMU went away" in found.reason
    assert time.monotonic() - begun < 5 * process.FACTOR


def test_where_emulation_fails_as_well_nothing_is_remembered(settings: Config) -> None:
    """Out of memory, a full disk: KVM isn't to blame, and the next start asks again."""
    found = proof.race(settings, Faulty(settings, end, everywhere=True))
    assert (found.works, found.certain) == (False, False), found
