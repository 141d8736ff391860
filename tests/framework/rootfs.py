"""A busybox root filesystem: made once a session, then linked into each bundle."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    "user:x:1000:1000:user:/home/user:/bin/sh\n"
)
GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\nuser:x:1000:\nextra:x:2000:user\n"


ARCH = os.environ.get("ARCH", "")
"""The architecture of the containers' programs, by Debian's name; empty: the host's."""

host_runs_its_programs = pytest.mark.skipif(bool(ARCH), reason=f"the host runs a program of a root for {ARCH}")
runs_the_hosts_programs = pytest.mark.skipif(bool(ARCH), reason=f"a container for {ARCH} can't run the host's programs")
is_the_hosts = pytest.mark.skipif(bool(ARCH), reason=f"containers of the host's architecture, and all are {ARCH}'s")

PACKAGES = {
    "cat": ("coreutils", "/usr/bin/cat"),
    "catatonit": ("catatonit", "/usr/bin/catatonit"),
    "cp": ("coreutils", "/usr/bin/cp"),
    "flock": ("util-linux", "/usr/bin/flock"),
    "perl": ("perl-base", "/usr/bin/perl"),
}
"""Where programs that install() is called with come from, in Debian."""


def find_busybox() -> str:
    """The host's statically linked busybox, of Debian's busybox-static. Raises FileNotFoundError."""
    path = shutil.which("busybox")
    if path is None:
        raise FileNotFoundError("busybox isn't there: apt-get install busybox-static")
    return path


def make(target: str, architecture: str = ARCH) -> None:
    """Fill *target* (made here) with busybox for *architecture* ('': the host's), its applets, and the few files that
    programs look for."""
    busybox = find_busybox()
    program = os.path.realpath(busybox)
    if architecture:
        from framework import foreign

        program = foreign.busybox(architecture)
    for name in ("bin", "dev", "etc", "home/user", "proc", "root", "sys", "tmp", "usr/bin", "var"):
        os.makedirs(f"{target}/{name}")
    os.chmod(f"{target}/tmp", 0o1777)
    os.chown(f"{target}/home/user", 1000, 1000)
    shutil.copy(program, f"{target}/bin/busybox")
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True, timeout=10).stdout
    for applet in applets.split():
        if applet != "busybox":
            os.symlink("busybox", f"{target}/bin/{applet}")
    os.symlink("../../bin/env", f"{target}/usr/bin/env")
    files = {"passwd": PASSWD, "group": GROUP, "hostname": "rootfs\n", "hosts": "127.0.0.1 localhost\n"}
    for name, text in files.items():
        with open(f"{target}/etc/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def clone(source: str, target: str) -> None:
    """A tree like *source* at *target*; busybox itself is a hard link, all else a copy."""

    def copy(one: str, other: str) -> str:
        if one.endswith("/bin/busybox"):
            os.link(one, other)
        else:
            shutil.copy2(one, other)
        return other

    shutil.copytree(source, target, symlinks=True, copy_function=copy)
    os.chown(f"{target}/home/user", 1000, 1000)


def install(target: str, *programs: str) -> None:
    """Copy programs of the host, with the libraries that they are linked to, into the root filesystem *target*; with
    ARCH, the same programs of that architecture's packages."""
    if ARCH:
        from framework import foreign

        for program in programs:
            foreign.install(target, ARCH, *PACKAGES[os.path.basename(program)])
        return
    for program in programs:
        path = shutil.which(program)
        if path is None:
            raise FileNotFoundError(f"{program} isn't there")
        linked = subprocess.run(["ldd", path], capture_output=True, text=True, timeout=10).stdout
        libraries = [word for word in linked.split() if word.startswith("/")]
        for source in (path, *libraries):
            copy = target + source
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            if not os.path.exists(copy):
                shutil.copy(os.path.realpath(source), copy)


def install_perl(target: str) -> None:
    """Debian's perl-base, which every Debian has: a small interpreter with sockets for use in a container."""
    from framework import foreign

    install(target, "perl")
    if ARCH:
        foreign.copy(target, ARCH, "perl-base", f"/usr/lib/{foreign.triplet(ARCH)}/perl-base")
        return
    modules = f"/usr/lib/{foreign.triplet()}/perl-base"
    shutil.copytree(modules, target + modules, symlinks=True)


def install_python(target: str) -> None:
    """The host's Python with the few modules that `python3 -SI` and the likes of `import os, struct` load."""
    if ARCH:
        from framework import foreign

        foreign.install_python(target, ARCH)
        return
    install(target, "/usr/bin/python3")
    library = f"/usr/lib/{os.path.basename(os.path.realpath('/usr/bin/python3'))}"
    modules = (
        "os", "posixpath", "genericpath", "stat", "_collections_abc", "abc", "codecs", "io", "struct", "linecache",
        "types", "token", "tokenize", "traceback", "warnings", "ctypes", "encodings", "collections", "keyword",
        "operator", "reprlib", "functools", "enum", "re", "copyreg", "textwrap",
    )  # fmt: skip
    for name in modules:
        if os.path.isdir(f"{library}/{name}"):
            shutil.copytree(f"{library}/{name}", f"{target}{library}/{name}", dirs_exist_ok=True)
        else:
            os.makedirs(target + library, exist_ok=True)
            shutil.copy(f"{library}/{name}.py", f"{target}{library}/{name}.py")
    if os.path.isdir(f"{library}/lib-dynload"):
        shutil.copytree(f"{library}/lib-dynload", f"{target}{library}/lib-dynload", dirs_exist_ok=True)
