"""What the guest knows of files that the host changes by itself is right at once, and access lists."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.runtime import facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 0x10, 0x20


def access_list(*, named: dict[int, int], user: int = 6, group: int = 4, other: int = 0) -> bytes:
    """The attribute's value (linux/posix_acl_xattr.h): entries of tag, permissions, id."""
    entries = [(USER_OBJ, user, -1), *((USER, bits, uid) for uid, bits in named.items())]
    entries += [(GROUP_OBJ, group, -1), (MASK, 7, -1), (OTHER, other, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


HEAD = """
from os import *
status = stat
def mode(found):
    print(oct(found.st_mode & 0o7777)[2:])
"""
BODY = """
# one interpreter, whose first imports take seconds in an emulated guest
for top in ("/srv", "/shared"):
    chdir(top)
    for name, script in scripts.items():
        print(f"=={top}:{name}", flush=True)
        child = fork()
        if child == 0:
            try:
                exec(script)
            except Exception as error:
                print(repr(error))
            import sys
            sys.stdout.flush()
            _exit(0)
        waitpid(child, 0)
"""
SCRIPTS = {
    "list": f"""
setxattr("g", "{ACCESS}", {access_list(named={1000: 4}, user=7, group=5, other=1)!r})
mode(status("g"))
""",
    "links": """
link("g", "h")
print(status("g").st_nlink, status("h").st_nlink)
unlink("h")
print(status("g").st_nlink)
""",
    "setuid-chown": """
chmod("g", 0o4755)
mode(status("g"))
chown("g", 5, 6)
mode(status("g"))
""",
    "setuid-write": """
f = open("s", O_CREAT | O_RDWR)
fchmod(f, 0o6777)
mode(status("s"))
setgid(9)
setuid(9)
write(f, b"x")
mode(fstat(f))
""",
    "size": """
f = open("g", O_RDWR)
write(f, b"longer than before")
print(status("g").st_size)
truncate("g", 3)
print(fstat(f).st_size)
""",
    "directory": """
a = status(".")
mkdir("dir")
b = status(".")
print(b.st_nlink - a.st_nlink, b.st_mtime_ns > a.st_mtime_ns)
rmdir("dir")
print(status(".").st_nlink - a.st_nlink)
""",
    "changed": """
a = status("g").st_ctime_ns
setxattr("g", "user.x", b"y")
print(status("g").st_ctime_ns > a)
""",
    "inherited": """
close(open("inherited/new", O_CREAT | O_WRONLY, 0o666))
mode(status("inherited/new"))
""",
    "user": """
setgid(1000)
setuid(1000)
for name in ("granted", "refused"):
    try:
        print(read(open(name, 0), 99).decode(), end="")
    except OSError as error:
        print(error.strerror)
""",
}


@pytest.fixture(scope="module")
def seen(module_box: Box) -> Iterator[dict[str, str]]:
    """What a container sees of files of its root (/srv) and of a bind (/shared), asked right after each change."""
    container = module_box()
    bundle = container.bundle
    rootfs.install(bundle.rootfs, "cp")
    rootfs.install_python(bundle.rootfs)
    shared = f"{bundle.path}/shared"
    os.makedirs(f"{bundle.rootfs}/srv")
    os.makedirs(shared)
    bundle.bind(shared, "/shared", "rbind")
    for top in (shared, f"{bundle.rootfs}/srv"):
        for name, mode in (("granted", 0o600), ("refused", 0o600)):
            with open(f"{top}/{name}", "w", encoding="ascii") as file:
                file.write(f"{name}\n")
            os.chmod(f"{top}/{name}", mode)
        os.setxattr(f"{top}/granted", ACCESS, access_list(named={1000: 4}))
        os.mkdir(f"{top}/inherited", 0o755)
        os.setxattr(f"{top}/inherited", DEFAULT, access_list(named={1000: 6}))
    bundle.file("/opt/all.py", HEAD + f"scripts = {SCRIPTS!r}\n" + BODY)
    copies = "echo foo >f; for m in 644 2751; do chmod $m f; cp -p f g; stat -c %a g; done"
    commands = {f"{top}:copy": f"cd {top}; {copies}" for top in ("/srv", "/shared")}
    commands["all"] = "python3 -SI /opt/all.py"
    yield facts(container, commands)


TOPS = pytest.mark.parametrize("top", ["/srv", "/shared"])


@TOPS
def test_a_copy_has_the_mode_of_its_original_at_once(seen: dict[str, str], top: str) -> None:
    """cp -p sets it by an access list."""
    assert seen[f"{top}:copy"].split() == ["644", "2751"]


EXPECTED = {
    "links": "2 2\n1",
    "setuid-chown": "4755\n755",
    "setuid-write": "6777\n777",
    "size": "18\n3",
    "directory": "1 True\n0",
    "changed": "True",
}
OF_LISTS = {"list": "2771", "inherited": "660", "user": "granted\nPermission denied"}


@TOPS
@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_hosts_kernel_changes_shows_at_once(seen: dict[str, str], top: str, name: str) -> None:
    """Set-user-ID bits that an owner or a write takes away, links, sizes, times."""
    assert seen[f"{top}:{name}"] == EXPECTED[name]


@pytest.mark.differs("runvm", "the guest's kernel has no access lists below a share: see docs/limitations.md")
@TOPS
@pytest.mark.parametrize("name", OF_LISTS)
def test_an_access_list_grants_and_is_inherited(seen: dict[str, str], top: str, name: str) -> None:
    """What a named user may read, and only that; a list that is set shows in the mode."""
    assert seen[f"{top}:{name}"] == OF_LISTS[name]


@pytest.mark.only("runvm", "access lists can't be had there")
@TOPS
def test_an_access_list_is_refused_rather_than_without_effect(seen: dict[str, str], top: str) -> None:
    """EOPNOTSUPP, upon which programs set the mode instead."""
    assert seen[f"{top}:list"] == "OSError(95, 'Operation not supported')"
    assert seen[f"{top}:user"].splitlines() == ["Permission denied", "Permission denied"]
