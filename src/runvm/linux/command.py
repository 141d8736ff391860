"""Runs another program for what it prints, under a deadline."""

from __future__ import annotations

import os

from runvm.errors import HostError

_versions: dict[str, str] = {}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def named(path: str, key: str) -> str:
    """*path*, the program that the setting *key* names. Raises HostError where it is none."""
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise HostError(f"{key}: {path} is no program", do=f"set {key} in /etc/runvm/config.toml, or leave it out")
    return path


def version(program: str) -> str:
    """What *program* prints with --version: run once, since a checkpoint or a restore wants to know at several places.
    Raises HostError."""
    if program not in _versions:
        _versions[program] = ask([program, "--version"])
    return _versions[program]


def ask(argv: list[str], *, timeout: float = 10.0) -> str:
    """What the program *argv* prints. Raises: HostError, with its message, where it fails or says nothing in time."""
    import subprocess

    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            env=environment,
        )
    except OSError as error:
        raise HostError(f"{argv[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise HostError(f"'{' '.join(argv)}' did not end within {timeout:.0f} s") from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise HostError(f"'{' '.join(argv)}' failed: {words[-1] if words else f'exit code {done.returncode}'}")
    return done.stdout
