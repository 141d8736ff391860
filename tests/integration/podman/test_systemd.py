"""systemd as the manager of control groups, a real one: scopes, slices, limits, units that podman has generated."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.engine import opened
from framework.process import wait_until
from framework.runtime import SOURCE
from framework.systemd import IMAGE, SystemdHost, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.podman import Podman

MIB = 1 << 20
UNIT = f"{os.path.dirname(SOURCE)}/packaging/systemd/runvm@.service"


@pytest.fixture
def systemd(podman: Podman, scratch: str) -> Iterator[SystemdHost]:
    """A host that systemd runs."""
    if name := missing():
        pytest.skip(f"{name} isn't installed: apt-get install systemd podman runc")
    with opened(SystemdHost(f"{scratch}/systemd", podman)) as made:
        yield made


@pytest.mark.only("runvm", "the limits of its scope are around a virtual machine")
def test_scopes_and_units(systemd: SystemdHost) -> None:
    """A container is a scope of machine.slice with its limits, a pod a slice; a generated unit starts and ends one."""
    flags = ["--memory", "200m", "--cpus", "1", "--network", "none"]
    flags += ["--stop-signal", "37", "--stop-timeout", "7"]  # by which Podman 5 sets two of these properties itself
    for asked in ("KillSignal=37", "TimeoutStopSec=7", "SendSIGHUP=true"):
        flags += ["--annotation", f"org.systemd.property.{asked}"]
    cid = systemd.ok("podman", "run", "--detach", "--name", "c", *flags, IMAGE, "sleep", "1000")
    unit = f"libpod-{cid}.scope"
    assert systemd.ok("systemctl", "show", "--property", "Slice,ActiveState", unit).split("\n") == [
        "Slice=machine.slice",
        "ActiveState=active",
    ]
    shown = systemd.ok("systemctl", "show", "--property", "KillSignal,TimeoutStopUSec,SendSIGHUP", unit).split("\n")
    assert sorted(shown) == ["KillSignal=37", "SendSIGHUP=yes", "TimeoutStopUSec=7s"]
    pid = systemd.ok("podman", "inspect", "--format", "{{.State.Pid}}", "c")
    groups = dict(line.split(":", 2)[1:] for line in systemd.ok("cat", f"/proc/{pid}/cgroup").splitlines())
    v1 = "memory" in groups
    file = f"memory{groups['memory']}/memory.limit_in_bytes" if v1 else f"{groups['']}/memory.max"
    assert groups["memory" if v1 else ""].endswith(f"/machine.slice/{unit}")

    def limit() -> int:
        systemd.ok("systemctl", "daemon-reload")
        return int(systemd.ok("cat", f"/sys/fs/cgroup/{file}"))

    assert 200 * MIB < limit() < 1024 * MIB
    systemd.ok(f"{systemd.directory}/tools/runvm", "update", "--memory", str(900 * MIB), cid)
    assert 900 * MIB < limit() < 2048 * MIB
    systemd.ok("podman", "rm", "--force", "--time", "0", "c")
    # systemd sees for itself that nothing is left in it
    wait_until(
        lambda: systemd.call("systemctl", "is-active", unit).text == "inactive", timeout=10, what="the scope's end"
    )

    script = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    systemd.ok("podman", "create", "--name", "u", "--network", "none", IMAGE, "sh", "-c", script)
    systemd.write("/run/systemd/system/u.service", systemd.ok("podman", "generate", "systemd", "--new", "--name", "u"))
    systemd.ok("podman", "rm", "u")
    systemd.ok("systemctl", "daemon-reload")
    systemd.ok("systemctl", "start", "u")
    assert systemd.ok("podman", "ps", "--format", "{{.Names}}") == "u"
    assert systemd.call("systemctl", "is-active", "u").text == "active"
    systemd.ok("systemctl", "stop", "u")
    assert systemd.call("systemctl", "is-active", "u").text == "inactive"
    assert systemd.ok("podman", "ps", "--all", "--quiet") == ""


@rootfs.is_the_hosts
@pytest.mark.only("runvm", "one virtual machine for a pod")
def test_a_pods_slice(systemd: SystemdHost) -> None:
    """A pod's containers are scopes in the pod's slice and one virtual machine, which ends with the last."""
    pod = systemd.ok("podman", "pod", "create", "--name", "p", "--network", "none")
    cid = systemd.ok("podman", "run", "--detach", "--pod", "p", IMAGE, "sleep", "1000")
    found = systemd.ok("systemctl", "show", "--property", "Slice", f"libpod-{cid}.scope")
    assert found == f"Slice=machine-libpod_pod_{pod}.slice"
    assert len(systemd.ok("ls", "/run/runvm/sandboxes").split()) == 1
    systemd.ok("podman", "pod", "rm", "--force", "--time", "0", "p")
    assert systemd.ok("ls", "/run/runvm/sandboxes") == ""


@pytest.mark.only("runvm", "its own unit")
def test_a_container_as_a_service(systemd: SystemdHost) -> None:
    """runvm@.service: its output is in the journal, its end and code are the service's, and nothing stays."""
    runvm = f"{systemd.directory}/tools/runvm"
    with open(UNIT, encoding="utf-8") as file:
        systemd.write("/run/systemd/system/runvm@.service", file.read().replace("@SBINDIR@", os.path.dirname(runvm)))
    for name, script in (
        ("good", "trap 'echo stopping; exit 0' TERM; echo begun; while :; do sleep 0.1; done"),
        ("bad", "sleep 3; exit 3"),
    ):
        bundle = f"/var/lib/runvm/bundles/{name}"
        prepare = (
            # the host's own: what a killed run has left is there
            f"rm -rf {bundle} && mkdir -p {bundle}/rootfs/bin && cp /bin/busybox {bundle}/rootfs/bin/"
            f" && {runvm} spec --bundle {bundle}"
        )
        systemd.ok("sh", "-c", prepare)
        config = json.loads(systemd.ok("cat", f"{bundle}/config.json"))
        config["process"].update(
            args=["/bin/busybox", "sh", "-c", script.replace("sleep", "busybox sleep")], terminal=False
        )
        systemd.write(f"{bundle}/config.json", json.dumps(config))
    systemd.ok("systemctl", "daemon-reload")
    systemd.ok("systemctl", "start", "runvm@good")
    state = json.loads(systemd.ok(runvm, "state", "good"))
    assert systemd.ok("systemctl", "show", "--property", "MainPID,ActiveState", "runvm@good").split() == [
        f"MainPID={state['pid']}",
        "ActiveState=active",
    ]
    systemd.ok("systemctl", "stop", "runvm@good")
    assert systemd.call("systemctl", "is-active", "runvm@good").text == "inactive"
    journal = systemd.ok("journalctl", "--output", "cat", "--identifier", "runvm@good")
    assert "begun" in journal, journal
    assert "stopping" in journal, journal

    systemd.call("systemctl", "start", "runvm@bad")
    wanted = "ExecMainStatus=3"
    wait_until(
        lambda: wanted in systemd.call("systemctl", "show", "--property", "ExecMainStatus", "runvm@bad").text,
        timeout=30,
        what="the container's code as the service's",
        interval=0.5,
    )
    assert systemd.call("systemctl", "is-active", "runvm@bad").text == "failed"
    assert systemd.ok(runvm, "list", "--quiet") == ""
