"""What the annotations about warm starts say."""

from __future__ import annotations

from runvm.config import WARM, WARM_VOLUMES
from runvm.errors import ConfigError
from runvm.records import NamedTuple

MAX_QUIET_SECONDS = 3600


_HEALTHY = "healthy"


class Wish(NamedTuple):
    """When a container is warm: once the file *path* is there, where that is '' after so many seconds in which it did
    nothing, and where they are 0 once a process that exec has started has ended with 0, as a health check does. With
    *volumes* it may have some that can be written to."""

    path: str
    quiet_s: int
    volumes: bool


def read(annotations: dict[str, str]) -> Wish:
    """What the annotation io.runvm.warm asks for. Raises ConfigError."""
    text = annotations[WARM]
    volumes = annotations.get(WARM_VOLUMES, "false")
    if volumes not in ("true", "false"):
        raise ConfigError(f"annotation {WARM_VOLUMES}: {volumes!r} is not allowed", do="it takes true or false")
    if text.startswith("/") and text.strip("/"):
        return Wish(text, 0, volumes == "true")
    if text == _HEALTHY:
        return Wish("", 0, volumes == "true")
    seconds = text.removesuffix("s")
    if seconds.isascii() and seconds.isdigit() and len(seconds) < 5 and 0 < int(seconds) <= MAX_QUIET_SECONDS:
        return Wish("", int(seconds), volumes == "true")
    raise ConfigError(
        f"annotation {WARM}: {text!r} is not allowed",
        do="it takes the absolute path of a file that the program makes when it is ready, the word "
        f"'{_HEALTHY}', or 1 to {MAX_QUIET_SECONDS} seconds of quiet",
    )
