"""Builds the guest image: packages → a cut-down root → initramfs: same inputs give the same bytes, so the same hash.

Called by image.py. All happens in a directory of its own next to the images, which is renamed when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from runvm import __version__
from runvm.config import Config
from runvm.errors import HostError, reason, words
from runvm.guest import assemble, contents, cpio, kernel, packages, pythonpath, store, uml_kernel
from runvm.guest.assemble import Sources
from runvm.guest.plan import Plan, Report, described, gather
from runvm.guest.programs import Root

Progress = Callable[[str], None]


def build(config: Config, report: Report, link: str, *, update: bool) -> str:
    """Build the image of the architecture that *config* names, let *link* lead to it, return its directory; *update*
    takes the archive's newest packages.

    Raises: HostError, DeadlineError (the lock).
    """
    data_dir = config.data_dir
    base = os.path.join(data_dir, "images")
    umask = os.umask(0o022)  # the VMM and virtiofsd run as other users
    try:
        os.makedirs(base, exist_ok=True)
        with store.locked(base, report.progress):
            work = tempfile.mkdtemp(prefix=store.TEMPORARY, dir=base)
            try:
                return _build(config, base, work, report, link, update)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except PermissionError as error:
        raise HostError(f"can't write in {data_dir}: {reason(error)}", do="run 'runvm image build' as root") from error
    except OSError as error:
        raise HostError(f"can't build the guest image: {words(error)}") from error
    finally:
        os.umask(umask)


def _build(config: Config, base: str, work: str, report: Report, link: str, update: bool) -> str:
    progress = report.progress
    before = store.manifests(base).get(os.path.realpath(os.path.join(base, link)), {})
    plan, debs = gather(config, os.path.join(config.data_dir, "cache"), before, report, update=update)
    images = store.manifests(base)
    for directory, manifest in images.items():
        if manifest.get("inputs") != plan.inputs:
            continue
        name = os.path.basename(directory)
        if not contents.is_whole(directory, manifest):
            report.notice(f"the guest image {name} isn't as it was built: it is built anew")
            continue
        progress(f"nothing has changed since {name} was built")
        store.note(directory, {**manifest, "taken": plan.chosen.taken})
        store.make_current(base, directory, link)
        return directory
    same_kernel = [
        path
        for path, manifest in images.items()
        if manifest.get("kernel_inputs") == plan.kernel_inputs and contents.is_whole(path, manifest)
    ]
    result = os.path.join(work, "image")
    os.mkdir(result)
    root = Root(os.path.join(work, "root"))
    root.make_merged_usr()
    tools = _unpacked_tools(plan, work) or root
    if same_kernel:
        progress(
            f"unpacking {len(plan.chosen.userland)} packages, with the kernel of {os.path.basename(same_kernel[0])}"
        )
        _unpack([debs[package.name] for package in plan.chosen.userland], root)
        _link_kernel(same_kernel[0], result)
        release = str(images[same_kernel[0]]["kernel"])
    else:
        progress(f"unpacking {len(debs)} packages")
        unpacked = Root(os.path.join(work, "kernel"))
        unpacked.make_merged_usr()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(_unpack, [debs[package.name] for package in plan.chosen.kernel], unpacked)
            _unpack([debs[package.name] for package in plan.chosen.userland], root)
            other.result()
        release = _take_kernel(tools, unpacked, result, progress)
    progress("assembling the initramfs")
    stage = Root(os.path.join(work, "stage"))
    modules = os.path.join(result, "modules")
    filled = assemble.fill(stage, Sources(plan.architecture, root, tools, plan.agent, modules, release), work)
    with open(os.path.join(result, "initramfs"), "wb") as file:
        cpio.write(stage.path, file, nodes=assemble.NODES)
    if plan.architecture == uml_kernel.ARCHITECTURE:
        with open(os.path.join(result, uml_kernel.INITRAMFS), "wb") as file:
            cpio.write(stage.path, file, nodes=assemble.NODES, without=filled.for_modules)
    digest = _describe(result, plan, release, filled.core)
    progress("writing to disk")
    return store.publish(base, result, digest[:12], link)


def _unpacked_tools(plan: Plan, work: str) -> Root | None:
    """The packages that the build runs, where they aren't the guest's own."""
    if not plan.tools.packages:
        return None
    tools = Root(os.path.join(work, "tools"))
    tools.make_merged_usr()
    _unpack([plan.tools.debs[package.sha256] for package in plan.tools.packages], tools)
    return tools


def _unpack(debs: Sequence[str], root: Root) -> None:
    for deb in debs:
        packages.unpack(deb, root.path)


def _take_kernel(tools: Root, unpacked: Root, result: str, progress: Progress) -> str:
    """Move the kernel and its modules to the image, indexed by depmod; returns the kernel's release."""
    release = kernel.version(unpacked.path)
    progress(f"indexing the modules of {release}")
    kernel.depmod(tools, unpacked.path, release)
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
    names = ["vmlinuz", "initramfs"] + [uml_kernel.INITRAMFS] * (plan.architecture == uml_kernel.ARCHITECTURE)
    files = contents.hashes(result, names)
    digest = contents.digest(result, files, release, [package.sha256 for package in plan.chosen.kernel])
    sizes = {name: os.path.getsize(os.path.join(result, name)) for name in names}
    sizes["modules"] = contents.modules_size(result)
    manifest = {
        "hash": digest,
        "inputs": plan.inputs,
        "kernel_inputs": plan.kernel_inputs,
        "kernel": release,
        "agent": __version__,
        "agent_hash": pythonpath.agent_hash(plan.agent),
        "created": int(time.time()),
        "sizes": sizes,
        "files": files,
        "core_modules": core,
        "suite": plan.suite,
        "architecture": plan.architecture,
        "taken": plan.chosen.taken,
        "packages": [
            *(described(package, kernel=False) for package in plan.chosen.userland),
            *(described(package, kernel=True) for package in plan.chosen.kernel),
        ],
        "tools": [described(package, kernel=False) for package in plan.tools.packages],
    }
    with open(os.path.join(result, "manifest.json"), "w") as file:
        json.dump(manifest, file, indent=2)
    return digest
