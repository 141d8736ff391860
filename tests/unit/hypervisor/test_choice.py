"""What `hypervisor = "auto"` chooses, and what it remembers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from runvm.config import Config
from runvm.errors import DeadlineError, GuestError
from runvm.hypervisor import drivers, proof

if TYPE_CHECKING:
    from pathlib import Path

    from runvm.errors import RunvmError
    from runvm.hypervisor.choice import Choice


class Host:
    """A host by what works on it."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config = Config(hypervisor="auto", state_dir=f"{tmp_path}/state", data_dir=f"{tmp_path}/data")
        self.kvm = False
        self.failure: RunvmError | None = None
        self.boots = 0
        self.qemu = tmp_path / "qemu"
        self.qemu.write_text("")
        self.qemu.chmod(0o755)
        self.config = self.config._replace(qemu=str(self.qemu))
        self.verdict_known = True
        monkeypatch.setattr(proof, "verdict", lambda config, driver: self._verdict())
        monkeypatch.setattr(proof, "known", lambda config: self._verdict() if self.verdict_known else None)
        monkeypatch.setattr(proof, "prove", self._prove)
        self._directory = tmp_path / "data" / "kernels" / "uml"

    def _verdict(self) -> proof.Verdict:
        return proof.Verdict(self.kvm, "it hangs")

    def _prove(self, *_: object, timeout: float) -> None:
        self.boots += 1
        if self.failure is not None:
            raise self.failure

    def add_kernel(self, sha256: str = "one") -> None:
        directory = self._directory / "current"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "linux").write_text("")
        (directory / "linux").chmod(0o755)
        (directory / "manifest.json").write_text(json.dumps({"kernel": "6.1", "sha256": sha256}))

    def choose(self) -> Choice:
        return drivers.choice(self.config)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_qemu_where_kvm_works(host: Host) -> None:
    host.kvm = True
    host.add_kernel()
    assert host.choose().name == "qemu"
    assert host.boots == 0


def test_user_mode_linux_where_it_boots_which_is_found_out_once(host: Host) -> None:
    host.add_kernel()
    assert [host.choose().name for _ in range(3)] == ["uml"] * 3
    assert host.boots == 1
    host.add_kernel("another")
    assert host.choose().name == "uml"
    assert host.boots == 2


def test_emulation_without_a_kernel_for_it(host: Host) -> None:
    found = host.choose()
    assert found.name == "qemu"
    assert "there is no kernel for User Mode Linux" in found.reason


def test_emulation_where_it_does_not_boot_which_is_remembered(host: Host) -> None:
    host.add_kernel()
    host.failure = GuestError("the guest ended before its agent answered", details="first\nptrace: not allowed")
    for _ in range(2):
        found = host.choose()
        assert found.name == "qemu"
        assert "ptrace: not allowed" in found.reason
    assert host.boots == 1


def test_a_boot_that_is_only_late_is_tried_again(host: Host) -> None:
    host.add_kernel()
    host.failure = DeadlineError("timed out")
    assert host.choose().name == "qemu"
    host.failure = None
    assert host.choose().name == "uml"


def test_an_accelerator_that_is_named_is_qemus(host: Host) -> None:
    host.add_kernel()
    for name in ("kvm", "tcg"):
        host.config = host.config._replace(accelerator=name)
        assert host.choose().name == "qemu"
    assert host.boots == 0


def test_user_mode_linux_where_there_is_no_qemu(host: Host) -> None:
    host.kvm = True
    host.add_kernel()
    host.qemu.unlink()
    found = host.choose()
    assert found.name == "uml"
    assert "qemu is no program" in found.reason


def test_a_kernel_of_ones_own_is_qemus(host: Host) -> None:
    host.add_kernel()
    host.config = host.config._replace(kernel="/boot/vmlinuz")
    assert host.choose().name == "qemu"
    assert host.boots == 0


def test_what_only_tells_boots_nothing(host: Host) -> None:
    """`features`, say: an engine that asks at its start doesn't wait for a guest."""
    host.add_kernel()
    assert drivers.known_name(host.config) == ""
    assert drivers.likely(host.config).name == "qemu"
    assert host.boots == 0
    host.choose()
    assert drivers.known_name(host.config) == "uml"
    assert drivers.likely(host.config).name == "uml"
    host.verdict_known = False
    assert drivers.known_name(host.config) == ""


def test_a_checkpoint_is_restored_with_the_hypervisor_that_can(host: Host) -> None:
    host.add_kernel()
    assert drivers.with_checkpoints(host.config) == "qemu"
    assert drivers.with_checkpoints(host.config._replace(hypervisor="uml")) == "uml"


def test_the_driver_that_is_loaded_is_the_chosen_one(host: Host) -> None:
    host.add_kernel()
    assert drivers.load(host.config).name == "uml"
