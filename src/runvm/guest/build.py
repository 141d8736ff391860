"""Builds the guest image: packages → a cut-down root → initramfs: same inputs give the same bytes, so the same hash.

Called by image.py. All happens in a directory of its own next to the images, which is renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from runvm import __version__
from runvm.errors import HostError, words
from runvm.guest import assemble, cpio, kernel, packages, pythonpath, store
from runvm.guest.packages import Package
from runvm.guest.programs import Root

USERLAND = ("crun", "python3-minimal", "libpython3-stdlib", "kmod", "busybox-static", "libc-bin")
KERNEL_PREFIXES = ("linux-image-", "linux-modules-")  # Ubuntu has the modules apart

Progress = Callable[[str], None]


class Plan(NamedTuple):
    """All that the image depends on; *inputs* is the hash of it."""

    userland: list[Package]
    kernel: list[Package]
    agent: pythonpath.Agent
    inputs: str

    @property
    def packages(self) -> list[Package]:
        """Those of the userland and the kernel's."""
        return self.userland + self.kernel

    @property
    def kernel_inputs(self) -> list[str]:
        """Hashes of what the kernel's and its modules' files come from."""
        return [package.sha256 for package in self.packages if package in self.kernel or package.name == "kmod"]


def build(data_dir: str, progress: Progress) -> str:
    """Build the image, make it the current one, return its directory. Raises: HostError, DeadlineError (the lock)."""
    base = os.path.join(data_dir, "images")
    umask = os.umask(0o022)  # the VMM and virtiofsd run as other users
    try:
        os.makedirs(base, exist_ok=True)
        with store.locked(base, progress):
            work = tempfile.mkdtemp(prefix=store.TEMPORARY, dir=base)
            try:
                return _build(data_dir, base, work, progress)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except PermissionError as error:
        raise HostError(f"can't write in {data_dir}: {words(error)}", do="run 'runvm image build' as root") from error
    except OSError as error:
        raise HostError(f"can't build the guest image: {error}") from error
    finally:
        os.umask(umask)


def _build(data_dir: str, base: str, work: str, progress: Progress) -> str:
    plan, debs = _gather(os.path.join(data_dir, "cache"), work, progress)
    images = store.manifests(base)
    for directory, manifest in images.items():
        if manifest.get("inputs") == plan.inputs:
            progress(f"nothing has changed since {os.path.basename(directory)} was built")
            store.make_current(base, directory)
            return directory
    same_kernel = [path for path, manifest in images.items() if manifest.get("kernel_inputs") == plan.kernel_inputs]
    result = os.path.join(work, "image")
    os.mkdir(result)
    root = Root(os.path.join(work, "root"))
    root.make_merged_usr()
    if same_kernel:
        progress(f"unpacking {len(plan.userland)} packages, with the kernel of {os.path.basename(same_kernel[0])}")
        _unpack([debs[package.name] for package in plan.userland], root)
        _link_kernel(same_kernel[0], result)
        release = str(images[same_kernel[0]]["kernel"])
    else:
        progress(f"unpacking {len(debs)} packages")
        unpacked = Root(os.path.join(work, "kernel"))
        unpacked.make_merged_usr()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(_unpack, [debs[package.name] for package in plan.kernel], unpacked)
            _unpack([debs[package.name] for package in plan.userland], root)
            other.result()
        release = _take_kernel(root, unpacked, result, progress)
    progress("assembling the initramfs")
    stage = Root(os.path.join(work, "stage"))
    core = assemble.fill(stage, root, plan.agent, os.path.join(result, "modules"), release, work)
    with open(os.path.join(result, "initramfs"), "wb") as file:
        cpio.write(stage.path, file, nodes=assemble.NODES)
    digest = _describe(result, plan, release, core)
    progress("writing to disk")
    return store.publish(base, result, digest[:12])


def _gather(cache: str, work: str, progress: Progress) -> tuple[Plan, dict[str, str]]:
    """The plan and its packages' files. Once with apt's lists as they are; if they don't do, with fresh ones."""
    apt = packages.Apt(work)
    progress("asking apt for the packages")
    try:
        return _fetch(apt, cache, progress)
    except packages.CommandError:
        progress("fetching apt's package lists")
        apt.refresh()
    try:
        return _fetch(apt, cache, progress)
    except packages.CommandError as error:
        raise HostError(
            "apt can't provide the guest's packages",
            do="see that /etc/apt/sources.list has the distribution's main archive and that it can be reached",
            details=error.details or error.message,
        ) from error


def _fetch(apt: packages.Apt, cache: str, progress: Progress) -> tuple[Plan, dict[str, str]]:
    plan = _plan(apt)
    missing = [package for package in plan.packages if not os.path.exists(os.path.join(cache, f"{package.sha256}.deb"))]
    if missing:
        progress(f"downloading {len(missing)} packages ({sum(package.size for package in missing) / 1e6:.0f} MB)")
    return plan, apt.fetch(plan.packages, cache)


def _plan(apt: packages.Apt) -> Plan:
    architecture = packages.run(("dpkg", "--print-architecture")).strip()
    meta = f"linux-image-{architecture}"
    available = apt.closure((meta, *USERLAND))
    with_kernel = packages.needed_by((meta,), available)
    chosen = [package for package in with_kernel if package.name.startswith(KERNEL_PREFIXES) and package.name != meta]
    userland = packages.needed_by(USERLAND, available)
    agent = pythonpath.agent()
    digest = hashlib.sha256(json.dumps([_public(package) for package in userland + chosen]).encode())
    folder = os.path.dirname(__file__)
    builder = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".py"))
    for path in builder:
        digest.update(_sha256(path).encode())
    digest.update(pythonpath.agent_hash(agent).encode())
    return Plan(userland, chosen, agent, digest.hexdigest())


def _unpack(debs: Sequence[str], root: Root) -> None:
    for deb in debs:
        packages.unpack(deb, root.path)


def _take_kernel(root: Root, unpacked: Root, result: str, progress: Progress) -> str:
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


def _link_kernel(image: str, result: str) -> None:
    """Give the new image the kernel and modules of one made from the same packages: seconds and 400 MB saved."""
    os.link(os.path.join(image, "vmlinuz"), os.path.join(result, "vmlinuz"))
    source, target = os.path.join(image, "modules"), os.path.join(result, "modules")
    shutil.copytree(source, target, symlinks=True, copy_function=os.link)


def _describe(result: str, plan: Plan, release: str, core: list[str]) -> str:
    """Write the manifest of the image in *result*; returns its hash."""
    modules = os.path.join(result, "modules")
    contents = {name: _sha256(os.path.join(result, name)) for name in ("vmlinuz", "initramfs")}
    # The modules themselves are as in the kernel's packages, whose hashes stand for them; their indexes are depmod's
    indexes = sorted(name for name in os.listdir(modules) if os.path.isfile(os.path.join(modules, name)))
    identity = {
        "files": contents,
        "kernel": release,
        "packages": [package.sha256 for package in plan.kernel],
        "indexes": [(name, _sha256(os.path.join(modules, name))) for name in indexes],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    sizes = {name: os.path.getsize(os.path.join(result, name)) for name in contents}
    sizes["modules"] = sum(
        os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(modules) for name in names
    )
    manifest = {
        "hash": digest,
        "inputs": plan.inputs,
        "kernel_inputs": plan.kernel_inputs,
        "kernel": release,
        "agent": __version__,
        "agent_hash": pythonpath.agent_hash(plan.agent),
        "created": int(time.time()),
        "sizes": sizes,
        "files": contents,
        "core_modules": core,
        "packages": [_public(package) for package in plan.packages],
    }
    with open(os.path.join(result, "manifest.json"), "w") as file:
        json.dump(manifest, file, indent=2)
    return digest


def _public(package: Package) -> dict[str, str]:
    return {"name": package.name, "version": package.version, "sha256": package.sha256}


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
