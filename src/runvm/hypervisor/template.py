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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from runvm import __version__
from runvm.errors import DeadlineError, GuestError, RunvmError
from runvm.guest import image
from runvm.hypervisor import boot
from runvm.hypervisor import driver as drivers
from runvm.linux import files, locking, process, syscalls
from runvm.log import log, progress

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor.driver import Driver, Machine

_PAGE = 4096
_SERVED = "served"
"""A file of a template from which a guest has come up."""
_FORMAT = 2
"""Raised when what a template holds changes in another way than its key tells."""
_FILES = ("state", "ram")
_PROOF = "prove-"


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
        parts.append(_cpu_model())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def ensure(config: Config, driver: Driver, machine: Machine) -> str:
    """The directory of the template for *machine*, made now if it isn't there. Raises RunvmError where it can't be
    made."""
    name = key(driver, machine)
    directory = f"{_base(config)}/{name}"
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
        temporary = f"{_base(config)}/.{name}.{os.getpid()}"
        try:
            _in_private_mounts(lambda: _make(config, driver, machine, temporary), 2 * config.boot_timeout_s)
            os.rename(temporary, directory)
        finally:
            _remove(temporary)
    return directory


class _Lock:
    """The directory of templates, there and locked: a context manager. Raises DeadlineError."""

    def __init__(self, config: Config, *, timeout: float) -> None:
        self._base = _base(config)
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
    """Take away what commands that were killed while they booted a guest have left of it."""
    try:
        with _Lock(config, timeout=0):
            pass
    except (DeadlineError, OSError):
        pass  # one is being made: its maker clears up
    try:
        names = [name for name in os.listdir(config.state_dir) if name.startswith(_PROOF)]
    except FileNotFoundError:
        return
    for name in names:
        directory = f"{config.state_dir}/{name}"
        try:
            with _locked(directory):
                _remove(directory)
        except (DeadlineError, OSError):
            continue


def has_served(directory: str) -> bool:
    """Whether a guest from the template has come up once: what is slow then is the host, not the template."""
    return os.path.exists(f"{directory}/{_SERVED}")


def note_served(directory: str) -> None:
    """A guest from the template has come up."""
    if not has_served(directory):
        with suppress(OSError):  # it has just been dropped or pruned
            os.close(os.open(f"{directory}/{_SERVED}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def doubt(directory: str) -> None:
    """It counts as one that has not served, until it does: failing once more it is dropped."""
    with suppress(OSError):
        os.unlink(f"{directory}/{_SERVED}")


def drop(directory: str, reason: str) -> str:
    """Remove a template that proved broken, so that the next start makes it anew; what is to be said of it."""
    _remove(directory)
    words = f"the template {os.path.basename(directory)} is broken, booting instead; the next start makes it anew"
    return f"{words}: {reason}"


def prove(config: Config, accelerator: str, *, timeout: float) -> None:
    """Boot the guest to its agent's answer with *accelerator* within *timeout* seconds. Raises RunvmError with what
    went wrong."""
    driver = drivers.load(config)
    machine = boot.machine_for(config, driver, image.resolve(config), vcpus=1, memory_mib=256, accelerator=accelerator)
    directory = f"{config.state_dir}/{_PROOF}{os.getpid()}"
    deadline = time.monotonic() + timeout

    def attempt() -> None:
        guest = boot.start(driver, machine, directory=directory, tap=scratch_tap(), deadline=deadline)
        try:
            guest.vm.resume(deadline=deadline)
            guest.wait_hello(deadline=deadline)
        finally:
            guest.kill()

    files.make_directories(directory, 0o700)
    try:
        with _locked(directory):
            _in_private_mounts(attempt, timeout + 10)
    finally:
        _remove(directory)


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold the lock of a directory that somebody may be at work in. Raises DeadlineError where somebody is, OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        locking.lock(fd, deadline=0, timeout_message=f"{directory} is in use")
        yield
    finally:
        os.close(fd)


def build(config: Config) -> Template:
    """`runvm template build`: make the template of the default machine if it isn't there."""
    from runvm.sandbox import resources

    driver = drivers.load(config)
    machine = boot.machine_for(
        config,
        driver,
        image.resolve(config),
        vcpus=resources.vcpus(config, {}),
        memory_mib=resources.base_mib(config, {}),
    )
    return _read(ensure(config, driver, machine))


def list_templates(config: Config) -> list[Template]:
    """The templates there are, oldest first."""
    try:
        names = [name for name in os.listdir(_base(config)) if not name.startswith(".")]
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        try:
            found.append(_read(f"{_base(config)}/{name}"))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a broken one: found out and dropped by the start that wants it
    return sorted(found, key=lambda template: template.created)


def prune(config: Config) -> list[Template]:
    """Remove every template, broken ones too; those removed that weren't broken. A start from one goes on. Raises
    DeadlineError."""
    if not os.path.isdir(_base(config)):
        return []
    with _Lock(config, timeout=2 * config.boot_timeout_s):
        gone = list_templates(config)
        for name in os.listdir(_base(config)):
            if name != ".lock":
                _remove(f"{_base(config)}/{name}")
    return gone


def scratch_tap() -> int:
    """A tap in a network namespace that nothing else is in: what a VM's first NIC has until it is some container's."""
    import socket

    from runvm.network import tap

    ours, theirs = socket.socketpair()
    with ours, theirs:

        def child() -> None:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            socket.send_fds(theirs, [b"t"], [tap.create_tap("rvtap0")])

        pid = process.fork(child)
        if process.wait_child(pid, deadline=time.monotonic() + 10) != 0:
            raise GuestError("a tap can't be made", do="run 'runvm doctor'")
        return socket.recv_fds(ours, 1, 1)[1][0]


def _make(config: Config, driver: Driver, machine: Machine, directory: str) -> None:
    deadline = time.monotonic() + config.boot_timeout_s
    os.makedirs(directory, mode=0o700)
    booted = machine._replace(cmdline=f"{machine.cmdline} {boot.TEMPLATE_WORD}")
    guest = boot.start(driver, booted, directory=directory, tap=scratch_tap(), deadline=deadline)
    try:
        guest.vm.resume(deadline=deadline)
        guest.wait_hello(deadline=deadline)
        time.sleep(0.3)  # let what the boot left running in the guest come to rest
        guest.vm.pause(deadline=deadline)
        guest.vm.snapshot(f"{directory}/state", deadline=deadline)
        save_ram(f"{directory}/jail/ram", f"{directory}/ram")
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


def save_ram(source: str, target: str) -> None:
    """Copy the pages that aren't zero; the rest stay holes."""
    zero = bytes(_PAGE)
    with open(source, "rb", buffering=0) as ram, open(target, "wb", buffering=0) as out:
        size = os.fstat(ram.fileno()).st_size
        out.truncate(size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(ram.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: only a hole is left
            end = os.lseek(ram.fileno(), offset, os.SEEK_HOLE)
            while offset < end:
                chunk = os.pread(ram.fileno(), min(1 << 20, end - offset), offset)
                start = -1
                for page in range(0, len(chunk) + _PAGE, _PAGE):
                    used = page < len(chunk) and chunk[page : page + _PAGE] != zero
                    if used and start < 0:
                        start = page
                    elif not used and start >= 0:
                        os.pwrite(out.fileno(), chunk[start:page], offset + start)
                        start = -1
                offset += len(chunk)
        os.fsync(out.fileno())


def _in_private_mounts(action: Callable[[], None], timeout: float) -> None:
    """Run *action* in a forked child with a mount namespace of its own, which goes with it; its RunvmError comes back.

    Raises: RunvmError, DeadlineError.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()

    def child() -> None:
        process.die_with_parent(parent)
        os.umask(0o022)  # the hypervisor, of another user, looks into its jail
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
        try:
            action()
        except RunvmError as error:
            os.write(writer, json.dumps([error.message, error.do, error.details[-20000:]]).encode())
            os._exit(3)
        except OSError as error:
            os.write(writer, json.dumps([str(error), "", ""]).encode())
            os._exit(3)

    pid = process.fork(child)
    os.close(writer)
    try:
        status = process.wait_child(pid, deadline=time.monotonic() + timeout)
        if status is None:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise DeadlineError("timed out waiting for a guest to boot")
        if status:
            data = os.read(reader, 65536)  # its only writer has ended
            ended = f"the booting process ended with status {status}"
            message, do, details = json.loads(data) if data else (ended, "", "")
            raise GuestError(message, do=do, details=details)
    finally:
        os.close(reader)


def _read(directory: str) -> Template:
    with open(f"{directory}/meta.json") as file:
        meta = json.load(file)
    size = sum(os.stat(f"{directory}/{name}").st_blocks * 512 for name in os.listdir(directory))
    return Template(os.path.basename(directory), directory, dict(meta["made_from"]), size, float(meta["created"]))


def _remove(directory: str) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def _base(config: Config) -> str:
    """With the images; where a user may not write there, below the user's own directory for data."""
    if os.access(config.data_dir, os.W_OK) or not os.path.isdir(config.data_dir):
        return f"{config.data_dir}/templates"
    home = os.environ.get("HOME", "")
    own = os.environ.get("XDG_DATA_HOME") or (f"{home}/.local/share" if home.startswith("/") else "")
    return f"{own}/runvm/templates" if own else f"{config.state_dir}/templates"


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line for line in file if line.startswith("model name")), "") + next(
            (line for line in file if line.startswith("flags")), ""
        )
