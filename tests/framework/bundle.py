"""A bundle: a directory with a root filesystem and a config.json that tests edit before they create a container."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from framework import rootfs

if TYPE_CHECKING:
    from collections.abc import Sequence

# Where every container of this run has its cgroup, so that one left behind is known for ours
# ends as no other of its kind goes on: in a PID namespace 12 would be the beginning of 12345
CGROUP_PARENT = f"/runvm-test-{os.getpid()}x"

# What Docker grants by default
CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]


def default_config(cid: str) -> dict[str, Any]:
    """A config.json that every OCI runtime takes: fresh namespaces, Docker's mounts, capabilities and masks."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "box",
        "mounts": [
            _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
            _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            _mount(
                "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
            ),
            _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
            _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
        ],
        "linux": {
            "cgroupsPath": f"{CGROUP_PARENT}/{cid}",
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


class Bundle:
    """A directory that a container is created from; *config* is written as config.json by `save`."""

    def __init__(self, path: str, template: str, cid: str) -> None:
        self.path = path
        self.rootfs = f"{path}/rootfs"
        self.config: dict[str, Any] = default_config(cid)
        os.makedirs(path)
        rootfs.clone(template, self.rootfs)

    @property
    def process(self) -> dict[str, Any]:
        """The `process` object of the config."""
        process: dict[str, Any] = self.config["process"]
        return process

    @property
    def linux(self) -> dict[str, Any]:
        """The `linux` object of the config."""
        linux: dict[str, Any] = self.config["linux"]
        return linux

    @property
    def resources(self) -> dict[str, Any]:
        """The `linux.resources` object of the config."""
        resources: dict[str, Any] = self.linux["resources"]
        return resources

    def save(self) -> None:
        """Write config.json."""
        with open(f"{self.path}/config.json", "w", encoding="utf-8") as file:
            json.dump(self.config, file)

    def args(self, *argv: str) -> Bundle:
        """What the container runs."""
        self.process["args"] = list(argv)
        return self

    def mount(self, destination: str, kind: str, source: str, *options: str) -> Bundle:
        """One mount more."""
        self.config["mounts"].append(_mount(destination, kind, source, *options))
        return self

    def bind(self, source: str, destination: str, *options: str) -> Bundle:
        """Bind a file or directory of the host."""
        return self.mount(destination, "bind", source, *(options or ("rbind", "rw")))

    def namespace(self, kind: str, path: str | None = None) -> Bundle:
        """A fresh namespace of *kind*, or the one at *path*, in place of what the config has."""
        self.without_namespace(kind)
        self.linux["namespaces"].append({"type": kind} | ({"path": path} if path else {}))
        return self

    def without_namespace(self, kind: str) -> Bundle:
        """Share the host's namespace of *kind*."""
        self.linux["namespaces"] = [entry for entry in self.linux["namespaces"] if entry["type"] != kind]
        return self

    def hook(
        self, kind: str, path: str, args: Sequence[str] = (), *, env: Sequence[str] = (), timeout: int | None = None
    ) -> Bundle:
        """Add a hook; *args* includes argv[0]."""
        hook: dict[str, Any] = {"path": path}
        if args:
            hook["args"] = list(args)
        if env:
            hook["env"] = list(env)
        if timeout is not None:
            hook["timeout"] = timeout
        self.config.setdefault("hooks", {}).setdefault(kind, []).append(hook)
        return self

    def file(self, path: str, content: str | bytes = "", *, mode: int = 0o644) -> str:
        """Make a file in the root filesystem and give its path on the host."""
        target = os.path.join(self.rootfs, path.lstrip("/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(target, mode)
        return target


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}
