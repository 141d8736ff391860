"""A host that has run out of something: descriptors, processes, memory, disk, its own parts. An error, no remains."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from framework.bundle import CGROUP_PARENT
from framework.process import Process, Result
from framework.runtime import HYPERVISOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host
    from framework.runtime import Box, Container, Runtime

# what asks for none of the host's KVM, with which there is a verdict to be kept
EMULATED = {"accelerator": "tcg"} if HYPERVISOR == "qemu" else {}
pytestmark = pytest.mark.only("runvm", "its own errors")


def run(container: Container, *prefix: str, config: str = "", timeout: float = 180) -> Result:
    """`run` in the foreground, by way of *prefix*."""
    runtime = container.runtime
    container.bundle.save()
    environment = dict(os.environ) | ({"RUNVM_CONFIG": config} if config else {})
    argv = [*prefix, *runtime.argv("run", "--bundle", container.bundle.path, container.id)]
    result = Process(argv, env=environment).wait(timeout)
    assert b"Traceback" not in result.stderr, result.describe()
    assert b"internal error" not in result.stderr, result.describe()
    return result


def with_settings(runtime: Runtime, name: str, **settings: str) -> str:
    """A configuration file of the session's with other settings."""
    path = f"{runtime.scratch}/{name}.toml"
    with open(runtime.config_file, encoding="utf-8") as file:
        lines = [line for line in file if line.split(" ")[0] not in settings]
    with open(path, "w", encoding="utf-8") as file:
        file.write("".join(lines) + "".join(f'{key} = "{value}"\n' for key, value in settings.items()))
    return path


def gone(container: Container, host: Host) -> None:
    """Nothing of it is left, without any delete."""
    assert container.id not in container.runtime.ids()
    assert host.leaks(settle=10) == set()


@pytest.mark.parametrize("limit", [8, 12, 16, 20, 40])
def test_few_descriptors(box: Box, host: Host, limit: int) -> None:
    """RLIMIT_NOFILE: too few is an error that says so, and what is left can be deleted; enough is enough."""
    container = box("echo", "hello")
    host.mark()
    result = run(container, "prlimit", f"--nofile={limit}:{limit}")
    if result.code:
        assert b"too many open files" in result.stderr.lower(), result.describe()
    else:
        assert result.stdout == b"hello\n"
    container.delete("--force")
    gone(container, host)


@pytest.mark.parametrize("limit", ["--fsize=1000000:", "--as=1500000000:", "--data=100000000:", "--cpu=1:"])
def test_a_callers_limits_are_not_the_virtual_machines(box: Box, limit: str) -> None:
    """A shell's `ulimit` holds for the container's process, as under runc, not for what the machine takes itself."""
    container = box.sh("ulimit -f; echo hello")
    result = run(container, "prlimit", limit).expect(0)
    assert result.stdout.splitlines()[1] == b"hello"
    assert (result.stdout.splitlines()[0] == b"unlimited") == ("fsize" not in limit)


def test_no_processes_for_the_hypervisor(box: Box, host: Host, runtime: Runtime) -> None:
    """RLIMIT_NPROC, which holds for the VMM's user: its messages are in the error, and the template isn't blamed."""
    before = runtime.ok("template", "list", "--quiet").text
    container = box("echo", "hello")
    host.mark()
    result = run(container, "prlimit", "--nproc=1:1")
    assert result.code == 1, result.describe()
    said = b"console: " if HYPERVISOR == "uml" else b"vmm: qemu"
    assert said in result.stderr.lower(), result.describe()
    gone(container, host)
    assert runtime.ok("template", "list", "--quiet").text == before


def test_no_memory_in_the_cgroup_above(box: Box, host: Host) -> None:
    """A pod's cgroup too small for any virtual machine: told before one is tried."""
    top = "/sys/fs/cgroup/memory" if os.path.isdir("/sys/fs/cgroup/memory") else "/sys/fs/cgroup"
    parent = f"{top}{CGROUP_PARENT}/small"
    os.makedirs(parent, exist_ok=True)
    limit = "memory.limit_in_bytes" if top.endswith("memory") else "memory.max"
    with open(f"{parent}/{limit}", "w", encoding="ascii") as file:
        file.write(str(100 << 20))
    container = box("true")
    container.bundle.linux["cgroupsPath"] = f"{CGROUP_PARENT}/small/{container.id}"
    try:
        result = run(container)
        assert result.code == 1
        assert b"allows 100 MiB of memory" in result.stderr, result.describe()
        assert not os.path.exists(f"{parent}/{container.id}")
    finally:
        for directory, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
            if directory.endswith(f"{CGROUP_PARENT}/small"):
                os.rmdir(directory)


@pytest.fixture
def tiny(runtime: Runtime) -> Iterator[str]:
    """A small file system."""
    path = f"{runtime.scratch}/small"
    os.makedirs(path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], check=True, timeout=10)
    yield path
    subprocess.run(["umount", path], check=True, timeout=10)
    os.rmdir(path)


def fill(path: str) -> str:
    """A file that takes all that is left in a small file system."""
    filler = f"{path}/filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_state_directory_that_is_full_or_read_only(box: Box, host: Host, runtime: Runtime, tiny: str) -> None:
    """Where sandboxes are kept: the system's words, and nothing half-made anywhere."""
    config = with_settings(runtime, "small", state_dir=tiny, **EMULATED)
    filler = fill(tiny)
    container = box("true")
    host.mark()
    result = run(container, config=config)
    assert result.code == 1
    assert b"no space left on device" in result.stderr.lower(), result.describe()
    os.unlink(filler)
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True, timeout=10)
    container = box("true")
    host.mark()
    result = run(container, config=config)
    assert result.code == 1
    assert b"read-only file system" in result.stderr.lower(), result.describe()
    gone(container, host)


def test_a_disk_that_gets_full_while_a_container_lives(box: Box, runtime: Runtime, tiny: str) -> None:
    """What can't be written down isn't done; with space again it is, and no space is needed to end."""
    root = runtime.root
    runtime.root = tiny
    try:
        container = box.idle()
        container.create()
        filler = fill(tiny)
        for command, before, after in (
            ("start", "created", "running"),
            ("pause", "running", "paused"),
            ("resume", "paused", "running"),
        ):
            failed = runtime.call(command, container.id)
            assert failed.code == 1
            assert failed.error.endswith("state.json: no space left on device"), failed.describe()
            assert container.status == before
            if before == "running":
                assert container.sh("echo works") == "works", "it isn't frozen"
            os.unlink(filler)
            runtime.ok(command, container.id)
            assert container.status == after
            filler = fill(tiny)
        assert container.sh("echo works") == "works"
        container.delete("--force")
        assert os.listdir(tiny) == ["filler"]
    finally:
        runtime.root = root


def test_a_guest_image_that_is_missing_or_broken(box: Box, host: Host, runtime: Runtime) -> None:
    """No image, one without sense, one without a kernel: the error names it and the command that makes one."""
    data = f"{runtime.scratch}/images-test"
    config = with_settings(runtime, "images", data_dir=data)
    container = box("true")
    host.mark()
    try:
        result = run(container, config=config)
        assert result.code == 1
        assert b"runvm image build" in result.stderr, result.describe()
        os.makedirs(f"{data}/images/one")
        os.symlink("one", f"{data}/images/current")
        with open(f"{data}/images/one/manifest.json", "w", encoding="utf-8") as file:
            file.write('{"hash": "x", "kern')
        result = run(container, config=config)
        assert result.code == 1
        assert b"manifest.json" in result.stderr, result.describe()
        assert b"runvm image build" in result.stderr
    finally:
        shutil.rmtree(data, ignore_errors=True)
    gone(container, host)


def test_a_cgroup_that_others_are_in_is_left_to_them(box: Box, host: Host, runtime: Runtime) -> None:
    """cgroupsPath names one with a process in it: delete takes neither the process nor the cgroup away."""
    shared = f"{CGROUP_PARENT}/shared"
    bystander = subprocess.Popen(["sleep", "600"])
    directories = [
        f"/sys/fs/cgroup/{name}{shared}"
        for name in (["pids", "memory"] if os.path.isdir("/sys/fs/cgroup/pids") else ["."])
    ]
    try:
        for directory in directories:
            os.makedirs(f"{directory}/below")
            with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(bystander.pid))
        container = box("echo", "hello")
        container.bundle.linux["cgroupsPath"] = shared
        assert run(container).stdout == b"hello\n"
        runtime.ok("delete", "--force", container.id)
        assert bystander.poll() is None, "the process that was there before lives"
        assert all(os.path.isdir(f"{directory}/below") for directory in directories)
    finally:
        bystander.kill()
        bystander.wait(10)
        for directory, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
            if f"{shared}/" in f"{directory}/":
                os.rmdir(directory)


@pytest.mark.parametrize("umask", ["000", "077"])
def test_any_umask(box: Box, runtime: Runtime, umask: str) -> None:
    """With one that allows all, nobody but root may write the state; with one that allows none, QEMU sees its files."""
    config = with_settings(runtime, "umask", state_dir=f"{runtime.scratch}/umask-{umask}/state", **EMULATED)
    container = box("echo", "hello")
    loose = (
        f"find {runtime.scratch}/umask-{umask} -perm 0700 -prune -o -perm /022 -print >{container.bundle.path}/loose"
    )
    container.bundle.hook("poststart", "/bin/sh", ["sh", "-c", loose])
    try:
        result = run(container, "sh", "-c", f'umask {umask}; exec "$@"', "sh", config=config)
        assert (result.code, result.stdout) == (0, b"hello\n"), result.describe()
        with open(f"{container.bundle.path}/loose", encoding="utf-8") as file:
            assert file.read() == ""
    finally:
        shutil.rmtree(f"{runtime.scratch}/umask-{umask}", ignore_errors=True)
