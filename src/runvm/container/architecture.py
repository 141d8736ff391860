"""Which processor architecture a container's programs are for, by the ELF header of the one that is to run; and what a
guest of another architecture than the host's makes of a config.json that was written for the host's.

What is read is the image's: it is opened as inside of its root, only if it is a regular file, and a header of it.
"""

from __future__ import annotations

import os
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

from runvm.errors import HostError, UnsupportedError, reason
from runvm.linux import architecture, files, syscalls
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runvm.config import Config
    from runvm.oci.spec import Spec

_HEAD = 256
"""Bytes of a program that the kernel looks at, too: an ELF header is in the first 20, a script's #! line in all."""
_SCRIPTS = 5
"""How many interpreters that are scripts themselves the kernel follows (linux/binfmts.h)."""
_USUAL = ("/bin/sh", "/bin/busybox", "/usr/bin/env", "/bin/bash", "/sbin/init")
_LOADERS = ("/lib64", "/lib")
_MAX_ENTRIES = 4096
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ELF = b"\x7fELF"
_CLASS, _DATA, _MACHINE = 4, 5, 18
_32_BITS = 1
_LITTLE, _BIG = 1, 2
# elf.h's EM_… and byte order: Debian's name of the architecture whose kernel runs it. A kernel runs its processor's
# 32-bit programs, too
_KERNELS = {
    (3, "little"): "amd64",
    (62, "little"): "amd64",
    (40, "little"): "arm64",
    (183, "little"): "arm64",
    (243, "little"): "riscv64",
    (21, "little"): "ppc64el",
    (21, "big"): "ppc64",
    (20, "big"): "powerpc",
    (22, "big"): "s390x",
    (8, "little"): "mips64el",
    (8, "big"): "mips64",
    (258, "little"): "loong64",
    (43, "big"): "sparc64",
}
# System calls that only one architecture has, and whose programs can't do without
_THREADS = {"amd64": ("arch_prctl", "modify_ldt"), "arm64": ("set_tls", "cacheflush", "breakpoint", "sync_file_range2")}


class Program(NamedTuple):
    """The process that is to run: config.json's args, env and cwd."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str


def find(root: str, program: Program) -> str:
    """Debian's name of the architecture whose kernel *program* needs in the root filesystem *root*; else the one that
    any usual program there needs; '' where nothing tells."""
    return of_header(_header(root, program))


def is_narrow(head: bytes) -> bool:
    """Whether a program that begins with *head* is one of 32 bits, which not every kernel runs."""
    return bool(of_header(head)) and head[_CLASS] == _32_BITS


def _header(root: str, program: Program) -> bytes:
    """The first bytes of the program that tells; none where nothing does."""
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        paths = chain(_places(program), _usual(directory))
        return next((found for path in paths if of_header(found := _of_program(directory, path))), b"")
    finally:
        os.close(directory)


def of_header(head: bytes) -> str:
    """What find() returns for a program that begins with *head*; '' for none that a kernel would run."""
    if len(head) < _MACHINE + 2 or not head.startswith(_ELF):
        return ""
    if head[_DATA] not in (_LITTLE, _BIG):
        return ""
    order: Literal["little", "big"] = "little" if head[_DATA] == _LITTLE else "big"
    number = int.from_bytes(head[_MACHINE : _MACHINE + 2], order)
    return _KERNELS.get((number, order), f"ELF machine {number} ({order}-endian)")


def _places(program: Program) -> Iterator[str]:
    """Where the program may be, in the order in which it is looked for."""
    name = program.args[0] if program.args else ""
    if "/" in name:
        yield os.path.join(program.cwd or "/", name)
    elif name:
        path = next((entry[5:] for entry in reversed(program.env) if entry.startswith("PATH=")), _PATH)
        for folder in path.split(":"):
            yield os.path.join(program.cwd or "/", folder, name)


def _usual(directory: int) -> Iterator[str]:
    """Programs that most root filesystems have, then the dynamic linkers of this one."""
    yield from _USUAL
    for folder in _LOADERS:
        try:
            fd = syscalls.open_in_root(directory, folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            with os.scandir(fd) as entries:
                names = [entry.name for entry in islice(entries, _MAX_ENTRIES) if entry.name.startswith("ld")]
        except OSError:
            names = []
        finally:
            os.close(fd)
        yield from (f"{folder}/{name}" for name in sorted(names))


def _of_program(directory: int, path: str) -> bytes:
    for _ in range(_SCRIPTS):
        head = _head(directory, path)
        if not head.startswith(b"#!"):
            return head
        words = head[2:].partition(b"\n")[0].split(None, 1)
        if not words:
            return b""
        path = os.fsdecode(words[0])
    return b""


def _head(directory: int, path: str) -> bytes:
    """The first bytes of the regular file *path*; none where there is no such."""
    try:
        fd = files.open_regular(directory, path)
    except (OSError, ValueError):
        return b""
    try:
        return os.read(fd, _HEAD)
    except OSError:
        return b""
    finally:
        os.close(fd)


def settle(config: Config, root: str, program: Program) -> Config:
    """*config* with the architecture of the container in `arch`; it stays 'auto' where nothing tells, which fits any
    virtual machine.

    Raises UnsupportedError, ConfigError or HostError where no guest of that architecture can be had here.
    """
    head = _header(root, program)
    arch = config.arch
    if arch == architecture.AUTO:
        arch = of_header(head) or architecture.AUTO
    if arch in (architecture.AUTO, architecture.host()):
        config = config._replace(arch=arch)
        return _for_narrow(config) if is_narrow(head) else config
    if arch not in architecture.KNOWN:
        raise UnsupportedError(
            f"the container's programs are for {arch}, of which there are no guests", do=f"this host is {_kinds()}"
        )
    from runvm.guest import image
    from runvm.hypervisor import drivers

    config = config._replace(arch=arch)
    driver = drivers.load(config)
    try:
        image.resolve(config, driver.capabilities.kernel_format)
        driver.version_key()
    except HostError as error:
        raise HostError(f"the container's programs are for {arch}: {error.message}", do=error.do) from error
    except OSError as error:
        raise HostError(f"the container's programs are for {arch}: {reason(error)}") from error
    return config


def check_mounted(spec: Spec, arch: str) -> None:
    """Raise UnsupportedError where the program that is to run is a file of the host's, as the init of `docker run
    --init` is, which a guest of *arch* can't run."""
    program = os.path.normpath(spec.process.args[0]) if spec.process.args else ""
    for mount in spec.mounts:
        if not mount.is_bind or os.path.normpath(mount.destination) != program:
            continue
        directory = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = of_header(_head(directory, mount.source))
        finally:
            os.close(directory)
        if found not in ("", arch):
            raise UnsupportedError(
                f"{program} is {mount.source} of the host, a program for {found}, and the container is for {arch}",
                do="leave --init out, or name an init that is part of the image",
            )


def _for_narrow(config: Config) -> Config:
    """*config* with a hypervisor whose guests run programs of 32 bits. Raises UnsupportedError where it is another one
    that is configured."""
    from runvm.hypervisor import drivers

    driver = drivers.load(config)
    if driver.capabilities.narrow_programs:
        return config
    if config.hypervisor != drivers.AUTO:
        raise UnsupportedError(
            f"the container's programs are of 32 bits, which a guest of hypervisor '{driver.name}' doesn't run",
            do='set hypervisor = "qemu"',
        )
    return config._replace(hypervisor=drivers.with_narrow_programs(config))


def _kinds() -> str:
    host = architecture.host()
    others = [name for name in architecture.KNOWN if name != host]
    return f"{host}; containers for {', '.join(others)} can run, too" if others else host


def with_seccomp(spec: dict[str, Any], arch: str) -> dict[str, Any]:
    """The guest's config.json *spec* with a seccomp profile that was written for this host's system calls as one for
    those of *arch*."""
    seccomp = spec.get("linux", {}).get("seccomp")
    host = architecture.host()
    if not seccomp or arch == host or arch not in architecture.KNOWN or host not in architecture.KNOWN:
        return spec
    return {**spec, "linux": {**spec["linux"], "seccomp": translated(seccomp, host, arch)}}


def translated(seccomp: dict[str, Any], host: str, arch: str) -> dict[str, Any]:
    """The profile *seccomp* for *host* as one for *arch*: 64-bit system calls for 64-bit ones, 32-bit for 32-bit.

    Engines leave out the calls that only other architectures have. Of those, no program runs without the ones that set
    up a thread: they get what the profile says of the host's.
    """
    ours, theirs = architecture.KNOWN[host].seccomp, architecture.KNOWN[arch].seccomp
    names = {f"SCMP_ARCH_{one}": f"SCMP_ARCH_{other}" for one, other in zip(ours, theirs, strict=False)}
    dropped = {f"SCMP_ARCH_{one}" for one in ours[len(theirs) :]}
    found = dict(seccomp)
    if "architectures" in seccomp:
        listed = [names.get(name, name) for name in seccomp["architectures"] if name not in dropped]
        found["architectures"] = list(dict.fromkeys(listed))
    rules = list(seccomp.get("syscalls", ()))
    known = {name for rule in rules for name in rule["names"]}
    missing = [name for name in _THREADS[arch] if name not in known]
    like = next((rule for rule in rules if not rule.get("args") and set(_THREADS[host]) & set(rule["names"])), None)
    if missing and like is not None:
        rules.append({**like, "names": missing})
    if rules:
        found["syscalls"] = rules
    return found
