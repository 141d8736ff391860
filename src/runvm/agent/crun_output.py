"""What crun itself writes to a process's standard error, in the form that runc gives it.

Once a container is started, crun's log is closed: what fails from then on, a startContainer hook or execve(2) of the
program, it writes to the streams that are the program's, as JSON, with colours on a terminal. People know these errors
from runc: "exec /entrypoint.sh: no such file or directory", say.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from typing import Any

from runvm.linux import files, syscalls

_COLOURS = re.compile(rb"\x1b\[[0-9;]*m")
_RECORD = re.compile(rb'\{"msg":"(?:[^"\\]|\\.)*","level":"error","time":"[0-9T:.-]+Z"\}')
_RECORD_HEAD = b'{"msg":"'
_PROGRAM = re.compile(r"exec container process(?: \(missing dynamic library\?\))? `(.*)`: (.*)", re.DOTALL)
_HOOK = re.compile(r"error executing hook `(.*)` \(exit code: (-?\d+)\)", re.DOTALL)
_TIMED_OUT = "timeout expired for "
_EXEC = "exec: "
"""How crun's exec says that execve(2) has failed, without JSON."""
_UNFINISHED_COLOUR = re.compile(rb"\x1b(\[[0-9;]*)?$")
_OF_CRUN = "/memfd:crun"
"""What /proc/PID/exe of a process leads to that is still crun (crun.Crun)."""


class Hooks:
    """The startContainer hooks of *spec*, changed there so that crun's error tells which one has failed, and leaves
    what it has written in files of *bundle*."""

    def __init__(self, spec: dict[str, Any], bundle: str) -> None:
        self._outputs = {name: f"{bundle}/hooks.{name}" for name in ("stdout", "stderr")}
        self._hooks: dict[str, tuple[int, str, int]] = {}
        self._missing: set[int] = set()
        given = (spec.get("hooks") or {}).get("startContainer") or []
        for index, hook in enumerate(given):
            path = str(hook.get("path", ""))
            hook["args"] = hook.get("args") or [path]
            # another name of the same file for each: crun's error has the path and nothing else
            hook["path"] = "/" + "./" * index + path.lstrip("/")
            self._hooks[hook["path"]] = (index, path, int(hook.get("timeout") or 0))
        if given:
            spec["annotations"] = {
                **(spec.get("annotations") or {}),
                **{f"run.oci.hooks.{name}": output for name, output in self._outputs.items()},
            }

    def look(self, pid: int) -> None:
        """Note which of them the container, whose init is *pid*, doesn't have: crun's error doesn't tell."""
        try:
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            for index, path, _ in self._hooks.values():
                try:
                    os.close(syscalls.open_in_root(root, path, os.O_PATH | os.O_CLOEXEC))
                except FileNotFoundError:
                    self._missing.add(index)
                except OSError:
                    pass  # it tells by itself why
        finally:
            os.close(root)

    def error(self, path: str, code: int) -> str:
        """The error about the hook that crun knows by *path*."""
        index, original, timeout = self._hooks.get(path, (0, path, 0))
        if index in self._missing:
            how = f"fork/exec {original}: no such file or directory"
        elif code < 0:
            how = f"hook ran past specified timeout of {timeout:.1f}s"
        else:
            stdout, stderr = (files.tail(self._outputs[name], 8192) for name in ("stdout", "stderr"))
            # crun tells of a signal as a shell does
            ended = signal.strsignal(code - 128) if code > 128 and code - 128 in signal.valid_signals() else None
            how = f"signal: {ended.lower()}" if ended else f"exit status {code}"
            how = f"error running hook: {how}, stdout: {stdout}, stderr: {stderr}"
        return f"error running startContainer hook #{index}: {how}"


class Filter:
    """What the first output of the process *pid* (0: not known yet), which runs *program*, goes through."""

    def __init__(self, program: str, hooks: Hooks | None) -> None:
        self._program = program
        self._hooks = hooks
        self.pid = 0
        self._held = b""

    def __call__(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be passed on now that *data* has come (nothing: its end), and whether more shall go through here:
        what is the program's own goes on as it is."""
        self._held += data
        if self._held and not self.runs():
            if data and _may_go_on(self._held):
                return b"", True
            said = [self._line(line) for line in self._held.splitlines()]
            if None not in said:
                end = b"\r\n" if self._held.endswith(b"\r\n") else b"\n"
                self._held = b""
                return b"".join(line.encode() + end for line in said if line), True
        held, self._held = self._held, b""
        return held, False

    def runs(self) -> bool:
        """Whether the process is known to be the program's already, not crun's."""
        if not self.pid:
            return False
        try:
            return not os.readlink(f"/proc/{self.pid}/exe").startswith(_OF_CRUN)
        except OSError:  # it has ended
            return False

    def _line(self, line: bytes) -> str | None:
        """runc's error for *line* of crun's; '' for one that adds nothing, None for what isn't crun's."""
        line = _COLOURS.sub(b"", line).rstrip(b"\r")
        if _RECORD.fullmatch(line) is None:
            return self._of_exec(line.decode(errors="replace"))
        try:
            message = str(json.loads(line)["msg"])
        except ValueError:
            return None
        if message.startswith(_TIMED_OUT):
            return ""
        if failed := _PROGRAM.fullmatch(message):
            return f"exec {failed[1]}: {failed[2].lower()}"
        if (hook := _HOOK.fullmatch(message)) and self._hooks is not None:
            return self._hooks.error(hook[1], int(hook[2]))
        return message[:1].lower() + message[1:]

    def _of_exec(self, line: str) -> str | None:
        said = line.removeprefix(_EXEC)
        if said != line and said in {os.strerror(number) for number in errno.errorcode}:
            return f"exec {self._program}: {said.lower()}"
        return None


def _may_go_on(held: bytes) -> bool:
    """Whether *held* ends within what may be crun's: a terminal gives it in parts."""
    line = _UNFINISHED_COLOUR.sub(b"", _COLOURS.sub(b"", held.splitlines()[-1]))
    if held.endswith(b"\n"):
        return False
    return any(line.startswith(head) or head.startswith(line) for head in (_RECORD_HEAD, _EXEC.encode()))
