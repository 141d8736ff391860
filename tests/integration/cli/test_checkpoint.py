"""checkpoint and restore: programs go on where they were, with their open files, streams, terminals and connections."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from framework import process, rootfs
from framework.network import NetNamespace, address, veth
from framework.process import wait_until
from kvm.test_clock import teller, wrong_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from framework.runtime import Box, Container, Runtime

pytestmark = pytest.mark.only("runvm", "runc has CRIU for it, which isn't everywhere")

COUNTER = "exec 3>>/log; n=0; trap 'exit 7' TERM; while :; do n=$((n + 1)); echo $n >&3; echo $n; sleep 0.1; done"
"""Counts in a variable, on stdout and in a file that it holds open."""


@pytest.fixture(autouse=True)
def supported(runtime: Runtime) -> None:
    """Skip where QEMU or virtiofsd is too old."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] != "true":
        pytest.skip("QEMU or virtiofsd is too old for checkpoints")


@pytest.fixture
def image(runtime: Runtime) -> Iterator[str]:
    """Where a test's checkpoint goes; nothing else may be beside it in the end."""
    parent = f"{runtime.scratch}/images"
    yield f"{parent}/image"
    left = os.listdir(parent) if os.path.isdir(parent) else []
    shutil.rmtree(parent, ignore_errors=True)
    assert not set(left) - {"image"}


def twin(box: Box, source: Container) -> Container:
    """A container to be, of a bundle that has *source*'s config and a copy of its files."""
    container = box(*source.bundle.process["args"])
    for key in ("process", "mounts"):
        container.bundle.config[key] = source.bundle.config[key]
    container.bundle.config["linux"]["namespaces"] = source.bundle.linux["namespaces"]
    shutil.rmtree(container.bundle.rootfs)
    shutil.copytree(source.bundle.rootfs, container.bundle.rootfs, symlinks=True)
    return container


def restore(container: Container, image: str, *flags: str, **streams: Any) -> Container:
    """`restore --detach`, which must succeed."""
    container.try_create("--detach", "--image-path", image, *flags, command="restore", **streams).expect(0)
    return container


def checkpoint(container: Container, image: str, *flags: str) -> None:
    """`checkpoint`, which must succeed."""
    container.runtime.ok("checkpoint", "--image-path", image, *flags, container.id)


def numbers(data: bytes) -> list[int]:
    """What a counter wrote."""
    return [int(line) for line in data.split()]


def wait_count(container: Container, count: int) -> None:
    """Until it has written so many numbers."""
    what = f"{count} numbers of {container.id}"
    wait_until(lambda: len(container.stdout().split()) >= count, timeout=60, what=what)


def test_a_counter_goes_on_where_it_was(box: Box, runtime: Runtime, image: str) -> None:
    """Variable, open file and stdout: no number is lost or comes twice; the first container is gone."""
    first = box.sh(COUNTER).launch()
    wait_count(first, 5)
    checkpoint(first, image)
    assert first.wait() == 137
    assert runtime.call("state", first.id).error == "container does not exist"
    assert os.stat(image).st_mode & 0o777 == 0o700
    assert all(os.stat(f"{image}/{name}").st_mode & 0o777 == 0o600 for name in os.listdir(image))

    second = restore(twin(box, first), image)
    wait_count(second, 5)
    assert second.status == "running"
    assert second.sh("hostname") == "box"
    second.kill("TERM")
    assert second.wait() == 7
    both = numbers(first.stdout() + second.stdout())
    assert both == list(range(1, len(both) + 1))
    with open(f"{second.bundle.rootfs}/log", "rb") as file:
        logged = numbers(file.read())
    assert logged == list(range(1, len(logged) + 1))
    assert abs(len(logged) - len(both)) <= 1


def test_ten_rounds(box: Box, image: str) -> None:
    """The same program from checkpoint to checkpoint; each takes the place of the one before."""
    container = box.sh(COUNTER).launch()
    seen: list[int] = []
    for _ in range(10):
        wait_count(container, 3)
        checkpoint(container, image)
        seen += numbers(container.stdout())
        container = restore(twin(box, container), image)
    wait_count(container, 3)
    container.kill("KILL")
    container.wait()
    seen += numbers(container.stdout())
    assert seen == list(range(1, len(seen) + 1))


def test_clones_of_a_container_that_goes_on(box: Box, image: str) -> None:
    """With --leave-running it does; three clones restored at once have clock, randomness and files of their own."""
    script = f"{COUNTER.partition('while')[0]} while :; do n=$((n + 1)); echo $n; sleep 0.1; done"
    first = box.sh(script).launch()
    wait_count(first, 5)
    checkpoint(first, image, "--leave-running")
    count = len(numbers(first.stdout()))
    wait_count(first, count + 3)
    clones = [twin(box, first) for _ in range(3)]
    begun = [clone.begin("--detach", "--image-path", image, command="restore") for clone in clones]
    for clone, started in zip(clones, begun, strict=True):
        clone.created(started, timeout=200).expect(0)
    for clone in clones:
        wait_count(clone, 3)
        assert abs(int(clone.sh("date +%s")) - time.time()) < 20
        found = numbers(clone.stdout())
        assert 5 < found[0] <= count + 1
        assert found == list(range(found[0], found[0] + len(found)))
    drawn = {clone.sh("head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid") for clone in clones}
    assert len(drawn) == 3
    clones[0].sh("echo mine > /own")
    assert not os.path.exists(f"{clones[1].bundle.rootfs}/own")
    for container in (first, *clones):
        container.kill("KILL")
        container.wait()
    assert numbers(first.stdout()) == list(range(1, len(numbers(first.stdout())) + 1))


CHANGER = """
BEGIN {
    for (i = 0; i < 40000; i++) cell[i] = 0
    for (n = 1; ; n++) {
        for (i = 0; i < 40000; i++) { if (cell[i] != n - 1) { print "torn"; exit 1 } cell[i] = n }
        print n; fflush()
    }
}"""


def test_memory_that_changes_all_the_time_is_that_of_one_moment(box: Box, image: str) -> None:
    """Though most of it is copied while the program runs: it finds each cell as it has left it, goes on or restored."""
    first = box("awk", CHANGER).launch()
    wait_count(first, 2)
    clones = []
    for _ in range(3):
        checkpoint(first, image, "--leave-running")
        clones.append(restore(twin(box, first), image))
    for container in (first, *clones):
        count = len(container.stdout().split())
        wait_count(container, count + 2)
        found = numbers(container.stdout())
        assert found == list(range(found[0], found[0] + len(found)))
        container.kill("KILL")
        container.wait()


def test_a_compressed_image_is_smaller_and_as_good(box: Box, runtime: Runtime, image: str) -> None:
    """--compress, by zstd; an image that isn't takes little more than what the guest uses."""
    first = box.sh(COUNTER).launch()
    wait_count(first, 3)
    plain = f"{runtime.scratch}/images-plain"
    checkpoint(first, plain, "--leave-running")
    try:
        free = int(first.sh("cat /proc/meminfo").partition("MemFree:")[2].split()[0]) << 10
        with open(f"{plain}/checkpoint.json", encoding="utf-8") as file:
            used = (json.load(file)["vm"]["machine"]["memory_mib"] << 20) - free
        sizes = [disk(plain)]
    finally:
        shutil.rmtree(plain)
    checkpoint(first, image, "--compress")
    sizes.append(disk(image))
    assert sizes[0] <= 1.1 * used
    assert sizes[1] < sizes[0] / 2, sizes
    second = restore(twin(box, first), image)
    wait_count(second, 3)
    both = numbers(first.stdout() + second.stdout())
    assert both == list(range(1, len(both) + 1))


def disk(directory: str) -> int:
    """The bytes that the files of an image take."""
    return sum(os.stat(f"{directory}/{name}").st_blocks * 512 for name in os.listdir(directory))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_clones_leave_nothing(box: Box, runtime: Runtime, image: str) -> None:
    """Twenty at once, then the others one after another: each goes on by itself, and in the end nothing has grown."""
    # twenty of a quick one would keep ten processors busy
    first = box.sh(COUNTER.replace("sleep 0.1", "sleep 2")).launch()
    wait_count(first, 2)
    checkpoint(first, image)
    first.wait()
    before = disk(image), sorted(os.listdir(runtime.state_dir))
    clones = [twin(box, first) for _ in range(20)]
    begun = [clone.begin("--detach", "--image-path", image, command="restore") for clone in clones]
    for clone, started in zip(clones, begun, strict=True):
        clone.created(started, timeout=600).expect(0)
    for number, clone in enumerate(clones):
        wait_count(clone, 2)
        clone.sh(f"echo {number} >/own")
    assert [clone.sh("cat /own") for clone in clones] == [str(number) for number in range(20)]
    for clone in clones:
        clone.kill("KILL")
        clone.wait()
        clone.delete()
    clone = twin(box, first)
    for _ in range(180):
        restore(clone, image)
        wait_count(clone, 1)
        clone.kill("KILL")
        clone.wait()
        clone.delete()
    assert (disk(image), sorted(os.listdir(runtime.state_dir))) == before


def test_bytes_under_way_are_neither_lost_nor_doubled(box: Box, image: str) -> None:
    """What goes through a container by stdin and stdout, checkpointed in the middle of it, is whole."""
    reader, writer = os.pipe()
    written = bytearray()
    enough = threading.Event()

    def feed() -> None:
        with open(writer, "wb", buffering=0) as file:
            while not enough.wait(0.02):
                data = b"".join(b"%07d\n" % number for number in range(len(written) // 8, len(written) // 8 + 4096))
                written.extend(data)
                while data:
                    data = data[file.write(data) :]

    feeder = threading.Thread(target=feed)
    first = box("cat")
    first.try_create("--detach", command="run", stdin=reader).expect(0)
    feeder.start()
    try:
        wait_until(lambda: len(first.stdout()) > 300_000, timeout=60, what="a part of the data")
        checkpoint(first, image)
        first.wait()
        second = restore(twin(box, first), image, stdin=reader)
        wait_until(lambda: len(second.stdout()) > 300_000, timeout=60, what="more of the data")
    finally:
        enough.set()
        os.close(reader)
    feeder.join()
    assert second.wait() == 0
    out = first.stdout() + second.stdout()
    assert len(out) == len(written)
    assert out == written


def test_a_shell_on_a_terminal_goes_on_at_another(box: Box, image: str) -> None:
    """Its variables are there, and it is told by SIGWINCH that the terminal is another."""
    script = "X=before; trap 'echo changed' WINCH; echo ready; while :; do read line; eval $line; done"
    first = box.sh(script)
    first.bundle.process["terminal"] = True
    terminal = first.terminal(
        lambda path: first.try_create("--detach", "--console-socket", path, command="run").expect(0)
    )
    terminal.expect(b"ready\r\n")
    checkpoint(first, image)
    second = twin(box, first)
    again = second.terminal(lambda path: restore(second, image, "--console-socket", path))
    again.expect(b"changed")
    again.send(b"echo $X-go''es-on\n")
    again.expect(b"before-goes-on\r\n")
    again.send(b"exit 5\n")
    assert second.wait() == 5


@pytest.fixture
def net() -> Iterator[tuple[NetNamespace, NetNamespace]]:
    """A namespace for containers, and its far end."""
    near, far = NetNamespace(f"rvt{os.getpid()}-near"), NetNamespace(f"rvt{os.getpid()}-far")
    try:
        veth(near, far, name="eth0", far_name="far0")
        address(near, "eth0", "10.79.0.2/24")
        address(far, "far0", "10.79.0.1/24")
        yield near, far
    finally:
        near.close()
        far.close()


def test_a_connection_goes_on_where_the_address_is_the_same(
    box: Box, image: str, net: tuple[NetNamespace, NetNamespace]
) -> None:
    """A client that is connected to a server in the container doesn't notice; at another address it isn't reached."""
    near, far = net
    first = box("nc", "-l", "-p", "80", "-e", "sh", "-c", "n=0; while read line; do n=$((n+1)); echo $n $line; done")
    first.bundle.namespace("network", near.path)
    first.launch()
    with _connected(far) as client:
        client.sendall(b"one\n")
        assert client.recv(100) == b"1 one\n"
        checkpoint(first, image)
        second = restore(twin(box, first), image)
        client.sendall(b"two\n")
        assert client.recv(100) == b"2 two\n"
        assert "10.79.0.2" in second.sh("ip address show eth0")
        checkpoint(second, image)
        near.ip("address", "flush", "dev", "eth0")
        address(near, "eth0", "10.79.0.3/24")
        third = restore(twin(box, second), image)
        shown = third.sh("ip address show eth0")
        assert "10.79.0.3" in shown
        assert "10.79.0.2" not in shown
        assert third.exec("ping", "-c", "1", "-w", "10", "10.79.0.1").code == 0


def _connected(far: NetNamespace) -> socket.socket:
    client = far.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(60)

    def connect() -> bool:
        return client.connect_ex(("10.79.0.2", 80)) == 0

    wait_until(connect, timeout=20, what="the server in the container")
    return client


def test_limits_and_name_are_those_of_the_new_config(box: Box, image: str) -> None:
    """A restored container has the new bundle's memory and process limits, and its hostname."""
    first = box.idle().launch()
    checkpoint(first, image)
    second = twin(box, first)
    second.bundle.resources["memory"] = {"limit": 96 << 20}
    second.bundle.resources["pids"] = {"limit": 33}
    second.bundle.config["hostname"] = "another"
    restore(second, image)
    assert second.sh("hostname; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max").split() == [
        "another",
        str(96 << 20),
        "33",
    ]


def test_limits_that_the_new_config_lacks_are_gone(box: Box, image: str) -> None:
    """The checkpointed one had limits of memory, processes and processor time."""
    first = box.idle()
    first.bundle.resources["memory"] = {"limit": 96 << 20}
    first.bundle.resources["pids"] = {"limit": 33}
    first.bundle.resources["cpu"] = {"quota": 50_000, "period": 100_000, "shares": 512}
    first.launch()
    show = "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max"
    assert first.sh(show).split() == [str(96 << 20), "33", "50000", "100000"]
    checkpoint(first, image)
    second = twin(box, first)
    for name in ("memory", "pids", "cpu"):
        second.bundle.resources.pop(name, None)
    restore(second, image)
    assert second.sh(f"{show} cpu.weight").split() == ["max", "max", "max", "100000", "100"]


def test_an_exec_that_begins_meanwhile_is_in_no_image(box: Box, runtime: Runtime, image: str) -> None:
    """A restored container's exec has its own output and exit code, and nothing of another's."""
    first = box.sh(COUNTER).launch()
    wait_count(first, 3)
    over = threading.Event()

    def execs() -> None:
        while not over.is_set():
            runtime.call("exec", first.id, "sh", "-c", "echo theirs; sleep 0.3; exit 5")

    others = [threading.Thread(target=execs) for _ in range(2)]
    for other in others:
        other.start()
    try:
        checkpoint(first, image, "--leave-running")
    finally:
        over.set()
        for other in others:
            other.join(60)
    second = restore(twin(box, first), image)
    assert [line for line in second.sh("ps").splitlines() if "theirs" in line] == []
    for _ in range(3):
        assert second.sh("echo mine") == "mine"


def test_the_clock_of_a_container_that_goes_on_is_right(box: Box, image: str) -> None:
    """It stood still while the checkpoint was taken."""
    container = box.idle()
    rootfs.install_perl(container.bundle.rootfs)
    container.launch()
    checkpoint(container, image, "--leave-running")
    with teller(container) as running:
        wait_until(lambda: wrong_by(running) < 0.02, timeout=8, what="the guest's clock to be right")


def test_a_full_file_system_is_an_error(box: Box, runtime: Runtime, image: str) -> None:
    """A tmpfs, whose pages can't be had once it is full: not even to look at them."""
    container = box.sh(COUNTER).launch()
    wait_count(container, 3)
    parent = os.path.dirname(image)
    for mib in (16, 64):
        os.makedirs(parent, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", parent], check=True)
        try:
            done = runtime.call("checkpoint", "--leave-running", "--image-path", image, container.id)
            assert done.code == 1
            assert "no space left on device" in done.error.lower()
            assert os.listdir(parent) == []
        finally:
            subprocess.run(["umount", parent], check=True)
        wait_count(container, len(container.stdout().split()) + 2)
    assert container.status == "running"


def test_what_a_killed_command_left_goes_with_the_next(box: Box, runtime: Runtime, image: str) -> None:
    """Whatever the next image is called: an engine makes up a new name each time."""
    container = box.sh(COUNTER).launch()
    wait_count(container, 3)
    parent = os.path.dirname(image)
    command = runtime.start("checkpoint", "--leave-running", "--image-path", f"{parent}/one", container.id)
    wait_until(lambda: os.path.isdir(parent) and os.listdir(parent), timeout=30, what="the image to be begun")
    os.kill(command.pid, signal.SIGKILL)
    command.wait(30)
    assert [name for name in os.listdir(parent) if name.startswith(".one")]
    checkpoint(container, image, "--leave-running")
    assert os.listdir(parent) == ["image"]


def test_execed_processes_are_ended_and_a_pause_is_over(box: Box, runtime: Runtime, image: str) -> None:
    """What `exec` started isn't saved, and that is said; a container that was paused runs once it is restored."""
    first = box.sh(COUNTER).launch()
    wait_count(first, 3)
    started = runtime.start("exec", first.id, "sleep", "1000")
    wait_until(lambda: "sleep 1000" in first.sh("ps"), timeout=20, what="the exec'ed process")
    runtime.ok("pause", first.id)
    done = runtime.ok("checkpoint", "--image-path", image, first.id)
    assert any("1 processes that exec had started" in entry["msg"] for entry in done.log)
    assert started.wait(30).code == 137
    second = restore(twin(box, first), image)
    wait_count(second, 3)
    assert "sleep 1000" not in second.sh("ps")


def test_what_cant_be_checkpointed_is_refused(box: Box, runtime: Runtime, image: str) -> None:
    """A created and a stopped container, one whose VM has others, one that has files open that are deleted."""
    created = box("true")
    created.create()
    assert "created state" in runtime.call("checkpoint", "--image-path", image, created.id).error
    created.start()
    created.wait()
    assert "stopped state" in runtime.call("checkpoint", "--image-path", image, created.id).error

    first = box.idle().launch()
    other = box.idle()
    for kind in ("network", "ipc", "uts", "pid"):
        name = "net" if kind == "network" else kind
        other.bundle.namespace(kind, f"/proc/{first.init_pid}/ns/{name}")
    other.launch()
    assert "shares its virtual machine" in runtime.call("checkpoint", "--image-path", image, first.id).error
    assert first.status == other.status == "running"

    open_file = box.sh("exec 3>/gone 4>/kept; rm /gone; while :; do echo x >&3; echo x; sleep 0.1; done").launch()
    wait_count(open_file, 2)
    refused = runtime.call("checkpoint", "--image-path", image, open_file.id)
    assert "deleted files are open, which a restore couldn't find: /gone" in refused.error
    wait_count(open_file, len(open_file.stdout().split()) + 2)
    assert not os.path.exists(image)

    full = f"{runtime.scratch}/images/full"
    os.makedirs(full)
    with open(f"{full}/file", "w", encoding="utf-8") as file:
        file.write("mine")
    try:
        assert "no checkpoint's" in runtime.call("checkpoint", "--image-path", full, first.id).error
    finally:
        shutil.rmtree(full)


def test_what_doesnt_fit_isnt_restored(box: Box, runtime: Runtime, image: str) -> None:
    """Other mounts, another user, a damaged image or another version's, a missing file: named, and nothing is left."""
    first = box.sh("exec 3>>/log; while :; do sleep 1; echo x >&3; done").launch()
    wait_until(lambda: os.path.exists(f"{first.bundle.rootfs}/log"), timeout=20, what="its file")
    checkpoint(first, image)

    def refused(why: str, *, image: str = image, mount: bool = False, without: str = "", uid: int = 0) -> None:
        container = twin(box, first)
        container.bundle.config["process"] = {**first.bundle.process, "user": {"uid": uid, "gid": 0}}
        if mount:
            container.bundle.config["mounts"] = [*first.bundle.config["mounts"]]
            container.bundle.mount("/more", "tmpfs", "tmpfs")
        if without:
            os.unlink(f"{container.bundle.rootfs}/{without}")
        result = container.try_create("--detach", "--image-path", image, command="restore")
        assert result.code == 1
        assert why in result.stderr.decode(), result.describe()
        assert runtime.call("state", container.id).error == "container does not exist"

    refused("mounts aren't those of the checkpoint: /more", mount=True)
    refused("has another process.user than the checkpoint", uid=5)
    refused("is no checkpoint", image=runtime.scratch)
    refused("rootfs/log", without="log")
    copy = f"{image}-copy"
    damages: tuple[tuple[Callable[[], None], str], ...] = (
        (lambda: os.truncate(f"{copy}/ram", 1 << 20), "damaged"),
        (lambda: _flip(f"{copy}/ram"), "damaged"),
        (lambda: _flip(f"{copy}/state"), "damaged"),
        (lambda: _link(f"{copy}/state"), "damaged"),
        (lambda: _edit(f"{copy}/checkpoint.json", release="9.9"), "runvm was '9.9'"),
        (lambda: _edit(f"{copy}/checkpoint.json", vmm="1.0"), "version was '1.0'"),
        (lambda: _edit(f"{copy}/checkpoint.json", format=99), "format 99"),
    )
    for damage, why in damages:
        shutil.copytree(image, copy)
        try:
            damage()
            refused(why, image=copy)
        finally:
            shutil.rmtree(copy)
    restore(twin(box, first), image)


def _flip(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def _link(path: str) -> None:
    os.unlink(path)
    os.symlink("/etc/passwd", path)


def _edit(path: str, **fields: object) -> None:
    with open(path, encoding="utf-8") as file:
        body = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**body, **fields}, file)


def test_a_killed_checkpoint_leaves_the_container_running(box: Box, runtime: Runtime, image: str) -> None:
    """SIGKILL to the command at random moments: the counter goes on, no number is missing, no half image is there."""
    container = box.sh(COUNTER).launch()
    wait_count(container, 3)
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    for _ in range(8):
        command = runtime.start("checkpoint", "--leave-running", "--image-path", image, container.id)
        time.sleep(chance.uniform(0.05, 1.5))
        os.kill(command.pid, signal.SIGKILL)
        command.wait(30)
        wait_count(container, len(container.stdout().split()) + 2)
        assert not os.path.exists(image) or os.path.exists(f"{image}/checkpoint.json"), f"seed {seed}"
    checkpoint(container, image)
    seen = numbers(container.stdout())
    assert seen == list(range(1, len(seen) + 1)), f"seed {seed}"
    process.reap_orphans()


@pytest.mark.parametrize("flags", [("--leave-running",), ()], ids=["goes on", "ends"])
def test_a_stopped_checkpoint_doesnt_keep_the_container_still(
    box: Box, runtime: Runtime, image: str, flags: tuple[str, ...]
) -> None:
    """Ctrl-Z of the command, or SIGSTOP: after ten seconds the container goes on, and the command says so."""
    container = box.sh(f"dd if=/dev/urandom of=/dev/shm/much bs=1M count=64 2>/dev/null; {COUNTER}").launch()
    wait_count(container, 3)
    command = runtime.start("checkpoint", *flags, "--image-path", image, container.id)
    state = f"{runtime.state_dir}/sandboxes/{record(container)['sandbox']}/checkpoint.state"
    pid = processes_of(container)["supervisor"]
    wait_until(lambda: os.path.exists(f"/proc/{pid}/root{state}"), timeout=30, what="it to stand still", interval=0.002)
    os.kill(command.pid, signal.SIGSTOP)
    count = len(container.stdout().split())
    wait_count(container, count + 5)
    os.kill(command.pid, signal.SIGCONT)
    done = command.wait(60)
    assert done.code == 1
    assert b"the container has gone on: the command was stopped for 10 s" in done.stderr
    assert container.status == "running"
    shutil.rmtree(image, ignore_errors=True)
    checkpoint(container, image)
    seen = numbers(container.stdout())
    assert seen == list(range(1, len(seen) + 1))


def test_a_killed_restore_leaves_nothing(box: Box, runtime: Runtime, image: str) -> None:
    """SIGKILL to the command at random moments: `delete --force` clears up, and the image is as good as before."""
    first = box.sh(COUNTER).launch()
    wait_count(first, 3)
    checkpoint(first, image)
    chance = random.Random(4)
    for _ in range(4):
        container = twin(box, first)
        command = container.begin("--detach", "--image-path", image, command="restore")
        time.sleep(chance.uniform(0.1, 2.5))
        os.kill(command.pid, signal.SIGKILL)
        command.wait(30)
        runtime.call("delete", "--force", container.id).expect(0)
        process.reap_orphans()
    second = restore(twin(box, first), image)
    wait_count(second, 3)


def record(container: Container) -> Any:
    """What runvm keeps of it. Raises OSError, ValueError."""
    with open(f"{container.runtime.root}/{container.id}/state.json", encoding="utf-8") as file:
        return json.load(file)


def processes_of(container: Container) -> dict[str, int]:
    """Its processes on the host by role, as far as they are there."""
    runtime = container.runtime
    try:
        state = record(container)
        found = {"shim": int(state["shim"][0])}
        with open(f"{runtime.state_dir}/sandboxes/{state['sandbox']}/processes.json", encoding="utf-8") as file:
            return found | {role: identity[0] for role, identity in json.load(file).items()}
    except (FileNotFoundError, ValueError):
        return {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_9_of_every_process_involved(box: Box, runtime: Runtime, image: str) -> None:
    """Thirty times, at random moments of a checkpoint or a restore: the image stays whole, and nothing is left."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    container = box.sh(COUNTER).launch()
    wait_count(container, 3)
    checkpoint(container, image, "--leave-running")
    allowed = {"image"}
    for number in range(30):
        victim = ("command", "supervisor", "vmm", "virtiofsd", "shim")[number % 5]
        if number % 2:
            target = container
            command = runtime.start("checkpoint", "--leave-running", "--image-path", image, container.id)
        else:
            target = twin(box, container)
            command = target.begin("--detach", "--image-path", image, command="restore")
        time.sleep(chance.uniform(0, 2.5))
        pid = {"command": command.pid, **processes_of(target)}.get(victim, 0)
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        command.wait(120)
        for each in {target.id, container.id}:
            runtime.call("delete", "--force", each).expect(0)
        process.reap_orphans()
        if victim == "command":
            allowed.add(f".image.runvm-{command.pid}")  # until the next checkpoint
        assert set(os.listdir(os.path.dirname(image))) <= allowed, victim
        container = restore(twin(box, container), image)
        try:
            wait_count(container, 2)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, round {number}, {victim}") from error
    checkpoint(container, image)  # takes away what a killed one has left
