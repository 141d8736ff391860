"""Databases on volumes lose nothing that they have acknowledged, however their container ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from framework.images import SERVICES
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.docker import Dockerd

IMAGE = "services:databases"
BEFORE_THE_KILL = 200

# Writes rows 1, 2, … and prints each number once the database has taken it for good; `count` prints how many there are,
# or why they aren't 1 to n
CLIENT = """
import itertools, sys
kind, command = sys.argv[1:]
if kind == "postgres":
    import psycopg
    connection = psycopg.connect("user=postgres", autocommit=True)
    connection.execute("CREATE TABLE IF NOT EXISTS rows (n int PRIMARY KEY, pad text)")
    add = lambda n: connection.execute("INSERT INTO rows VALUES (%s, %s)", (n, "x" * 500))
    read = lambda: [n for (n,) in connection.execute("SELECT n FROM rows ORDER BY n")]
elif kind == "redis":
    import redis
    server = redis.Redis()
    add = lambda n: server.rpush("rows", n)
    read = lambda: [int(n) for n in server.lrange("rows", 0, -1)]
else:
    import sqlite3
    connection = sqlite3.connect("/data/rows.sqlite", isolation_level=None)
    connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (n int PRIMARY KEY, pad text)")
    add = lambda n: connection.execute("INSERT INTO rows VALUES (?, ?)", (n, "x" * 500))
    read = lambda: [n for (n,) in connection.execute("SELECT n FROM rows ORDER BY n")]
found = read()
if command == "count":
    print(len(found) if found == list(range(1, len(found) + 1)) else f"holes: {found}")
elif command == "load":
    for n in itertools.count(len(found) + 1):
        add(n)
        print(n, flush=True)
else:
    add(len(found) + 1)
"""


class Database(NamedTuple):
    """How a database runs: its volume's place and its command."""

    data: str
    command: tuple[str, ...]
    ready: tuple[str, ...]


DATABASES = {
    "postgres": Database(
        "/var/lib/postgresql/data", ("postgres-entrypoint", "postgres"), ("pg_isready", "--username=postgres")
    ),
    "redis": Database(
        "/data",
        ("redis-server", "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always"),
        ("redis-cli", "ping"),
    ),
    "sqlite": Database("/data", ("sleep", "infinity"), ("true",)),
}


@pytest.fixture(scope="module")
def image(docker: Dockerd) -> str:
    """An image with the three databases."""
    docker.provide(IMAGE, SERVICES, "ENV POSTGRES_PASSWORD=secret", "WORKDIR /var/lib/postgresql")
    return IMAGE


def client(docker: Dockerd, container: str, kind: str, command: str) -> tuple[str, ...]:
    """`docker exec` of CLIENT."""
    user = ("--user", "postgres") if kind == "postgres" else ()
    return ("exec", *user, container, "python3", "-c", CLIENT, kind, command)


def wait_ready(docker: Dockerd, container: str, ready: tuple[str, ...]) -> None:
    wait_until(
        lambda: docker.call("exec", container, *ready).code == 0,
        timeout=180,
        what=f"{container} to be ready:\n{docker.call('logs', container).describe()}",
        interval=0.5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATABASES)
def test_what_a_database_acknowledged_outlives_kill_9(docker: Dockerd, image: str, kind: str) -> None:
    """kill -9 under load, of the container and then of its virtual machine: after each restart every row is there."""
    database = DATABASES[kind]
    docker.detached("--name", kind, "--volume", f"{kind}-data:{database.data}", image, *database.command)
    acknowledged = 0
    for victim in ("container", "vmm"):
        wait_ready(docker, kind, database.ready)
        load = docker.start_client(*client(docker, kind, kind, "load"))
        assert load.popen.stdout is not None
        for _ in range(BEFORE_THE_KILL):
            line = load.popen.stdout.readline()
            assert line, load.wait(30).describe()
            acknowledged = int(line)
        if victim == "container":
            docker.ok("kill", kind)
        else:
            processes = docker.processes(kind)
            os.kill(processes.get("vmm", processes["init"]), signal.SIGKILL)
        acknowledged = int([str(acknowledged), *load.wait(60).stdout.decode().split()][-1])
        wait_until(lambda: not docker.inspect(kind)["State"]["Running"], timeout=30, what=f"the end of {kind}")
        docker.ok("start", kind)
        wait_ready(docker, kind, database.ready)
        assert int(docker.ok(*client(docker, kind, kind, "count"))) >= acknowledged


@pytest.fixture
def disk(tmp_path: os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """A file with an ext4 file system that writes back as late as it may, and where it is mounted."""
    image, mounted = f"{tmp_path}/disk", f"{tmp_path}/mounted"
    os.mkdir(mounted)
    subprocess.run(["truncate", "--size=64M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=30)
    options = "loop,commit=600"
    made = subprocess.run(["mount", "-o", options, image, mounted], capture_output=True, text=True, timeout=30)
    if made.returncode:
        pytest.skip(f"this host can't mount a file: {made.stderr.strip()}")
    yield image, mounted
    subprocess.run(["umount", mounted], check=True, timeout=30)


def test_fsync_reaches_the_disk(docker: Dockerd, image: str, disk: tuple[str, str], tmp_path: os.PathLike[str]) -> None:
    """A power cut after a commit: what SQLite synced is on the disk, a file that nobody synced isn't yet."""
    device, mounted = disk
    docker.detached("--name", "durable", "--volume", f"{mounted}:/data", image, "sleep", "infinity")
    docker.ok(*client(docker, "durable", "sqlite", "add"))
    docker.ok("exec", "durable", "sh", "-c", "echo unsynced >/data/unsynced")
    cut, found = f"{tmp_path}/cut", f"{tmp_path}/found"
    shutil.copyfile(device, cut)
    os.mkdir(found)
    subprocess.run(["mount", "-o", "loop", cut, found], check=True, timeout=30)
    try:
        assert not os.path.exists(f"{found}/unsynced"), "this disk writes back at once, so the test proves nothing"
        rows = docker.run("--volume", f"{found}:/data", image, "python3", "-c", CLIENT, "sqlite", "count")
        assert rows.expect(0).text == "1"
    finally:
        subprocess.run(["umount", found], check=True, timeout=30)
