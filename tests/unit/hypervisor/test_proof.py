"""What is concluded of KVM, and for how long: one verdict, of one proof, and none of what shows nothing."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from runvm.config import Config
from runvm.errors import DeadlineError, GuestError, HostError, RunvmError, VmmError
from runvm.hypervisor import proof
from runvm.hypervisor.proof import Verdict
from runvm.hypervisor.qemu.driver import Qemu
from runvm.linux import process

HANGS = DeadlineError("no answer of its agent within 10 s")
REFUSED = VmmError("QEMU ended while QEMU's greeting was awaited", details="kvm_buf_set_msrs: Assertion failed")
PANIC = GuestError("the guest ended before its agent answered: the VMM exited with 0", details="Kernel panic")
KILLED = HostError("the guest ended before its agent answered: the VMM was ended by signal 9")
NO_MEMORY = VmmError("QEMU ended", details="qemu: cannot set up guest memory 'ram': Cannot allocate memory")
FULL_DISK = HostError("[Errno 28] No space left on device")
NO_ROOM = VmmError("QEMU ended", details="qemu: can't write: No space left on device")


@pytest.mark.parametrize(
    ("kvm", "emulated", "works", "certain"),
    [
        (None, None, True, True),
        (None, HANGS, True, True),
        (None, REFUSED, True, True),
        (HANGS, None, False, True),
        (REFUSED, None, False, True),
        (PANIC, None, False, True),
        # where emulation doesn't come up either, KVM isn't to blame
        (HANGS, HANGS, False, False),
        (REFUSED, HANGS, False, False),
        (REFUSED, REFUSED, False, False),
        (PANIC, PANIC, False, False),
        # what the host lacked just then
        (KILLED, None, False, False),
        (NO_MEMORY, None, False, False),
        (FULL_DISK, None, False, False),
        (NO_ROOM, None, False, False),
    ],
)
def test_what_two_boots_show(
    kvm: RunvmError | None, emulated: RunvmError | None, *, works: bool, certain: bool
) -> None:
    """Only what shows that KVM doesn't work is remembered; the reason is that of KVM's guest."""
    found = proof.judge(kvm, emulated)
    assert (found.works, found.certain) == (works, certain)
    assert kvm is None or kvm.message in found.reason


class Races:
    """In the place of a proof, which takes two guests: what it finds, and how often it was asked."""

    def __init__(self, directory: Path, found: list[Verdict]) -> None:
        self.config = Config(state_dir=str(directory))
        self._log = directory / "races"
        self._found = found

    def race(self, config: Config, driver: Qemu) -> Verdict:
        """One proof, which takes a moment."""
        with open(self._log, "a") as file:
            file.write("x")
        time.sleep(0.3)
        return self._found[min(self.count(), len(self._found)) - 1]

    def count(self) -> int:
        """How many proofs there were, in whichever process."""
        return len(self._log.read_text()) if self._log.exists() else 0

    def verdict(self) -> Verdict:
        """As a start asks."""
        return proof.verdict(self.config, Qemu(self.config))


@pytest.fixture
def races(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Races:
    """Proofs that find what the test says."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("without /dev/kvm there is nothing to prove")
    made = Races(tmp_path, request.param)
    monkeypatch.setattr(proof, "race", made.race)
    return made


WORKS, FAILS, UNSURE = Verdict(True, ""), Verdict(False, "it hangs"), Verdict(False, "the host is busy", False)


@pytest.mark.parametrize("races", [[WORKS], [FAILS]], indirect=True)
def test_two_first_starts_prove_once(races: Races) -> None:
    """Processes of their own, as two commands are: the second waits and takes the first one's verdict."""
    pids = [process.fork(lambda: _exit(races.verdict())) for _ in range(4)]
    ended = [process.wait_child(pid, deadline=time.monotonic() + 20) for pid in pids]
    assert len({process.exit_code(status) for status in ended if status is not None}) == 1
    assert None not in ended
    assert races.count() == 1
    assert races.verdict().works == (process.exit_code(ended[0] or 0) == 0)
    assert races.count() == 1


def _exit(found: Verdict) -> None:
    raise SystemExit(0 if found.works else 3)


@pytest.mark.parametrize("races", [[UNSURE, WORKS]], indirect=True)
def test_what_isnt_certain_holds_for_one_start(races: Races) -> None:
    """The next one tries again, and that is remembered."""
    assert not races.verdict().works
    assert races.verdict().works
    assert races.verdict().works
    assert races.count() == 2


@pytest.mark.parametrize("races", [[FAILS, WORKS]], indirect=True)
def test_another_boot_of_the_host_proves_anew(races: Races) -> None:
    """A host may be moved, or its hypervisor repaired."""
    assert not races.verdict().works
    memo = f"{races.config.state_dir}/kvm.json"
    with open(memo) as file:
        body = json.load(file)
    with open(memo, "w") as file:
        json.dump(body | {"boot": "another"}, file)
    assert races.verdict().works


@pytest.mark.parametrize("races", [[FAILS]], indirect=True)
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boot": 1, "works": true}', "\0"])
def test_a_memo_that_is_broken_is_none(races: Races, text: str) -> None:
    """It is found out anew."""
    Path(races.config.state_dir, "kvm.json").write_text(text)
    assert not races.verdict().works
    assert races.count() == 1


@pytest.mark.parametrize("races", [[WORKS]], indirect=True)
def test_who_waits_for_anothers_proof_has_a_deadline(races: Races) -> None:
    """A proof that hangs, in a process that was stopped say, doesn't hold every start up for ever."""
    races.config = races.config._replace(boot_timeout_s=1)
    fd = os.open(f"{races.config.state_dir}/kvm.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with pytest.raises(DeadlineError, match="another process that finds out whether KVM works"):
            races.verdict()
    finally:
        os.close(fd)
