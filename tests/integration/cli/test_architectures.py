"""Containers of another architecture than the host's: their guest is of theirs, all else is as usual."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from framework import foreign, process, rootfs
from framework.foreign import OTHER
from framework.runtime import Box
from runvm.linux.architecture import KNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Container, Runtime

pytestmark = [
    pytest.mark.only("runvm", "a kernel of its own"),
    pytest.mark.capability("architectures", "an emulated processor of another kind"),
    # all but one of its guests are emulated, and the first of a size boots
    pytest.mark.timeout(400),
]
MACHINE = KNOWN[OTHER].machine
BOOT_S = 240
needs_image = pytest.mark.skipif(bool(foreign.lacks(OTHER)), reason=foreign.lacks(OTHER))


@pytest.fixture(scope="module")
def programs(scratch: str) -> str:
    """A root filesystem for the other architecture."""
    path = f"{scratch}/rootfs-{OTHER}"
    rootfs.make(path, OTHER)
    return path


@pytest.fixture
def other(runtime: Runtime, programs: str, request: pytest.FixtureRequest) -> Iterator[Box]:
    """Makes containers with those programs."""
    found = Box(runtime, programs, request.node.name)
    yield found
    found.close()


@pytest.fixture(scope="module")
def running(runtime: Runtime, programs: str) -> Iterator[Container]:
    """A container that tests exec into."""
    found = Box(runtime, programs, "architectures")
    container = found.idle()
    container.bundle.resources["memory"] = {"limit": 200 << 20}
    container.bundle.resources["pids"] = {"limit": 40}
    container.try_create("--detach", command="run", timeout=BOOT_S).expect(0)
    yield container
    found.close()


@needs_image
def test_a_container_runs_on_a_kernel_of_its_architecture(other: Box) -> None:
    result = other("sh", "-c", "uname -m; cat; exit 42").run(stdin=b"input", timeout=BOOT_S)
    assert (result.code, result.stdout.decode()) == (42, f"{MACHINE}\ninput")


@needs_image
def test_exec_gives_output_and_exit_code(running: Container) -> None:
    assert running.sh("uname -m") == MACHINE
    data = bytes(range(256)) * 1024
    result = running.exec("sh", "-c", "cat; echo problem >&2; exit 7", stdin=data)
    assert (result.code, result.stdout, result.stderr) == (7, data, b"problem\n")
    assert running.exec("no-such-program").code == 255


@needs_image
def test_a_terminal_has_its_size_and_passes_signals(running: Container) -> None:
    script = "trap 'echo caught; exit' INT; echo up; read line; stty size; while :; do sleep .1; done"

    def command(socket: str) -> None:
        flags = ("--detach", "--tty", "--console-socket", socket)
        running.runtime.ok("exec", *flags, running.id, "sh", "-c", script)

    terminal = running.terminal(command)
    terminal.expect(b"up")
    terminal.resize(rows=33, columns=101)
    terminal.send(b"\n")
    terminal.expect(b"33 101")
    terminal.send(b"\x03")
    terminal.expect(b"caught")
    terminal.read_to_end()


@needs_image
def test_limits_hold(running: Container) -> None:
    assert running.sh("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max").split() == [str(200 << 20), "40"]
    assert running.exec("sh", "-c", "dd if=/dev/zero of=/dev/null bs=300M count=1").code in (1, 137)
    forks = running.exec("sh", "-c", "for i in $(seq 60); do sleep 5 & done").text
    assert forks == ""
    process.wait_until(lambda: running.exec("echo", "alive").text == "alive", timeout=20, what="the end of the sleeps")


@needs_image
def test_memory_grows_and_processors_are_there(running: Container) -> None:
    assert int(running.sh("grep -c ^processor /proc/cpuinfo")) >= 1
    running.runtime.ok("update", "--memory", str(900 << 20), running.id)
    script = "for i in $(seq 150); do [ $(awk '/MemTotal/ {print $2}' /proc/meminfo) -gt 900000 ] && break; sleep .2; done; grep MemTotal /proc/meminfo"  # noqa: E501
    assert int(running.sh(script).split()[1]) > 900_000


@needs_image
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_signals_arrive_as_what_they_are(other: Box, number: signal.Signals) -> None:
    container = other("sh", "-c", "trap 'exit 5' TERM; trap 'exit 6' USR1; echo up; while :; do sleep .1; done")
    container.try_create("--detach", command="run", timeout=BOOT_S).expect(0)
    container.wait_stdout(b"up\n")
    container.kill(number)
    assert container.wait() == {signal.SIGTERM: 5, signal.SIGUSR1: 6, signal.SIGKILL: 137}[number]


@needs_image
def test_files_go_both_ways(other: Box, runtime: Runtime) -> None:
    """Open flags, sizes and kinds of files, which architectures number differently, mean the same on the host."""
    shared = f"{runtime.scratch}/shared-{os.getpid()}"
    os.makedirs(shared)
    with open(f"{shared}/from-host", "w", encoding="utf-8") as file:
        file.write("host\n")
    script = """
        cat /v/from-host && echo guest >/v/new && echo more >>/v/new && ln -s new /v/link && mkdir -p /v/d/e &&
        cat /v/link && ls /v/d && mv /v/new /v/moved && truncate -s 5000000000 /v/large && stat -c %s /v/large &&
        find /v -type l && dd if=/dev/zero of=/v/moved2 bs=1M count=3 conv=fsync 2>/dev/null && rm -r /v/d
    """
    container = other.sh(script)
    container.bundle.bind(shared, "/v")
    result = container.run(timeout=BOOT_S).expect(0)
    assert result.text.split() == ["host", "guest", "more", "e", "5000000000", "/v/link"]
    assert sorted(os.listdir(shared)) == ["from-host", "large", "link", "moved", "moved2"]
    assert os.path.getsize(f"{shared}/moved2") == 3 << 20


@needs_image
def test_a_docker_like_seccomp_profile_lets_programs_run(other: Box) -> None:
    container = other.sh("uname -m; mkdir /tmp/a || echo denied")
    container.bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    }
    result = container.run(timeout=BOOT_S).expect(0)
    assert result.text.split() == [MACHINE, "denied"]


@needs_image
@rootfs.is_the_hosts
def test_a_container_of_another_architecture_cant_join_a_virtual_machine(running: Container, box: Box) -> None:
    native = box("true")
    native.bundle.namespace("network", f"/proc/{running.init_pid}/ns/net")
    result = native.try_create()
    assert result.code == 1
    assert f"the virtual machine that it would join is of {OTHER}" in result.stderr.decode() + str(result.log)


@needs_image
def test_a_second_container_of_that_architecture_joins(running: Container, other: Box) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id"
    second = other.sh(boot)
    second.bundle.namespace("network", f"/proc/{running.init_pid}/ns/net")
    assert second.run(timeout=BOOT_S).expect(0).text == running.sh(boot)


@needs_image
@rootfs.is_the_hosts
def test_the_annotation_overrides_what_the_programs_say(box: Box) -> None:
    """The guest is of that architecture, where this program can't run."""
    container = box("true")
    container.bundle.config["annotations"] = {"io.runvm.arch": OTHER}
    result = container.try_create(timeout=BOOT_S)
    created = result.code == 0
    if created:
        container.runtime.call("start", container.id)
        assert container.wait() != 0
    else:
        assert "exec format error" in (result.stderr.decode() + str(result.log)).lower()


def test_an_architecture_without_an_image_is_an_error(box: Box, runtime: Runtime, tmp_path: object) -> None:
    """It names the architecture and the command that builds its image; nothing of the container is left."""
    container = box("true")
    container.bundle.save()
    config = f"{tmp_path}/config.toml"
    with open(config, "w", encoding="utf-8") as file:
        file.write(f'data_dir = "{tmp_path}"\nstate_dir = "{runtime.state_dir}"\narch = "{OTHER}"\n')
    result = runtime.call(
        "create", "--bundle", container.bundle.path, container.id, env={**os.environ, "RUNVM_CONFIG": config}
    )
    said = result.stderr.decode()
    assert result.code == 1
    assert f"the container's programs are for {OTHER}: there is no {OTHER} guest image" in said
    assert f"runvm image build --arch {OTHER}" in said
    assert container.id not in runtime.ids()


def test_programs_that_no_guest_runs_are_an_error(box: Box) -> None:
    container = box("/program")
    with open(f"{container.bundle.rootfs}/program", "wb") as file:
        file.write(b"\x7fELF\2\2\1" + bytes(9) + b"\0\2\0\x16" + bytes(44))
    os.chmod(f"{container.bundle.rootfs}/program", 0o755)
    result = container.try_create()
    assert result.code == 1
    assert "are for s390x, of which there are no guests" in result.stderr.decode() + str(result.log)


@needs_image
def test_images_are_listed_by_architecture(runtime: Runtime) -> None:
    listed = runtime.ok("image", "list", "--format", "json").json()
    assert {image["architecture"] for image in listed if image["current"]} == set(KNOWN)
    assert " ARCH " in runtime.ok("image", "list").text.splitlines()[0]
