"""Podman's /etc/containers/containers.conf.d/runvm.conf, a file that is all ours; called by host.engines.

Podman reads that directory since 3.0, after containers.conf, and merges tables (4.3: seen with `podman info`).
"""

from __future__ import annotations

import json
import os

from runvm.errors import ConfigError
from runvm.host import files

FILE = "etc/containers/containers.conf.d/runvm.conf"
_MARK = "# Made by 'runvm install podman'; 'runvm uninstall podman' removes it."
# Podman's own list where no file has one (containers.conf(5)); to add to it is to repeat it
_JSON_RUNTIMES = ("crun", "runc", "kata", "runsc", "youki", "krun")


def add(text: str | None, *, program: str, default: bool, file: str, root: str) -> str:
    """The file's whole text; *text*, what it is now, must be of our making. Still the default if it was."""
    if text is not None and not text.startswith(_MARK):
        raise ConfigError(f"{file} is there already, and 'runvm install' did not make it", do="move it away first")
    default = default or text is not None and _is_default(text, file)
    lines = [
        _MARK,
        "[engine]",
        *(['runtime = "runvm"'] if default else []),
        "# of these runtimes Podman reads errors as JSON; the list takes the place of the one before it",
        f"runtime_supports_json = {json.dumps(_json_runtimes(root, file))}",
        "",
        "[engine.runtimes]",
        f"runvm = [{json.dumps(program)}]",
    ]
    return "\n".join(lines) + "\n"


def remove(text: str, *, before: str | None, file: str) -> str | None:
    """None, for no file, if *text* is of our making."""
    return None if text.startswith(_MARK) else text


def reload_command() -> str:
    """Nothing: each podman command reads its files."""
    return ""


def obstacle(text: str, file: str) -> str:
    """Nothing that is known."""
    return ""


def _is_default(text: str, file: str) -> bool:
    return files.table(files.parse_toml(text, file), "engine").get("runtime") == "runvm"


def _json_runtimes(root: str, own: str) -> list[str]:
    """What runtime_supports_json is without our file, and runvm."""
    directory = os.path.dirname(own)
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    candidates = [os.path.join(root, top, "containers/containers.conf") for top in ("usr/share", "etc")]
    candidates += [os.path.join(directory, name) for name in names if name.endswith(".conf")]
    supports: list[object] = list(_JSON_RUNTIMES)
    for file in candidates:
        text = files.read(file) if file != own else None
        found = files.table(files.parse_toml(text, file), "engine").get("runtime_supports_json") if text else None
        if isinstance(found, list):
            supports = found
    return [str(name) for name in supports if name != "runvm"] + ["runvm"]
