"""Pods as kubelet makes them: a sandbox, its containers, volumes, probes and ends, by containerd's CRI."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from framework import host as books
from framework import process
from framework.bundle import CGROUP_PARENT
from framework.containerd import has_metrics
from framework.engine import use_terminal
from framework.process import Process, call, wait_until
from framework.runtime import has_capability
from framework.terminal import Session

if TYPE_CHECKING:
    from pathlib import Path

    from framework.cri import Cri
    from framework.runtime import Runtime

BOOT = "cat /proc/sys/kernel/random/boot_id"


def test_a_pods_life(cri: Cri, runtime: Runtime) -> None:
    """runp, create, start, exec, logs, attach, stats, update, stop, rm, stopp, rmp; a port of the host; one VM."""
    port = {"container_port": 80, "host_port": 18083, "protocol": 0}
    file = cri.pod_file(hostname="podname", port_mappings=[port])
    pod = cri.ok("runp", file)
    serve = "echo begun; echo problem >&2; mkdir /www; echo page >/www/i; exec httpd -f -p 80 -h /www"
    web = cri.container(pod, file, "sh", "-c", serve, linux={"resources": {"memory_limit_in_bytes": 100 << 20}})
    side = cri.container(pod, file, "sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.2; done")

    assert cri.sh(side, "wget -q -O - http://127.0.0.1/i") == "page"
    assert cri.sh(web, "hostname") == cri.sh(side, "hostname") == "podname"
    boot = cri.sh(web, BOOT)
    assert boot == cri.sh(side, BOOT), "one VM"
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as own:
        assert (own.read().strip() != boot) == runtime.is_vm
    assert "httpd" not in cri.sh(side, "ps"), "processes apart"
    fetch = ["curl", "-s", "--max-time", "5", "http://127.0.0.1:18083/i"]
    wait_until(lambda: process.call(fetch).text == "page", timeout=20, what="the page by the host's port")
    pids = {name: json.loads(cri.ok("inspect", name))["info"]["pid"] for name in (web, side)}
    assert books.namespace(pids[web], "net") == books.namespace(pids[side], "net")

    logs = cri.crictl("logs", web)
    assert (logs.stdout, logs.stderr) == (b"begun\n", b"problem\n")
    failed = cri.crictl("exec", "--sync", side, "sh", "-c", "exit 9")
    assert failed.code != 0, failed.describe()
    assert b"9" in failed.stderr, failed.describe()
    streamed = cri.crictl("exec", "--interactive", side, "head", "-c", "7", stdin=b"through")
    assert streamed.expect(0).stdout == b"through"

    stats = json.loads(cri.ok("stats", "--output", "json", "--id", web))["stats"][0]
    if has_metrics():
        assert int(stats["memory"]["workingSetBytes"]["value"]) > 0
    cri.ok("update", "--memory", str(80 << 20), web)
    limit = cri.sh(web, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max; true")
    assert not runtime.is_vm or str(80 << 20) in limit

    cri.ok("stop", "--timeout", "10", side)
    assert cri.inspect(side)["exitCode"] == 4
    cri.ok("rm", side)
    again = cri.container(pod, file, "sleep", "1000")
    assert cri.sh(again, BOOT) == boot
    cri.ok("stopp", pod)
    assert cri.inspect(web)["state"] == "CONTAINER_EXITED"
    cri.ok("rmp", pod)


def test_a_containers_figures_are_of_what_it_does(cri: Cri) -> None:
    """Alone in its pod its CPU time and memory are what it takes; another one may come."""
    if not has_metrics():
        pytest.skip("this host's cgroups give containerd no metrics")
    file = cri.pod_file()
    pod = cri.ok("runp", file)
    work = "head -c 60000000 /dev/zero >/dev/shm/x; while :; do :; done"
    name = cri.container(pod, file, "sh", "-c", work)

    def figures() -> tuple[int, int]:
        stats = json.loads(cri.ok("stats", "--output", "json", "--id", name))["stats"][0]
        return int(stats["cpu"]["usageCoreNanoSeconds"]["value"]), int(stats["memory"]["workingSetBytes"]["value"])

    wait_until(lambda: figures()[0] > 2_000_000_000, timeout=60, what="two seconds of CPU time")
    wait_until(lambda: figures()[1] > 40_000_000, timeout=60, what="40 MB of memory")
    cri.container(pod, file, "sleep", "1000")
    assert cri.sh(name, "echo on") == "on"
    cri.ok("stopp", pod)
    cri.ok("rmp", pod)


def test_attach_reaches_the_first_process(cri: Cri) -> None:
    """`crictl attach -i`: input to it, its output back."""
    file = cri.pod_file()
    pod = cri.ok("runp", file)
    container = cri.container(pod, file, "sh", "-c", "while read line; do echo got $line; done", stdin=True)
    attached = call(cri.crictl_argv("attach", "--stdin", container), stdin=b"hello\n", timeout=60)
    wait_until(lambda: "got hello" in cri.ok("logs", container), timeout=20, what=f"the echo: {attached.describe()}")


def test_terminals(cri: Cri) -> None:
    """`kubectl exec -it`: size, its change, ctrl-C; `attach -it` to a container that has a terminal."""
    file = cri.pod_file()
    pod = cri.ok("runp", file)
    script = "read word; stty size; echo got $word; exec sleep 1000"
    container = cri.container(pod, file, "sh", "-c", script, tty=True, stdin=True)
    attached = Session(cri.crictl_argv("attach", "--stdin", "--tty", container), rows=31, columns=97)
    try:
        time.sleep(3)  # crictl says nothing when it is there
        attached.terminal.send(b"hello\n")
        attached.terminal.expect(b"got hello", timeout=60)
    finally:
        attached.close()
    command = cri.crictl_argv("exec", "--interactive", "--tty", container, "env", "PS1=$ ", "sh")
    session = Session(command, rows=37, columns=111)
    try:
        use_terminal(session.terminal, timeout=60)
        assert session.wait(60) != 0
    finally:
        session.close()


def test_a_port_is_forwarded(cri: Cri, runtime: Runtime) -> None:
    """`kubectl port-forward`: a server on the pod's localhost, of either family, again and again; none is told so."""
    file = cri.pod_file()
    pod = cri.ok("runp", file)
    serve = "httpd -p 127.0.0.1:80 -h /; httpd -p [::1]:81 -h /"
    script = f"echo page >/page; {serve}; head -c 3000000 /dev/zero >/part; mv /part /big; exec sleep 1000"
    container = cri.container(pod, file, "sh", "-c", script)
    cri.sh(container, "while ! test -s /big; do sleep 0.1; done")
    forwarder = Process(cri.crictl_argv("port-forward", pod, "18090:80", "18091:81", "18092:82"))
    try:
        page = ["curl", "-s", "--max-time", "20", "--retry", "20", "--retry-connrefused", "--retry-delay", "1"]
        for _ in range(3):
            assert call([*page, "http://127.0.0.1:18090/page"], timeout=60).text == "page"
        if runtime.is_vm:  # otherwise it needs a host that knows localhost as an IPv6 address
            assert call([*page, "http://127.0.0.1:18091/page"], timeout=60).text == "page"
        assert len(call([*page, "http://127.0.0.1:18090/big"], timeout=60).stdout) == 3_000_000
        refused = call(["curl", "-sS", "--max-time", "20", "http://127.0.0.1:18092/"], timeout=30)
        assert refused.code != 0, refused.describe()
        assert b"timed out" not in refused.stderr
    finally:
        forwarder.kill()
        forwarder.wait(10)


def test_volumes_are_shared_by_a_pods_containers(cri: Cri, tmp_path: Path) -> None:
    """emptyDir on disk and in memory, subPath, read-only, a ConfigMap whose symlink is swapped by kubelet."""
    disk, memory, single, config = (tmp_path / name for name in ("disk", "memory", "single", "config"))
    for directory in (disk, memory, config / "..1", config / "..2"):
        directory.mkdir(parents=True)
    single.write_text("of the host\n")
    for version in ("1", "2"):
        (config / f"..{version}" / "key").write_text(f"version {version}\n")
    (config / "..data").symlink_to("..1")
    (config / "key").symlink_to("..data/key")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", memory], check=True, timeout=10)
    try:
        mounts = [
            {"host_path": str(disk), "container_path": "/disk"},
            {"host_path": str(memory), "container_path": "/memory"},
            {"host_path": str(single), "container_path": "/etc/single", "readonly": True},
            {"host_path": str(config), "container_path": "/config", "readonly": True},
        ]
        described = cri.pod_file()
        pod = cri.ok("runp", described)
        first = cri.container(pod, described, "sleep", "1000", mounts=mounts)
        second = cri.container(pod, described, "sleep", "1000", mounts=mounts)
        for name in ("disk", "memory"):
            cri.sh(first, f"echo from first >/{name}/file; mkfifo /{name}/fifo")
            assert cri.sh(second, f"cat /{name}/file; test -p /{name}/fifo") == "from first"
        assert (disk / "file").read_text() == "from first\n"
        assert (memory / "file").read_text() == "from first\n"
        full = cri.crictl("exec", "--sync", first, "sh", "-c", "dd if=/dev/zero of=/memory/big bs=64k count=32")
        assert b"No space left" in full.stdout + full.stderr, "the size of a memory volume holds"
        assert cri.sh(first, "cat /etc/single; (echo x >/etc/single) 2>/dev/null || true") == "of the host"
        assert single.read_text() == "of the host\n"

        assert cri.sh(first, "cat /config/key") == "version 1"
        (config / "..new").symlink_to("..2")
        os.rename(config / "..new", config / "..data")
        for container in (first, second):
            wait_until(
                lambda container=container: cri.sh(container, "cat /config/key") == "version 2",  # type: ignore[misc]
                timeout=5,
                what="the new version of the ConfigMap",
            )
        cri.remove_all()
    finally:
        subprocess.run(["umount", memory], check=True, timeout=10)


def test_init_containers_run_before_and_sidecars_beside(cri: Cri, tmp_path: Path) -> None:
    """One after the other in the pod's VM, each to its end; a failed one tells its code; then the pod's containers."""
    shared = [{"host_path": str(tmp_path), "container_path": "/shared"}]
    file = cri.pod_file()
    pod = cri.ok("runp", file)
    for number, script in enumerate(("echo one >/shared/list", "echo two >>/shared/list; exit 5")):
        done = cri.container(pod, file, "sh", "-c", script, mounts=shared)
        wait_until(lambda done=done: cri.inspect(done)["state"] == "CONTAINER_EXITED", timeout=20, what="its end")  # type: ignore[misc]
        assert cri.inspect(done)["exitCode"] == (0, 5)[number]
        cri.ok("rm", done)
    main = cri.container(pod, file, "sleep", "1000", mounts=shared)
    assert cri.sh(main, "cat /shared/list") == "one\ntwo"


def test_probes_at_a_rate(cri: Cri) -> None:
    """ExecSync of several at once, again and again, and one that runs out of time, which leaves nothing."""
    file = cri.pod_file()
    pod = cri.ok("runp", file)
    container = cri.container(pod, file, "sleep", "1000")
    for _ in range(4):
        probes = [Process(cri.crictl_argv("exec", "--sync", container, "echo", str(number))) for number in range(4)]
        assert [probe.wait(60).text for probe in probes] == ["0", "1", "2", "3"]
    late = cri.crictl("exec", "--sync", "--timeout", "1", container, "sleep", "77")
    assert late.code != 0
    wait_until(lambda: "sleep 77" not in cri.sh(container, "ps"), timeout=20, what="the end of the probe")


def test_a_shared_pid_namespace(cri: Cri) -> None:
    """shareProcessNamespace: the containers see each other and the pause program, which is process 1."""
    linux = {"security_context": {"namespace_options": {"pid": 0}}}
    file = cri.pod_file(linux=linux)
    pod = cri.ok("runp", file)
    first = cri.container(pod, file, "sleep", "1001", linux=linux)
    second = cri.container(pod, file, "sleep", "1002", linux=linux)
    seen = cri.sh(second, "ps -o args")
    assert "catatonit -P" in seen
    assert "sleep 1001" in seen
    cri.sh(second, "kill -9 $(ps -o pid,args | awk '/sleep 1001/ && !/awk/ {print $1}')")
    wait_until(lambda: cri.inspect(first)["state"] == "CONTAINER_EXITED", timeout=20, what="its end")
    assert cri.inspect(first)["exitCode"] == 137
    assert cri.inspect(second)["state"] == "CONTAINER_RUNNING"


@pytest.mark.only("runvm", "the size of a VM")
def test_a_pods_vm_has_the_size_of_its_limits(cri: Cri) -> None:
    """What kubelet says of the pod's limits; then what the pod's cgroup leaves, and less than any VM takes is told."""
    resources = {"memory_limit_in_bytes": 700 << 20, "cpu_period": 100_000, "cpu_quota": 100_000}
    file = cri.pod_file(linux={"resources": resources})
    pod = cri.ok("runp", file)
    container = cri.container(pod, file, "sleep", "1000")
    total = int(cri.sh(container, "awk '/MemTotal/ {print $2}' /proc/meminfo")) >> 10
    # one that can't grow has room for what may come
    assert 700 <= total <= (896 if has_capability("hotplug_memory") else 2048)
    assert cri.sh(container, "nproc") == "1"
    cri.remove_all()
    parent = f"{CGROUP_PARENT}/cri/limited"
    hierarchy = "/sys/fs/cgroup" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "/sys/fs/cgroup/memory"
    os.makedirs(f"{hierarchy}{parent}")
    try:
        name = "memory.max" if hierarchy == "/sys/fs/cgroup" else "memory.limit_in_bytes"
        with open(f"{hierarchy}{parent}/{name}", "w", encoding="ascii") as limit:
            limit.write(str(128 << 20))
        refused = cri.crictl("runp", cri.pod_file(linux={"cgroup_parent": parent}))
        assert refused.code != 0
        assert b"the cgroup above the container's allows 128 MiB" in refused.stderr
    finally:
        for directory, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
            if directory.endswith(parent):
                os.rmdir(directory)


@pytest.mark.only("runvm", "a virtual machine can't be in the host's network")
def test_the_hosts_network_is_refused(cri: Cri) -> None:
    """hostNetwork: true fails and says what to do."""
    linux = {"security_context": {"namespace_options": {"network": 2, "pid": 1}}}
    result = cri.crictl("runp", cri.pod_file(linux=linux))
    assert result.code != 0
    assert b"the host's network namespace can't be shared with a virtual machine" in result.stderr


@pytest.mark.only("runvm", "a setting of runvm's")
def test_the_hosts_network_can_be_the_vms(cri: Cri, runtime: Runtime) -> None:
    """host_network = "vm": such a pod runs, in a network that its containers share and that isn't the host's."""
    with open(runtime.config_file, encoding="utf-8") as settings:
        before = settings.read()
    with open(runtime.config_file, "a", encoding="utf-8") as settings:
        settings.write('host_network = "vm"\n')
    try:
        linux = {"security_context": {"namespace_options": {"network": 2, "pid": 1}}}
        file = cri.pod_file(linux=linux)
        pod = cri.ok("runp", file)
        first = cri.container(pod, file, "sh", "-c", "echo page >/i; exec httpd -f -p 8099 -h /", linux=linux)
        second = cri.container(pod, file, "sleep", "1000", linux=linux)
        assert cri.sh(second, "wget -q -O - http://127.0.0.1:8099/i") == "page"
        assert cri.sh(first, BOOT) == cri.sh(second, BOOT)
        refused = call(["curl", "-sS", "--max-time", "5", "http://127.0.0.1:8099/i"], timeout=10)
        assert refused.code != 0, refused.describe()
    finally:
        with open(runtime.config_file, "w", encoding="utf-8") as settings:
            settings.write(before)


def test_a_pod_is_ended_by_force(cri: Cri) -> None:
    """rmp --force of a pod whose containers don't heed SIGTERM."""
    file = cri.pod_file()
    pod = cri.ok("runp", file)
    cri.container(pod, file, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    cri.ok("rmp", "--force", pod)
    assert cri.ok("pods", "--quiet") == ""
