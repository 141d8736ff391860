"""What the host does to mounted files reaches the programs of a container that watch them by inotify."""

from __future__ import annotations

import glob
import os
import shutil
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.process import wait_until

if TYPE_CHECKING:
    from framework.runtime import Box, Container

pytestmark = pytest.mark.capability("hot_reload", "its kernel has neither probes nor modules")

# Prints what it is told: the watched path, the event's name, the file's name
WATCH = """
import ctypes, os, struct, sys
NAMES = {2: "MODIFY", 4: "ATTRIB", 8: "CLOSE_WRITE", 0x40: "MOVED_FROM", 0x80: "MOVED_TO", 0x100: "CREATE",
         0x200: "DELETE", 0x400: "DELETE_SELF", 0x800: "MOVE_SELF"}
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(0)
watched = {}
for path in sys.argv[1:]:
    for top, _, _ in os.walk(path) if os.path.isdir(path) else [(path, (), ())]:
        watched[libc.inotify_add_watch(fd, top.encode(), 0xfce)] = top
print("READY", flush=True)
while data := os.read(fd, 65536):
    at = 0
    while at < len(data):
        wd, mask, cookie, size = struct.unpack_from("iIII", data, at)
        name = data[at + 16 : at + 16 + size].rstrip(b"\\0").decode()
        kind = "DIR_" if mask & 0x40000000 else ""
        print(watched[wd], kind + NAMES.get(mask & 0xfff, "OTHER"), name, flush=True)
        at += 16 + size
"""

# A server that is started anew when its source has changed, as those of web frameworks in debug mode
SERVE = """
import ctypes, os
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
libc.inotify_add_watch(fd, b"/app", 0x2 | 0x80 | 0x100 | 0x200)
while True:
    pid = os.posix_spawn("/usr/bin/python3", ["python3", "-SI", "/app/server.py"], os.environ)
    while not any(name.endswith(b".py") for name in os.read(fd, 65536)[16:].split(b"\\0")):
        pass
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""
SERVER = """
import _socket, os
listener = _socket.socket(_socket.AF_UNIX)
try:
    os.unlink("/tmp/http")
except FileNotFoundError:
    pass
listener.bind("/tmp/http")
listener.listen(5)
while True:
    fd, _ = listener._accept()
    sock = _socket.socket(fileno=fd)
    sock.send(b"VERSION")
    sock.close()
"""

ASK = """
import _socket
sock = _socket.socket(_socket.AF_UNIX)
sock.connect("/tmp/http")
print(sock.recv(100).decode())
"""

# As libraries for JavaScript do: a watch on each directory and file with libuv's mask; whatever is told of a directory,
# it is read again and compared
COMPARE = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
MASK = 0x4 | 0x100 | 0x2 | 0x200 | 0x400 | 0x800 | 0x40 | 0x80
known = {}

def look(top):
    found = {}
    for folder, _, names in os.walk(top):
        for path in [folder] + [folder + "/" + name for name in names]:
            try:
                found[path] = (os.stat(path).st_mtime_ns, os.stat(path).st_ino) if path != folder else None
            except FileNotFoundError:
                continue
            libc.inotify_add_watch(fd, path.encode(), MASK)
    return found

known = look("/app")
print("READY", flush=True)
while os.read(fd, 65536):
    found = look("/app")
    for path in sorted(known.keys() | found.keys()):
        if path not in found:
            print("unlink", path, flush=True)
        elif path not in known:
            print("add", path, flush=True)
        elif known[path] != found[path]:
            print("change", path, flush=True)
    known = found
"""


def with_program(container: Container, source: str, *arguments: str, program: str) -> Container:
    """The container, whose process runs the Python *program*, with the host's directory *source* at /app; what it says
    is in /tmp/said."""
    root = container.bundle.rootfs
    rootfs.install_python(root)
    for library in glob.glob("/usr/lib/*/libffi.so.8"):
        os.makedirs(root + os.path.dirname(library), exist_ok=True)
        shutil.copy(library, root + library)
    container.bundle.file("/opt/program.py", program)
    container.bundle.args("sh", "-c", 'exec python3 -SI /opt/program.py "$@" >/tmp/said 2>&1', "sh", *arguments)
    container.bundle.bind(source, "/app", "rbind", "rprivate")
    return container


def said(container: Container) -> list[str]:
    """What the program has said until now."""
    with suppress(FileNotFoundError), open(f"{container.bundle.rootfs}/tmp/said", encoding="utf-8") as file:
        return file.read().splitlines()
    return []


def wait_said(container: Container, *lines: str, timeout: float = 10.0) -> None:
    """Wait until the program has said all of the *lines*."""
    try:
        wait_until(lambda: set(lines) <= set(said(container)), timeout=timeout, what="the program to be told")
    except AssertionError as error:
        raise AssertionError(f"not told: {set(lines) - set(said(container))}\n{said(container)}") from error


def begin(container: Container, *ready: str) -> None:
    """Launch, and wait until it watches, and until that is known to who has to tell."""
    container.launch()
    wait_said(container, *(ready or ("READY",)), timeout=60)
    wait_watched(container)


def wait_watched(container: Container) -> None:
    """Until a change of the host is told: a touch of /app/.probe, which is gone after it."""
    probe = f"{source_of(container)}/.probe"

    def told() -> bool:
        write(probe, "")
        time.sleep(0.3)
        os.unlink(probe)
        return any(".probe" in line for line in said(container))

    wait_until(told, timeout=30, what="a first change to be told")


def source_of(container: Container) -> str:
    mounts = container.bundle.config["mounts"]
    return str(next(mount["source"] for mount in mounts if mount["destination"] == "/app"))


@pytest.fixture
def source(tmp_path: object) -> str:
    """A directory of the host's."""
    path = f"{tmp_path}/app"
    os.makedirs(f"{path}/sub")
    write(f"{path}/file", "old")
    return path


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


@pytest.mark.parametrize("options", [("rbind", "rprivate"), ("rbind", "rprivate", "ro")])
def test_watchers_are_told_what_the_host_does(box: Box, source: str, options: tuple[str, ...]) -> None:
    """Each kind of change, by its name, in a directory and to a watched file; read-only mounts as well."""
    container = with_program(box(), source, "/app", "/app/file", program=WATCH)
    next(mount for mount in container.bundle.config["mounts"] if mount["destination"] == "/app")["options"] = options
    begin(container)
    write(f"{source}/new", "text")
    wait_said(container, "/app CREATE new", "/app MODIFY new", "/app CLOSE_WRITE new")
    assert container.sh("cat /app/new") == "text"
    write(f"{source}/file", "changed")
    wait_said(container, "/app MODIFY file", "/app/file MODIFY ", "/app/file CLOSE_WRITE ")
    assert container.sh("cat /app/file; stat -c %s /app/file") == "changed7"
    os.chmod(f"{source}/new", 0o640)
    wait_said(container, "/app ATTRIB new")
    os.rename(f"{source}/new", f"{source}/sub/moved")
    wait_said(container, "/app MOVED_FROM new", "/app/sub MOVED_TO moved")
    os.unlink(f"{source}/sub/moved")
    wait_said(container, "/app/sub DELETE moved")
    os.mkdir(f"{source}/sub/dir")
    wait_said(container, "/app/sub DIR_CREATE dir")
    os.rmdir(f"{source}/sub/dir")
    wait_said(container, "/app/sub DIR_DELETE dir")


def test_a_file_that_an_editor_replaces(box: Box, source: str) -> None:
    """By a rename: the directory's watcher is told the name, the old file's that it is gone, and the new file is there
    at once."""
    container = with_program(box(), source, "/app", "/app/file", program=WATCH)
    begin(container)
    assert container.sh("cat /app/file") == "old"
    before = os.stat(f"{source}/file")
    write(f"{source}/.file.swp", "new")
    os.rename(f"{source}/.file.swp", f"{source}/file")
    wait_said(container, "/app MOVED_FROM .file.swp", "/app MOVED_TO file", "/app/file DELETE_SELF ")
    assert container.sh("cat /app/file") == "new"
    after = os.stat(f"{source}/file")
    write(f"{source}/file", "again")
    wait_said(container, "/app CLOSE_WRITE file")
    assert before.st_mode == after.st_mode


def test_a_file_that_is_mounted_by_itself(box: Box, source: str) -> None:
    """Its watchers are told of what is written to it."""
    container = with_program(box(), source, "/app", "/single", program=WATCH)
    write(f"{source}/../single", "old")
    container.bundle.bind(f"{source}/../single", "/single", "rbind", "rprivate")
    begin(container)
    write(f"{source}/../single", "newer")
    wait_said(container, "/single MODIFY ", "/single CLOSE_WRITE ")
    assert container.sh("cat /single") == "newer"


def test_a_change_leaves_nothing_on_the_host(box: Box, source: str) -> None:
    """To tell of a change isn't one: times, mode and content are as the host has made them."""
    container = with_program(box(), source, "/app", "/app/file", program=WATCH)
    begin(container)
    write(f"{source}/file", "new")
    before = os.stat(f"{source}/file")
    wait_said(container, "/app CLOSE_WRITE file", "/app/file CLOSE_WRITE ")
    container.sh("sleep 1")
    after = os.stat(f"{source}/file")
    assert before[:7] == after[:7]
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


def test_what_the_container_does_itself_is_told_once(box: Box, source: str) -> None:
    """By the guest's kernel, and not by the host again."""
    container = with_program(box(), source, "/app", program=WATCH)
    begin(container)
    container.sh("echo text >/app/own; mv /app/own /app/mine; rm /app/mine; sleep 2")
    lines = [line for line in said(container) if line.endswith((" own", " mine"))]
    assert [line for line in lines if "MODIFY" not in line] == [
        "/app CREATE own",
        "/app CLOSE_WRITE own",
        "/app MOVED_FROM own",
        "/app MOVED_TO mine",
        "/app DELETE mine",
    ]


def test_a_tree_of_ten_thousand_files(box: Box, source: str) -> None:
    """Whose directories are all watched; a directory that is moved on the host is still told of."""
    for number in range(200):
        os.mkdir(f"{source}/sub/{number}")
        for other in range(50):
            write(f"{source}/sub/{number}/{other}", "")
    container = with_program(box(), source, "/app", program=WATCH)
    begin(container)

    def is_told(number: int) -> bool:
        write(f"{source}/sub/{number}/7", "x")
        time.sleep(0.5)
        return f"/app/sub/{number} CLOSE_WRITE 7" in said(container)

    for number in (0, 99, 199):  # what comes before the host watches so many directories isn't told
        wait_until(lambda n=number: is_told(n), timeout=60, what="the program to be told")  # type: ignore[misc]
    os.rename(f"{source}/sub/5", f"{source}/elsewhere")
    wait_said(container, "/app/sub DIR_MOVED_FROM 5", "/app DIR_MOVED_TO elsewhere")
    write(f"{source}/elsewhere/new", "x")
    wait_said(container, "/app/sub/5 CREATE new")


def test_a_server_in_debug_mode_is_started_anew(box: Box, source: str) -> None:
    """When an editor saves its source on the host."""
    write(f"{source}/server.py", SERVER.replace("VERSION", "first"))
    container = with_program(box(), source, program=SERVE)
    container.launch()

    def answers(version: str) -> bool:
        return container.exec("python3", "-SI", "-c", ASK).text == version

    wait_until(lambda: answers("first"), timeout=60, what="the server")
    for version in ("second", "third"):
        write(f"{source}/server.py~", SERVER.replace("VERSION", version))
        os.rename(f"{source}/server.py~", f"{source}/server.py")
        wait_until(partial(answers, version), timeout=60, what=f"the server's {version} version")


def test_a_watcher_that_compares(box: Box, source: str) -> None:
    """As libraries for JavaScript do: it finds what is new, also in directories that are new, what has changed, and
    what is gone."""
    container = with_program(box(), source, program=COMPARE)
    begin(container)
    os.mkdir(f"{source}/lib")
    wait_said(container, "add /app/lib")
    wait_watched(container)
    container.sh("sleep 1")
    write(f"{source}/lib/a.js", "1")
    wait_said(container, "add /app/lib/a.js")
    container.sh("sleep 1")
    write(f"{source}/lib/a.js", "12")
    wait_said(container, "change /app/lib/a.js")
    os.unlink(f"{source}/lib/a.js")
    wait_said(container, "unlink /app/lib/a.js")
