"""What podman run has kinds of: user namespaces, networks, volumes, secrets, health checks, units."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from framework import process, rootfs
from framework.podman import IMAGE, PARENT
from framework.process import Process, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from framework.podman import Podman


def test_a_user_namespace(podman: Podman, tmp_path: Path) -> None:
    """--uidmap: root inside is the mapped user outside, with root's powers over its files; it has a network."""
    bound = tmp_path / "bound"
    bound.mkdir()
    script = (
        "cat /proc/self/uid_map; touch /made && chown 7:7 /made && stat -c %u:%g /made; touch /bound/made;"
        " su user -c 'touch /etc/not' 2>/dev/null || echo refused; ip -o -4 addr show eth0 | wc -l"
    )
    mapping = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")
    result = podman.run(*mapping, "--volume", f"{bound}:/bound:U", IMAGE, "sh", "-c", script).expect(0)
    uid_map, *rest = result.text.splitlines()
    assert uid_map.split() == ["0", "100000", "65536"]
    assert rest == ["7:7", "refused", "1"]
    assert (bound / "made").stat().st_uid == 100000


def test_overlays_of_the_hosts_directories(podman: Podman, tmp_path: Path) -> None:
    """A volume with :O takes writes that the host doesn't see; --mount type=image shows an image, read-only."""
    (tmp_path / "file").write_text("below\n")
    script = "cat /v/file; echo over >/v/file; cat /v/file; test -x /img/bin/busybox && ! touch /img/no 2>/dev/null"
    flags = ("--volume", f"{tmp_path}:/v:O", "--mount", f"type=image,source={IMAGE},destination=/img")
    assert podman.run(*flags, IMAGE, "sh", "-c", script).expect(0).text.split() == ["below", "over"]
    assert (tmp_path / "file").read_text() == "below\n"


def test_a_network_by_path_and_of_the_users_own(podman: Podman) -> None:
    """--network ns:PATH is used as it is; --network slirp4netns has its tap, and a port that is published."""
    subprocess.run(["ip", "netns", "add", "rvtns"], check=True, timeout=10)
    try:
        ip = ("ip", "-n", "rvtns")
        for command in (
            ("link", "add", "veth0", "type", "veth", "peer", "name", "veth1"),
            ("addr", "add", "10.219.0.2/24", "dev", "veth0"),
            ("link", "set", "veth0", "up"),
            ("link", "set", "veth1", "up"),
        ):
            subprocess.run([*ip, *command], check=True, timeout=10)
        seen = podman.run("--network", "ns:/run/netns/rvtns", IMAGE, "ip", "-o", "-4", "addr").expect(0).text
        assert "10.219.0.2/24" in seen
    finally:
        subprocess.run(["ip", "netns", "delete", "rvtns"], check=True, timeout=10)
    if shutil.which("slirp4netns"):
        flags = ("--network", "slirp4netns", "--publish", "127.0.0.1:18087:80")
        serve = "mkdir /w; ip -o -4 addr >/w/index.html; exec httpd -f -p 80 -h /w"
        podman.detached(*flags, IMAGE, "sh", "-c", serve)
        fetch = ["curl", "-s", "--max-time", "5", "http://127.0.0.1:18087/"]
        wait_until(lambda: "tap0" in process.call(fetch).text, timeout=20, what="the page at the published port")


def test_secrets_health_commit_and_uts(podman: Podman, tmp_path: Path) -> None:
    """A secret as file and variable, a health check's two answers, a commit, diff, --uts host, --cgroupns private."""
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    podman.ok("secret", "create", "rvtsecret", str(secret))
    try:
        flags = ("--secret", "rvtsecret", "--secret", "rvtsecret,type=env,target=VARIABLE")
        more = ("--uts", "host", "--cgroupns", "private", "--memory", "100m")
        script = "cat /run/secrets/rvtsecret; echo; echo $VARIABLE; hostname; cat /sys/fs/cgroup/memory.max"
        seen = podman.run(*flags, *more, IMAGE, "sh", "-c", script).expect(0).text.splitlines()
        assert seen[:3] == ["hidden", "hidden", os.uname().nodename]
        if podman.runtime.is_vm:
            assert seen[3] == str(100 << 20)
    finally:
        podman.ok("secret", "rm", "rvtsecret")
    health = ("--health-cmd", "test -e /well", "--health-interval", "disable")
    podman.detached("--name", "patient", *health, IMAGE, "sleep", "1000")
    assert podman.call("healthcheck", "run", "patient").code == 1
    podman.ok("exec", "patient", "touch", "/well")
    assert podman.call("healthcheck", "run", "patient").code == 0
    assert podman.inspect("patient")["State"]["Health"]["Status"] == "healthy"
    assert "A /well" in podman.ok("diff", "patient")
    podman.ok("commit", "--quiet", "patient", "localhost/committed:test")
    try:
        assert podman.run("localhost/committed:test", "ls", "/well").expect(0).text == "/well"
    finally:
        podman.ok("rmi", "localhost/committed:test")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_a_generated_unit_runs_the_container(podman: Podman, tmp_path: Path) -> None:
    """podman generate systemd --new names the runtime; the unit is valid, and its commands start and stop one."""
    podman.ok("create", "--name", "unit", IMAGE, "sleep", "1000")
    unit = podman.ok("generate", "systemd", "--new", "--name", "unit")
    assert f"--runtime {podman.runtime.path}" in unit
    path = tmp_path / "unit.service"
    path.write_text(unit)
    subprocess.run(["systemd-analyze", "verify", path], check=True, capture_output=True, timeout=60)
    lines = unit.replace("\\\n", " ").splitlines()
    commands = dict(line.split("=", 1) for line in lines if line.startswith("Exec"))
    wanted = commands["ExecStart"].replace("%t/%n", str(tmp_path / "unit"))
    environment = {**os.environ, "CONTAINERS_CONF": f"{podman.directory}/containers.conf"}
    subprocess.run(
        wanted.split(), check=True, env=environment, timeout=120, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    assert podman.inspect("unit")["State"]["Status"] == "running"
    podman.ok("stop", "--ignore", "--cidfile", str(tmp_path / "unit.ctr-id"))


@rootfs.runs_the_hosts_programs
@pytest.mark.skipif(not os.path.exists("/lib64"), reason="no /lib64 for this host's Python in a container")
def test_readiness_is_told_by_the_container(podman: Podman, tmp_path: Path) -> None:
    """--sdnotify=container: what the process says at $NOTIFY_SOCKET reaches the socket that podman was given."""
    path = f"{podman.directory}/notify"
    say = (
        "import os, socket; sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        " sock.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"
    )
    flags = [word for name in ("/usr", "/lib", "/lib64") for word in ("--volume", f"{name}:{name}:ro")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(podman.runtime.timeout)
        command = podman.argv("run", "--rm", "--sdnotify", "container", "--cgroup-parent", PARENT, *flags, IMAGE)
        running = Process(["env", f"NOTIFY_SOCKET={path}", *command, "/usr/bin/python3", "-c", say])
        said = {listener.recv(4096).partition(b"=")[0] for _ in range(2)}
        running.wait(podman.runtime.timeout).expect(0)
    assert said == {b"READY", b"MAINPID"}


def test_a_container_for_systemd(podman: Podman) -> None:
    """--systemd=always: what systemd wants is mounted, and the control groups can be written."""
    script = (
        "for d in /sys/fs/cgroup /sys/fs/cgroup/systemd; do mkdir $d/x 2>/dev/null && rmdir $d/x && echo made; done;"
        " echo $container; mount | grep -c 'on /run '"
    )
    seen = podman.run("--systemd", "always", IMAGE, "sh", "-c", script).expect(0).text
    assert seen.split() == ["made", "podman", "1"]
