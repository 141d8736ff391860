"""What a host needs for a container to start: a function a check, which tries the thing where it can."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runvm.errors import HostError, RunvmError
from runvm.host import trial
from runvm.linux.command import ask
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.config import Config

_VMM_OVERHEAD_MIB = 128  # QEMU itself under emulation, and virtiofsd
_IMAGE_MIB, _TEMPLATE_MIB = 1024, 256  # on disk: an image while it is built; a template
# A user id in the range that the hypervisors run as
_SOME_UID = 0x72760000


class Check(NamedTuple):
    """One thing looked at: what was *found*, and if that is not *ok* the command that *fix*s it.

    One that isn't *needed* is told, but a container starts without it.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True


def check_root(config: Config) -> Check:
    """Root, for namespaces, mounts and cgroups; in a user namespace, as rootless Podman makes one, it is one's own."""
    uid = os.geteuid()
    found = "running as root" if uid == 0 else f"running as user {uid}"
    return Check("root", uid == 0, found, "sudo runvm doctor, or for rootless Podman: podman unshare runvm doctor")


def check_hypervisor(config: Config) -> Check:
    """What the driver of the configured hypervisor finds."""
    from runvm.hypervisor import drivers

    # with "auto", what comes into question besides is looked at later, by a boot
    findings = drivers.likely(config).check()
    bad = next((finding for finding in findings if not finding.ok), None)
    if bad is not None:
        return Check(bad.name, False, bad.found, bad.fix)
    found = "; ".join(finding.found for finding in findings)
    return Check(findings[0].name if findings else config.hypervisor, True, found)


def check_virtiofsd(config: Config) -> Check:
    """The virtiofs daemon is there and runs."""
    from runvm.shares import virtiofs

    fix = apt("qemu-system-common" if _distribution() in _VIRTIOFSD_IN_QEMU else "virtiofsd")
    try:
        program = virtiofs.program(config)
        words = ask([program, "--version"])
    except HostError as error:
        return Check("virtiofsd", False, error.message, (config.virtiofsd and error.do) or fix)
    return Check("virtiofsd", True, f"{program} {_version_in(words)}")


def check_checkpoints(config: Config) -> Check:
    """The VMM and the daemon are new enough for `runvm checkpoint`; containers start without."""
    from runvm.checkpoint import support

    lacks = support.lacks(config)
    if lacks:
        return Check("checkpoints", False, f"not here: it takes {'; and '.join(lacks)}", needed=False)
    return Check("checkpoints", True, "containers can be checkpointed and restored", needed=False)


def check_image(config: Config) -> Check:
    """A guest image: kernel and initramfs."""
    from runvm.guest import image
    from runvm.hypervisor import drivers

    try:
        found = image.resolve(config, drivers.likely(config).capabilities.kernel_format)
    except RunvmError as error:
        return Check("guest image", False, error.message, "runvm image build")
    for path in (found.kernel, found.initramfs):
        if not os.access(path, os.R_OK):
            return Check("guest image", False, f"{path} can't be read", "runvm image build")
    return Check(
        "guest image", True, f"{found.name or found.kernel}, kernel {found.kernel_version or 'of unknown version'}"
    )


def check_crun(config: Config) -> Check:
    """crun, which makes the containers in the guest, is in the initramfs."""
    import mmap

    from runvm.guest import image

    name = "crun in the guest"
    try:
        initramfs = image.resolve(config).initramfs
    except RunvmError as error:
        return Check(name, False, f"not looked for: {error.message}", needed=False)  # check_image says it
    try:
        with open(initramfs, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as archive:
            if archive[:6] != b"070701":
                return Check(
                    name, False, f"{initramfs} is compressed or no cpio archive: not looked into", needed=False
                )
            there = archive.find(b"usr/bin/crun\0") >= 0
    except (OSError, ValueError) as error:
        return Check(name, False, f"{initramfs}: {error}", "runvm image build")
    return Check(name, there, initramfs if there else f"{initramfs} has no usr/bin/crun", "runvm image build")


def check_tun(config: Config) -> Check:
    """/dev/net/tun opens."""
    fix = "modprobe tun"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        if os.path.isdir(
            "/sys/class/misc/tun"
        ):  # the driver is there, the node isn't: a container's or a chroot's /dev
            fix = "mkdir -p /dev/net && mknod /dev/net/tun c 10 200"
        return Check("tun", False, "there is no /dev/net/tun", fix)
    except OSError as error:
        return Check("tun", False, f"/dev/net/tun: {error.strerror}", fix)
    return Check("tun", True, "/dev/net/tun opens")


def check_redirect(config: Config) -> Check:
    """tc's ingress, u32 and mirred redirect between two interfaces; tried in a network namespace of its own."""
    from runvm.linux import syscalls
    from runvm.network import tap

    def attempt() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        tap.create_tap("one")
        tap.create_tap("two")
        tap.wire("one", "two", resolver=True)

    failure = trial.in_child(attempt)
    fix = "modprobe -a tun sch_ingress cls_u32 act_mirred"
    return Check("redirection by tc", not failure, failure or "filters in ingress redirect between two taps", fix)


def check_namespaces(config: Config) -> Check:
    """Namespaces, a mount in them, and another user id: what a sandbox is confined with."""
    from runvm.linux import syscalls, userns

    uid = userns.spare_id(0) if userns.limited() else _SOME_UID

    def attempt() -> None:
        syscalls.unshare(
            syscalls.CLONE_NEWNS
            | syscalls.CLONE_NEWNET
            | syscalls.CLONE_NEWIPC
            | syscalls.CLONE_NEWUTS
            | syscalls.CLONE_NEWPID
        )
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("doctor", "/tmp", "tmpfs")
        try:
            os.setresuid(uid, uid, uid)
        except OSError as error:
            raise HostError(f"can't become user {uid}: {error.strerror}") from error

    failure = trial.in_child(attempt)
    fix = "run runvm outside of this container, or make the container with --privileged"
    return Check("namespaces", not failure, failure or "namespaces, mounts and user ids can be made", fix)


def check_cgroups(config: Config) -> Check:
    """The hierarchies for memory, cpu and pids take a new cgroup; a user's containers do without."""
    from runvm.linux import userns

    kind, directories = _cgroup_directories()
    if not directories:
        return Check("cgroups", False, "no cgroup file system is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    for directory in directories:
        scratch = os.path.join(directory, f"runvm-doctor-{os.getpid()}")
        try:
            os.mkdir(scratch)
            os.rmdir(scratch)
        except OSError as error:
            fix = "mount -o remount,rw /sys/fs/cgroup" if kind == "v2" else f"mount -o remount,rw {directory}"
            found = f"{kind}, but {directory} takes no new one: {error.strerror}"
            if userns.limited():
                return Check("cgroups", False, f"{found}; containers have no limits on the host", needed=False)
            return Check("cgroups", False, found, fix)
    return Check("cgroups", True, f"{kind}, writable")


def check_memory(config: Config) -> Check:
    """Memory for one guest as configured."""
    needed = (config.memory_mib or config.default_memory_mib) + _VMM_OVERHEAD_MIB
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    available = int(fields["MemAvailable"].split()[0]) // 1024
    found = f"{available} MiB available, {needed} MiB needed for a container without a limit"
    fix = "lower default_memory_mib in /etc/runvm/config.toml"
    return Check("memory", available >= needed, found, fix)


def check_disk(config: Config) -> Check:
    """Room for images and templates."""
    directory = _existing(config.data_dir)
    there = os.path.exists(os.path.join(config.data_dir, "images", "current")) or bool(
        config.kernel and config.initramfs
    )
    needed = _TEMPLATE_MIB if there else _IMAGE_MIB
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize // (1 << 20)
    found = f"{free} MiB free for {config.data_dir}, {needed} MiB needed"
    fix = f"make room on the file system of {directory}, or set data_dir in /etc/runvm/config.toml"
    return Check("disk", free >= needed, found, fix)


def check_choice(config: Config) -> Check:
    """Which hypervisor a container gets, why, and what would be faster."""
    from runvm.guest import uml_kernel
    from runvm.hypervisor import drivers

    chosen = drivers.choice(config._replace(hypervisor=drivers.AUTO))
    if config.hypervisor == drivers.AUTO:
        found = f"{chosen.name}: {chosen.reason}"
        if chosen.emulated and config.accelerator == "auto":
            return Check("hypervisor", False, f"{found}; containers run emulated, slower", uml_kernel.FIX, needed=False)
        if not chosen.emulated and chosen.name != "qemu":
            found += "; with KVM system calls would be faster"
        return Check("hypervisor", True, found, needed=False)
    found = f"{config.hypervisor}, as configured"
    if config.hypervisor in drivers.BUILT_IN and config.hypervisor != chosen.name:
        fix = 'set hypervisor = "auto" in /etc/runvm/config.toml'
        return Check("hypervisor", False, f"{found}; {chosen.name} would be faster here", fix, needed=False)
    return Check("hypervisor", True, found, needed=False)


def check_kvm(config: Config) -> Check:
    """Whether a guest really boots with KVM, found out once per host boot; only told, for emulation serves without."""
    from runvm.hypervisor import drivers, proof

    driver = drivers.load(config)
    needed = config.accelerator == "kvm"
    if "kvm" not in driver.capabilities.accelerators:
        return Check("KVM", True, f"not used by {driver.name}", needed=False)
    if config.accelerator == "tcg":
        return Check("KVM", True, "not used: accelerator is tcg", needed=False)
    verdict = proof.verdict(config, driver)
    if verdict.works:
        return Check("KVM", True, "a guest boots with it", needed=needed)
    fix = "" if os.path.exists("/dev/kvm") else "modprobe -a kvm_intel kvm_amd"
    if needed:
        fix = 'set accelerator = "auto" in /etc/runvm/config.toml'
    found = f"does not work here: {verdict.reason}" + ("" if needed else "; containers run emulated, which is slower")
    return Check("KVM", False, found, fix, needed=needed)


def check_boot(config: Config) -> Check:
    """A guest boots to its agent's answer, the way a container's would."""
    import time

    from runvm.hypervisor import drivers, proof

    name = "a guest boots"
    driver = drivers.load(config)
    accelerator = proof.accelerator(config, driver)
    begin = time.monotonic()
    try:
        proof.prove(config, driver, accelerator, timeout=config.boot_timeout_s)
    except RunvmError as error:
        last = f" ({error.details.strip().splitlines()[-1]})" if error.details.strip() else ""
        fix = error.do if isinstance(error, HostError) else ""
        return Check(name, False, f"with {accelerator}: {error.message}{last}", fix or "runvm image build")
    return Check(name, True, f"with {accelerator}, in {time.monotonic() - begin:.1f} s")


FIRST: tuple[Callable[[Config], Check], ...] = (
    check_root,
    check_hypervisor,
    check_virtiofsd,
    check_checkpoints,
    check_image,
    check_crun,
    check_tun,
    check_redirect,
    check_namespaces,
    check_cgroups,
    check_memory,
    check_disk,
)
# these boot a guest: only where all of FIRST is well
THEN: tuple[Callable[[Config], Check], ...] = (check_choice, check_kvm, check_boot)

_VIRTIOFSD_IN_QEMU = (("debian", "11"), ("debian", "12"), ("ubuntu", "22.04"))


def apt(package: str) -> str:
    """The command that installs Debian's *package*; other distributions name it otherwise."""
    if trial.find("apt-get"):
        return f"apt-get install {package}"
    return f"install what Debian calls {package} with this distribution's package manager"


def _distribution() -> tuple[str, str]:
    """Name and version. Source: os-release(5)."""
    try:
        with open("/etc/os-release") as file:
            fields = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    except OSError:
        return "", ""
    return fields.get("ID", "").strip('"'), fields.get("VERSION_ID", "").strip('"')


def _version_in(words: str) -> str:
    """The first word of *words* that begins with a digit."""
    return next((word for word in words.split() if word[0].isdigit()), "of unknown version")


def _cgroup_directories() -> tuple[str, list[str]]:
    """(v1, v2 or hybrid; where new cgroups have to be possible)."""
    from runvm.cgroup import hierarchy

    roots = hierarchy.roots()
    if hierarchy.unified():
        return "v2", roots
    wanted = [root for root in roots if {"memory", "cpu", "pids"} & set(hierarchy.controllers(root))]
    return ("hybrid" if any(os.path.exists(f"{root}/cgroup.controllers") for root in roots) else "v1"), wanted


def _existing(path: str) -> str:
    """*path*, or its nearest ancestor that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
