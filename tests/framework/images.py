"""Debian root filesystems with programs in them, as tar files that `docker import` takes; no image registry is asked.

A tar file is made once and kept below CACHE under a hash of its recipe, since debootstrap and apt take a minute.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

CACHE = os.environ.get("RUNVM_TEST_CACHE", "/var/cache/runvm-tests")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
}
_BUILD_SECONDS = 900


class Recipe(NamedTuple):
    """What a root filesystem has besides Debian's minimum: packages, then *script* (sh) run in it, then *files*."""

    name: str
    packages: tuple[str, ...]
    script: str = ""
    files: tuple[tuple[str, str], ...] = ()
    """Paths and contents; all are executable."""
    wheels: tuple[str, ...] = ()
    """Requirements that pip puts beside Debian's own Python."""


SERVICES = Recipe(
    "services",
    ("nginx-light", "curl", "postgresql", "redis-server", "sqlite3", "python3", "python3-pip"),
    # the names and places that the images of these programs on the public registry have
    """
    ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/
    ln -s python3 /usr/bin/python
    rm -f /usr/lib/python3*/EXTERNALLY-MANAGED /etc/nginx/sites-enabled/default
    ln -sf /dev/stdout /var/log/nginx/access.log
    ln -sf /dev/stderr /var/log/nginx/error.log
    """,
    (
        (
            "/usr/local/bin/postgres-entrypoint",
            """#!/bin/sh
# What the public postgres image does of the first start: a cluster in PGDATA, a password, a database
set -e
export PGDATA="${PGDATA:-/var/lib/postgresql/data}"
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /run/postgresql
    chown -R postgres:postgres "$PGDATA" /run/postgresql
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    echo "$POSTGRES_PASSWORD" >/tmp/password
    initdb --username=postgres --pwfile=/tmp/password --auth-host=scram-sha-256 --encoding=UTF8 >/dev/null
    rm /tmp/password
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    if [ -n "$POSTGRES_DB" ]; then
        echo "CREATE DATABASE \\"$POSTGRES_DB\\"" | postgres --single postgres >/dev/null
    fi
fi
exec "$@"
""",
        ),
    ),
    ("psycopg[binary]>=3.1,<4", "redis>=5,<7"),
)


def _release() -> str:
    with open("/etc/os-release", encoding="utf-8") as file:
        return next(line.split("=")[1].strip() for line in file if line.startswith("VERSION_CODENAME="))


SYSTEM = Recipe(
    "system",
    (
        "systemd",
        "systemd-sysv",
        "dbus",
        "docker.io",
        *(() if _release() == "bookworm" else ("docker-cli",)),  # a package of its own since Debian 13
        "iptables",
        "nftables",
        "iproute2",
        "procps",
        "busybox-static",
        "kmod",
        "e2fsprogs",
    ),
    # what waits for hardware or a console that no container has
    "systemctl mask --quiet getty.target console-getty.service systemd-logind.service docker.socket docker.service "
    "containerd.service",
)


def tarball(recipe: Recipe) -> str:
    """The path of the tar file of *recipe*, made if it isn't there. Raises CalledProcessError with the output."""
    base = _cached("base", "", _bootstrap)
    # what pip installs depends on the Python that runs it
    return _cached(recipe.name, f"{sys.version} {recipe}", lambda root: _furnish(root, base, recipe))


def _cached(kind: str, key: str, build: object) -> str:
    assert callable(build)
    name = hashlib.sha256(f"{_release()} {key}".encode()).hexdigest()[:16]
    path = f"{CACHE}/{kind}-{name}.tar"
    if os.path.exists(path):
        return path
    os.makedirs(CACHE, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="building-") as scratch:
        root = f"{scratch}/root"
        build(root)
        run("tar", "--numeric-owner", "--xattrs", "-C", root, "-cf", f"{scratch}/tar", ".")
        os.replace(f"{scratch}/tar", path)
    return path


def _bootstrap(root: str) -> None:
    run("debootstrap", "--variant=minbase", "--include=ca-certificates", _release(), root)
    tidy(root)


def _furnish(root: str, base: str, recipe: Recipe) -> None:
    os.mkdir(root)
    run("tar", "--numeric-owner", "--xattrs", "-C", root, "-xf", base)
    policy = f"{root}/usr/sbin/policy-rc.d"
    _write(policy, "#!/bin/sh\nexit 101\n")  # "action forbidden": nothing is started in the chroot
    shutil.copy("/etc/resolv.conf", f"{root}/etc/resolv.conf")
    run("chroot", root, "apt-get", "update", "-q")
    run("chroot", root, "apt-get", "install", "-qy", "--no-install-recommends", *recipe.packages)
    if recipe.script:
        run("chroot", root, "sh", "-euc", recipe.script)
    for path, text in recipe.files:
        _write(root + path, text)
    if recipe.wheels:
        # by the host's pip, which knows the way to its index; both Pythons are the release's own
        (python,) = glob.glob(f"{root}/usr/lib/python3.*")
        packages = f"{root}/usr/local/lib/{os.path.basename(python)}/dist-packages"
        run(sys.executable, "-m", "pip", "install", "--quiet", "--target", packages, *recipe.wheels)
    os.unlink(policy)
    tidy(root)


def tidy(root: str) -> None:
    """Take away what apt has fetched into the root filesystem *root*."""
    for directory in ("var/lib/apt/lists", "var/cache/apt"):
        shutil.rmtree(f"{root}/{directory}", ignore_errors=True)
        os.makedirs(f"{root}/{directory}/partial")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)


def run(*argv: str, timeout: float = _BUILD_SECONDS) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(
        argv,
        env=os.environ | _ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{' '.join(argv)} ended with {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}"
