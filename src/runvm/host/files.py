"""Reading and replacing configuration files of other programs: for the engines' modules of this package."""

from __future__ import annotations

import os

from runvm.errors import ConfigError, HostError


def read(file: str) -> str | None:
    """The text of *file*, line ends as they are; None if there is none. Raises: HostError, ConfigError (no UTF-8)."""
    try:
        with open(file, encoding="utf-8", newline="") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HostError(f"can't read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 (byte {error.start})") from error


def replace(file: str, text: str | None, *, private: bool = False) -> None:
    """Put *text* in *file*'s place in one step, with its mode and owner; None removes it; *private*: mode 0600.

    Raises: HostError; the file is then as it was.
    """
    try:
        if text is None:
            os.unlink(file)
            return
        directory = os.path.dirname(file)
        os.makedirs(directory, mode=0o700 if private else 0o755, exist_ok=True)
        try:
            status = os.stat(file)
            mode, uid, gid = status.st_mode & 0o7777, status.st_uid, status.st_gid
        except FileNotFoundError:
            mode, uid, gid = 0o600 if private else 0o644, os.geteuid(), os.getegid()
        temporary = os.path.join(directory, f".{os.path.basename(file)}.{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fchown(fd, uid, gid)
                os.fchmod(fd, mode)
                os.fsync(fd)
            os.rename(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise HostError(f"can't write {file}: {error.strerror}", do="nothing was changed; run it as root") from error


def parse_json(text: str, file: str) -> dict[str, object]:
    """*text* of *file* as a JSON object. Raises: ConfigError, naming file and line."""
    import json

    def refuse(constant: str) -> object:
        raise ConfigError(f"{file} is not valid JSON: {constant} is no number there")

    try:
        parsed = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{file} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error
    if not isinstance(parsed, dict):
        raise ConfigError(f"{file} is not a JSON object")
    return parsed


def parse_toml(text: str, file: str) -> dict[str, object]:
    """*text* of *file* as TOML. Raises: ConfigError, naming file and line."""
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def table(parsed: object, *keys: str) -> dict[str, object]:
    """The table at *keys* of a parsed document; empty where there is none."""
    for key in keys:
        parsed = parsed.get(key) if isinstance(parsed, dict) else None
    return parsed if isinstance(parsed, dict) else {}


def require(right: bool, file: str) -> None:
    """The last check before *file* is written: the edited text means what it should. Raises: ConfigError."""
    if not right:
        raise ConfigError(f"{file} is written in a way that can't be edited safely", do="edit it by hand, see the docs")
