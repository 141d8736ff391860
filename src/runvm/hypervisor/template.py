"""Templates: a guest booted once and kept as RAM and device state, from which later VMs start.

A template is named by the hash of all that it depends on, written under a temporary name, fsynced and renamed. It holds
no container, mount, network or identity: the agent hasn't been woken yet (see agent.init). Two first starts at once
make one, since the directory is locked; what a maker that was killed has left goes with the next one that locks it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm import __version__
from runvm.errors import DeadlineError
from runvm.hypervisor import boot, ram
from runvm.hypervisor.child import isolated
from runvm.linux import files, locking, syscalls
from runvm.log import log, progress
from runvm.network import tap
from runvm.protocol.names import TEMPLATE_WORD
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor.driver import Driver, Machine

_SERVED = "served"
"""A file of a template from which a guest has come up."""
_FORMAT = 2
"""Raised when what a template holds changes in another way than its key tells."""
_FILES = ("state", "ram")
_PROCESSOR = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "vmx flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
)
"""Of x86 and of ARM."""


class Template(NamedTuple):
    """A template on disk: its name (the key), directory, what it was made from, bytes taken, seconds since the
    epoch."""

    name: str
    directory: str
    made_from: dict[str, str]
    size: int
    created: float


def key(driver: Driver, machine: Machine) -> str:
    """The hash of everything that a template of *machine* depends on."""
    parts = [str(_FORMAT), __version__, driver.name, driver.version_key(), driver.hardware(machine)]
    parts += (str(part) for part in machine)
    if machine.accelerator == "kvm":
        # what KVM has for a guest is the host's kernel's to say: the guest goes on with what it found at its boot
        parts += (os.uname().release, os.uname().version, processor(files.read("/proc/cpuinfo")))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def ensure(config: Config, driver: Driver, machine: Machine) -> str:
    """The directory of the template for *machine*, made now if it isn't there. Raises RunvmError where it can't be
    made."""
    name = key(driver, machine)
    directory = f"{base(config)}/{name}"
    if is_whole(directory):
        return directory
    with _Lock(config, timeout=2 * config.boot_timeout_s):
        if is_whole(directory):
            return directory
        if os.path.exists(directory):
            log.warning(f"the template {name} isn't as it was made: it is made anew")
            _remove(directory)
        for other in list_templates(config):
            if not os.path.exists(other.made_from.get("kernel", "/")):
                _remove(other.directory)  # of an image that has been pruned: no start will want it
        progress("booting a guest to make a template of it; later starts are spared this")
        temporary = f"{base(config)}/.{name}.{os.getpid()}"
        try:
            attempt = isolated(lambda: _make(config, driver, machine, temporary))
            attempt.wait(deadline=time.monotonic() + 2 * config.boot_timeout_s)
            os.rename(temporary, directory)
        finally:
            _remove(temporary)
    return directory


class _Lock:
    """The directory of templates, there and locked: a context manager. Raises DeadlineError."""

    def __init__(self, config: Config, *, timeout: float) -> None:
        self._base = base(config)
        self._timeout = timeout

    def __enter__(self) -> None:
        files.make_directories(self._base, 0o700, exist_ok=True)
        self._fd = os.open(f"{self._base}/.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            locking.lock(
                self._fd,
                deadline=time.monotonic() + self._timeout,
                timeout_message="timed out waiting for another process that makes a template",
                interval=0.05,
            )
            for name in os.listdir(self._base):
                if name.startswith(".") and name != ".lock":
                    _remove(f"{self._base}/{name}")  # of a maker that was killed
        except BaseException:
            os.close(self._fd)
            raise

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def sweep(config: Config) -> None:
    """Take away what commands that were killed while they made a template have left of it."""
    try:
        with _Lock(config, timeout=0):
            pass
    except (DeadlineError, OSError):
        pass  # one is being made: its maker clears up


def has_served(directory: str) -> bool:
    """Whether a guest from the template has come up once: what is slow then is the host, not the template."""
    return os.path.exists(f"{directory}/{_SERVED}")


def note_served(directory: str) -> None:
    """A guest from the template has come up."""
    if not has_served(directory):
        with suppress(OSError):  # it has just been dropped or pruned
            os.close(os.open(f"{directory}/{_SERVED}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def doubt(directory: str) -> None:
    """Forget that a guest has come up from the template: if the next start from it fails too, it is dropped."""
    with suppress(OSError):
        os.unlink(f"{directory}/{_SERVED}")


def drop(directory: str, reason: str) -> str:
    """Remove a template that proved broken, so that the next start makes it anew; what is to be said of it."""
    _remove(directory)
    words = f"the template {os.path.basename(directory)} is broken, booting instead; the next start makes it anew"
    return f"{words}: {reason}"


def list_templates(config: Config) -> list[Template]:
    """The templates there are, oldest first."""
    try:
        names = [name for name in os.listdir(base(config)) if not name.startswith(".")]
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        try:
            found.append(read(f"{base(config)}/{name}"))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a broken one: found out and dropped by the start that wants it
    return sorted(found, key=lambda template: template.created)


def prune(config: Config) -> list[Template]:
    """Remove every template, broken ones too; those removed that weren't broken. A start from one goes on. Raises
    DeadlineError."""
    if not os.path.isdir(base(config)):
        return []
    with _Lock(config, timeout=2 * config.boot_timeout_s):
        gone = list_templates(config)
        for name in os.listdir(base(config)):
            if name != ".lock":
                _remove(f"{base(config)}/{name}")
    return gone


def _make(config: Config, driver: Driver, machine: Machine, directory: str) -> None:
    deadline = time.monotonic() + config.boot_timeout_s
    os.makedirs(directory, mode=0o700)
    booted = machine._replace(cmdline=f"{machine.cmdline} {TEMPLATE_WORD}")
    guest = boot.start(driver, booted, directory=directory, tap=tap.scratch_tap(), deadline=deadline)
    try:
        guest.vm.resume(deadline=deadline)
        guest.wait_hello(deadline=deadline)
        time.sleep(0.3)  # let what the boot left running in the guest come to rest
        guest.vm.pause(deadline=deadline)
        guest.vm.snapshot(f"{directory}/state", deadline=deadline)
        ram.save(f"{directory}/jail/ram", f"{directory}/ram")
    finally:
        guest.kill()
    syscalls.unmount(f"{directory}/jail", syscalls.MNT_DETACH)
    os.rmdir(f"{directory}/jail")
    made_from = {
        "driver": driver.name,
        "vmm": driver.version_key(),
        **{k: str(v) for k, v in machine._asdict().items()},
    }
    body = {"made_from": made_from, "created": time.time(), "files": {name: _stamp(directory, name) for name in _FILES}}
    with open(f"{directory}/meta.json", "w") as file:
        json.dump(body, file)
        file.flush()
        os.fsync(file.fileno())


def _stamp(directory: str, name: str) -> list[int]:
    status = os.stat(f"{directory}/{name}")
    return [status.st_size, status.st_mtime_ns]


def is_whole(directory: str) -> bool:
    """Whether a template is there as it was made. Bits that have changed on the disk don't show: the guest tells."""
    try:
        with open(f"{directory}/meta.json") as file:
            stamps = json.load(file)["files"]
        return all(stamps[name] == _stamp(directory, name) for name in _FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read(directory: str) -> Template:
    """The template in *directory*. Raises OSError, ValueError, KeyError, TypeError for a broken one."""
    with open(f"{directory}/meta.json") as file:
        meta = json.load(file)
    size = sum(os.stat(f"{directory}/{name}").st_blocks * 512 for name in os.listdir(directory))
    return Template(os.path.basename(directory), directory, dict(meta["made_from"]), size, float(meta["created"]))


def _remove(directory: str) -> None:
    files.remove_tree(directory)


def base(config: Config) -> str:
    """With the images; where a user may not write there, below the user's own directory for data."""
    if os.access(config.data_dir, os.W_OK) or not os.path.isdir(config.data_dir):
        return f"{config.data_dir}/templates"
    home = os.environ.get("HOME", "")
    own = os.environ.get("XDG_DATA_HOME") or (f"{home}/.local/share" if home.startswith("/") else "")
    return f"{own}/runvm/templates" if own else f"{config.state_dir}/templates"


def processor(cpuinfo: str) -> str:
    """What of /proc/cpuinfo a guest that runs on the processor itself depends on: a template is of one model, and of
    one microcode, since a newer one brings and takes features and registers."""
    first = cpuinfo.partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.partition("\t")[0].rstrip() in _PROCESSOR)
