"""Fills the root of the initramfs from unpacked packages: Python and the agent, crun, kmod, a few kernel modules.

It lives in the guest's memory for as long as the VM does, so what nobody there runs stays out.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence

from runvm.errors import HostError
from runvm.guest import commands, cpio, elf, event_module, kernel, ldcache, pythonpath
from runvm.guest.programs import Root
from runvm.records import NamedTuple

_INIT = """#!{python} -SIBu
# PID 1. One argument is all that a #! line can carry; the agent does the rest.
import sys

sys.path.append("/usr/lib/runvm")
from runvm.agent.init import main

main()
"""
_IMPORT = """
import importlib, sys
sys.path.append(sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
"""
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
_CRUN = "/usr/bin/crun"
_KMOD = "/bin/kmod"
_KMOD_NAMES = ("modprobe", "insmod", "rmmod", "lsmod", "depmod")
_EVENTS = "usr/lib/runvm/events.ko"
_EMPTY = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var")

# Needed before anything can be mounted: the kernel opens /dev/console for init; Python, finding getrandom(2) not ready
# yet (no RDRAND, no virtio-rng so early), reads its hash seed from /dev/urandom, which never waits, or gives up.
NODES = (
    cpio.Node("dev/console", stat.S_IFCHR | 0o600, 5, 1),
    cpio.Node("dev/null", stat.S_IFCHR | 0o666, 1, 3),
    cpio.Node("dev/urandom", stat.S_IFCHR | 0o666, 1, 9),
)


class Sources(NamedTuple):
    """What an initramfs is made of: unpacked packages, the agent, the directory of kernel modules and the kernel's
    release. *tools* are packages that run on this host: *root* itself, or the same for the host's architecture."""

    architecture: str
    root: Root
    tools: Root
    agent: pythonpath.AgentSources
    modules: str
    release: str


class Filled(NamedTuple):
    """What a root was filled with: the names of the kernel modules in it, and the paths of all that is there for their
    sake, which a kernel without modules leaves in memory for nothing."""

    core: list[str]
    for_modules: frozenset[str]


def fill(stage: Root, sources: Sources, scratch: str) -> Filled:
    """Make *stage* the guest's root of *sources*.

    Raises HostError where a package lacks something, or the agent can't be imported in the result.
    """
    _, root, tools, agent, modules, release = sources
    stage.make_merged_usr()
    for name in _EMPTY:
        os.makedirs(stage.at(name), exist_ok=True)
    os.chmod(stage.at("tmp"), 0o1777)
    _strip_crun(root)
    python = pythonpath.interpreter(root)
    library = pythonpath.stdlib(root, tools, agent.imports)
    extensions = [path for path in library if path.endswith(".so")]
    _copy_programs(stage, sources, [python, _CRUN, _KMOD], extensions)
    for name in _KMOD_NAMES:
        os.symlink("../bin/kmod", stage.at(f"usr/sbin/{name}"))
    # For the shell of `runvm debug`
    _copy(root.real("/bin/busybox"), stage.at("usr/bin/busybox"), executable=True)
    os.symlink("busybox", stage.at("usr/bin/sh"))
    _write(stage.at("etc/passwd"), _PASSWD)
    _write(stage.at("etc/group"), _GROUP)
    _write(stage.at("init"), _INIT.format(python=python), executable=True)
    _copy_python(stage, sources, [path for path in library if path.endswith(".py")], scratch)
    core = kernel.copy_core(modules, stage.at(f"usr/lib/modules/{release}"))
    kernel.depmod(tools, stage.path, release)
    event_module.add(modules, release, stage.at(_EVENTS))
    if tools is root:
        _check(stage, agent)
    shared = root.libraries([python, _CRUN, *extensions])
    only = [_KMOD, *(path for path in root.libraries([_KMOD]) if path not in shared)]
    only += [f"usr/sbin/{name}" for name in _KMOD_NAMES] + ["usr/lib/modules", _EVENTS]
    return Filled(core, frozenset(_relative(stage, path) for path in only))


def _relative(stage: Root, path: str) -> str:
    """*path* as a cpio archive of *stage* has it: through no symlink to a directory."""
    folder, name = os.path.split(stage.at(path))
    return os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(stage.path))


def _strip_crun(root: Root) -> None:
    """Take libsystemd out of crun, which needs it only for a manager of cgroups and a log that no guest has: with the
    libraries that come with it, it is half of the time that crun takes to start."""
    path = root.real(_CRUN)
    with open(path, "rb") as file:
        program = file.read()
    with open(path, "wb") as file:
        file.write(elf.without_library(program, "libsystemd.so.0"))


def _copy_programs(stage: Root, sources: Sources, programs: list[str], extensions: list[str]) -> None:
    """*programs* and Python's *extensions* with the libraries that they load."""
    root = sources.root
    libraries = root.libraries([*programs, *extensions])
    folders = sorted({os.path.dirname(path) for path in libraries})
    # glibc loads libgcc_s by name when a thread is cancelled, and aborts without it
    unwinders = [f"{folder}/libgcc_s.so.1" for folder in folders]
    libraries += [path for path in unwinders if os.path.exists(root.real(path))][:1]
    for path in (*programs, *extensions, *libraries):
        _copy(root.real(path), stage.at(path), executable=path in programs or os.path.basename(path).startswith("ld"))
    # Without the cache each library is looked for in half a dozen directories by each program's start
    with open(stage.at("etc/ld.so.cache"), "wb") as file:
        file.write(ldcache.render(libraries, sources.architecture))


def _copy_python(stage: Root, sources: Sources, library: Sequence[str], scratch: str) -> None:
    """The standard library as bytecode only, the agent as source and bytecode."""
    root = sources.root
    jobs = [(root.at(path), stage.at(path) + "c", path) for path in library]
    tag = "cpython-" + pythonpath.interpreter(root).removeprefix("/usr/bin/python").replace(".", "")
    for name in sources.agent.files:
        target = f"/usr/lib/runvm/{name}"
        _copy(os.path.join(pythonpath.package_directory(), name), stage.at(target), executable=False)
        folder, stem = os.path.split(target.removesuffix(".py"))
        jobs.append((stage.at(target), stage.at(f"{folder}/__pycache__/{stem}.{tag}.pyc"), target))
    pythonpath.compile_all(sources.tools, jobs, scratch)


def _check(stage: Root, agent: pythonpath.AgentSources) -> None:
    """Start crun, and import every module of the agent, with the image's files alone: what is missing shows here, not
    at a boot."""
    stage.call(_CRUN, "--version")
    names = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in agent.files]
    try:
        stage.call(pythonpath.interpreter(stage), "-SIB", "-c", _IMPORT, stage.at("usr/lib/runvm"), *names)
    except commands.CommandError as error:
        raise HostError("the agent can't be imported in the guest's Python", details=error.details) from error


def _copy(source: str, target: str, *, executable: bool) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if executable else 0o644)


def _write(path: str, text: str, *, executable: bool = False) -> None:
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o755 if executable else 0o644)
