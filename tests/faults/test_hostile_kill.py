"""SIGKILL and lower limits hold without the guest's consent."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from framework.hostile import CONTAINER, Sandbox
from runvm.config import Config
from runvm.container import state
from runvm.container.context import Context
from runvm.container.kill import kill
from runvm.errors import GuestError, NotRunningError
from runvm.linux import files, process
from runvm.protocol import messages
from runvm.sandbox import registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from framework.runtime import Runtime

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
def ctx(sandbox: Sandbox, runtime: Runtime, tmp_path: Path) -> Context:
    """The container as commands find it; this test's process stands for it."""
    ctx = Context(str(tmp_path), Config(state_dir=runtime.state_dir), "cgroupfs", "false")
    files.make_directories(state.directory(ctx, CONTAINER), 0o700, exist_ok=True)
    shim = process.identity(os.getpid())
    assert shim is not None
    found = state.ContainerRecord(
        CONTAINER, "running", 0, "", "", "", {}, "1.0.2", sandbox.sandbox.name, shim, True, False, False, (), {}, True
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
