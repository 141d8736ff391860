"""Whether KVM works, not just opens: the guest has to boot with it, once per host boot.

On hosts nested in another hypervisor /dev/kvm may open and run a few instructions, yet hang any kernel.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from runvm.linux import files
from runvm.log import log, progress

if TYPE_CHECKING:
    from runvm.config import Config

PROOF_SECONDS = 10
"""A kernel boots to the agent in well under 2 s with a KVM that works; emulation itself needs about 5."""


def works(config: Config) -> bool:
    """The answer of this host boot, found out at the first call (up to PROOF_SECONDS), then remembered in the state
    directory."""
    return verdict(config)[0]


def verdict(config: Config) -> tuple[bool, str]:
    """(works, why not)."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return False, f"/dev/kvm: {error.strerror}"
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    memo = f"{config.state_dir}/kvm.json"
    try:
        with open(memo) as file:
            remembered = json.load(file)
        if remembered["boot"] == boot:
            return bool(remembered["works"]), str(remembered["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    progress(f"finding out whether KVM works here, once per host boot (at most {PROOF_SECONDS} s)")
    from runvm.errors import RunvmError
    from runvm.hypervisor import template

    try:
        template.prove(config, "kvm", timeout=PROOF_SECONDS)
        answer = (True, "")
    except RunvmError as error:
        last = error.details.strip().rpartition("\n")[2]
        answer = (False, f"a guest doesn't boot with it: {error.message}" + (f": {last}" if last else ""))
    files.make_directories(config.state_dir, 0o711, exist_ok=True)
    temporary = f"{memo}.{os.getpid()}"
    with open(temporary, "w") as file:
        json.dump({"boot": boot, "works": answer[0], "reason": answer[1]}, file)
    os.rename(temporary, memo)
    log.debug(f"KVM {'works' if answer[0] else 'does not work'} here {answer[1]}")
    return answer
