"""The main job in a real VM: what has to hold before anything else does. The wide suite beside it goes further."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_SOURCE = Path(__file__).resolve().parents[2] / "src"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a container's start needs root")


def runvm(*argv: str, data: bytes = b"", timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
    """One command of the checkout's runvm, by the distribution's Python."""
    # files, not pipes: a created container keeps its streams, and a pipe's end would not come
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        stdin.write(data)
        stdin.seek(0)
        done = subprocess.run(
            ["/usr/bin/python3", "-m", "runvm", *argv],
            stdin=stdin,
            stdout=out,
            stderr=err,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": os.fspath(_SOURCE)},
            check=False,
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of busybox, its config.json as `runvm spec` writes it but for the terminal."""
    binaries = tmp_path / "rootfs" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy("/bin/busybox", binaries / "busybox")
    for name in ("sh", "cat", "uname", "hostname", "sleep", "true"):
        (binaries / name).symlink_to("busybox")
    assert runvm("spec", "--bundle", os.fspath(tmp_path)).returncode == 0
    edit(tmp_path, "true")
    return tmp_path


def edit(bundle: Path, *args: str) -> None:
    """Set the process's words."""
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["process"]["args"] = list(args)
    config["process"]["terminal"] = False
    path.write_text(json.dumps(config))


@pytest.fixture
def name() -> Iterator[str]:
    """A container id, deleted by force afterwards."""
    cid = f"core-{os.getpid()}-{time.monotonic_ns()}"
    yield cid
    assert runvm("delete", "--force", cid).returncode == 0


def test_a_container_runs_on_a_kernel_of_its_own(bundle: Path, name: str) -> None:
    """Its kernel isn't the host's; its streams are apart, byte for byte; its exit code is the command's."""
    edit(bundle, "sh", "-c", "cat /proc/sys/kernel/random/boot_id >&2; cat; exit 42")
    data = os.urandom(3 << 20)
    done = runvm("run", "--bundle", os.fspath(bundle), name, data=data)
    assert done.returncode == 42, done.stderr
    assert done.stdout == data
    assert done.stderr != Path("/proc/sys/kernel/random/boot_id").read_bytes()


def test_a_container_lives_through_its_states(bundle: Path, name: str) -> None:
    """created, running, paused, stopped; exec, kill and ps in between; the pid file has the state's pid."""
    edit(bundle, "sleep", "300")
    pid_file = bundle / "pid"
    created = runvm("create", "--bundle", os.fspath(bundle), "--pid-file", os.fspath(pid_file), name)
    assert created.returncode == 0, created.stderr
    assert _state(name)["status"] == "created"
    assert runvm("start", name).returncode == 0
    assert _state(name)["status"] == "running"
    assert _state(name)["pid"] == int(pid_file.read_text())
    done = runvm("exec", name, "sh", "-c", "echo inside; exit 7")
    assert (done.returncode, done.stdout) == (7, b"inside\n")
    assert json.loads(runvm("ps", "--format", "json", name).stdout) == [_state(name)["pid"]]
    assert runvm("pause", name).returncode == 0
    assert _state(name)["status"] == "paused"
    assert runvm("resume", name).returncode == 0
    assert b"not stopped" in runvm("delete", name).stderr
    assert runvm("kill", name, "KILL").returncode == 0
    _wait_stopped(name)
    assert b"container not running" in runvm("kill", name, "KILL").stderr
    assert runvm("delete", name).returncode == 0
    assert b"container does not exist" in runvm("state", name).stderr


def test_a_missing_program_fails_at_create_and_leaves_nothing(bundle: Path, name: str) -> None:
    """The text is the one that docker turns into exit code 127."""
    edit(bundle, "no-such-program")
    done = runvm("create", "--bundle", os.fspath(bundle), name)
    assert done.returncode == 1
    assert b'exec: "no-such-program": executable file not found in $PATH' in done.stderr
    assert b"container does not exist" in runvm("state", name).stderr


@pytest.mark.parametrize("victim", ["supervisor", "vmm", "virtiofsd", "shim"])
def test_a_killed_part_takes_the_container_with_it(bundle: Path, name: str, victim: str) -> None:
    """kill -9 of any part: the container is stopped, and after `delete --force` no process of it is left."""
    edit(bundle, "sleep", "300")
    assert runvm("run", "--detach", "--bundle", os.fspath(bundle), name).returncode == 0
    record = json.loads(Path(f"/run/runvm/containers/{name}/state.json").read_text())
    directory = Path(f"/run/runvm/sandboxes/{record['sandbox']}")
    pids = {role: pid for role, (pid, _) in json.loads((directory / "processes.json").read_text()).items()}
    pids["shim"] = record["shim"][0]
    os.kill(pids[victim], signal.SIGKILL)
    _wait_stopped(name)
    assert runvm("delete", "--force", name).returncode == 0
    assert [role for role, pid in pids.items() if _lives(pid)] == []
    assert not directory.exists()


def _state(name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(runvm("state", name).stdout)
    return found


def _wait_stopped(name: str) -> None:
    deadline = time.monotonic() + 20
    while _state(name)["status"] != "stopped":
        assert time.monotonic() < deadline, f"{name} is {_state(name)['status']} 20 s after the kill"
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
