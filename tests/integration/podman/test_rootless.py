"""Podman called by a user without privileges: virtual machines in the user's own namespaces."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from framework import process, rootfs
from framework.engine import opened
from framework.process import wait_until
from framework.rootless import IMAGE, SUBORDINATE, UID, Rootless, missing
from framework.runtime import HYPERVISOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Runtime


@pytest.fixture
def rootless(runtime: Runtime, scratch: str, template: str) -> Iterator[Rootless]:
    """A user's Podman."""
    if name := missing():
        pytest.skip(f"{name} isn't installed: apt-get install podman uidmap slirp4netns")
    with opened(Rootless(f"{scratch}/rootless", runtime, template)) as made:
        yield made


def own_address(rootless: Rootless) -> str:
    """The address of a container in a network of its own: slirp4netns has one for all, pasta (the default since Podman
    5) gives the host's."""
    said = rootless.call("info", "--format", "{{.Host.RootlessNetworkCmd}}").text
    if said != "pasta":
        return "10.0.2.100"
    route = process.call(["ip", "-o", "-4", "route", "get", "192.0.2.1"]).expect(0).text.split()
    return route[route.index("src") + 1]


def test_a_users_containers(rootless: Rootless, runtime: Runtime) -> None:
    """Files are the user's or of the user's ids; network, ports, exec, top and cp as root has them; nothing is left."""
    shared = f"{rootless.home}/shared"
    os.mkdir(shared)
    os.chown(shared, UID, UID)
    script = "touch /v/root /v/other && chown 5:5 /v/other && echo done; mkdir /w; echo page >/w/index.html"
    script += "; exec httpd -f -p 80 -h /w"
    flags = ("--volume", f"{shared}:/v", "--publish", "127.0.0.1:18090:80")
    rootless.ok("run", "--detach", "--name", "a", *flags, IMAGE, "sh", "-c", script)
    rootless.wait_log("a", "done")
    assert os.stat(f"{shared}/root").st_uid == UID
    assert os.stat(f"{shared}/other").st_uid == SUBORDINATE + 4
    assert f"inet {own_address(rootless)}/" in rootless.ok("exec", "a", "ip", "-o", "-4", "addr")
    assert "httpd" in rootless.ok("top", "a", "args")
    rootless.ok("cp", f"{shared}/root", "a:/copied")
    assert rootless.ok("exec", "--user", "1000", "a", "sh", "-c", "ls /copied; id -u").split() == ["/copied", "1000"]
    if runtime.is_vm:
        # descendants of the test are the user's, but for its own
        vmm = "umid=vm" if HYPERVISOR == "uml" else "qemu-system"
        found = [pid for pid in process.descendants(os.getpid()) if vmm in process.command_line(pid)]
        with open(f"/proc/{found[-1]}/status", encoding="ascii") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        assert SUBORDINATE <= int(status["Uid"].split("\t")[0]) < SUBORDINATE + 65536
        assert int(status["CapEff"], 16) == 0
    page = rootless.ok("run", "--rm", "--network", "container:a", IMAGE, "wget", "-q", "-O", "-", "http://127.0.0.1/")
    assert page == "page"
    fetch = ["curl", "-s", "--max-time", "5", "http://127.0.0.1:18090/"]
    wait_until(lambda: process.call(fetch).text == "page", timeout=20, what="the page at the published port")
    rootless.ok("stop", "--time", "0", "a")
    rootless.ok("rm", "a")


@rootfs.is_the_hosts
def test_a_users_kinds(rootless: Rootless) -> None:
    """--userns keep-id, a network of the user's own, a pod."""
    kept = rootless.ok(
        *("run", "--rm", "--userns", "keep-id", IMAGE, "sh", "-c"),
        "id -u; touch /tmp/f; stat -c %u /tmp/f; ip -o -4 addr",
    )
    assert kept.split()[:2] == [str(UID)] * 2
    assert f"inet {own_address(rootless)}/" in kept
    rootless.ok("pod", "create", "--name", "p")
    serve = "mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w"
    rootless.ok("run", "--detach", "--pod", "p", IMAGE, "sh", "-c", serve)

    def fetch() -> bool:
        return rootless.call("run", "--rm", "--pod", "p", IMAGE, "wget", "-q", "-O", "-", "http://127.0.0.1/").code == 0

    wait_until(fetch, timeout=60, what="the page within the pod")
