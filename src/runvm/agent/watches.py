"""Which of the host's directories the containers' programs watch by inotify: told to the host, which then tells of
changes (sandbox.host_changes).

Linux shows each watch in /proc/PID/fdinfo (proc(5)): the file system, and the handle by which the file is found there.
Of a file that is watched the directory is, too: editors put another file in its place.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from runvm.agent.watch_probe import WatchProbe
from runvm.linux import files, handles
from runvm.linux.loop import Loop
from runvm.protocol import names
from runvm.protocol.messages import Watch
from runvm.records import NamedTuple

_SHARED = f"{names.SHARE}/shared/"
_MAX = 20_000
"""Directories; the host takes no more either."""
_MAX_INFO = 16 << 20
_BATCH = 100
_DELAY_SECONDS = 0.1
_SLICE_SECONDS = 0.02
"""How long a look at the watches may keep the agent from all else."""
_REST = 3
"""Times what the last look has taken, before the next."""


class File(NamedTuple):
    """A watched file or directory: its file system, and its handle there."""

    device: int
    handle: handles.Handle


class Directory(NamedTuple):
    """A directory that the host watches, or a file that is mounted by itself, and where it is as far as is known."""

    file: File
    path: str


class Watches:
    """*event* sends a message to the host."""

    def __init__(self, loop: Loop, event: Callable[[Any], None]) -> None:
        self._loop = loop
        self._event = event
        self._processes: set[int] = set()
        """Those that watch something."""
        self._asked: set[int] | None = set()
        self._looking: Iterator[None] | None = None
        self._began = 0.0
        self._planned = False
        self._pause = _DELAY_SECONDS
        self._number = 0
        self._resolved: dict[File, int] = {}
        self._numbers: dict[File, int] = {}
        self.directories: dict[int, Directory] = {}
        """By the number that the host knows them by."""
        self.files: dict[tuple[int, str], File] = {}
        """Files that are watched themselves, by directory and name."""

    def set_up(self) -> None:
        """Begin to look out for watches. Raises OSError where the kernel can't."""
        WatchProbe(self._loop, self.look).set_up()

    def look(self, threads: set[int] | None) -> None:
        """See what *threads* watch now, None = all, and whether the others that watched something still do."""
        self._asked = None if threads is None or self._asked is None else self._asked | threads
        if not self._planned:
            self._planned = True
            self._loop.call_later(self._pause, self._begin)

    def look_again(self) -> None:
        """A container has gone."""
        if self._processes:
            self.look(set())

    def tell_again(self) -> None:
        """The host is another one, which knows nothing."""
        for table in (self._resolved, self._numbers, self.directories, self.files):
            table.clear()
        self.look_again()

    def moved(self, old: str, new: str) -> None:
        """What was at the path *old*, and all below, is at *new* now."""
        for number, directory in self.directories.items():
            if f"{directory.path}/".startswith(f"{old}/"):
                self.directories[number] = directory._replace(path=new + directory.path[len(old) :])

    def forget(self, directory: int, name: str) -> None:
        """The file that had that *name* is another's now, or nobody's."""
        file = self.files.pop((directory, name), None)
        if file is not None:
            self._resolved.pop(file, None)

    def _begin(self) -> None:
        asked, self._asked = self._asked, set()
        threads = _all_processes() if asked is None else self._processes | asked
        self._looking = self._look(threads)
        self._began = time.monotonic()
        self._go_on()

    def _go_on(self) -> None:
        end = time.monotonic() + _SLICE_SECONDS
        for _ in self._looking or ():
            if time.monotonic() > end:
                self._loop.call_later(0, self._go_on)
                return
        self._planned = False
        self._pause = max(_DELAY_SECONDS, _REST * (time.monotonic() - self._began))
        if self._asked is None or self._asked:
            self.look(set())

    def _look(self, threads: set[int]) -> Iterator[None]:
        mounts = shared_mounts()
        found: set[File] = set()
        self._processes = set()
        for thread in threads:
            for info in _inotify(thread):
                self._processes.add(thread)
                for line in info.splitlines():
                    file = parse(line)
                    if file is not None and file.device in mounts:
                        found.add(file)
                    yield
        wanted: set[int] = set()
        new: dict[str, str] = {}
        with Mounts(mounts) as opened:
            for file in found:
                number = self._resolved.get(file)
                if number is None:
                    number = self._resolve(file, opened, new)
                wanted.add(number)
                if len(new) >= _BATCH:
                    self._tell(new)
                yield
        self._tell(new)
        self._drop(found, wanted)

    def _resolve(self, file: File, opened: Mounts, new: dict[str, str]) -> int:
        """The number of the directory that *file* is, or is in; -1 where it can't be told."""
        try:
            fd = opened.open(file)
            try:
                path = os.readlink(f"/proc/self/fd/{fd}")
                if not path.startswith(_SHARED):
                    return -1
                if stat.S_ISDIR(os.fstat(fd).st_mode) or os.path.dirname(path) == _SHARED.rstrip("/"):
                    number = self._numbered(file, path, new)
                else:
                    parent, name = os.path.split(path)
                    directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    try:
                        number = self._numbered(File(file.device, handles.of(directory)), parent, new)
                    finally:
                        os.close(directory)
                    self.files[number, name] = file
            finally:
                os.close(fd)
        except OSError:
            return -1
        self._resolved[file] = number
        return number

    def _numbered(self, directory: File, path: str, new: dict[str, str]) -> int:
        number = self._numbers.get(directory)
        if number is None:
            if len(self._numbers) >= _MAX:
                return -1
            self._number += 1
            number = self._numbers[directory] = self._number
            self.directories[number] = Directory(directory, path)
            new[str(number)] = path.removeprefix(f"{names.SHARE}/")
        return number

    def _drop(self, found: set[File], wanted: set[int]) -> None:
        """Forget what nobody watches any more."""
        for file in self._resolved.keys() - found:
            del self._resolved[file]
        self.files = {key: file for key, file in self.files.items() if file in found}
        gone = {}
        for number in self.directories.keys() - wanted:
            del self._numbers[self.directories.pop(number).file]
            gone[str(number)] = ""
        self._tell(gone)

    def _tell(self, directories: dict[str, str]) -> None:
        if directories:
            self._event(Watch(dict(directories)))
            directories.clear()


class Mounts:
    """Opens files by their handles while it is entered; *places* are where file systems are mounted.

    A handle is looked for on the file system of the working directory: to open a directory for it would be told to who
    watches that.
    """

    def __init__(self, places: dict[int, str]) -> None:
        self._places = places
        self._at = -1

    def __enter__(self) -> Mounts:
        return self

    def __exit__(self, *reason: object) -> None:
        if self._at >= 0:
            os.chdir("/")

    def open(self, file: File) -> int:
        """A descriptor (O_PATH) of *file*. Raises OSError."""
        if self._at != file.device:
            place = self._places.get(file.device)
            if place is None:
                raise FileNotFoundError("its file system isn't mounted any more")
            os.chdir(place)
            self._at = file.device
        return handles.open_handle(handles.HERE, file.handle)

    def open_directory(self, directory: Directory) -> int:
        """A descriptor (O_PATH) of *directory*, by its path if it is there still: for a handle of one that isn't in
        its memory the kernel reads the directories above, and tells their watchers so, or gives up (ESTALE: the
        virtiofsd in Rust doesn't offer FUSE_EXPORT_SUPPORT). Raises OSError."""
        with suppress(OSError):
            fd = os.open(directory.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if handles.of(fd) == directory.file.handle:
                return fd
            os.close(fd)
        return self.open(directory.file)


def shared_mounts() -> dict[int, str]:
    """Where the agent has the host's directories that are mounted in containers, by their file systems' devices as
    fdinfo writes them."""
    found: dict[int, str] = {}
    for line in files.read("/proc/self/mountinfo", _MAX_INFO).splitlines():
        fields = line.split(" ", 5)
        if fields[4].startswith(_SHARED) or fields[4] == names.SHARE:  # where files are that are mounted by themselves
            major, _, minor = fields[2].partition(":")
            found.setdefault(int(major) << 20 | int(minor), _plain(fields[4]))
    return found


def _plain(path: str) -> str:
    """Without the octal escapes of proc(5)."""
    first, *rest = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def parse(line: str) -> File | None:
    """What a line of an inotify descriptor's fdinfo says is watched: `inotify wd:2 ino:de043 sdev:20 mask:fff
    ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:0000…`; None for another line."""
    if not line.startswith("inotify "):
        return None
    fields = dict(word.partition(":")[::2] for word in line.split()[1:])
    try:
        kind = int(fields["fhandle-type"], 16)
        return File(int(fields["sdev"], 16), kind.to_bytes(4, "little") + bytes.fromhex(fields["f_handle"]))
    except (KeyError, ValueError, OverflowError):
        return None


def _all_processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _inotify(thread: int) -> Iterator[str]:
    """What the kernel tells of each inotify descriptor of *thread*'s."""
    try:
        descriptors = os.listdir(f"/proc/{thread}/fd")
    except OSError:
        return
    for name in descriptors:
        with suppress(OSError):
            if os.readlink(f"/proc/{thread}/fd/{name}") == "anon_inode:inotify":
                yield files.read(f"/proc/{thread}/fdinfo/{name}", _MAX_INFO)
