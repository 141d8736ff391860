"""Being in a user namespace: a real one, made by unshare(1)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runvm.linux import userns

SOURCE = str(Path(__file__).parents[3] / "src")
SCRIPT = "from runvm.linux import userns; print(userns.limited(), userns.spare_id(5))"


def in_user_namespace(*flags: str) -> str:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: apt-get install util-linux")
    argv = ["unshare", *flags, sys.executable, "-c", SCRIPT]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, env={"PYTHONPATH": SOURCE})
    if done.returncode:
        pytest.skip(f"no user namespace to be had here: {done.stderr}")
    return done.stdout.strip()


def test_one_id_is_not_to_spare() -> None:
    assert in_user_namespace("--user", "--map-root-user") == "True 0"


def test_the_hosts_root_is_not_limited() -> None:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        whole = file.read().split() == ["0", "0", "4294967295"]
    assert userns.limited() == (os.geteuid() != 0 or not whole)
