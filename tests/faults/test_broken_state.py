"""A full disk, a state file that makes no sense, a guest that doesn't boot: an error that says so, and no remains."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from framework import process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box, Runtime


@pytest.fixture
def tiny(runtime: Runtime) -> Iterator[str]:
    """A file system of 256 KiB, full."""
    path = f"{runtime.scratch}/tiny"
    os.makedirs(path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], check=True, timeout=10)
    os.makedirs(f"{path}/root")
    try:
        with open(f"{path}/filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
    yield path
    subprocess.run(["umount", path], check=True, timeout=10)
    os.rmdir(path)


def test_a_full_disk_below_root_fails_create_cleanly(box: Box, runtime: Runtime, tiny: str) -> None:
    """No space for the state: create fails and names it; with space again the same id works."""
    container = box("true")
    container.bundle.save()
    log = f"{container.bundle.path}/log"
    argv = [runtime.path, "--root", f"{tiny}/root", "--log", log, "--log-format", "json"]
    create = [*argv, "create", "--bundle", container.bundle.path, container.id]
    with open(f"{container.bundle.path}/out", "wb") as out:
        failed = process.Process(create, stdout=out, stderr=out).wait(runtime.timeout)
    assert failed.code == 1
    with open(log, encoding="utf-8") as file:
        told = file.read().lower()
    assert runtime.name == "runc" or "no space left on device" in told, told
    process.call([*argv, "delete", "--force", container.id], timeout=runtime.timeout)
    os.unlink(f"{tiny}/filler")
    process.call([*argv, "run", "--bundle", container.bundle.path, container.id], timeout=runtime.timeout).expect(0)


@pytest.mark.only("runvm", "its own files")
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"sandbox": 5}', b"\xff\xfe"], ids=["empty", "cut", "list", "types", "bytes"]
)
def test_a_state_file_that_makes_no_sense_can_be_deleted(box: Box, runtime: Runtime, content: bytes) -> None:
    """state says something with no traceback, list goes on to show the others, `delete --force` clears it."""
    broken = f"{runtime.root}/rvt-broken"
    os.makedirs(broken)
    with open(f"{broken}/state.json", "wb") as file:
        file.write(content)
    try:
        result = runtime.call("state", "rvt-broken")
        assert b"Traceback" not in result.stderr
        listed = runtime.call("list")
        assert listed.code == 0, listed.describe()
        assert b"Traceback" not in listed.stderr
        runtime.ok("delete", "--force", "rvt-broken")
        assert not os.path.exists(broken)
    finally:
        shutil.rmtree(broken, ignore_errors=True)


@pytest.mark.only("runvm", "there is a guest to boot")
def test_a_guest_that_doesnt_boot_is_an_error_with_its_console_within_the_deadline(box: Box, runtime: Runtime) -> None:
    """A kernel that finds no init: create fails within boot_timeout_s, and shows the console's last lines."""
    container = box("true")
    container.bundle.save()
    config = f"{runtime.scratch}/no-boot.toml"
    empty = f"{runtime.scratch}/empty.cpio"
    with open(empty, "wb") as file:
        file.write(b"070701" + b"0" * 88 + b"0000000B" + b"00000000" + b"TRAILER!!!\0" + bytes(1024))
    with open(runtime.config_file, encoding="utf-8") as file:
        text = "".join(line for line in file if not line.startswith("boot_timeout_s"))
    with open(config, "w", encoding="utf-8") as file:
        file.write(f'{text}initramfs = "{empty}"\nboot_timeout_s = 60\ntemplate = false\n')
    environment = dict(os.environ) | {"RUNVM_CONFIG": config}
    result = runtime.call("run", "--bundle", container.bundle.path, container.id, env=environment, timeout=120)
    assert result.code == 1, result.describe()
    assert result.error
    assert "Kernel panic - not syncing" in result.error + result.stderr.decode(), result.describe()
    assert "timed out" not in result.error, "a guest that has panicked ends at once"


@pytest.mark.only("runvm", "there is a hypervisor")
@pytest.mark.parametrize(
    "name", [pytest.param("qemu", marks=pytest.mark.hypervisor("qemu", "the program is its own")), "virtiofsd"]
)
def test_a_missing_program_of_the_host_is_named_with_its_remedy(box: Box, runtime: Runtime, name: str) -> None:
    """QEMU or virtiofsd not there: one line that names it and says what to do; nothing is left."""
    container = box("true")
    container.bundle.save()
    config = f"{runtime.scratch}/no-{name}.toml"
    with open(runtime.config_file, encoding="utf-8") as file:
        text = file.read()
    with open(config, "w", encoding="utf-8") as file:
        file.write(f'{text}{name} = "/no/such/{name}"\n')
    environment = dict(os.environ) | {"RUNVM_CONFIG": config}
    result = runtime.call("run", "--bundle", container.bundle.path, container.id, env=environment, timeout=60)
    assert result.code == 1
    assert f"/no/such/{name}" in result.error
    assert container.id not in runtime.ids()
