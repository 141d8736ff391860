"""`runvm install|uninstall docker|podman|containerd`: shows and makes the change in an engine's configuration.

A change is made in the file's text, so that comments, order and formatting of everything else stay. What the file was
before is kept under data_dir/engines: undoing brings back its very bytes if nobody has edited it since; if somebody
has, only what is runvm's is taken out.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Protocol

from runvm.errors import HostError, UsageError
from runvm.host import files
from runvm.log import log
from runvm.records import NamedTuple

ENGINES = ("docker", "podman", "containerd")
DEFAULT_RUNTIME_PATH = "/usr/local/sbin/runvm"
DEFAULT_DATA_DIR = "/var/lib/runvm"


class Editor(Protocol):
    """What the module of an engine provides; texts are those of FILE (below the system's root), None for no file."""

    FILE: str

    def add(self, text: str | None, *, program: str, default: bool, file: str, root: str) -> str:
        """*text* with runvm; the same text if it is there."""

    def remove(self, text: str, *, before: str | None, file: str) -> str | None:
        """*text* without runvm; *before* is what the file was before it was added, where that is known."""

    def reload_command(self) -> str:
        """What the user runs to make the change count; '' if nothing."""

    def obstacle(self, text: str, file: str) -> str:
        """What in *text*, with runvm, keeps that from having an effect, and what to do; '' if nothing."""


def install(
    engine: str,
    *,
    runtime_path: str = DEFAULT_RUNTIME_PATH,
    default: bool = False,
    dry_run: bool = False,
    data_dir: str = DEFAULT_DATA_DIR,
    root: str = "/",
) -> int:
    """Add runvm (the program at *runtime_path*) to *engine*'s runtimes; with *default* containers get it unasked.

    Prints the change as a unified diff, then makes it unless *dry_run*; if it is made already, says so. *root* is the
    system's root directory. Returns 0, for an exit code.
    Raises: UsageError (no such engine), HostError (no such program, can't write), ConfigError (the engine's file is
    wrong already, or written so that it can't be edited safely); nothing has been changed then.
    """
    editor = _editor(engine)
    if default and engine == "containerd":
        raise UsageError(
            "--default is not for containerd", do="choose runvm by a Kubernetes RuntimeClass, see the docs"
        )
    program = os.path.join(root, runtime_path.lstrip("/"))
    if not runtime_path.startswith("/") or not os.path.isfile(program) or not os.access(program, os.X_OK):
        raise HostError(
            f"{runtime_path} is not the absolute path of a program",
            do="install runvm first, or give its path by --runtime-path",
        )
    file = _file(editor, root)
    before = files.read(file)
    after = editor.add(before, program=runtime_path, default=default, file=file, root=root)
    if after == before:
        print(f"{file}: runvm is there already, nothing to change")
        _tell_obstacle(editor, after, file)
        return 0
    _show(file, before, after)
    if dry_run:
        return 0
    # the record first: a change without one could be undone less exactly, a record without a change does no harm
    record = _record_file(engine, data_dir, root)
    _Record(_base(editor, file, before, _Record.load(record)), after).save(record)
    files.replace(file, after)
    _tell(editor, f"changed {file}")
    _tell_obstacle(editor, after, file)
    return 0


def uninstall(engine: str, *, dry_run: bool = False, data_dir: str = DEFAULT_DATA_DIR, root: str = "/") -> int:
    """Undo `install`: the file as it was, or, if it has been edited since, without what is runvm's. Returns 0.

    Raises: as install.
    """
    editor = _editor(engine)
    file = _file(editor, root)
    record = _record_file(engine, data_dir, root)
    before = files.read(file)
    after = _base(editor, file, before, _Record.load(record))
    if after == before:
        print(f"{file}: runvm is not there, nothing to change")
    else:
        _show(file, before, after)
    if dry_run:
        return 0
    if after != before:
        files.replace(file, after)
        _tell(editor, f"changed {file}" if after is not None else f"removed {file}")
    if os.path.exists(record):
        files.replace(record, None)
    return 0


class _Record(NamedTuple):
    """What `install` remembers: the file's text without runvm and with it."""

    before: str | None
    after: str

    @staticmethod
    def load(file: str) -> _Record | None:
        try:
            parsed = json.loads(files.read(file) or "")
            before, after = parsed["before"], parsed["after"]
        except (ValueError, KeyError, TypeError):
            return None  # none, or a damaged one: what is runvm's is then known by its name
        return _Record(before, after) if isinstance(after, str) and isinstance(before, str | None) else None

    def save(self, file: str) -> None:
        files.replace(file, json.dumps(self._asdict()) + "\n", private=True)  # private: daemon.json may hold secrets


def _base(editor: Editor, file: str, text: str | None, record: _Record | None) -> str | None:
    """*text* of the engine's file as it would be without runvm."""
    if record is not None and text == record.after:
        return record.before
    if text is None or not text.strip():
        return text
    return editor.remove(text, before=record.before if record else None, file=file)


def _editor(engine: str) -> Editor:
    if engine == "docker":
        from runvm.host import docker

        return docker
    if engine == "podman":
        from runvm.host import podman

        return podman
    if engine == "containerd":
        from runvm.host import containerd

        return containerd
    raise UsageError(f"unknown engine {engine}", do=f"it is one of {', '.join(ENGINES)}")


def _file(editor: Editor, root: str) -> str:
    # a symlink is followed here, for the new file takes the place of what the path names
    return os.path.realpath(os.path.join(root, editor.FILE))


def _record_file(engine: str, data_dir: str, root: str) -> str:
    return os.path.join(root, data_dir.lstrip("/"), "engines", f"{engine}.json")


def _show(file: str, before: str | None, after: str | None) -> None:
    import difflib

    old, new = ((text or "").splitlines(keepends=True) for text in (before, after))
    names = (file if before is not None else "/dev/null", file if after is not None else "/dev/null")
    for line in difflib.unified_diff(old, new, *names):
        sys.stdout.write(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")


def _tell(editor: Editor, done: str) -> None:
    reload = editor.reload_command()
    print(done + (f"; to make it count: {reload}" if reload else ""))


def _tell_obstacle(editor: Editor, text: str, file: str) -> None:
    if obstacle := editor.obstacle(text, file):
        log.warning(obstacle)
