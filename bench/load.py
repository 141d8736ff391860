"""What bench/work.py runs in each container: a line "NAME SECONDS" for each part. Argument: a directory to work in."""

import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORK = sys.argv[1]
LIBRARY = os.path.dirname(os.__file__)
MODULES = ("asyncio", "email", "encodings", "json", "multiprocessing", "unittest", "xml")


def call(*argv: str) -> None:
    """Run a program that must succeed."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def python() -> None:
    """An interpreter with some modules that most programs use, three times."""
    for _ in range(3):
        call(sys.executable, "-c", "import json, re, asyncio, ssl")


def sqlite() -> None:
    """One row a transaction."""
    database = sqlite3.connect(f"{WORK}/data.db")
    database.execute("CREATE TABLE rows (number INTEGER, text TEXT)")
    for number in range(200):
        with database:
            database.execute("INSERT INTO rows VALUES (?, ?)", (number, f"row {number}"))
    database.close()


def tar() -> None:
    """As a backup or a build makes them."""
    with tarfile.open(f"{WORK}/modules.tar.gz", "w:gz") as archive:
        for name in MODULES:
            archive.add(f"{LIBRARY}/{name}", name)


def find() -> None:
    """Names and sizes of some thousand files."""
    call("/usr/bin/find", LIBRARY, "-name", "*.py", "-size", "+2k")


def sort() -> None:
    """A file of random lines."""
    random.seed(7)
    with open(f"{WORK}/lines", "w", encoding="ascii") as file:
        file.writelines(f"{random.random()}\n" for _ in range(200_000))
    call("/usr/bin/sort", "-o", f"{WORK}/sorted", f"{WORK}/lines")


def forks() -> None:
    """As a shell script does it."""
    call("/usr/bin/sh", "-c", "i=0; while [ $i -lt 100 ]; do /usr/bin/true; i=$((i + 1)); done")


class Hello(BaseHTTPRequestHandler):
    """Answers with a line."""

    def do_GET(self) -> None:
        """A short answer."""
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def http() -> None:
    """A server and its client, a connection for each request."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    for _ in range(200):
        connection = HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hello\n"
        connection.close()
    server.shutdown()


def files() -> None:
    """As an installation or a build does it."""
    os.mkdir(f"{WORK}/files")
    for number in range(1000):
        with open(f"{WORK}/files/{number}", "wb") as file:
            file.write(b"x" * 2000)
    for number in range(1000):
        with open(f"{WORK}/files/{number}", "rb") as file:
            assert len(file.read()) == 2000


def awk() -> None:
    """Instructions alone."""
    call("/usr/bin/mawk", "BEGIN { for (i = 0; i < 10000000; i++) s += i * 2; print s }")


def sha256() -> None:
    """Instructions alone, those for hashing among them where the processor has them."""
    block = bytes(1 << 20)  # read again and again: 64 MiB of memory would be page faults most of all
    digest = hashlib.sha256()
    for _ in range(64):
        digest.update(block)
    digest.hexdigest()


def measure(work: Callable[[], None]) -> None:
    """Carry it out, and say how long it took."""
    begun = time.perf_counter()
    work()
    print(work.__name__, f"{time.perf_counter() - begun:.6f}", flush=True)


for part in (python, sqlite, tar, find, sort, forks, http, files, awk, sha256):
    measure(part)
