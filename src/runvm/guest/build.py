"""Builds the guest image: packages → a cut-down root → initramfs; the same inputs give the same bytes and the same hash.

Called by image.py. Everything happens in a directory of its own next to the images, which is renamed when it is complete.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from runvm import __version__
from runvm.errors import DeadlineError, HostError
from runvm.guest import cpio, kernel, packages, pythonpath
from runvm.guest.packages import Package
from runvm.guest.programs import Root

USERLAND = ("crun", "python3-minimal", "libpython3-stdlib", "kmod", "busybox-static", "libc-bin")
KERNEL_PREFIXES = ("linux-image-", "linux-modules-")  # Ubuntu has the modules apart
LOCK_TIMEOUT = 900.0

_INIT = """#!{python} -SIBu
# PID 1. One argument is all that a #! line can carry; the agent does the rest.
import sys

sys.path.append("/usr/lib/runvm")
from runvm.agent.init import main

main()
"""
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
_EMPTY = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var", "usr/lib/runvm")
# Needed before anything can be mounted: the kernel opens /dev/console for init; Python, finding getrandom(2) not ready yet
# (no RDRAND under TCG, no virtio-rng so early), reads its hash seed from /dev/urandom, which never waits, or gives up.
_NODES = (
    cpio.Node("dev/console", stat.S_IFCHR | 0o600, 5, 1),
    cpio.Node("dev/null", stat.S_IFCHR | 0o666, 1, 3),
    cpio.Node("dev/urandom", stat.S_IFCHR | 0o666, 1, 9),
)


class Plan(NamedTuple):
    """All that the image depends on."""

    userland: list[Package]
    kernel: list[Package]
    agent: pythonpath.Agent
    inputs: str


def build(data_dir: str, progress: Callable[[str], None]) -> str:
    """Build the image, make it the current one, return its directory. Raises: HostError, DeadlineError (another build)."""
    base = os.path.join(data_dir, "images")
    try:
        os.makedirs(base, exist_ok=True)
    except OSError as error:
        raise HostError(f"can't make {base}: {error.strerror}", do="run 'runvm image build' as root") from error
    with _locked(base, progress):
        _remove_leftovers(base)
        work = tempfile.mkdtemp(prefix=".build-", dir=base)
        try:
            return _build(data_dir, base, work, progress)
        except OSError as error:
            raise HostError(f"can't build the guest image: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _build(data_dir: str, base: str, work: str, progress: Callable[[str], None]) -> str:
    plan, debs = _gather(os.path.join(data_dir, "cache"), work, progress)
    directory = _built_from(base, plan.inputs)
    if directory:
        progress(f"nothing has changed since {os.path.basename(directory)} was built")
        _make_current(base, directory)
        return directory
    result = os.path.join(work, "image")
    os.mkdir(result)
    root = Root(os.path.join(work, "root"))
    unpacked = Root(os.path.join(work, "kernel"))
    root.make_merged_usr()
    unpacked.make_merged_usr()
    progress(f"unpacking {len(debs)} packages")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(_unpack, [debs[package.name] for package in plan.kernel], unpacked)
        _unpack([debs[package.name] for package in plan.userland], root)
        other.result()
    release = _take_kernel(root, unpacked, result, progress)
    stage = Root(os.path.join(work, "stage"))
    progress("assembling the initramfs")
    core = _assemble(root, stage, plan.agent, os.path.join(result, "modules"), release, work)
    with open(os.path.join(result, "initramfs"), "wb") as file:
        cpio.write(stage.path, file, nodes=_NODES)
    return _publish(base, result, plan, release, core, progress)


def _gather(cache: str, work: str, progress: Callable[[str], None]) -> tuple[Plan, dict[str, str]]:
    """The plan and its packages' files. Once with apt's lists as they are; if they don't do, with fresh ones."""
    try:
        plan = _plan(work)
        progress(f"fetching {len(plan.userland) + len(plan.kernel)} packages")
        return plan, packages.fetch(plan.userland + plan.kernel, cache, work)
    except packages.CommandError:
        packages.refresh(progress)
    plan = _plan(work)
    return plan, packages.fetch(plan.userland + plan.kernel, cache, work)


def _plan(work: str) -> Plan:
    architecture = packages.run(("dpkg", "--print-architecture")).strip()
    meta = f"linux-image-{architecture}"
    with_kernel = packages.closure((meta,), work)
    chosen = [package for package in with_kernel if package.name.startswith(KERNEL_PREFIXES) and package.name != meta]
    userland = packages.closure(USERLAND, work)
    agent = pythonpath.agent()
    digest = hashlib.sha256(json.dumps([userland, chosen]).encode())
    builder = tuple(f"runvm/guest/{name}" for name in os.listdir(os.path.dirname(__file__)) if name.endswith(".py"))
    for name in (*agent.files, *sorted(builder)):
        with open(os.path.join(pythonpath.package_directory(), name), "rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read()).digest())
    return Plan(userland, chosen, agent, digest.hexdigest())


def _unpack(debs: Sequence[str], root: Root) -> None:
    for deb in debs:
        packages.unpack(deb, root.path)


def _take_kernel(root: Root, unpacked: Root, result: str, progress: Callable[[str], None]) -> str:
    """Move the kernel and its modules to the image, indexed by depmod; returns the kernel's release."""
    release = kernel.version(unpacked.path)
    progress(f"indexing the modules of {release}")
    kernel.depmod(root, unpacked.path, release)
    os.rename(unpacked.at(f"boot/vmlinuz-{release}"), os.path.join(result, "vmlinuz"))
    modules = os.path.join(result, "modules")
    os.rename(unpacked.at(f"usr/lib/modules/{release}"), modules)
    for name in ("build", "source"):  # links to headers that aren't there
        if os.path.islink(os.path.join(modules, name)):
            os.unlink(os.path.join(modules, name))
    return release


def _assemble(root: Root, stage: Root, agent: pythonpath.Agent, modules: str, release: str, work: str) -> list[str]:
    """Fill *stage* with the guest's root; returns the names of the kernel modules in it."""
    stage.make_merged_usr()
    for name in _EMPTY:
        os.makedirs(stage.at(name), exist_ok=True)
    os.chmod(stage.at("tmp"), 0o1777)
    python = pythonpath.interpreter(root)
    library = pythonpath.stdlib(root, agent.imports)
    extensions = [path for path in library if not path.endswith(".py")]
    programs = [python, "/usr/bin/crun", "/bin/kmod", "/bin/busybox"]
    shared = root.libraries([*programs[:-1], *extensions])
    for path in (*programs, *extensions, *shared, *_dlopened(root, shared)):
        _copy(root.real(path), stage.at(path), executable=path in programs or "/ld" in path)
    for name in ("modprobe", "insmod", "rmmod", "lsmod", "depmod"):
        os.symlink("../bin/kmod", stage.at(f"usr/sbin/{name}"))
    os.symlink("busybox", stage.at("usr/bin/sh"))
    _write(stage.at("etc/passwd"), _PASSWD)
    _write(stage.at("etc/group"), _GROUP)
    _write(stage.at("init"), _INIT.format(python=python), mode=0o755)
    _index_libraries(root, stage, shared)
    jobs = [(root.at(path), stage.at(path) + "c", path) for path in library if path.endswith(".py")]
    tag = "cpython-" + python.removeprefix("/usr/bin/python").replace(".", "")
    for name in agent.files:
        target = f"/usr/lib/runvm/{name}"
        _copy(os.path.join(pythonpath.package_directory(), name), stage.at(target), executable=False)
        folder, stem = os.path.split(target.removesuffix(".py"))
        jobs.append((stage.at(target), stage.at(f"{folder}/__pycache__/{stem}.{tag}.pyc"), target))
    pythonpath.compile_all(root, jobs, work)
    core = kernel.copy_core(modules, stage.at(f"usr/lib/modules/{release}"))
    kernel.depmod(root, stage.path, release)
    return core


def _dlopened(root: Root, shared: Sequence[str]) -> list[str]:
    """libgcc_s: glibc loads it by name when a thread is cancelled, and aborts without it."""
    folders = sorted({os.path.dirname(path) for path in shared})
    found = [f"{folder}/libgcc_s.so.1" for folder in folders if os.path.exists(root.real(f"{folder}/libgcc_s.so.1"))]
    return found[:1]


def _index_libraries(root: Root, stage: Root, shared: Sequence[str]) -> None:
    """Write ld.so.cache: without it each library is looked for in half a dozen directories by every program's start."""
    folders = sorted({os.path.dirname(path) for path in shared})
    _write(stage.at("etc/ld.so.conf"), "".join(f"{folder}\n" for folder in folders))
    packages.run((root.real("/sbin/ldconfig"), "-X", "-i", "-r", stage.path))
    shutil.rmtree(stage.at("var/cache"), ignore_errors=True)


def _publish(
    base: str, result: str, plan: Plan, release: str, core: list[str], progress: Callable[[str], None]
) -> str:
    """Name the finished image in *result* by its content and make it current; returns its directory."""
    contents = {name: _sha256(os.path.join(result, name)) for name in ("vmlinuz", "initramfs")}
    # The modules' tree is what depmod makes of the kernel's packages, whose hashes stand for it
    identity = {"files": contents, "kernel": release, "packages": [package.sha256 for package in plan.kernel]}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    sizes = {name: os.path.getsize(os.path.join(result, name)) for name in contents}
    sizes["modules"] = _tree_size(os.path.join(result, "modules"))
    manifest = {
        "hash": digest,
        "inputs": plan.inputs,
        "kernel": release,
        "agent": __version__,
        "created": int(time.time()),
        "sizes": sizes,
        "files": contents,
        "core_modules": core,
        "packages": [package._asdict() for package in sorted(plan.userland + plan.kernel)],
    }
    _write(os.path.join(result, "manifest.json"), json.dumps(manifest, indent=2) + "\n")
    directory = os.path.join(base, digest[:12])
    os.chmod(result, 0o755)
    progress("writing to disk")
    _sync(result)
    if os.path.isdir(directory):  # the builder changed, but not what it makes
        os.replace(os.path.join(result, "manifest.json"), os.path.join(directory, "manifest.json"))
    else:
        os.rename(result, directory)
    _make_current(base, directory)
    return directory


def _make_current(base: str, directory: str) -> None:
    link = os.path.join(base, f".current-{os.getpid()}")
    os.symlink(os.path.basename(directory), link)
    os.replace(link, os.path.join(base, "current"))
    _sync(base)


def remove(data_dir: str, names: Sequence[str]) -> list[str]:
    """Remove the images *names* that no VM runs from, and cached packages that none left needs; returns those removed."""
    base = os.path.join(data_dir, "images")
    removed = []
    if not os.path.isdir(base):
        return []
    with _locked(base, lambda _: None):
        _remove_leftovers(base)
        for name in names:
            directory = os.path.join(base, name)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see image.hold
                # Out of the way first: a half-removed image must not be found under its name
                gone = os.path.join(base, f".build-remove-{name}")
                os.rename(directory, gone)
                shutil.rmtree(gone)
                removed.append(name)
            except BlockingIOError:
                continue
            finally:
                os.close(fd)
        _prune_cache(os.path.join(data_dir, "cache"), base)
    return removed


def _prune_cache(cache: str, base: str) -> None:
    needed = {package["sha256"] for manifest in _manifests(base).values() for package in manifest["packages"]}
    if os.path.isdir(cache):
        for name in os.listdir(cache):
            if name.endswith(".deb") and name.removesuffix(".deb") not in needed:
                os.unlink(os.path.join(cache, name))


def _built_from(base: str, inputs: str) -> str:
    """The directory of the image with these inputs, '' if there is none."""
    for directory, manifest in _manifests(base).items():
        if manifest.get("inputs") == inputs:
            return directory
    return ""


def _manifests(base: str) -> dict[str, dict[str, object]]:
    found = {}
    for name in sorted(os.listdir(base)):
        path = os.path.join(base, name, "manifest.json")
        if name.startswith(".") or os.path.islink(os.path.dirname(path)) or not os.path.exists(path):
            continue
        try:
            with open(path, "rb") as file:
                found[os.path.dirname(path)] = json.load(file)
        except ValueError:
            continue
    return found


@contextmanager
def _locked(base: str, progress: Callable[[str], None]) -> Iterator[None]:
    """One build or prune at a time."""
    fd = os.open(os.path.join(base, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        waiting = False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DeadlineError(f"another build holds {base}/.lock since {LOCK_TIMEOUT:.0f} s") from None
                if not waiting:
                    progress("waiting for another build to end")
                    waiting = True
                time.sleep(0.2)
        yield
    finally:
        os.close(fd)


def _remove_leftovers(base: str) -> None:
    """What killed builds left; the lock says that none is under way."""
    for name in os.listdir(base):
        if name.startswith(".build-"):
            shutil.rmtree(os.path.join(base, name), ignore_errors=True)
        elif name.startswith(".current-"):
            os.unlink(os.path.join(base, name))


def _copy(source: str, target: str, *, executable: bool) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if executable else 0o644)


def _write(path: str, text: str, *, mode: int = 0o644) -> None:
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)


def _tree_size(path: str) -> int:
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: str) -> None:
    """Flush the file system of *path*: one call where fsync would take one for each of 4,000 modules."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs", path)
    finally:
        os.close(fd)
