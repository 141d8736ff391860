"""containerd's /etc/containerd/config.toml with a runtime runvm for CRI (Kubernetes), and without; for host.engines.

The stanza is appended: TOML tables have absolute names, so nothing above it changes. The result is parsed and compared
with what it should mean before anything is written.
"""

from __future__ import annotations

import json
import os

from runvm.errors import ConfigError
from runvm.host import files

FILE = "etc/containerd/config.toml"
_MARK = (
    "# runvm: the next two tables are made by 'runvm install containerd' and removed by 'runvm uninstall containerd'"
)
_PLUGIN = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}  # by the file's version
_IMAGES = "io.containerd.cri.v1.images"
"""Without which the one of version 3 doesn't start."""
_RUNTIME = {
    "runtime_type": "io.containerd.runc.v2",
    # a pod's annotations reach the runtime only if they match
    "pod_annotations": ["io.runvm.*"],
    "container_annotations": ["io.runvm.*"],
}


def add(text: str | None, *, program: str, default: bool, file: str, root: str) -> str:
    """*text* of *file* with a runtime runvm that is *program*; all else as it was."""
    if text is None or not text.strip():
        text = "version = 2\n"
    parsed = files.parse_toml(text, file)
    keys = _keys(parsed, file)
    present = files.table(parsed, *keys)
    if present:
        after = _with_binary(text, present, (*keys, "options"), program)
        parsed = files.parse_toml(after, file)
        files.require(files.table(parsed, *keys, "options").get("BinaryName") == program, file)
        return after
    name = ".".join(json.dumps(key) if "." in key else key for key in keys)
    lines = [
        "",
        _MARK,
        f"[{name}]",
        *(f"  {key} = {json.dumps(value)}" for key, value in _RUNTIME.items()),
        f"  [{name}.options]",
        f"    BinaryName = {json.dumps(program)}",
    ]
    after = text + ("" if text.endswith("\n") else "\n") + "\n".join(lines) + "\n"
    inner = parsed
    for key in keys[:-1]:
        child = inner.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{file}: {key} is not a table", do="mend the file first")
        inner = child
    inner[keys[-1]] = {**_RUNTIME, "options": {"BinaryName": program}}
    import tomllib

    try:
        files.require(tomllib.loads(after) == parsed, file)
    except tomllib.TOMLDecodeError:  # an inline table, say: TOML lets nobody add to that from outside
        files.require(False, file)
    return after


def remove(text: str, *, before: str | None, file: str) -> str:
    """*text* of *file* without the tables of the runtime runvm."""
    parsed = files.parse_toml(text, file)
    keys = _keys(parsed, file)
    if not files.table(parsed, *keys):
        return text
    lines = text.splitlines(keepends=True)
    drop: set[int] = set()
    for start, end, found in _tables(lines):
        if found[: len(keys)] != keys:
            continue
        while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
            end -= 1  # blank lines and comments before the next table belong to that
        drop.update(range(start, end))
        if start > 0 and lines[start - 1].startswith(_MARK):
            drop.add(start - 1)
            if start > 1 and not lines[start - 2].strip():
                drop.add(start - 2)
    after = "".join(line for number, line in enumerate(lines) if number not in drop)
    files.require(not files.table(files.parse_toml(after, file), *keys), file)
    return after


def reload_command() -> str:
    """containerd reads its file only when it starts."""
    if os.path.isdir("/run/systemd/system"):
        return "systemctl restart containerd"
    return "restart containerd the way it was started"


def obstacle(text: str, file: str) -> str:
    """The file that Docker's packages of containerd bring along switches the CRI plugin off."""
    disabled = files.parse_toml(text, file).get("disabled_plugins")
    off = [name for name in disabled if name in (*_PLUGIN.values(), _IMAGES)] if isinstance(disabled, list) else []
    if not off:
        return ""
    return f"{file} switches the plugin off that has these runtimes: take {', '.join(off)} out of disabled_plugins"


def _keys(parsed: dict[str, object], file: str) -> tuple[str, ...]:
    """Where the runtime belongs, by the version of the file."""
    version = parsed.get("version", 1)
    if not isinstance(version, int) or version not in _PLUGIN:
        raise ConfigError(f"{file}: version {version} of containerd's configuration is not known to runvm")
    return ("plugins", _PLUGIN[version], "containerd", "runtimes", "runvm")


def _with_binary(text: str, present: dict[str, object], table: tuple[str, ...], program: str) -> str:
    """*text* with BinaryName in *table* set to *program* where a line says it; the same text otherwise."""
    if present.get("runtime_type") != _RUNTIME["runtime_type"]:
        return text
    lines = text.splitlines(keepends=True)
    for start, end, found in _tables(lines):
        for number in range(start + 1, end) if found == table else ():
            key, equals, _ = lines[number].partition("=")
            if key.strip() == "BinaryName" and files.table(present, "options").get("BinaryName") != program:
                lines[number] = f"{key}{equals} {json.dumps(program)}\n"
    return "".join(lines)


def _tables(lines: list[str]) -> list[tuple[int, int, tuple[str, ...]]]:
    """The tables of a TOML file: first line, line after the last, keys."""
    import tomllib

    found: list[tuple[int, tuple[str, ...]]] = []
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("["):
            continue
        try:
            inner: object = tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue  # the inside of an array, not a header
        keys: list[str] = []
        while isinstance(inner, dict | list) and inner:
            if isinstance(inner, list):
                inner = inner[0]
            else:
                key, inner = next(iter(inner.items()))
                keys.append(key)
        found.append((number, tuple(keys)))
    ends = [number for number, _ in found[1:]] + [len(lines)]
    return [(number, end, keys) for (number, keys), end in zip(found, ends, strict=True)]
