"""Warm starts: the first container with the annotation is checkpointed once it is ready; later ones go on from it."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from framework import process
from framework.process import wait_until
from framework.runtime import HYPERVISOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box, Container, Runtime

pytestmark = pytest.mark.only("runvm", "other runtimes have no warm starts")

WARM = "io.runvm.warm"
READY = """
echo begins; rm /removed; mkdir -p /var/made; echo own-$(cat /proc/sys/kernel/random/uuid) >/var/made/token
exec 3>>/var/made/log; n=0; trap 'exit 7' TERM; sleep 1; touch /ready
while :; do n=$((n + 1)); echo $n >&3; echo $n; sleep 0.1; done
"""


class Overlays:
    """Roots of containers from one image: overlays whose lower directory is the same, as engines make them."""

    def __init__(self, lower: str) -> None:
        self._lower = lower
        self._top = tempfile.mkdtemp(prefix="runvm-warm-", dir="/dev/shm")
        self._mounted: list[str] = []

    def give(self, container: Container) -> str:
        """Make the container's root such an overlay: its upper directory."""
        number = len(self._mounted)
        upper, work = f"{self._top}/{number}/upper", f"{self._top}/{number}/work"
        for path in (upper, work):
            os.makedirs(path)
        options = f"lowerdir={self._lower},upperdir={upper},workdir={work}"
        root = container.bundle.rootfs
        shutil.rmtree(root)
        os.mkdir(root)
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True, timeout=10)
        self._mounted.append(root)
        return upper

    def close(self) -> None:
        """Unmount all."""
        for root in self._mounted:
            subprocess.run(["umount", "-l", root], check=True, timeout=10)
        shutil.rmtree(self._top)


@pytest.fixture(autouse=True)
def supported(runtime: Runtime) -> None:
    """Skip where QEMU or virtiofsd is too old."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] != "true":
        pytest.skip("QEMU or virtiofsd is too old for checkpoints")


def warmed(runtime: Runtime) -> list[dict[str, Any]]:
    """What `template list` has of warm containers."""
    return [
        entry for entry in runtime.ok("template", "list", "--format", "json").json() if "warm" in entry["made_from"]
    ]


@pytest.fixture
def overlays(runtime: Runtime, template: str, box: Box) -> Iterator[Overlays]:
    """Overlays of the tests' root file system; what was kept of warm containers goes, too."""
    lower = tempfile.mkdtemp(prefix="runvm-lower-", dir=runtime.scratch)
    shutil.copytree(template, lower, symlinks=True, dirs_exist_ok=True)
    with open(f"{lower}/removed", "w", encoding="utf-8") as file:
        file.write("of the image")
    made = Overlays(lower)
    for entry in warmed(runtime):
        shutil.rmtree(entry["directory"])
    yield made
    box.close()
    made.close()
    shutil.rmtree(lower)
    for entry in warmed(runtime):
        shutil.rmtree(entry["directory"])


def wanting(box: Box, overlays: Overlays, script: str = READY, **annotations: str) -> Container:
    """A container that wants warm starts, of the tests' image."""
    container = box.sh(script)
    overlays.give(container)
    container.bundle.config["hostname"] = container.id[:60]
    container.bundle.config["annotations"] = {WARM: "/ready", **annotations}
    return container


def kept(runtime: Runtime, count: int = 1) -> None:
    """Until so many warm containers have been kept."""
    wait_until(lambda: len(warmed(runtime)) == count, timeout=90, what="the checkpoint", interval=0.3)


def lines(container: Container) -> list[str]:
    """What it has written."""
    return container.stdout().decode().split()


def test_a_later_start_goes_on_from_the_first(box: Box, runtime: Runtime, overlays: Overlays) -> None:
    """Memory, open files and what was written to the root are there; name, identity and root are its own."""
    first = wanting(box, overlays).launch()
    kept(runtime)
    began = lines(first)
    assert began[0] == "begins"
    wait_until(lambda: len(lines(first)) > len(began) + 3, timeout=30, what="the first one to go on")
    seen = [int(word) for word in lines(first)[1:]]
    assert seen == list(range(1, len(seen) + 1))

    second, third = wanting(box, overlays), wanting(box, overlays)
    second.create()
    assert second.status == "created"
    time.sleep(1)
    assert lines(second) == []
    second.start()
    third.launch()
    for container in (second, third):
        wait_until(lambda: len(lines(container)) > 5, timeout=60, what="its numbers")  # noqa: B023
        numbers = [int(word) for word in lines(container)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert numbers[0] > 1
        assert container.status == "running"
        assert container.sh("hostname") == container.bundle.config["hostname"]
        assert container.sh("ls /removed 2>/dev/null; cat /var/made/token") == first.sh("cat /var/made/token")
    drawn = {container.sh("cat /proc/sys/kernel/random/uuid") for container in (first, second, third)}
    assert len(drawn) == 3
    second.sh("echo mine >/own")
    assert not os.path.exists(f"{third.bundle.rootfs}/own")
    third.kill("TERM")
    assert third.wait() == 7
    assert len(warmed(runtime)) == 1
    log = open(f"{second.bundle.rootfs}/var/made/log", encoding="utf-8").read().split()  # noqa: SIM115
    assert [int(word) for word in log] == list(range(1, len(log) + 1))


def test_what_differs_starts_cold(box: Box, runtime: Runtime, overlays: Overlays) -> None:
    """Another command, other limits, a root that had been written to, which isn't kept either."""
    wanting(box, overlays).launch()
    kept(runtime)
    other = wanting(box, overlays, READY.replace("begins", "differs"))
    limited = wanting(box, overlays)
    limited.bundle.resources["pids"] = {"limit": 77}
    changed = wanting(box, overlays)
    with open(f"{changed.bundle.rootfs}/new", "w", encoding="utf-8") as file:
        file.write("before the start")
    for container, word in ((other, "differs"), (limited, "begins"), (changed, "begins")):
        container.launch()
        wait_until(lambda: len(lines(container)) > 1, timeout=60, what="its output")  # noqa: B023
        assert lines(container)[0] == word
    kept(runtime, 3)
    names = {entry["name"] for entry in warmed(runtime)}
    assert names <= set(runtime.ok("template", "list", "--quiet").text.split())


FALLS = (
    "echo begins; mkdir /made; echo x >/made/file; exec 3>/made/open; sleep 1; touch /ready; while :; do sleep 1; done"
)


def test_one_that_doesnt_come_up_is_dropped(box: Box, runtime: Runtime, overlays: Overlays) -> None:
    """A damaged checkpoint: the container starts as the first did, without what that one had written; a new one is
    made, and after two failures none."""
    wanting(box, overlays, FALLS).launch()
    kept(runtime)
    base = os.path.dirname(warmed(runtime)[0]["directory"])
    for round_ in range(2):
        ram = f"{warmed(runtime)[0]['directory']}/ram"
        with open(ram, "r+b") as file:
            file.seek(os.path.getsize(ram) // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        container = wanting(box, overlays, FALLS)
        done = container.try_create("--detach", command="run").expect(0)
        assert any("no warm start, the checkpoint is dropped" in entry["msg"] for entry in done.log)
        wait_until(lambda: lines(container) == ["begins"], timeout=60, what="its output")  # noqa: B023
        assert b"File exists" not in container.stderr()
        assert container.status == "running"
        if round_ == 0:
            kept(runtime)
    hopeless = wanting(box, overlays, FALLS)
    done = hopeless.try_create("--detach", command="run").expect(0)
    assert any("failed repeatedly" in entry["msg"] for entry in done.log)
    assert warmed(runtime) == []
    os.unlink(next(iter(glob.glob(f"{base}/.*.failed"))))


def test_a_killed_create_leaves_the_root_as_it_was(box: Box, runtime: Runtime, overlays: Overlays) -> None:
    """SIGKILL once the root has what the first one had written: delete takes that out, and the next start is warm."""
    wanting(box, overlays, FALLS).launch()
    kept(runtime)
    container = box.sh(FALLS)
    upper = overlays.give(container)
    container.bundle.config["hostname"] = container.id[:60]
    container.bundle.config["annotations"] = {WARM: "/ready"}
    before = set(os.listdir(upper))
    for flags in ([], ["--force"]):
        command = container.begin()
        wait_until(lambda: os.path.exists(f"{upper}/made/file"), timeout=60, what="the layer", interval=0.001)
        os.kill(command.pid, signal.SIGKILL)
        command.wait(30)
        runtime.call("delete", *flags, container.id)
        assert set(os.listdir(upper)) <= before | {"proc", "dev", "sys"}
        process.reap_orphans()
    container.launch()
    time.sleep(2)
    assert lines(container) == []
    assert os.path.exists(f"{upper}/made/open")


def test_quiet_is_another_sign(box: Box, runtime: Runtime, overlays: Overlays) -> None:
    """With a number of seconds, it is ready when it has done nothing for so long; an exec isn't disturbed."""
    script = (
        "echo begins; n=0; while [ $n -lt 300 ]; do n=$((n + 1)); done; echo counted; sleep 1000 & wait $!; echo no"
    )
    first = wanting(box, overlays, script, **{WARM: "2"}).launch()
    exec_ = runtime.start("exec", first.id, "sh", "-c", "sleep 6; echo undisturbed")
    kept(runtime)
    assert exec_.wait(60).text == "undisturbed"
    second = wanting(box, overlays, script, **{WARM: "2"}).launch()
    time.sleep(1)
    assert lines(second) == []
    assert "sleep 1000" in second.sh("ps")


def test_an_exec_that_succeeds_is_a_third_sign(box: Box, runtime: Runtime, overlays: Overlays) -> None:
    """`healthy`: the first process of exec that ends with 0, as an engine's health check; one that fails is none."""
    script = "echo begins; sleep 2; mkdir /up; while :; do sleep 0.1; done"
    first = wanting(box, overlays, script, **{WARM: "healthy"}).launch()
    assert first.exec("test", "-d", "/up").code == 1
    wait_until(lambda: first.exec("test", "-d", "/up").code == 0, timeout=60, what="its health", interval=0.2)
    kept(runtime)
    second = wanting(box, overlays, script, **{WARM: "healthy"}).launch()
    assert second.exec("test", "-d", "/up").code == 0
    assert lines(second) == []
    assert len(warmed(runtime)) == 1


@pytest.fixture
def auto(runtime: Runtime) -> Iterator[None]:
    """The setting `hypervisor` is the default, whatever the tests run with."""
    path = Path(runtime.config_file)
    before = path.read_text()
    path.write_text(before.replace(f'hypervisor = "{HYPERVISOR}"', 'hypervisor = "auto"'))
    yield
    path.write_text(before)


@pytest.mark.usefixtures("auto")
def test_with_auto_a_warm_start_has_qemu(box: Box, runtime: Runtime, overlays: Overlays) -> None:
    """Also where `auto` takes User Mode Linux for other containers: that makes no checkpoints."""
    first = wanting(box, overlays).launch()
    kept(runtime)
    second = wanting(box, overlays).launch()
    for container in (first, second):
        assert runtime.ok("state", container.id).json()["hypervisor"] == "qemu"
    wait_until(lambda: len(lines(second)) > 1, timeout=60, what="its numbers")
    assert int(lines(second)[0]) > 1


def test_a_container_that_waits_for_its_start_can_be_ended(box: Box, runtime: Runtime, overlays: Overlays) -> None:
    """Created from a warm one: deleted, or killed, before it has been started."""
    wanting(box, overlays).launch()
    kept(runtime)
    deleted, killed = wanting(box, overlays), wanting(box, overlays)
    deleted.create()
    deleted.delete()
    killed.create()
    killed.kill("KILL")
    assert killed.wait() == 137
    assert killed.status == "stopped"


def test_volumes_that_can_be_written_to_need_a_word(box: Box, runtime: Runtime, overlays: Overlays) -> None:
    """Not without the second annotation; read-only ones do no harm, and what an engine mounts is no volume."""
    volume = f"{runtime.scratch}/volume"
    os.makedirs(volume, exist_ok=True)

    def with_volume(*options: str, **annotations: str) -> Container:
        container = wanting(box, overlays, **annotations)
        container.bundle.mount("/volume", "bind", volume, *options)
        hosts = f"{container.bundle.path}/hosts"
        with open(hosts, "w", encoding="utf-8") as file:
            file.write(f"127.0.0.1 {container.id}\n")
        container.bundle.mount("/etc/hosts", "bind", hosts, "bind", "rw")
        return container

    refused = with_volume("bind", "rw")
    done = refused.try_create("--detach", command="run").expect(0)
    assert any("volumes that can be written to: /volume" in entry["msg"] for entry in done.log)
    with_volume("bind", "ro").launch()
    kept(runtime)
    with_volume("bind", "rw", **{"io.runvm.warm-volumes": "true"}).launch()
    kept(runtime, 2)
    second = with_volume("bind", "ro").launch()
    wait_until(lambda: len(lines(second)) > 1, timeout=60, what="its output")
    assert int(lines(second)[0]) > 1
    assert second.id in second.sh("cat /etc/hosts")


@pytest.mark.parametrize("word", ["", "ready", "0", "/", "99999", "-1", "1.5"])
def test_a_wish_that_makes_no_sense_is_refused(box: Box, word: str) -> None:
    """Neither a path nor seconds nor the word for a health check."""
    container = box("true")
    container.bundle.config["annotations"] = {WARM: word}
    assert "is not allowed" in container.run().error
