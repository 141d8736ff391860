"""crun in the guest: how it is called, and its errors as messages that callers know."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable

from runvm.agent.children import Children

_PROGRAM = "/usr/bin/crun"
STATE = "/run/crun"
_HIGH = 200
_NOT_FOUND = "executable file not found in $PATH"
_NO_PROGRAM = ("executable", "is not a regular file", "cannot find `` in $PATH")
"""What crun's messages about a program that can't be run have."""
_CHDIR = re.compile(r"chdir (?:to )?`(.*)`(?: failed)?: (.*)", re.DOTALL)
_CGROUP = re.compile(r"opening file `(/sys/fs/cgroup/.*/cgroup\.procs)` for writing: (.*)", re.DOTALL)
# linux/fcntl.h
_F_ADD_SEALS = 1033
_ALL_SEALS = 0xF


class Crun:
    """Runs crun from a sealed copy in memory: it makes that copy itself at each call otherwise (CVE-2019-5736), which
    takes longer than all the rest of a call."""

    def __init__(self, children: Children) -> None:
        self._children = children
        fd = os.memfd_create("crun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(_PROGRAM, "rb") as file:
            while os.sendfile(fd, file.fileno(), None, 1 << 24):
                pass
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
        # above the numbers that a container's process may be given, where it would be overwritten
        self._path = f"/proc/self/fd/{fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)}"
        os.close(fd)

    @staticmethod
    def create_options(bundle: str) -> list[str]:
        """`crun create` of *bundle*, which leaves its pid in the file `pid` there; the name and more options follow."""
        return ["create", f"--bundle={bundle}", f"--pid-file={bundle}/pid", "--no-new-keyring"]

    def run(
        self, bundle: str, arguments: list[str], ended: Callable[[int], None], stdio: list[int] | None = None
    ) -> int:
        """Start it for the container of *bundle*; its pid. *ended* gets its status, error() then its message.

        Raises: OSError.
        """
        options = [f"--root={STATE}", f"--log={bundle}/crun.log", "--log-format=json", "--cgroup-manager=cgroupfs"]
        return self._children.spawn([self._path, *options, *arguments], ended, stdio)


def error(bundle: str, what: str) -> str:
    """crun's last message from its log, which is emptied."""
    message = ""
    try:
        with open(f"{bundle}/crun.log", errors="replace") as file:
            for line in file.read(1 << 16).splitlines():
                try:
                    message = str(json.loads(line).get("msg", "")) or message
                except (ValueError, AttributeError):
                    message = line or message
        os.truncate(f"{bundle}/crun.log", 0)
    except OSError:
        pass
    return message or f"crun {what} failed in the guest"


def as_runc_says(message: str, program: str) -> str:
    """crun's error as messages that docker turns into exit codes 126 and 127 (its cli's run.go), which are runc's
    and Go's."""
    failed = "unable to start container process: "
    start = f'{failed}exec: "{program}": '
    if any(words in message for words in _NO_PROGRAM):
        if "/" not in program:  # in PATH, but a directory, a symlink that leads in a circle or the like: Go looks on
            return f"{start}{_NOT_FOUND}"
        if "not found" in message or "o such file" in message:
            return f"{start}stat {program}: no such file or directory"
        return f"{start}permission denied"
    if cwd := _CHDIR.match(message):
        return f'{failed}chdir to cwd ("{cwd[1]}") set in config.json failed: {cwd[2].lower()}'
    if cgroup := _CGROUP.match(message):
        return f"{failed}error adding pid to cgroups: openat2 {cgroup[1]}: {cgroup[2].lower()}"
    head, colon, said = message.rpartition(": ")
    return f"{head}{colon}{said[:1].lower()}{said[1:]}"
