"""The main job by KVM: the doctor, a start from nothing, from a template, exec, the network, start upon start."""

from __future__ import annotations

import glob
import os
import time
from typing import TYPE_CHECKING

import pytest

from framework import process
from framework.docker import IMAGE
from framework.host import processes_of

if TYPE_CHECKING:
    from framework.docker import Dockerd
    from framework.runtime import Box, Container, Runtime

SHORT_CYCLES, CYCLES = 10, 50


def uses_kvm(container: Container) -> bool:
    """Whether the hypervisor of a running container has a VM of the kernel's."""
    return "anon_inode:kvm-vm" in process.open_files(processes_of(container)["vmm"])


def model(cpuinfo: str) -> str:
    """The processor's name, or its number where the kernel tells no name (arm64)."""
    lines = cpuinfo.splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))


@pytest.mark.short
def test_the_doctor_finds_kvm_working(runtime: Runtime) -> None:
    """Proved by a guest that boots with it, and all else is well."""
    result = runtime.call("doctor", timeout=300)
    assert result.code == 0, result.describe()
    lines = result.text.splitlines()
    assert [line for line in lines if "KVM" in line and "a guest boots with it" in line], result.text
    assert [line for line in lines if "a guest boots" in line and "with kvm, in" in line], result.text


@pytest.mark.short
def test_a_container_runs_by_kvm_on_the_hosts_processor(box: Box) -> None:
    """Started from the template: the hypervisor uses KVM; the guest sees the host's processor, and a kernel of its own
    that knows what it runs on."""
    container = box.sleeper()
    assert uses_kvm(container)
    shown = container.sh("cat /proc/cpuinfo")
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        assert model(shown) == model(file.read())
    flags = [line.split() for line in shown.splitlines() if line.startswith("flags")]
    assert all("hypervisor" in each for each in flags)  # arm64 has no such line
    assert container.exec("sh", "-c", "cat; exit 9", stdin=b"through").code == 9


@pytest.mark.short
def test_a_guest_boots_where_no_template_is_wanted(box: Box) -> None:
    """A cold start: the annotation `io.runvm.template=false`."""
    container = box.idle()
    container.bundle.config["annotations"] = {"io.runvm.template": "false"}
    container.launch()
    assert uses_kvm(container)
    assert container.sh("echo up") == "up"


def test_starts_from_a_template_are_shorter_than_boots(box: Box, runtime: Runtime) -> None:
    """The template that the first start has left is used: made once, and it spares a boot."""
    took = {}
    for wanted in ("false", "true"):
        container = box("true")
        container.bundle.config["annotations"] = {"io.runvm.template": wanted}
        begun = time.monotonic()
        container.run().expect(0)
        took[wanted] = time.monotonic() - begun
    assert took["true"] < took["false"], took
    listed = runtime.ok("template", "list").text
    assert "accelerator=kvm" in listed, listed


@pytest.mark.short
def test_dockers_network_reaches_a_container(docker: Dockerd) -> None:
    """docker run on Docker's bridge: out to the gateway; in by the container's address; names of a user network."""
    docker.ok("network", "create", "rvt-net")
    docker.detached("--name", "web", "--network", "rvt-net", IMAGE, "sh", "-c", "echo page >/i; httpd -f -p 80 -h /")
    fetch = "for n in $(seq 50); do wget -q -O - http://web/i && exit 0; sleep 0.2; done; exit 1"
    assert docker.run("--network", "rvt-net", IMAGE, "sh", "-c", fetch).expect(0).text == "page"
    assert docker.run(IMAGE, "ping", "-c", "1", "-W", "20", docker.gateway).code == 0


@pytest.mark.short
def test_ten_cycles(box: Box) -> None:
    """Ten times from `run` to gone."""
    cycles(box, SHORT_CYCLES)


def test_fifty_cycles(box: Box) -> None:
    """Fifty times."""
    cycles(box, CYCLES)


def cycles(box: Box, count: int) -> None:
    """Containers one after the other, each with its own words."""
    for number in range(count):
        result = box("echo", f"cycle {number}").run()
        assert (result.code, result.text) == (0, f"cycle {number}"), result.describe()


def test_ten_at_once(box: Box, runtime: Runtime) -> None:
    """Ten begun at the same moment all run; ten virtual machines."""
    containers = [box.sh(f"echo up {number}; sleep 1000") for number in range(10)]
    started = [container.begin("--detach", command="run") for container in containers]
    for container, command in zip(containers, started, strict=True):
        container.created(command, timeout=300).expect(0)
    for number, container in enumerate(containers):
        container.wait_stdout(f"up {number}\n".encode())
    assert len({processes_of(container)["vmm"] for container in containers}) == 10
    assert len(glob.glob(f"{runtime.state_dir}/sandboxes/*")) == 10


@pytest.mark.throwaway
def test_kvm_that_is_named_where_there_is_none_is_an_error_at_once(box: Box, runtime: Runtime) -> None:
    """`accelerator = "kvm"` without /dev/kvm: the start says so, and so does the doctor; emulation isn't a way out."""
    path = f"{runtime.scratch}/named-kvm.toml"
    with open(runtime.config_file, encoding="utf-8") as file, open(path, "w", encoding="utf-8") as copy:
        copy.write(file.read() + 'accelerator = "kvm"\n')
    environment = os.environ | {"RUNVM_CONFIG": path}
    container = box("true")
    container.bundle.save()
    os.rename("/dev/kvm", "/dev/kvm-away")
    try:
        begun = time.monotonic()
        run = runtime.call("run", "--bundle", container.bundle.path, container.id, env=environment)
        assert run.code == 1
        assert "/dev/kvm" in run.error, run.describe()
        assert time.monotonic() - begun < 5 * process.FACTOR
        doctor = runtime.call("doctor", env=environment)
        assert doctor.code == 1
        assert "/dev/kvm" in doctor.text
    finally:
        os.rename("/dev/kvm-away", "/dev/kvm")
