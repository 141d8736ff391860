"""kill -9 at random: a command half-way, or a process of a container, in any order and at any moment.

RUNVM_FUZZ_ROUNDS says how many rounds (a few, by default), RUNVM_FUZZ_SEED which; a failure names its round.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from framework.host import processes_of
from framework.network import NetNamespace, address, veth
from framework.process import reap_orphans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host
    from framework.runtime import Box, Container, Runtime

pytestmark = pytest.mark.only("runvm", "runc may leave its half-made init and cgroup behind")

ROUNDS = int(os.environ.get("RUNVM_FUZZ_ROUNDS", "8"))
SEED = int(os.environ.get("RUNVM_FUZZ_SEED", "1"))

# What a round kills while it runs, and what the container is before it
COMMANDS = {
    "create": "",
    "run": "",
    "start": "created",
    "exec": "running",
    "kill": "running",
    "pause": "running",
    "resume": "paused",
    "update": "running",
    "delete": "running",
}
STATES = {"creating", "created", "running", "paused", "stopped"}


@pytest.fixture(scope="module")
def wired() -> Iterator[NetNamespace]:
    """A network namespace that outlives its containers, as an engine's does."""
    here, there = NetNamespace(f"rvf{os.getpid()}-a"), NetNamespace(f"rvf{os.getpid()}-b")
    veth(here, there, name="eth0", far_name="far0")
    address(here, "eth0", "10.77.0.2/24")
    yield here
    here.close()
    there.close()


def argv(command: str, container: Container) -> list[str]:
    """The command's arguments."""
    create = ["--bundle", container.bundle.path, "--pid-file", container.pid_file, container.id]
    return {
        "create": ["create", *create],
        "run": ["run", "--detach", *create],
        "exec": ["exec", container.id, "sh", "-c", "head -c 300000 /dev/zero; sleep 0.2"],
        "kill": ["kill", container.id, "USR1"],
        "update": ["update", "--memory", "200000000", container.id],
        "delete": ["delete", "--force", container.id],
    }.get(command, [command, container.id])


def killed(container: Container, command: str, delay: float) -> None:
    """Begin the command and kill it after *delay*."""
    with open(os.devnull, "wb") as null:
        begun = container.runtime.start(*argv(command, container), stdout=null, stderr=null)
    time.sleep(delay)
    begun.signal(signal.SIGKILL)
    begun.wait(10)


def status(container: Container) -> str:
    """What `state` says, which it does at once, and in words that callers know."""
    result = container.runtime.call("state", container.id, timeout=20)
    if result.code:
        assert result.error == "container does not exist", result.describe()
        return ""
    found = str(result.json()["status"])
    assert found in STATES
    return found


def prepared(box: Box, state: str, network: str) -> Container:
    """A container in that state."""
    container = box.idle()
    container.bundle.namespace("network", network or None)
    container.bundle.save()
    if state in ("running", "paused"):
        container.launch()
    elif state == "created":
        container.create()
    if state == "paused":
        container.runtime.ok("pause", container.id)
    return container


@pytest.mark.parametrize("number", range(ROUNDS))
def test_round(box: Box, host: Host, runtime: Runtime, wired: NetNamespace, number: int) -> None:
    """One random fault: the state is true, nobody hangs, `delete --force` leaves the host as it was."""
    chance = random.Random(SEED * 1000 + number)
    network = wired.path if chance.random() < 0.5 else ""
    before = wired.json("link"), wired.call("tc", "qdisc", "show").text
    roles = ["shim", "supervisor", "vmm", "virtiofsd"]
    what = chance.choice([*COMMANDS, *roles])
    print(f"round {number}: {what}, network {network or 'own'}")
    if what in COMMANDS:
        container = prepared(box, COMMANDS[what], network)
        killed(container, what, chance.random() * (2.5 if what in ("create", "run") else 0.6))
        found = status(container)
        if what in ("exec", "kill", "pause", "resume", "update"):
            assert found in ("running", "paused"), "the container lives on"
    else:
        container = prepared(box, chance.choice(["created", "running", "paused"]), network)
        command = chance.choice(["exec", "kill", "pause", "state", "delete"])
        pids = processes_of(container)
        with open(os.devnull, "wb") as null:
            begun = runtime.start(*argv(command, container), stdout=null, stderr=null)
        time.sleep(chance.random() * 0.5)
        try:
            os.kill(pids[what], signal.SIGKILL)
        except ProcessLookupError:
            assert command == "delete"
        begun.wait(70)
        deadline = time.monotonic() + 15
        while (found := status(container)) not in ("stopped", "") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert found in ("stopped", "")
    runtime.call("delete", "--force", container.id, timeout=60).expect(0)
    assert status(container) == ""
    reap_orphans()
    assert host.leaks(settle=15) == set()
    assert (wired.json("link"), wired.call("tc", "qdisc", "show").text) == before
    assert wired.call("cat", "/proc/sys/net/ipv4/ip_local_port_range").text.split() == ["32768", "60999"]
