"""SIGKILL and lower limits hold without the guest's consent."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from framework.hostile import CONTAINER, Sandbox
from runvm.cgroup import cgroup as cgroups
from runvm.cgroup import hierarchy
from runvm.config import Config
from runvm.container import state
from runvm.container.context import Context
from runvm.container.kill import kill
from runvm.container.update import update
from runvm.errors import GuestError, NotRunningError
from runvm.linux import files, process
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from framework.runtime import Runtime

MIB = 1 << 20
CPU = {"quota": 50_000, "period": 50_000, "shares": 512}
CONFIG = {"linux": {"resources": {"cpu": CPU, "memory": {"limit": 512 * MIB}}}}
pytestmark = pytest.mark.only("runvm", "there is a supervisor")


@pytest.fixture
def sandbox(runtime: Runtime) -> Iterator[Sandbox]:
    """A supervisor whose guest is this test, with one container in it."""
    made = Sandbox(runtime.state_dir)
    made.wake()
    made.attach()
    wait = made.build()
    made.answer(messages.Done({}))
    wait()
    yield made
    made.close()


@pytest.fixture
def around() -> Iterator[cgroups.Cgroup]:
    """A cgroup on the host for the container."""
    made = cgroups.make(cgroups.planned(f"/runvm-test-{os.getpid()}", CONTAINER))
    yield made
    made.remove()


@pytest.fixture
def ctx(sandbox: Sandbox, runtime: Runtime, tmp_path: Path, around: cgroups.Cgroup) -> Context:
    """The container as commands find it; this test's process stands for it."""
    ctx = Context(str(tmp_path), Config(state_dir=runtime.state_dir), "cgroupfs", "false")
    files.make_directories(state.directory(ctx, CONTAINER), 0o700, exist_ok=True)
    state.save_config(ctx, CONTAINER, json.dumps(CONFIG).encode())
    cpu_limits.note(sandbox.sandbox, CONTAINER, around.directories, CPU)
    around.limit(CONFIG["linux"]["resources"], overhead_mib=0)
    cpu_limits.begin(sandbox.sandbox, CONTAINER)
    shim = process.identity(os.getpid())
    assert shim is not None
    found = state.ContainerRecord(
        CONTAINER,
        "running",
        0,
        "",
        "",
        "",
        {},
        "1.0.2",
        sandbox.sandbox.name,
        shim,
        True,
        False,
        False,
        around.directories,
        {},
        True,
    )
    state.save(ctx, found)
    return ctx


def answer(sandbox: Sandbox, result: messages.Done | messages.Failed, count: int = 1) -> None:
    """To the next requests, beside what this test does."""
    threading.Thread(target=lambda: [sandbox.answer(result) for _ in range(count)], daemon=True).start()


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("said", [messages.Done({}), messages.Failed("operation not permitted")])
def test_a_container_that_is_killed_ends_whatever_its_guest_says(
    sandbox: Sandbox, said: messages.Done | messages.Failed, every: bool
) -> None:
    """It answers, and the container goes on: then its virtual machine ends."""
    answer(sandbox, said)
    try:
        registry.call(sandbox.sandbox, messages.Signal(CONTAINER, 0, int(signal.SIGKILL), every))
    except GuestError as error:
        assert isinstance(said, messages.Failed), error
    sandbox.wait_end()


def test_other_signals_may_be_ignored(sandbox: Sandbox) -> None:
    """A container needn't end by SIGTERM."""
    answer(sandbox, messages.Done({}))
    registry.call(sandbox.sandbox, messages.Signal(CONTAINER, 0, int(signal.SIGTERM), False))
    time.sleep(6)
    assert CONTAINER in str(sandbox.status())


def test_kill_all_tells_of_a_signal_that_was_not_sent(sandbox: Sandbox, ctx: Context) -> None:
    """Only that the container has ended is no error then."""
    answer(sandbox, messages.Failed("operation not permitted"))
    with pytest.raises(GuestError, match="operation not permitted"):
        kill(ctx, CONTAINER, signal.SIGTERM, all=True)
    answer(sandbox, messages.Failed("container not running"))
    kill(ctx, CONTAINER, signal.SIGTERM, all=True)
    answer(sandbox, messages.Failed("container not running"))
    with pytest.raises((GuestError, NotRunningError), match="container not running"):
        kill(ctx, CONTAINER, signal.SIGTERM, all=False)


def limits(around: cgroups.Cgroup) -> tuple[int, int, int, int]:
    """Quota, period, weight, and memory as of 1 MiB: what holds around the virtual machine."""
    memory = around.memory()[0] // MIB
    for directory in around.directories:
        if hierarchy.unified():
            quota, period = read(f"{directory}/cpu.max").split()
            return int(quota.replace("max", "-1")), int(period), int(read(f"{directory}/cpu.weight")), memory
        if "cpu" in hierarchy.controllers(directory):
            names = ("cfs_quota_us", "cfs_period_us", "shares")
            quota, period, shares = (read(f"{directory}/cpu.{name}") for name in names)
            return int(quota), int(period), int(shares), memory
    raise AssertionError("no cgroup of processors")


def read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def test_a_guest_that_refuses_lower_limits_gets_them(sandbox: Sandbox, ctx: Context, around: cgroups.Cgroup) -> None:
    """Around it: the error is told all the same, and nothing that would be more holds."""
    shares = 59 if hierarchy.unified() else 512
    answer(sandbox, messages.Failed("no"))
    with pytest.raises(GuestError, match=r"^no$"):
        update(ctx, CONTAINER, {"cpu": {"quota": 25_000}})
    assert limits(around) == (25_000 + 75_000 // 20, 50_000, shares, 512 + 256)

    answer(sandbox, messages.Failed("no"))
    with pytest.raises(GuestError, match=r"^no$"):
        update(ctx, CONTAINER, {"cpu": {"quota": 1, "shares": 400}, "memory": {"limit": 128 * MIB}})
    shares = 48 if hierarchy.unified() else 400
    overhead = ctx.config.overhead_mib
    assert limits(around) == (25_000 + 75_000 // 20, 50_000, shares, 128 + 256 + overhead)

    answer(sandbox, messages.Failed("no"))
    with pytest.raises(GuestError, match=r"^no$"):
        update(ctx, CONTAINER, {"cpu": {"quota": 90_000, "shares": 9000}, "memory": {"limit": 900 * MIB}})
    assert limits(around) == (25_000 + 75_000 // 20, 50_000, shares, 128 + 256 + overhead)


def test_a_guest_that_claims_to_need_more_than_it_has_isnt_believed(
    sandbox: Sandbox, ctx: Context, around: cgroups.Cgroup
) -> None:
    """It says a TiB is in use: the limit is lowered, there and around it."""
    claim = messages.Done({"memory.current": str(1 << 40), "memory.stat": "file 0", "memory.peak": "0"})
    answer(sandbox, claim, 2)
    update(ctx, CONTAINER, {"memory": {"limit": 256 * MIB}})
    assert limits(around)[3] == 256 + 256 + ctx.config.overhead_mib
