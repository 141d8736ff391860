"""Messages about what happens on the host in the directories that a VM's containers have mounted; a part of
protocol.messages."""

from __future__ import annotations

from runvm.protocol.fields import Json
from runvm.records import NamedTuple

# --- host → guest


class AddSocket(NamedTuple):
    """A server of the host's has a *socket*, of that number, at *path* below the directory that is a container's mount
    of that number; its mode and owner; *whole*: it takes records (SOCK_SEQPACKET), no stream. Result: {}."""

    container: str
    socket: int
    mount: int
    path: str
    mode: int
    uid: int
    gid: int
    whole: bool


class DropSocket(NamedTuple):
    """One of AddSocket has gone. Result: {}."""

    container: str
    socket: int


class FindServer(NamedTuple):
    """Whether a container's own server listens at *path* below its mount of that number. Result: {"kind"}, its type of
    socket, or 0."""

    container: str
    mount: int
    path: str


class ConnectServer(NamedTuple):
    """Connect to the server that FindServer has found, as a process with these ids; the channel's streams are STDIN and
    STDOUT. Result: {}."""

    container: str
    mount: int
    path: str
    channel: int
    uid: int
    gid: int
    groups: list[int]


class Changed(NamedTuple):
    """The host has changed something in directories that containers watch, each by its number in Watch: an inotify
    mask, the cookie of a move's two halves, the name there ('.': the directory itself). Result: {}."""

    directories: list[int]
    masks: list[int]
    cookies: list[int]
    names: list[str]


# --- guest → host


class Watch(NamedTuple):
    """An event: containers watch these *directories* by inotify(7), paths in the share by a number each; none any more
    where the path is empty. Changed tells of what the host does there."""

    directories: Json
