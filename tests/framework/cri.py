"""containerd with its CRI plugin and CNI networks of its own, called by crictl as kubelet calls it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from framework import archives, process, rootfs
from framework.bundle import CGROUP_PARENT
from framework.containerd import Containerd
from framework.firewall import Firewall
from framework.process import Result, call
from runvm.host import containerd as stanza

if TYPE_CHECKING:
    from framework.runtime import Runtime

IMAGE = "localhost/busybox:test"
PAUSE = "localhost/pause:test"
PARENT = f"{CGROUP_PARENT}/cri"
_BRIDGE = "rvtcni0"
_SUBNET = "10.218.0.0/24"
_CONFIG = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{address}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runvm"
"""


def missing() -> str:
    """Which program isn't there and where it comes from, '' when all are."""
    for name, source in (
        ("containerd", "apt-get install containerd"),
        ("catatonit", "apt-get install catatonit"),
        ("/usr/lib/cni/portmap", "apt-get install containernetworking-plugins"),
        ("crictl", "packaging/cri-tools DIRECTORY makes it, the directory into PATH"),
    ):
        if shutil.which(name) is None:
            return f"{name} isn't there: {source}"
    return ""


class Cri(Containerd):
    """containerd, its images and network. `pod` makes a pod, `container` one in it."""

    def __init__(self, directory: str, runtime: Runtime, template: str) -> None:
        super().__init__(directory)
        self.runtime = runtime
        self._template = template
        self._firewall = Firewall()
        self._serial = 0

    def configuration(self) -> str:
        """containerd's, with CRI, and the runtime as `runvm install containerd` adds it."""
        text = _CONFIG.format(directory=self.directory, address=self.address, pause=PAUSE)
        return stanza.add(text, program=self.runtime.path, default=False, file="containerd.toml", root="/")

    def open(self) -> None:
        """Start it, with a bridge network, and import the images."""
        os.makedirs(f"{self.directory}/cni")
        address = {
            "type": "host-local",
            "dataDir": f"{self.directory}/ipam",
            "ranges": [[{"subnet": _SUBNET}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": _BRIDGE, "isGateway": True, "ipMasq": True, "ipam": address}
        plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
        with open(f"{self.directory}/cni/10-test.conflist", "w", encoding="utf-8") as file:
            json.dump({"cniVersion": "0.4.0", "name": "rvtcni", "plugins": plugins}, file)
        self.start()
        pause = f"{self.directory}/pause"
        os.mkdir(pause)
        rootfs.install(pause, "/usr/bin/catatonit")
        self.import_image(PAUSE, pause, ["/usr/bin/catatonit", "-P"])
        self.import_image(IMAGE, self._template, ["sh"])

    def import_image(self, name: str, root: str, command: list[str], *, user: str = "") -> None:
        """Make an image of the directory *root*."""
        path = f"{self.directory}/image.tar"
        archives.write(path, name=name, root=root, command=command, user=user)
        call(["ctr", "--address", self.address, "--namespace", "k8s.io", "images", "import", path]).expect(0)

    def crictl(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> Result:
        """A crictl command to its end."""
        return call(self.crictl_argv(*args), stdin=stdin, timeout=timeout or self.runtime.timeout + 30)

    def crictl_argv(self, *args: str) -> list[str]:
        """The command of crictl."""
        return [
            "crictl",
            "--config",
            "/dev/null",
            "--runtime-endpoint",
            f"unix://{self.address}",
            "--timeout",
            "90s",
            *args,
        ]

    def ok(self, *args: str, stdin: bytes | int = b"") -> str:
        """The output of a crictl command that must succeed."""
        return self.crictl(*args, stdin=stdin).expect(0).text

    def pod_file(self, **fields: Any) -> str:
        """A PodSandboxConfig of its own with *fields* on top: its file, which every later call about the pod gets."""
        self._serial += 1
        name = f"pod{self._serial}"
        logs = f"{self.directory}/logs/{name}"
        os.makedirs(logs)
        config = {
            "metadata": {"name": name, "namespace": "default", "uid": name, "attempt": 1},
            "log_directory": logs,
            "linux": {},
            **fields,
        }
        # the containers' PID namespaces apart (NamespaceMode CONTAINER), as kubelet has it by default
        config["linux"] = {
            "cgroup_parent": PARENT,
            "security_context": {"namespace_options": {"pid": 1}},
            **config["linux"],
        }
        return self._write(name, config)

    def container(self, pod: str, pod_file: str, *command: str, start: bool = True, **fields: Any) -> str:
        """Create (and start) a container in *pod*: its id."""
        self._serial += 1
        name = f"c{self._serial}"
        config = {
            "metadata": {"name": name},
            "image": {"image": IMAGE},
            "command": list(command),
            "log_path": f"{name}.log",
            "linux": {"security_context": {"namespace_options": {"pid": 1}}},
            **fields,
        }
        made = self.ok("create", pod, self._write(name, config), pod_file)
        if start:
            self.ok("start", made)
        return made

    def sh(self, container: str, script: str) -> str:
        """What a shell's script in a container prints, by ExecSync as probes use it; it must succeed."""
        return self.ok("exec", "--sync", container, "sh", "-c", script)

    def inspect(self, container: str) -> Any:
        """A container's status."""
        return json.loads(self.ok("inspect", container))["status"]

    def leases(self) -> set[str]:
        """The addresses that are in use: one for each pod's network namespace and interface."""
        return {name for name in os.listdir(f"{self.directory}/ipam/rvtcni") if name[0].isdigit()}

    def remove_all(self) -> None:
        """Every pod with its containers, running or not."""
        for pod in self.ok("pods", "--quiet").split():
            self.ok("rmp", "--force", pod)

    def close(self) -> None:
        """Remove all pods and the network; end the daemon."""
        try:
            self.remove_all()
        finally:
            self.stop()
            process.reap_orphans()
            subprocess.run(["ip", "link", "delete", _BRIDGE], check=False, timeout=10, capture_output=True)
            self._firewall.restore(("10.218.", "CNI-"))

    def _write(self, name: str, config: dict[str, Any]) -> str:
        path = f"{self.directory}/{name}.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        return path
