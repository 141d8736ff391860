"""A host that QEMU emulates, booted to run tests: one on which KVM works (framework.kvm_host), or one of another
architecture (framework.arm64_host).

Its disk is made once and kept below CACHE; after that no network is needed. A second disk brings the checkout, the
guest image and the pytest that runs here. What the tests inside report comes over a serial line.
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

from framework.images import CACHE, run
from framework.process import FACTOR_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHECKOUT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
SILENT_S = 1200.0
"""How long the host may report nothing."""
HERE_VARIABLE = "RUNVM_TEST_KVM"
"""Set to HERE where KVM works on this host itself; to EMULATED on an emulated one."""
HERE, EMULATED = "here", "emulated"
INIT = "/sbin/emulated-host-init"

_PYTEST = ("pytest", "pluggy", "iniconfig", "packaging", "pygments", "pytest-timeout")
# What the unit tests read besides
_FOLDERS = ("src", "tests", "packaging", "docs", "bench", ".ci")
_FIRST = """#!/bin/sh
mount /dev/vdb /payload
exec /payload/init
"""
_INIT = """#!/bin/sh
# PID 1 of the host that the tests run on
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=dumb
export {variables} RUNVM_TEST_DATA_DIR=/payload/data
mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
mount -t devpts devpts /dev/pts
for directory in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $directory; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for name in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$name >/sys/fs/cgroup/cgroup.subtree_control; done
modprobe -a {modules}
ip link set lo up
hostname {name}
echo "up in $(cut -d' ' -f1 /proc/uptime) s"
cd /payload/checkout
PYTHONPATH=/payload/packages:tests /usr/bin/python3 -m framework.emulated_inside /payload/job.json </dev/null
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class Machine(NamedTuple):
    """A kind of host.

    *make*(root, made) fills the directory *root* with the host's system and *made* with its `vmlinuz` and `initramfs`;
    *recipe* is what that depends on, so that the disk is made anew where it changes. *vmm* is QEMU's program, machine
    and processor; *reports* are its options for the serial line that is *line* in the host. *factor*: how much longer
    the same takes there, by which all deadlines of the tests inside are multiplied. *image*: the link to the guest
    image that is the host's own."""

    name: str
    recipe: str
    make: Callable[[str, str], None]
    vmm: tuple[str, ...]
    memory_mib: int
    kernel_args: str
    reports: tuple[str, ...]
    line: str
    modules: str
    factor: float
    image: str


class _Disk(NamedTuple):
    """Files of the host that don't change."""

    image: str
    kernel: str
    initramfs: str


class EmulatedHost:
    """A booted host that runs tests, named by pytest's node ids; `records` has what it reports, `close` ends it."""

    def __init__(self, machine: Machine, tests: Sequence[str], options: Sequence[str], guest_images: str) -> None:
        self._machine = machine
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = tempfile.mkdtemp(dir=_cache(), prefix="host-run-")
        self._console = f"{self._directory}/console"
        try:
            payload = _payload(machine, self._directory, tests, options, guest_images)
            self._process = self._boot(_disk(machine), payload)
        except BaseException:
            self.close()
            raise

    def records(self) -> Iterator[dict[str, Any]]:
        """One after the other what the tests inside report, as emulated_inside writes it, until all are done. Raises
        AssertionError with the end of the host's console where it dies or is silent for too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        rest = b""
        deadline = time.monotonic() + SILENT_S
        while True:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{self._machine.name} has reported nothing for {SILENT_S:.0f} s\n{self.console()}"
            data = os.read(self._process.stdout.fileno(), 65536)
            assert data, f"{self._machine.name} has ended (QEMU: {self._process.wait(30)})\n{self.console()}"
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
        machine = self._machine
        argv = [
            *machine.vmm, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-accel", "tcg,thread=multi", "-smp", "2", "-m", f"{machine.memory_mib}M",
            "-kernel", disk.kernel, "-initrd", disk.initramfs,
            "-append", f"{machine.kernel_args} quiet loglevel=3 root=/dev/vda rw init={INIT} panic=-1",
            # nothing is written to the disk that is kept
            "-drive", f"file={disk.image},format=raw,if=virtio,snapshot=on,cache=unsafe",
            "-drive", f"file={payload},format=raw,if=virtio,cache=unsafe",
            "-device", "virtio-rng-pci",
            "-serial", f"file:{self._console}", *machine.reports,
        ]  # fmt: skip
        with open(f"{self._directory}/vmm.log", "wb") as log:
            environment = os.environ | {"TMPDIR": self._directory}
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment)


def _cache() -> str:
    os.makedirs(CACHE, exist_ok=True)
    return CACHE


def _disk(machine: Machine) -> _Disk:
    """The host's disk, kernel and initramfs, made if they aren't there."""
    recipe = f"{machine.recipe} {_FIRST} {INIT}"
    directory = f"{_cache()}/{machine.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not os.path.exists(directory):
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="building-") as scratch:
            made, root = f"{scratch}/made", f"{scratch}/root"
            os.mkdir(made)
            machine.make(root, made)
            os.mkdir(f"{root}/payload")
            write(root + INIT, _FIRST)
            _file_system(root, f"{made}/disk", 8 << 10)
            os.rename(made, directory)
    return _Disk(f"{directory}/disk", f"{directory}/vmlinuz", f"{directory}/initramfs")


def _payload(machine: Machine, directory: str, tests: Sequence[str], options: Sequence[str], guest_images: str) -> str:
    """A disk with what this run is about."""
    root = f"{directory}/payload"
    checkout = f"{root}/checkout"
    os.makedirs(checkout)
    without = shutil.ignore_patterns("__pycache__")
    for name in _FOLDERS:
        shutil.copytree(f"{CHECKOUT}/{name}", f"{checkout}/{name}", symlinks=True, ignore=without)
    for entry in os.scandir(CHECKOUT):
        if entry.is_file():
            shutil.copy(entry.path, checkout)
    for name in _PYTEST:
        _copy_distribution(name, f"{root}/packages")
    # the image in use alone: its name is that of a directory, to which the link `current` leads
    image = os.path.realpath(f"{guest_images}/{machine.image}")
    shutil.copytree(image, f"{root}/data/images/{os.path.basename(image)}", symlinks=True)
    os.symlink(os.path.basename(image), f"{root}/data/images/current")
    variables = f"{FACTOR_VARIABLE}={machine.factor:g} {HERE_VARIABLE}={EMULATED}"
    write(f"{root}/init", _INIT.format(variables=variables, modules=machine.modules, name=machine.name))
    job = {"tests": list(tests), "options": list(options), "line": machine.line}
    write(f"{root}/job.json", json.dumps(job))
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


def write(path: str, text: str) -> None:
    """Write an executable file, with its directories."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)
