"""Containers that come to a virtual machine and leave it at the same moment: it ends with the last one, never under
one that comes."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from framework import process
from framework.bundle import Bundle
from framework.host import processes_of
from framework.runtime import Container, Runtime
from runvm.errors import ALREADY_EXISTS

if TYPE_CHECKING:
    from framework.process import Result
    from framework.runtime import Box

pytestmark = pytest.mark.only("runvm", "there is a virtual machine")


def joining(box: Box, first: Container) -> Container:
    """A container that will share *first*'s network, and so its virtual machine."""
    container = box.idle()
    container.bundle.namespace("network", f"/proc/{first.init_pid}/ns/net")
    container.bundle.namespace("ipc", f"/proc/{first.init_pid}/ns/ipc")
    return container


REFUSED = (
    # its namespace has gone with the process that is to be joined, or is nobody's any more
    "no such file or directory",
    "isn't a runvm container's",
    "container not running",
    "namespace is to be joined, isn't running",
)


def joined_or_refused(container: Container, result: Result) -> bool:
    """A `run --detach` whose virtual machine may have gone before: it works, or says that."""
    if result.code == 0:
        assert container.sh("echo well") == "well"
        return True
    assert any(text in result.error for text in REFUSED), result.describe()
    assert container.id not in container.runtime.ids()
    return False


def rounds(box: Box, count: int) -> None:
    """In each, the last container of a VM is deleted while another one joins it, at any moment of that."""
    moments = random.Random(7)
    joined = 0
    first = box.sleeper()
    begun_at = time.monotonic()
    joining(box, first).launch().close()
    longest = time.monotonic() - begun_at
    for _ in range(count):
        other = joining(box, first)
        begun = other.begin("--detach", command="run")
        try:
            begun.popen.wait(moments.uniform(0, longest))
        except TimeoutError:
            pass
        except Exception as error:  # subprocess.TimeoutExpired: it is still under way
            assert "timed out" in str(error)
        deleted = first.runtime.start("delete", "--force", first.id)
        result = other.created(begun)
        deleted.wait(60).expect(0)
        assert first.id not in first.runtime.ids()
        if joined_or_refused(other, result):
            joined += 1
            first.close()
            first = other
        else:
            other.close()
            first.close()
            first = box.sleeper()
        box.containers[:] = [first]
    assert joined, "none was quick enough"


def test_joins_and_deletes_at_the_same_moment(box: Box) -> None:
    """A container that has joined lives, whatever happens to the one that was there before it."""
    rounds(box, 10)


def test_the_first_container_goes_while_another_one_forks(box: Box) -> None:
    """Its cgroup, which holds the virtual machine, is given up.

    With User Mode Linux each of the guest's processes is one of the host's.
    """
    first = box.sleeper()
    other = joining(box, first)
    other.launch()
    other.sh("for n in 1 2 3 4; do (while :; do /bin/true; done) >/dev/null 2>&1 & done")
    first.delete("--force")
    left = [path for path, _, _ in os.walk("/sys/fs/cgroup") if path.endswith(first.id)]
    assert left == []
    assert other.sh("echo well") == "well"


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_joins_and_deletes_at_the_same_moment_200_times(box: Box) -> None:
    """The same, for what is rare."""
    rounds(box, 200)


def test_an_id_is_taken_in_a_vm_whatever_its_root(box: Box, runtime: Runtime, template: str) -> None:
    """The same id under two --roots: two containers, but never in one virtual machine; the first one isn't harmed."""
    first = box.sleeper()
    other = Container(Elsewhere(runtime), Bundle(f"{runtime.scratch}/elsewhere", template, "elsewhere"), first.id)
    other.bundle.args("sleep", "1000")
    other.bundle.namespace("network", f"/proc/{first.init_pid}/ns/net")
    try:
        for status in ("running", "stopped"):
            result = other.try_create()
            assert result.error == ALREADY_EXISTS, result.describe()
            assert other.id not in other.runtime.ids()
            assert first.status == status
            if status == "running":
                assert first.sh("echo well") == "well"
                keeper = joining(box, first)
                keeper.launch()
                other.bundle.namespace("network", f"/proc/{keeper.init_pid}/ns/net")
                first.kill("KILL")
                first.wait_status("stopped")
        other.bundle.namespace("network")
        other.create()
        assert processes_of(keeper)["vmm"] > 0
        other.delete("--force")
        first.delete()
        assert keeper.sh("echo well") == "well"
    finally:
        other.close()
        process.reap_orphans()


class Elsewhere(Runtime):
    """The same runtime with another --root."""

    def __init__(self, runtime: Runtime) -> None:
        self.__dict__.update(runtime.__dict__)
        self.root = f"{runtime.scratch}/root2"
