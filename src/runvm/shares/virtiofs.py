"""virtiofsd, which serves one directory to one VM: found by QEMU's descriptions, run in its own sandbox, spoken to
over a descriptor.

Two programs go by that name: QEMU's own in C (up to 7.2) and the one in Rust, and they take different options.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.errors import HostError
from runvm.linux import files, limits, process, sockets, syscalls
from runvm.log import printable

if TYPE_CHECKING:
    from runvm.config import Config

_MAX_LOGGED = 256 << 10
"""Bytes of a daemon's log."""
_MAX_HEARD = 64
"""Pieces of what it says while its state is saved."""
_TIMES_SECONDS = 0.1
"""How long a guest may take a file's times, length, owner and name for what they are."""
_DELETED, _INVALID = "Inode deleted (", "marking as invalid"
_DESCRIPTIONS = ("/etc/qemu/vhost-user", "/usr/share/qemu/vhost-user")
_RUST_DESCRIPTORS = 610
"""With a lower hard limit of open files virtiofsd 1.13 ends at once."""
_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd", "/usr/bin/virtiofsd")


def program(config: Config) -> str:
    """The daemon's path. Raises HostError where it isn't installed. Source: QEMU's docs/interop/vhost-user.json."""
    if config.virtiofsd:
        from runvm.linux import command

        return command.named(config.virtiofsd, "virtiofsd")
    for path in (*_described(), *_PLACES):
        if os.access(path, os.X_OK):
            return path
    raise HostError("virtiofsd isn't installed", do="apt-get install qemu-system-common (Debian 12) or virtiofsd")


CHECKPOINTS_FROM = (1, 11)
"""The virtiofsd (the one in Rust) from which on it hands its state over to another."""


def release(config: Config) -> str:
    """The daemon's version, '' for one in C. Raises HostError."""
    from runvm.linux import command

    binary = program(config)
    if binary.startswith("/usr/lib/qemu/"):
        return ""
    return command.version(binary).strip().rpartition(" ")[2]


def checkpoint_lacks(config: Config) -> str:
    """What it would take to hand a daemon's state over, '' where it can be done. Raises HostError."""
    told = release(config)
    numbers = told.split(".")[:2]
    if len(numbers) == 2 and all(map(str.isdigit, numbers)) and tuple(map(int, numbers)) >= CHECKPOINTS_FROM:
        return ""
    wanted = ".".join(map(str, CHECKPOINTS_FROM))
    return f"virtiofsd {wanted} or later, and {program(config)} is {told or 'the one of QEMU, in C'}"


def _described() -> list[str]:
    import json

    found = []
    for directory in _DESCRIPTIONS:
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
        except OSError:
            continue
        for name in names:
            try:
                with open(f"{directory}/{name}") as file:
                    description = json.load(file)
            except (OSError, ValueError):
                continue
            if isinstance(description, dict) and description.get("type") == "fs":
                found.append(str(description.get("binary", "")))
    return found


def arguments(binary: str, directory: str, fd: int, *, rust: bool) -> list[str]:
    """The daemon's argv: *directory* served over the listening socket *fd*."""
    if rust:
        return [
            binary, f"--fd={fd}", f"--shared-dir={directory}", "--sandbox=namespace", "--cache=auto", "--xattr", "--posix-acl",  # noqa: E501
            "--announce-submounts", "--inode-file-handles=never",
        ]  # fmt: skip
    # By "auto" each open(2) drops what the guest has in memory of a file: each start of a program reads it anew. By
    # "always" that is kept while the file's time and length stay, which the guest asks for after the timeout. The
    # daemon in Rust has no such option: there it would be a day.
    # No --thread-pool-size: with it 7.2 has ended by itself, and the virtual machine with it.
    # The descriptors' hard limit stays: raising it needs CAP_SYS_RESOURCE, which a root in a container may lack
    return [
        binary, "-f", f"--fd={fd}", "-o", f"source={directory}", "-o", "sandbox=namespace", "-o", f"cache=always,timeout={_TIMES_SECONDS}", "-o", "xattr",  # noqa: E501
        "-o", "posix_acl", "-o", "announce_submounts", "--rlimit-nofile=0",
    ]  # fmt: skip


class Daemon:
    """A running virtiofsd; *socket* is connected to it, for the VMM. What it says comes out of *output* (a pipe's
    end, owned) and goes to the file *log*."""

    def __init__(self, pid: int, connection: socket.socket, output: int, log: str) -> None:
        self.pid = pid
        self.socket = connection
        self.output = output
        self._log = log
        self._room = _MAX_LOGGED
        self._heard: list[bytes] | None = None

    def listen(self) -> None:
        """Keep what it says from now on for lost()."""
        self._heard = []

    def lost(self) -> list[str]:
        """The files, by their paths in the share, that it couldn't tell another daemon of since listen(), while its
        state was saved; '?' for one without a path. It says so in its messages alone."""
        with suppress(BlockingIOError):
            while self._read():
                pass
        lines = b"".join(self._heard or ()).decode(errors="replace").splitlines()
        self._heard = None
        paths = [
            printable(line.partition(_DELETED)[2].rstrip().removesuffix(")")) for line in lines if _DELETED in line
        ]
        invalid = sum(_INVALID in line for line in lines)
        return (paths or ["?"]) if invalid else []

    def keep_output(self) -> bool:
        """Put what it has said in its log, as far as that may grow: a guest can make it say anything, for ever. False
        once it has nothing more to say."""
        try:
            return self._read()
        except BlockingIOError:
            return True

    def _read(self) -> bool:
        said = os.read(self.output, 65536)
        if self._heard is not None and len(self._heard) < _MAX_HEARD:
            self._heard.append(said)
        kept, self._room = said[: self._room], max(0, self._room - len(said))
        if kept:
            with suppress(OSError), open(self._log, "ab", opener=files.private) as file:
                file.write(kept)
        return bool(said)

    def ended(self) -> str:
        """How it has ended, by itself or killed; '' while it runs. What it has said is in its log then."""
        self.keep_output()
        return process.how_ended(self.pid, deadline=0)

    def kill(self) -> None:
        """End it and reap it."""
        self.socket.close()
        process.end_child(self.pid, "virtiofsd")
        self.keep_output()
        os.close(self.output)


def serve(config: Config, directory: str, *, log: str) -> Daemon:
    """Start the daemon on *directory*; its messages go to the file *log*. The socket is there at once, nobody polls
    for it. Raises HostError, OSError."""
    binary = program(config)
    rust = _is_rust(binary)
    if rust:
        _check_limit()
    parent = os.getpid()
    path = f"{os.path.dirname(log)}/virtiofsd.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        sockets.bind(listener, path)
        listener.listen(1)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sockets.connect(connection, path)
        os.unlink(path)

        output, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(output, False)

        def child() -> None:
            os.setsid()
            process.redirect(writer)
            os.dup2(listener.fileno(), 3)
            process.close_above(3)
            os.set_inheritable(3, True)
            process.reset_signals()
            syscalls.raise_limits()  # each file that the guest knows is one of the daemon's
            process.die_with_parent(parent)
            _trust_the_guests_checks()
            os.execve(binary, arguments(binary, directory, 3, rust=rust), {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})

        try:
            return Daemon(process.fork(child), connection, output, log)
        finally:
            os.close(writer)


def _check_limit() -> None:
    """Whether this one starts at all. Raises HostError."""
    _, limit = limits.own()["RLIMIT_NOFILE"]
    if limit < _RUST_DESCRIPTORS:
        raise HostError(
            f"too many open files: virtiofsd needs {_RUST_DESCRIPTORS} descriptors, and the hard limit here is {limit}",
            do="raise RLIMIT_NOFILE: ulimit -n, LimitNOFILE= of a unit",
        )


def _trust_the_guests_checks() -> None:
    """The daemon keeps its capabilities where it becomes a file's owner-to-be (capabilities(7), securebits).

    The guest's kernel has checked every access (virtiofs mounts have default_permissions), and knows what the host
    can't: the capabilities of a process in a user namespace, or of one that isn't root. Without this such a process
    can't write where its uid alone couldn't. It gives a guest nothing that asking as root wouldn't.
    """
    with suppress(OSError):  # a root without CAP_SETPCAP: then only root's capabilities count in the share
        syscalls.prctl(syscalls.PR_SET_SECUREBITS, syscalls.SECBIT_NO_SETUID_FIXUP)


def _is_rust(binary: str) -> bool:
    """Told by QEMU's own one being in QEMU's library directory, else asked of the program itself."""
    if binary.startswith("/usr/lib/qemu/"):
        return False
    import subprocess

    answer = subprocess.run([binary, "--help"], capture_output=True, text=True, timeout=10, check=False)
    return "--shared-dir" in answer.stdout + answer.stderr
