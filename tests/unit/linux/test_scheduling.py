"""process.scheduler and process.ioPriority, on a process of our own."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from runvm.linux import scheduling


@pytest.fixture
def pid() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def test_policy_nice_and_io_class(pid: int) -> None:
    scheduling.apply(
        pid,
        {
            "scheduler": {"policy": "SCHED_BATCH", "nice": 5},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        },
    )
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, pid) == 5
    told = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "best-effort: prio 6"


def test_nothing_asked_for(pid: int) -> None:
    scheduling.apply(pid, {})
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER


def test_what_the_kernel_refuses_names_the_field(pid: int) -> None:
    with pytest.raises(OSError, match=r"process\.scheduler: Invalid argument"):
        scheduling.apply(pid, {"scheduler": {"policy": "SCHED_FIFO", "priority": 200}})


def test_what_children_inherit() -> None:
    assert scheduling.inherited({})
    assert scheduling.inherited({"scheduler": {"policy": "SCHED_FIFO", "priority": 1}})
    assert not scheduling.inherited({"scheduler": {"policy": "SCHED_DEADLINE"}})
    assert not scheduling.inherited({"scheduler": {"policy": "SCHED_RR", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}})
