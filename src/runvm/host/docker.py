"""Docker's /etc/docker/daemon.json with runvm among its runtimes, and without; called by host.engines."""

from __future__ import annotations

import os

from runvm.errors import ConfigError
from runvm.host import files, jsontext

FILE = "etc/docker/daemon.json"


def add(text: str | None, *, program: str, default: bool, file: str, root: str) -> str:
    """*text* of *file* with a runtime runvm that is *program*; all else, further keys of it too, as it was."""
    if text is None or not text.strip():
        text = "{}\n"
    wanted = files.parse_json(text, file)
    if "runtimeType" in files.table(wanted, "runtimes", "runvm"):  # dockerd refuses a file with both
        raise ConfigError(f"{file}: runtimes.runvm has a runtimeType already", do="take runtimes.runvm out first")
    try:
        after = jsontext.set_member(text, ("runtimes", "runvm", "path"), program)
        if default:
            after = jsontext.set_member(after, ("default-runtime",), "runvm")
    except TypeError as error:
        raise ConfigError(f"{file}: {error} is not an object", do="mend the file first") from error
    runtime = {**files.table(wanted, "runtimes", "runvm"), "path": program}
    wanted["runtimes"] = {**files.table(wanted, "runtimes"), "runvm": runtime}
    if default:
        wanted["default-runtime"] = "runvm"
    files.require(files.parse_json(after, file) == wanted, file)
    return after


def remove(text: str, *, before: str | None, file: str) -> str:
    """*text* of *file* without runvm; a default runtime that runvm took the place of in *before* is back."""
    current = files.parse_json(text, file)
    past = files.parse_json(before, file) if before and before.strip() else {}
    runtimes = files.table(current, "runtimes")
    after = text
    if "runvm" in runtimes:
        alone = len(runtimes) == 1 and "runtimes" not in past
        after = jsontext.remove_member(after, ("runtimes",) if alone else ("runtimes", "runvm"))
    if current.get("default-runtime") == "runvm":
        if "default-runtime" in past:
            after = jsontext.set_member(after, ("default-runtime",), past["default-runtime"])
        else:
            after = jsontext.remove_member(after, ("default-runtime",))
    files.parse_json(after, file)
    return after


def reload_command() -> str:
    """What makes a running dockerd read its file again; `runtimes` and `default-runtime` need no restart."""
    if os.path.isdir("/run/systemd/system"):
        return "systemctl reload docker"
    return "kill -HUP $(cat /run/docker.pid)"


def obstacle(text: str, file: str) -> str:
    """Nothing that is known."""
    return ""
