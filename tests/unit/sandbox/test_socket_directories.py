"""Which sockets of mounted directories a guest is told of."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pytest

from framework import process
from runvm.linux import fanotify, syscalls
from runvm.linux.loop import Loop
from runvm.protocol import frames
from runvm.protocol.frames import Frame
from runvm.protocol.gate import Gate
from runvm.protocol.messages import AddSocket, ConnectServer, Done, DropSocket, Failed, FindServer
from runvm.sandbox import host_sockets, own_servers, socket_directories
from runvm.sandbox.creation import mounts_of
from runvm.sandbox.host_sockets import HostSockets
from runvm.sandbox.members import Member
from runvm.sandbox.own_servers import OwnServers
from runvm.sandbox.socket_directories import SocketDirectories

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runvm.sandbox.guest_link import GuestLink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for fanotify(7)")


class Guest:
    """Keeps what it is told of."""

    def __init__(self, sandbox: Path) -> None:
        self.loop = Loop()
        self.gate = Gate(self.loop)
        self.sockets: dict[int, str] = {}
        self.own: list[str] = []
        self.connects: list[ConnectServer] = []
        self.late: list[Callable[[], None]] | None = None
        guest = cast("GuestLink", self)
        channels = itertools.count(1)
        self.host = HostSockets(self.loop, guest, lambda: 1)
        own = OwnServers(self.loop, guest, self.host, str(sandbox), lambda: next(channels))
        self.directories = SocketDirectories(self.loop, guest, str(sandbox), own)

    def send(self, kind: int, channel: int, payload: bytes) -> None:
        """No connection is made here."""

    def ask(self, message: Any, answered: Callable[[Done | Failed], None]) -> None:
        if isinstance(message, AddSocket):
            self.sockets[message.socket] = f"{message.mount}:{message.path}"
        elif isinstance(message, FindServer):
            kind = int(message.path in self.own)
            if self.late is None:
                answered(Done({"kind": kind}))
            else:
                self.late.append(lambda: answered(Done({"kind": kind})))
            return
        elif isinstance(message, ConnectServer):
            self.connects.append(message)
            answered(Failed("gone") if not self.own else Done({}))
            return
        else:
            assert isinstance(message, DropSocket)
            del self.sockets[message.socket]
        answered(Done({}))

    @property
    def paths(self) -> set[str]:
        return set(self.sockets.values())

    def turn(self, seconds: float = 0.5) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.loop.turn(left)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A VM's directory, beside those of others."""
    path = tmp_path / "vm"
    path.mkdir()
    return path


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., socket.socket]]:
    """Makes a server at a path below *tmp_path*."""
    made: list[socket.socket] = []

    def at(path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        made.append(socket.socket(socket.AF_UNIX, kind))
        made[-1].bind(str(tmp_path / path))
        if kind != socket.SOCK_DGRAM:
            made[-1].listen(1)
        return made[-1]

    yield at
    for each in made:
        each.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A container `c` with the directory `shared/1` as its mount 3."""
    (tmp_path / "share/shared/1/sub").mkdir(parents=True)
    made = Guest(tmp_path)
    yield made
    made.directories.close()


def test_sockets_come_and_go(guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path) -> None:
    """Those that are there, those that appear, in directories that appear; until the container has gone."""
    listen("share/shared/1/a")
    listen("share/shared/1/sub/b")
    listen("share/shared/1/left").close()
    guest.directories.add(member := Member("c"), {3: "shared/1"}, {})
    assert guest.paths == {"3:a", "3:sub/b"}
    assert member.sockets is not None
    listen("share/shared/1/later")
    (tmp_path / "share/shared/1/new").mkdir()
    listen("share/shared/1/new/c")
    os.unlink(tmp_path / "share/shared/1/a")
    guest.turn()
    assert guest.paths == {"3:sub/b", "3:later", "3:new/c"}
    assert len(member.sockets.files) == 3
    (tmp_path / "share/shared/1/sub").rename(tmp_path / "share/shared/1/renamed")
    guest.turn()
    assert guest.paths == {"3:renamed/b", "3:later", "3:new/c"}
    guest.directories.remove("c")
    assert guest.directories._group is None


def test_one_that_answers_no_more_is_dropped(guest: Guest, listen: Callable[..., socket.socket]) -> None:
    """As soon as somebody has noticed."""
    made = listen("share/shared/1/a")
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    (number,) = guest.sockets
    guest.directories.failed("c", number)
    assert guest.paths == {"3:a"}
    made.close()
    guest.directories.failed("c", number)
    guest.directories.failed("c", number)
    guest.directories.failed("other", number)
    assert guest.paths == set()


def test_one_whose_server_ends_is_dropped_though_nobody_connects(
    guest: Guest, listen: Callable[..., socket.socket]
) -> None:
    """The container may want to remove the file that is left."""
    made = listen("share/shared/1/a")
    listen("share/shared/1/b")
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    made.close()
    guest.turn(1.5)
    assert guest.paths == {"3:b"}


def test_symlinks_and_what_is_deep_below_are_left_alone(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path
) -> None:
    """A mounted directory is the container's to fill."""
    (tmp_path / "outside").mkdir()
    listen("outside/s")
    (tmp_path / "share/shared/1/link").symlink_to(tmp_path / "outside/s")
    (tmp_path / "share/shared/1/directory").symlink_to(tmp_path / "outside")
    (tmp_path / "share/shared/1/up").symlink_to("../../..")
    (tmp_path / "share/shared/1/1/2/3/4").mkdir(parents=True)
    listen("share/shared/1/1/2/s")
    listen("share/shared/1/1/2/3/4/s")
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    (tmp_path / "share/shared/1/1/2/3").rename(tmp_path / "share/shared/1/1/2/moved")
    guest.turn()
    assert guest.paths == {"3:1/2/s"}


def test_there_are_bounds(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To sockets, to directories that are watched, and to names that are looked at."""
    monkeypatch.setattr(socket_directories, "_MAX_SOCKETS", 3)
    monkeypatch.setattr(socket_directories, "_MAX_DIRECTORIES", 4)
    monkeypatch.setattr(socket_directories, "_MAX_ENTRIES", 20)
    for number in range(5):
        listen(f"share/shared/1/{number}")
    for number in range(100):
        (tmp_path / f"share/shared/1/d{number}").mkdir()
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    assert len(guest.sockets) <= 3
    assert len(guest.directories._watched) <= 4


def test_directories_that_come_and_go_leave_no_marks(guest: Guest, tmp_path: Path) -> None:
    """They count for all of root's processes (max_user_marks)."""
    top = tmp_path / "share/shared/1"
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    group = guest.directories._group
    assert group is not None
    for number in range(4):
        (top / f"d{number}").mkdir()
        guest.turn(0.3)
        (top / f"d{number}").rename(tmp_path / f"away{number}")  # where the container has another mount
        guest.turn(0.3)
    assert process.fanotify_marks(group.fd) == len(guest.directories._watched) == 2


def test_marks_that_cannot_be_removed_are_bounded(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file system that is mounted below, and isn't any more."""
    monkeypatch.setattr(socket_directories, "_MAX_LOST", 2)

    def fail(mount: int, name: bytes) -> int:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(fanotify, "open_marked", fail)
    top = tmp_path / "share/shared/1"
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    for number in range(4):
        (top / f"d{number}").mkdir()
        guest.turn(0.3)
        (top / f"d{number}").rename(tmp_path / f"away{number}")
        guest.turn(0.3)
    assert guest.directories._group is not None
    assert process.fanotify_marks(guest.directories._group.fd) < 5
    assert guest.directories._containers["c"].watched == {3: len(guest.directories._watched)} == {3: 2}


def test_a_containers_mounts_are_its_directories(tmp_path: Path) -> None:
    """By their numbers, where they are; neither its root nor single files."""
    (tmp_path / "share/shared/1/in").mkdir(parents=True)
    (tmp_path / "share/shared/2").touch()
    place = tmp_path / "share/containers/c.1"
    (place / "rootfs").mkdir(parents=True)
    for name, target in (("m2", "shared/1"), ("m5", "shared/1/in"), ("m7", "shared/2")):
        (place / name).symlink_to(f"../../{target}")
    assert mounts_of(f"{tmp_path}/share", "c.1") == {2: "shared/1", 5: "shared/1/in"}


def test_a_server_of_the_guests_is_offered_to_other_vms(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path
) -> None:
    """With the ids of who connects, and the rights of its file; until it has gone."""
    listen("share/shared/1/a").close()  # to the host it has no server
    os.chmod(tmp_path / "share/shared/1/a", 0o620)
    guest.own.append("a")
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    assert guest.paths == set()
    status = os.stat(tmp_path / "share/shared/1/a")
    key = (status.st_dev, status.st_ino)
    assert own_servers.offered(str(tmp_path), key) < 0  # it is the VM's own
    (tmp_path.parent / "other").mkdir()
    file = own_servers.offered(str(tmp_path.parent / "other"), key)
    assert os.fstat(file).st_mode & 0o777 == 0o620
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"/proc/self/fd/{file}")
        guest.turn()
        (request,) = guest.connects
        assert (request.container, request.mount, request.path) == ("c", 3, "a")
        assert (request.uid, request.gid) == (os.getuid(), os.getgid())
        guest.own.clear()
        os.close(file)
    assert own_servers.offered(str(tmp_path.parent / "other"), key) >= 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "served" / os.listdir(tmp_path / "served")[0]))
        guest.turn()
    assert own_servers.offered(str(tmp_path.parent / "other"), key) < 0


def test_a_server_of_the_guests_whose_file_is_removed(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path
) -> None:
    """Is offered no more, nor is one whose file has gone while the guest was asked."""
    guest.own.append("a")
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    listen("share/shared/1/a").close()
    guest.turn()
    assert os.listdir(tmp_path / "served")
    os.unlink(tmp_path / "share/shared/1/a")
    guest.turn()
    assert os.listdir(tmp_path / "served") == []


def _served(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / "served") if (tmp_path / "served").exists() else []


def test_a_guest_that_removes_its_file_before_it_answers_offers_nothing(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path
) -> None:
    """The file's inode may be a socket of another container's by then, whose clients it would get."""
    guest.own.append("a")
    guest.late = []
    listen("share/shared/1/a").close()
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    assert len(guest.late) == 1
    (tmp_path / "share/shared/1/a").rename(tmp_path / "share/shared/1/b")
    guest.late[0]()
    assert _served(tmp_path) == []
    guest.directories.remove("c")
    for answer in guest.late:
        answer()
    assert _served(tmp_path) == []


def test_the_file_of_an_offered_server_is_held(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path
) -> None:
    """So that its inode is no other file's, until it is offered no more."""

    def held() -> bool:
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # that of the listing
                if "/shared/1/a" in os.readlink(f"/proc/self/fd/{fd}"):
                    return True
        return False

    guest.own.append("a")
    listen("share/shared/1/a").close()
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    assert held()
    os.unlink(tmp_path / "share/shared/1/a")
    assert held()
    guest.turn()
    assert not held()


def test_a_server_whose_directory_is_moved_is_offered_as_long_as_its_file_is_there(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its new place; no event of the old one tells of its end."""
    monkeypatch.setattr(socket_directories, "_TRIES", 0)  # some seconds later
    guest.own += ["sub/s", "moved/s"]
    listen("share/shared/1/sub/s").close()
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    assert len(_served(tmp_path)) == 1
    (tmp_path / "share/shared/1/sub").rename(tmp_path / "share/shared/1/moved")
    guest.turn()
    (name,) = _served(tmp_path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "served" / name))
        guest.turn(0.1)
    assert guest.connects[0].path == "moved/s"
    os.unlink(tmp_path / "share/shared/1/moved/s")
    guest.turn()
    assert _served(tmp_path) == []


def _offer_one(guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path) -> str:
    guest.own.append("a")
    listen("share/shared/1/a").close()
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    (name,) = _served(tmp_path)
    return str(tmp_path / "served" / name)


def test_nobody_is_connected_to_a_server_whose_file_has_just_gone(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path
) -> None:
    """Before any event of it has come."""
    path = _offer_one(guest, listen, tmp_path)
    assert guest.directories._group is not None
    guest.loop.forget(guest.directories._group.fd)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        client.connect(path)
        os.unlink(tmp_path / "share/shared/1/a")
        guest.turn(0.1)
        assert client.recv(1) == b""
    assert guest.connects == []
    assert _served(tmp_path) == []


def test_a_server_of_the_guests_has_so_many_connections_and_no_more(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another VM's container would else have all descriptors of this one's supervisor."""
    monkeypatch.setattr(host_sockets, "_MAX", 3)
    path = _offer_one(guest, listen, tmp_path)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    for client in clients:
        client.connect(path)
        guest.turn(0.05)
        client.setblocking(False)
    assert len(guest.connects) == 3
    for client in clients[3:]:
        assert client.recv(1) == b""
    clients[0].close()
    guest.host.frame(Frame(frames.STDOUT, 1, b""))
    guest.turn(0.05)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        guest.turn(0.05)
    assert len(guest.connects) == 4
    for client in clients:
        client.close()
    guest.host.close()


def test_a_connection_waits_where_no_descriptors_are_left(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path
) -> None:
    """Without a busy loop."""
    path = _offer_one(guest, listen, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        probe = os.dup(0)
        os.close(probe)
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
        turns = 0
        try:
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                guest.loop.turn(0.1)
                turns += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert turns < 30
        assert guest.connects == []
        guest.turn(1.5)
        assert len(guest.connects) == 1
    guest.host.close()


def test_the_server_of_another_vm_is_found(guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path) -> None:
    """Also one that is offered a moment after its file has appeared."""
    listen("share/shared/1/a").close()
    guest.directories.add(Member("c"), {3: "shared/1"}, {})
    assert guest.paths == set()
    status = os.stat(tmp_path / "share/shared/1/a")
    other = tmp_path.parent / "other" / "served"
    other.mkdir(parents=True)
    listen(f"../other/served/{status.st_dev:x}-{status.st_ino:x}")
    guest.turn(1.5)
    assert guest.paths == {"3:a"}


def test_a_guest_offers_nothing_where_it_may_not_write(
    guest: Guest, listen: Callable[..., socket.socket], tmp_path: Path
) -> None:
    """It would be taken for the server of whoever may."""
    directory = tmp_path / "share/shared/1"
    listen("share/shared/1/a").close()
    syscalls.mount(str(directory), str(directory), "", syscalls.MS_BIND)
    try:
        syscalls.mount("none", str(directory), "", syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
        guest.own.append("a")
        guest.directories.add(Member("c"), {3: "shared/1"}, {})
        assert not (tmp_path / "served").exists()
    finally:
        syscalls.unmount(str(directory))
