"""A real containerd and dockerd of our own: private directories, socket and bridge, the tested runtime the default."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from framework import images, process
from framework.bundle import CGROUP_PARENT
from framework.containerd import Containerd
from framework.engine import Engine, unmount_below
from framework.firewall import Firewall
from framework.process import Process, Result, call, stop, wait_until

if TYPE_CHECKING:
    from framework.images import Recipe
    from framework.runtime import Runtime

IMAGE = "busybox:test"
RUNTIME = "under-test"
# Newer clients than the daemon may lie elsewhere on PATH: Debian's pair belongs together
CLIENT = "/usr/bin/docker" if os.path.exists("/usr/bin/docker") else "docker"


def missing() -> str:
    """Which program isn't there, '' when all are."""
    wanted = (CLIENT, "dockerd", "containerd", "containerd-shim-runc-v2", "iptables")
    return next((name for name in wanted if shutil.which(name) is None), "")


class Dockerd(Engine):
    """containerd and dockerd; `call` runs the client. `close` ends both and leaves the host as it was."""

    def __init__(
        self,
        directory: str,
        runtime: Runtime,
        template: str,
        others: dict[str, dict[str, str]] | None = None,
        options: dict[str, object] | None = None,
    ) -> None:
        """*others* are further runtimes by name, *options* further keys, as daemon.json has them."""
        self.directory = directory
        self.others = others or {}
        self.options = options or {}
        self.runtime = runtime
        self.socket = f"{directory}/docker.sock"
        self.cgroup_parent = f"{CGROUP_PARENT}/docker"
        self.bridge = ""
        self.gateway = ""
        self.containerd = Containerd(f"{directory}/ctd")
        self._process: Process | None = None
        self._template = template
        self._firewall = Firewall()

    def open(self) -> None:
        """Make the bridge, start both, import the image, and run one container."""
        number = self._make_bridge()
        os.symlink(".", f"{self.directory}/run")
        _run("ip", "address", "add", f"{self.gateway}/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        config = {
            "bridge": self.bridge,
            "data-root": f"{self.directory}/data",
            # through a link, as dockerd's own default, /var/run/docker: the runtime's --root is below it
            "exec-root": f"{self.directory}/run/exec",
            "pidfile": f"{self.directory}/docker.pid",
            "hosts": [f"unix://{self.socket}"],
            "containerd": self.containerd.address,
            "cgroup-parent": self.cgroup_parent,
            "default-address-pools": [{"base": f"10.214.{number}.0/24", "size": 28}],
            "runtimes": {RUNTIME: {"path": self.runtime.path}, **self.others},
            "default-runtime": RUNTIME,
            "live-restore": True,
            **self.options,
        }
        with open(f"{self.directory}/daemon.json", "w", encoding="utf-8") as file:
            json.dump(config, file)
        self.containerd.start()
        self.start()
        tar = subprocess.run(["tar", "-C", self._template, "-c", "."], check=True, capture_output=True, timeout=60)
        change = ["--change", 'CMD ["sh"]', "--change", "ENV PATH=/bin:/usr/bin:/sbin:/usr/sbin"]
        self.ok("import", *change, "-", IMAGE, stdin=tar.stdout)
        self.ok("run", "--rm", IMAGE, "true")

    def _make_bridge(self) -> int:
        """The first number whose bridge isn't there: runs beside each other on one host keep apart."""
        for number in range(1, 255):
            made = call(["ip", "link", "add", f"rvtbr{number}", "type", "bridge"])
            if made.code == 0:
                self.bridge, self.gateway = f"rvtbr{number}", f"10.213.{number}.1"
                return number
        raise AssertionError(made.describe())

    def start(self) -> None:
        """Start dockerd and wait until it answers."""
        with open(f"{self.directory}/dockerd.log", "ab") as log:
            argv = ["dockerd", "--config-file", f"{self.directory}/daemon.json"]
            self._process = Process(argv, stdout=log, stderr=log, die_with_us=True)
        wait_until(self._answers, timeout=60, what="dockerd's answer")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.running(), f"dockerd ended:\n{self.log_tail()}"
        return os.path.exists(self.socket) and call(self.argv("version"), timeout=20).code == 0

    def kill(self) -> None:
        """SIGKILL to dockerd; its containers are live-restored by the next `start`."""
        assert self._process is not None
        self._process.kill()

    def stop(self) -> None:
        """SIGTERM to dockerd, as a service manager stops it; its containers are live-restored by the next `start`."""
        stop(self._process, 60)

    def argv(self, *args: str) -> list[str]:
        """The client's command."""
        return [CLIENT, "--host", f"unix://{self.socket}", *args]

    def call(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> Result:
        """A client's command to its end."""
        environment = {"PATH": os.environ["PATH"], "HOME": self.directory, "DOCKER_BUILDKIT": "0"}
        return call(self.argv(*args), stdin=stdin, timeout=timeout or self.runtime.timeout + 30, env=environment)

    def ok(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> str:
        """The output of a client's command that must succeed."""
        result = self.call(*args, stdin=stdin, timeout=timeout)
        assert result.code == 0, f"{result.describe()}\ndockerd:\n{self.log_tail()}"
        return result.text

    def run(self, *args: str, stdin: bytes | int = b"") -> Result:
        """`docker run --rm …` in the foreground."""
        return self.call("run", "--rm", *args, stdin=stdin)

    def detached(self, *args: str) -> str:
        """`docker run --detach …`: the id."""
        return self.ok("run", "--detach", *args)

    def processes(self, container: str) -> dict[str, int]:
        """A running container's processes by role: `init`, and of a VM `vmm`, `supervisor`, `virtiofsd`."""
        pid = int(self.inspect(container)["State"]["Pid"])
        for member in glob.glob(f"{self.runtime.state_dir}/sandboxes/*/members/{pid}"):
            with open(f"{os.path.dirname(os.path.dirname(member))}/processes.json", encoding="utf-8") as file:
                return {"init": pid} | {role: identity[0] for role, identity in json.load(file).items()}
        return {"init": pid}

    def provide(self, image: str, recipe: Recipe, *changes: str) -> None:
        """Have an image made of *recipe* by that name; *changes* are Dockerfile instructions that run nothing."""
        if not self.call("image", "inspect", image).code:
            return
        base = f"{recipe.name}:test"
        if self.call("image", "inspect", base).code:
            self.ok("import", images.tarball(recipe), base, timeout=600)
        self.ok("build", "--quiet", "--tag", image, "-", stdin="\n".join([f"FROM {base}", *changes]).encode())

    def log_tail(self) -> str:
        """The end of dockerd's log."""
        with open(f"{self.directory}/dockerd.log", encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-15:])

    def close(self) -> None:
        """Remove every container, end the daemons, and undo bridge, rules and cgroups."""
        try:
            if self._process is not None and self._process.running():
                ids = self.containers()
                if ids:
                    self.call("rm", "--force", "--volumes", *ids)
                self.call("network", "prune", "--force")
        finally:
            stop(self._process, 30)
            self.containerd.stop()
            process.reap_orphans()
            if self.bridge:
                subprocess.run(["ip", "link", "delete", self.bridge], check=False, timeout=10, capture_output=True)
                network = self.gateway.removesuffix("1")
                self._firewall.restore((self.bridge, network, network.replace("10.213.", "10.214.")))
            # dockerd leaves the file that names the host's network namespace mounted
            unmount_below(self.directory)


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout
