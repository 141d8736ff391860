"""Runs the programs that build the image, and says what one that fails said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from runvm.errors import HostError

_SECONDS = 1800.0
"""How long one may take: a download of some hundred MiB by a slow line. apt's own deadlines are for a silent server."""


class CommandError(HostError):
    """A program of the build failed, or didn't end; *details* has its output."""


def run(argv: Sequence[str], *, cwd: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """The standard output of *argv*; *environment* is what it gets besides a plain one.

    Raises HostError when it isn't there, CommandError when it fails or takes too long.
    """
    plain = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    # apt's way out may be a proxy that only the environment knows
    plain.update({key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")})
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**plain, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise CommandError(
            f"timed out after {_SECONDS:.0f} s waiting for {' '.join(argv[:2])}",
            do="look whether the mirror, or the proxy to it, answers; what has come is kept for the next try",
        ) from None
    except FileNotFoundError as error:
        raise HostError(
            f"{argv[0]} isn't installed: the guest image is built from Debian packages",
            do="name your own kernel, initramfs and modules in /etc/runvm/config.toml",
        ) from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise CommandError(f"{' '.join(argv[:2])} ended with {done.returncode}", details=words)
    return done.stdout.decode()
