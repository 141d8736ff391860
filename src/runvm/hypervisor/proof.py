"""Whether an accelerator works, not just opens: a guest has to boot with it. Found out once per host boot.

On hosts nested in another hypervisor /dev/kvm may open and run a few instructions, yet hang any kernel. So a guest is
booted with KVM, and beside it the same guest by emulation. What is remembered is what that race shows: KVM's guest
came up; or KVM failed while emulation did not: its guest hangs while the other comes up, or its hypervisor ends where
the other's goes on. Where both fail, or the host is too busy for either, KVM isn't to blame, and the next start tries
again.
"""

from __future__ import annotations

import errno
import json
import os
import select
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from runvm.errors import ConfigError, DeadlineError, HostError, RunvmError
from runvm.guest import image
from runvm.hypervisor import boot
from runvm.hypervisor.child import Child, isolated
from runvm.linux import architecture, files, locking
from runvm.log import log, progress
from runvm.network import tap
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runvm.config import Config
    from runvm.hypervisor.driver import Driver

LEAST_SECONDS = 10.0
"""How long a guest that is to prove KVM has at least: a kernel boots in well under 2 s with a KVM that works."""
_FACTOR = 2.0
"""And at least this many times what the same guest needs by emulation, since a busy host is slow with both."""
_SHORTAGES = (os.strerror(errno.ENOMEM), os.strerror(errno.ENOSPC))
"""In a VMM's messages: what the host lacked just then, which says nothing of KVM."""
_RACERS = ("kvm", "tcg")
_PREFIX = "prove-"
_MEMORY_MIB = 256


class Verdict(NamedTuple):
    """Whether KVM works here; *reason* says why not. One that isn't *certain* holds for this one start."""

    works: bool
    reason: str
    certain: bool = True


def accelerator(config: Config, driver: Driver) -> str:
    """The accelerator that *config* names, or with 'auto' the fastest of the driver's that works here; for another
    architecture than the host's it is emulation in any case."""
    offered = driver.capabilities.accelerators
    if architecture.is_foreign(config.arch):
        return offered[-1]
    if config.accelerator != "auto":
        if config.accelerator not in offered:
            raise ConfigError(
                f"hypervisor '{driver.name}' has no accelerator '{config.accelerator}'", do='set accelerator = "auto"'
            )
        return config.accelerator
    fastest = offered[0]
    return fastest if fastest != "kvm" or verdict(config, driver).works else driver.capabilities.accelerators[-1]


def verdict(config: Config, driver: Driver) -> Verdict:
    """What is known of KVM on this boot of the host, found out now if need be; who comes meanwhile waits for the
    answer. Raises DeadlineError, OSError."""
    found = known(config)
    if found is not None:
        return found
    with alone(config, "kvm", "whether KVM works"):
        found = _remembered(config)
        if found is not None:
            return found
        progress("finding out whether KVM works here, once per host boot")
        found = race(config, driver)
        if found.certain:
            _remember(config, found)
        log.debug(f"KVM {'works' if found.works else 'is not used'} {found.reason}")
        return found


@contextmanager
def alone(config: Config, name: str, question: str) -> Iterator[None]:
    """Hold the lock *name* while this process finds out *question*. Raises DeadlineError, OSError."""
    files.make_directories(config.state_dir, 0o711, exist_ok=True)
    fd = os.open(f"{config.state_dir}/{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        locking.lock(
            fd,
            deadline=time.monotonic() + 3 * config.boot_timeout_s,
            timeout_message=f"timed out waiting for another process that finds out {question}",
            interval=0.05,
            waiting=lambda: progress(f"waiting for another command that finds out {question}"),
        )
        yield
    finally:
        os.close(fd)


def known(config: Config) -> Verdict | None:
    """What is known of KVM without a boot, else None. Raises OSError."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Verdict(False, f"/dev/kvm: {error.strerror}")
    return _remembered(config)


def judge(kvm: RunvmError | None, emulated: RunvmError | None) -> Verdict:
    """What two boots show that have ended, each well (None) or with an error. KVM's is a DeadlineError where its guest
    had the time that emulation needs, and hangs."""
    if kvm is None:
        return Verdict(True, "")
    reason = _line(kvm)
    if emulated is not None:
        return Verdict(False, f"no guest boots here now, by emulation neither ({_line(emulated)}): {reason}", False)
    if isinstance(kvm, HostError) or any(word in kvm.details for word in _SHORTAGES):
        return Verdict(False, f"the host couldn't try it: {reason}", False)
    if isinstance(kvm, DeadlineError):
        return Verdict(False, f"a guest hangs with it, and comes up by emulation in that time: {reason}")
    return Verdict(False, f"a guest doesn't boot with it: {reason}")


def prove(config: Config, driver: Driver, accelerator: str, *, timeout: float) -> None:
    """Boot the guest to its agent's answer with *accelerator* within *timeout* seconds. Raises RunvmError with what
    went wrong."""
    with _ProofDirectory(config) as directory:
        attempt = isolated(lambda: _boot(config, driver, accelerator, f"{directory}/{accelerator}", timeout))
        attempt.wait(deadline=time.monotonic() + timeout + 10)


def sweep(config: Config) -> None:
    """Take away what commands that were killed while they tried an accelerator have left."""
    with suppress(FileNotFoundError):
        for name in os.listdir(config.state_dir):
            if name.startswith(_PREFIX):
                with suppress(DeadlineError, OSError):  # somebody is at work in it
                    _remove_unlocked(f"{config.state_dir}/{name}")


def race(config: Config, driver: Driver) -> Verdict:
    """Boot with KVM and by emulation side by side until it is clear what KVM is good for."""
    limit = float(config.boot_timeout_s)
    begin = time.monotonic()
    ended: dict[str, RunvmError | None] = {}
    due = begin + limit  # of KVM's guest, sooner once emulation's has come up
    with ExitStack() as undo:
        directory = undo.enter_context(_ProofDirectory(config))
        launched = {name: undo.enter_context(_Mark()) for name in _RACERS}
        running = {
            name: isolated(_attempt(config, driver, name, f"{directory}/{name}", limit, launched[name]))
            for name in _RACERS
        }
        undo.callback(_kill_all, running)
        while "kvm" not in ended or ended["kvm"] is not None and "tcg" not in ended:
            if "kvm" in ended and launched["tcg"].is_set() and not launched["kvm"].is_set():
                ended["tcg"] = None  # KVM's hypervisor didn't come as far as this: no need to see the guest boot
                break
            awaited: list[Child | _Mark] = [*running.values()]
            awaited += [mark for mark in launched.values() if not mark.is_set()]
            ready, _, _ = select.select(awaited, [], [], max(0.0, due - time.monotonic()))
            if not ready:
                break
            for name in [name for name, attempt in running.items() if attempt in ready]:
                ended[name] = _result(running.pop(name))
            if "tcg" in ended and ended["tcg"] is None:
                due = min(due, begin + max(LEAST_SECONDS, _FACTOR * (time.monotonic() - begin)))
    late = DeadlineError(f"no answer of its agent within {time.monotonic() - begin:.0f} s")
    return judge(ended.get("kvm", late), ended.get("tcg", late))


def _kill_all(running: dict[str, Child]) -> None:
    for attempt in running.values():
        attempt.kill()


def _attempt(
    config: Config, driver: Driver, name: str, directory: str, timeout: float, launched: _Mark
) -> Callable[[], None]:
    return lambda: _boot(config, driver, name, directory, timeout, launched.set)


def _boot(
    config: Config,
    driver: Driver,
    accelerator: str,
    directory: str,
    timeout: float,
    launched: Callable[[], None] = lambda: None,
) -> None:
    deadline = time.monotonic() + timeout
    files.make_directories(directory, 0o700)
    found = image.resolve(config, driver.capabilities.kernel_format)
    machine = boot.machine_for(config, driver, found, vcpus=1, memory_mib=_MEMORY_MIB, accelerator=accelerator)
    first = tap.scratch_tap() if driver.capabilities.nic_transport == "tap" else -1
    guest = boot.start(driver, machine, directory=directory, tap=first, deadline=deadline)
    launched()
    try:
        guest.vm.resume(deadline=deadline)
        guest.wait_hello(deadline=deadline)
    finally:
        guest.kill()


def _result(attempt: Child) -> RunvmError | None:
    try:
        attempt.wait(deadline=time.monotonic() + 1)
    except RunvmError as error:
        return error
    return None


def _line(error: RunvmError) -> str:
    last = error.details.strip().rpartition("\n")[2]
    return error.message + (f": {last}" if last else "")


def _boot_id() -> str:
    return files.read("/proc/sys/kernel/random/boot_id").strip()


def _remembered(config: Config) -> Verdict | None:
    try:
        body = json.loads(files.read(f"{config.state_dir}/kvm.json"))
        if body["boot"] == _boot_id():
            return Verdict(bool(body["works"]), str(body["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not found out yet
    return None


def _remember(config: Config, found: Verdict) -> None:
    memo = f"{config.state_dir}/kvm.json"
    temporary = f"{memo}.{os.getpid()}"
    with open(temporary, "w", opener=files.private) as file:
        json.dump({"boot": _boot_id(), "works": found.works, "reason": found.reason}, file)
    os.rename(temporary, memo)


class _Mark:
    """Set by a child process, once; the parent can wait for it by fileno(). A context manager."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)

    def __enter__(self) -> _Mark:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Readable once it is set."""
        return self._reader

    def set(self) -> None:
        """In the child."""
        os.write(self._writer, b"x")

    def is_set(self) -> bool:
        """In the parent."""
        return bool(select.select([self], [], [], 0)[0])


class _ProofDirectory:
    """A directory for this process's attempts, locked while it is used and removed after it: a context manager."""

    def __init__(self, config: Config) -> None:
        self._path = f"{config.state_dir}/{_PREFIX}{os.getpid()}"

    def __enter__(self) -> str:
        files.make_directories(self._path, 0o700)
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        locking.lock(self._fd, deadline=0, timeout_message=f"{self._path} is in use")
        return self._path

    def __exit__(self, *_: object) -> None:
        files.remove_tree(self._path)
        os.close(self._fd)


def _remove_unlocked(directory: str) -> None:
    """Remove a directory that nobody has locked. Raises DeadlineError where somebody has, OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        locking.lock(fd, deadline=0, timeout_message=f"{directory} is in use")
        files.remove_tree(directory)
    finally:
        os.close(fd)
