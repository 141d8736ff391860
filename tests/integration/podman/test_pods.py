"""Containers that belong together: pods, --network/--pid/--ipc container:x, podman play kube. One VM, lives apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework import process, rootfs
from framework.engine import Engine
from framework.podman import IMAGE, PARENT
from framework.process import Process, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from framework.podman import Podman

BOOT = ("cat", "/proc/sys/kernel/random/boot_id")

# restartPolicy: by the default (Always), Podman 4.3 restarts an init container while it removes it, under runc as well
_KUBE = """
apiVersion: v1
kind: ConfigMap
metadata: {{name: conf}}
data: {{key: value-of-key}}
---
apiVersion: v1
kind: Pod
metadata: {{name: kube}}
spec:
  hostname: kubehost
  shareProcessNamespace: true
  restartPolicy: OnFailure
  initContainers:
  - name: setup
    image: {image}
    command: [sh, -c, "echo from-init >/shared/file"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  containers:
  - name: web
    image: {image}
    command: [httpd, -f, -p, "80", -h, /shared]
    ports: [{{containerPort: 80, hostPort: 18084}}]
    env: [{{name: KEY, valueFrom: {{configMapKeyRef: {{name: conf, key: key}}}}}}]
    resources: {{limits: {{memory: 64Mi}}}}
    volumeMounts: [{{name: shared, mountPath: /shared}}, {{name: conf, mountPath: /conf}}]
  - name: side
    image: {image}
    command: [sleep, "1000"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  volumes:
  - {{name: shared, hostPath: {{path: {shared}, type: Directory}}}}
  - {{name: conf, configMap: {{name: conf}}}}
"""


def start_together(engine: Engine, *commands: tuple[str, ...]) -> None:
    """Run commands at once; all must succeed."""
    running = [Process(engine.argv(*command)) for command in commands]
    for one in running:
        one.wait(120).expect(0)


@rootfs.is_the_hosts
def test_containers_join_a_pod_at_once_and_leave(podman: Podman) -> None:
    """Several created at the same time find the same VM; a pod is paused, killed, restarted; its infra may go first."""
    podman.ok("pod", "create", "--name", "pod", "--cgroup-parent", PARENT)
    podman.ok("pod", "start", "pod")
    names = ("m1", "m2", "m3")
    start_together(
        podman, *(("run", "--detach", "--pod", "pod", "--name", name, IMAGE, "sleep", "1000") for name in names)
    )
    assert len({podman.ok("exec", name, *BOOT) for name in names}) == 1
    assert podman.ok("pod", "stats", "--no-stream", "--format", "{{.Name}}", "pod").split()[-3:] != []
    podman.ok("pod", "pause", "pod")
    assert podman.inspect("m1")["State"]["Status"] == "paused"
    podman.ok("pod", "unpause", "pod")
    assert "sleep 1000" in podman.ok("pod", "top", "pod", "args")

    podman.ok("kill", podman.ok("ps", "--quiet", "--filter", "name=infra"))
    podman.ok("rm", "--force", "--time", "0", "m1")
    assert podman.ok("exec", "m2", "hostname") == "pod"
    podman.ok("pod", "kill", "pod")
    podman.ok("pod", "restart", "pod")
    assert podman.ok("exec", "m3", "echo", "again") == "again"


def test_namespaces_of_another_container(podman: Podman) -> None:
    """--network, --pid, --ipc and --uts container:x: what is joined is shared, the rest is its own; x may end first."""
    podman.detached("--name", "x", "--network", "none", "--hostname", "named", IMAGE, "sleep", "1001")
    boot = podman.ok("exec", "x", *BOOT)
    for kind, script, seen in (
        ("pid", "ps -o args", "sleep 1001"),
        ("network", "ip -o link", "lo"),
        ("ipc", "cat /proc/sys/kernel/random/boot_id", boot),
        ("uts", "hostname", "named"),
    ):
        result = podman.run(f"--{kind}", "container:x", IMAGE, "sh", "-c", script)
        assert seen in result.expect(0).text, kind
    podman.detached("--name", "y", "--network", "container:x", IMAGE, "sleep", "1002")
    podman.ok("kill", "x")
    wait_until(lambda: podman.inspect("x")["State"]["Status"] == "exited", timeout=20, what="its end")
    assert podman.ok("exec", "y", *BOOT) == boot
    podman.ok("rm", "--force", "--depend", "--time", "0", "x")


@rootfs.is_the_hosts
def test_play_kube(podman: Podman, tmp_path: Path) -> None:
    """Init container, ConfigMap, hostPath, hostPort, limits, a shared PID namespace; a member restarts in its VM."""
    shared = tmp_path / "shared"
    shared.mkdir()
    kube = tmp_path / "kube.yaml"
    kube.write_text(_KUBE.format(image=IMAGE, shared=shared))
    podman.ok("play", "kube", str(kube))
    try:
        processes = podman.ok("exec", "kube-side", "ps", "-o", "args")
        assert "catatonit" in processes
        assert "httpd -f" in processes
        assert podman.ok("exec", "kube-side", "hostname") == "kubehost"
        assert podman.ok("exec", "kube-web", "sh", "-c", "echo $KEY; cat /conf/key").split() == ["value-of-key"] * 2
        fetch = ["curl", "-s", "--max-time", "5", "http://127.0.0.1:18084/file"]
        wait_until(lambda: process.call(fetch).text == "from-init", timeout=20, what="the page")
        boot = podman.ok("exec", "kube-web", *BOOT)
        podman.ok("restart", "--time", "0", "kube-side")
        assert podman.ok("exec", "kube-side", *BOOT) == boot
    finally:
        podman.ok("play", "kube", "--down", str(kube))
