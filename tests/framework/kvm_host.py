"""A host on which KVM works, wherever the tests run: QEMU emulates a processor with AMD-V, Debian's kernel in it loads
kvm_amd, and runvm's guests there run by the code paths of real KVM, in emulated time.

Its disk is made once by debootstrap and kept below CACHE; after that no network is needed. A second disk brings the
checkout, the guest image and the pytest that runs here. What the tests inside report comes over a serial line.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.metadata
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from framework.images import CACHE, run, tidy
from framework.process import FACTOR_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHECKOUT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
FACTOR = 10.0
"""How much longer the same takes there: all deadlines of the tests inside are multiplied by it."""
SILENT_S = 1200.0
"""How long the host may report nothing."""
MEMORY_MIB = 4096
HERE_VARIABLE = "RUNVM_TEST_KVM"
"""Set to HERE where KVM works on this host itself; to EMULATED on the emulated one."""
HERE, EMULATED = "here", "emulated"

_BUILD_SECONDS = 3600.0
_SUITE = "bookworm"
_PACKAGES = (
    # the host itself
    "linux-image-amd64",
    "initramfs-tools",
    "udev",
    "kmod",
    "procps",
    "psmisc",
    "iproute2",
    "iputils-ping",
    "iptables",
    # runvm and what calls it
    "python3",
    "qemu-system-x86",
    "qemu-system-common",
    "crun",
    "runc",
    "docker.io",
    # what containers are made of
    "busybox-static",
)
_MODULES = "virtio_pci\nvirtio_blk\next4\n"
"""What the initramfs has: the fewer, the sooner an emulated processor has unpacked it."""
_PYTEST = ("pytest", "pluggy", "iniconfig", "packaging", "pygments", "pytest-timeout")
_FIRST = """#!/bin/sh
mount /dev/vdb /payload
exec /payload/init
"""
_INIT = f"""#!/bin/sh
# PID 1 of the host that the tests of KVM run on
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=dumb
export {FACTOR_VARIABLE}={FACTOR:g} {HERE_VARIABLE}={EMULATED} RUNVM_TEST_DATA_DIR=/payload/data
mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for directory in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $directory; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for name in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$name >/sys/fs/cgroup/cgroup.subtree_control; done
modprobe -a kvm_amd tun loop overlay bridge br_netfilter veth
ip link set lo up
hostname kvm-host
echo "up in $(cut -d' ' -f1 /proc/uptime) s"
cd /payload/checkout
PYTHONPATH=/payload/packages:tests /usr/bin/python3 -m framework.kvm_inside /payload/job.json </dev/null
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class _Disk(NamedTuple):
    """Files of the host that don't change."""

    image: str
    kernel: str
    initramfs: str


class KvmHost:
    """A booted host that runs tests, named by pytest's node ids; `records` has what it reports, `close` ends it."""

    def __init__(self, tests: Sequence[str], options: Sequence[str], guest_images: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = tempfile.mkdtemp(dir=_cache(), prefix="kvm-host-run-")
        self._console = f"{self._directory}/console"
        try:
            payload = _payload(self._directory, tests, options, guest_images)
            self._process = self._boot(_disk(), payload)
        except BaseException:
            self.close()
            raise

    def records(self) -> Iterator[dict[str, Any]]:
        """One after the other what the tests inside report, as kvm_inside writes it, until all are done. Raises
        AssertionError with the end of the host's console where it dies or is silent for too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        rest = b""
        deadline = time.monotonic() + SILENT_S
        while True:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the KVM host has reported nothing for {SILENT_S:.0f} s\n{self.console()}"
            data = os.read(self._process.stdout.fileno(), 65536)
            assert data, f"the KVM host has ended (QEMU: {self._process.wait(30)})\n{self.console()}"
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                deadline = time.monotonic() + SILENT_S
                record: dict[str, Any] = json.loads(line)
                yield record

    def console(self) -> str:
        """The last lines of its console, which have pytest's own output, and of QEMU's messages."""
        text = ""
        for name in ("vmm.log", "console"):
            try:
                with open(f"{self._directory}/{name}", encoding="utf-8", errors="replace") as file:
                    lines = file.read().replace("\r", "").split("\n")
            except FileNotFoundError:
                continue
            text += f"{name}:\n" + "\n".join(line for line in lines if "TCG doesn't support" not in line)[-6000:]
        return text

    def close(self) -> None:
        """Switch it off. RUNVM_KEEP=1 keeps its console."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            assert self._process.stdout is not None
            self._process.stdout.close()
        if os.environ.get("RUNVM_KEEP"):
            print(f"kept: {self._directory}")
        else:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _boot(self, disk: _Disk, payload: str) -> subprocess.Popen[bytes]:
        argv = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "EPYC,svm=on,npt=on",
            "-smp", "2", "-m", f"{MEMORY_MIB}M",
            "-kernel", disk.kernel, "-initrd", disk.initramfs,
            "-append", "console=ttyS0 quiet loglevel=3 root=/dev/vda rw init=/sbin/kvm-host-init panic=-1"
            # the emulated processor's counter is steady, whatever the kernel's comparison with slower clocks finds
            " mitigations=off tsc=reliable",
            # nothing is written to the disk that is kept
            "-drive", f"file={disk.image},format=raw,if=virtio,snapshot=on,cache=unsafe",
            "-drive", f"file={payload},format=raw,if=virtio,cache=unsafe",
            "-device", "virtio-rng-pci",
            "-serial", f"file:{self._console}", "-serial", "stdio",
        ]  # fmt: skip
        with open(f"{self._directory}/vmm.log", "wb") as log:
            environment = os.environ | {"TMPDIR": self._directory}
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment)


def _cache() -> str:
    os.makedirs(CACHE, exist_ok=True)
    return CACHE


def _disk() -> _Disk:
    """The host's disk, kernel and initramfs, made if they aren't there."""
    recipe = f"{_SUITE} {_PACKAGES} {_MODULES} {_FIRST}"
    directory = f"{_cache()}/kvm-host-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not os.path.exists(directory):
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="building-") as scratch:
            made = f"{scratch}/made"
            os.mkdir(made)
            _make_disk(f"{scratch}/root", made)
            os.rename(made, directory)
    return _Disk(f"{directory}/disk", f"{directory}/vmlinuz", f"{directory}/initramfs")


def _make_disk(root: str, made: str) -> None:
    packages = (*_PACKAGES, *_release_packages())
    run("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", _SUITE, root, timeout=_BUILD_SECONDS)
    _write(f"{root}/etc/initramfs-tools/conf.d/kvm-host", "MODULES=list\nCOMPRESS=gzip\n")
    _write(f"{root}/etc/initramfs-tools/modules", _MODULES)
    run("chroot", root, "update-initramfs", "-u")
    tidy(root)
    os.mkdir(f"{root}/payload")
    _write(f"{root}/sbin/kvm-host-init", _FIRST)
    for name in os.listdir(f"{root}/boot"):
        for prefix, target in (("vmlinuz-", "vmlinuz"), ("initrd.img-", "initramfs")):
            if name.startswith(prefix):
                shutil.copy(f"{root}/boot/{name}", f"{made}/{target}")
    _file_system(root, f"{made}/disk", 8 << 10)


def _release_packages() -> tuple[str, ...]:
    """What Debian 13 and later have in packages of their own."""
    return () if _SUITE == "bookworm" else ("virtiofsd", "docker-cli")


def _payload(directory: str, tests: Sequence[str], options: Sequence[str], guest_images: str) -> str:
    """A disk with what this run is about."""
    root = f"{directory}/payload"
    checkout = f"{root}/checkout"
    os.makedirs(checkout)
    without = shutil.ignore_patterns("__pycache__")
    for name in ("src", "tests", "packaging"):
        shutil.copytree(f"{CHECKOUT}/{name}", f"{checkout}/{name}", symlinks=True, ignore=without)
    shutil.copy(f"{CHECKOUT}/pyproject.toml", checkout)
    for name in _PYTEST:
        _copy_distribution(name, f"{root}/packages")
    # the image in use alone: its name is that of a directory, to which the link `current` leads
    image = os.path.realpath(f"{guest_images}/current")
    shutil.copytree(image, f"{root}/data/images/{os.path.basename(image)}", symlinks=True)
    os.symlink(os.path.basename(image), f"{root}/data/images/current")
    _write(f"{root}/init", _INIT)
    _write(f"{root}/job.json", json.dumps({"tests": list(tests), "options": list(options)}))
    for source in (f"{checkout}/src", f"{root}/packages"):  # of use where both have the same Python
        compileall.compile_dir(source, quiet=2, stripdir=root, prependdir="/payload")
    path = f"{directory}/payload.img"
    _file_system(root, path, 4 << 10)
    shutil.rmtree(root)
    return path


def _copy_distribution(name: str, target: str) -> None:
    """A package of the Python that runs these tests; those that pytest needs are the same for every Python."""
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            copy = f"{target}/{file}"
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copy(str(file.locate()), copy)


def _file_system(root: str, path: str, mib: int) -> None:
    """A sparse file with an ext4 that holds *root*."""
    run("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", "-d", root, path, f"{mib}M")


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)
