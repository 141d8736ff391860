"""Volumes and binds: every kind of mount, what files on them can do, and what two containers share by one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from framework import probe_files, rootfs
from framework.docker import CLIENT, IMAGE
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.docker import Dockerd
    from framework.runtime import Runtime

pytestmark = rootfs.runs_the_hosts_programs

# The host's programs, with Debian's merged /usr: Python above all
HOSTS_PROGRAMS = (
    *("--volume", "/usr:/usr:ro", "--volume", "/usr/lib:/lib:ro", "--volume", "/usr/lib64:/lib64:ro"),
    *("--volume", f"{probe_files.__file__}:/probe.py:ro", "--env", "PATH=/bin:/usr/bin"),
)
EXPECTED: dict[str, Any] = {
    "xattr": ["value", ["user.key"]],
    "capability": "0100000200040000000000000000000000000000",
    "hard_link": [2, True],
    "symlink": ["target", "text", True, False],
    "fifo": "through",
    "unix_socket": True,
    "shared_mapping": "hello",
    "locks": [False, False],
    "direct": "plain",
    "allocate": [1 << 20, True],
    "owner_and_mode": [123, 456, "0o755", "0o6751"],
    "times": [1234567890123456789, 1234567890987654321],
    "rename": ["2", -1, "EEXIST", "2"],
    "unlinked": ["still", 0],
    "sparse": [5 << 30, True, True],
    "inotify": True,
    "names": [1001, True],
}
LISTEN = """
import socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("/vol/s")
listener.listen()
open("/vol/up", "w")
time.sleep(99)
"""
CONNECT = "import socket; socket.socket(socket.AF_UNIX).connect('/vol/s')"
HOLD = "import fcntl, time; f = open('/vol/l', 'w'); fcntl.flock(f, 2); open('/vol/held', 'w'); time.sleep(99)"
TAKE = "import fcntl; fcntl.flock(open('/vol/l', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
# What FUSE, the guest's kernel (no ACLs on mounts below a share) or the file server's rights leave out
ON_HOST = {"trusted": "value", "nameless": True, "flags": True, "acl": [{"1000": True, "1001": False}, "0o760"]}
IN_VM = {"trusted": "EPERM", "nameless": "ENOTSUP", "flags": "ENOTTY", "acl": "ENOTSUP"}


@pytest.fixture(scope="module", autouse=True)
def pair(docker: Dockerd) -> Iterator[None]:
    """Two containers with one volume, of one VM each."""
    for name in ("left", "right"):
        docker.detached(
            "--name", name, *HOSTS_PROGRAMS, "--volume", "pair:/vol", "--cap-add", "SYS_ADMIN", IMAGE, "sleep", "10000"
        )
    yield
    docker.ok("rm", "--force", "left", "right")
    docker.ok("volume", "rm", "pair")


def test_what_files_on_a_volume_can_do(docker: Dockerd, runtime: Runtime) -> None:
    """xattrs, capabilities, links, FIFOs, sockets, mappings, locks, holes, times, renames, inotify and more."""
    found = json.loads(docker.ok("exec", "--workdir", "/vol", "left", "python3", "/probe.py"))
    assert found == EXPECTED | (IN_VM if runtime.is_vm else ON_HOST)


def test_what_one_container_does_the_other_sees(docker: Dockerd, runtime: Runtime) -> None:
    """Contents, names, modes, owners, links and lengths, at once, or within the second of a VM (docs/limitations.md); a
    mapping's bytes once they are flushed."""

    def sees(expected: str, name: str, *command: str) -> None:
        if not runtime.is_vm:
            assert docker.ok("exec", name, *command) == expected
        wait_until(lambda: docker.ok("exec", name, *command) == expected, timeout=2, what=f"{name} to see {expected!r}")

    look = ("sh", "-c", "cd /vol && cat file && stat -c '%a %u %g %h %s' file")
    docker.ok("exec", "left", "sh", "-c", "cd /vol && rm -rf * && echo first >file && chmod 640 file && chown 7:8 file")
    sees("first\n640 7 8 1 6", "right", *look)
    docker.ok("exec", "right", "sh", "-c", "cd /vol && echo second >>file && ln file other && chmod 600 file")
    sees("first\nsecond\n600 7 8 2 13", "left", *look)
    write = "import mmap; f = open('/vol/file', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[0:5] = b'third'; m.flush()"
    docker.ok("exec", "left", "python3", "-c", write)
    sees("third", "right", "head", "-n", "1", "/vol/file")
    docker.ok("exec", "right", "rm", "/vol/file", "/vol/other")
    sees("", "left", "ls", "/vol")


@pytest.mark.only("runvm", "two virtual machines have two kernels")
def test_what_two_virtual_machines_dont_share(docker: Dockerd) -> None:
    """Locks of one VM are unknown in another."""
    docker.ok("exec", "--detach", "left", "python3", "-c", HOLD)
    docker.ok("exec", "right", "sh", "-c", "until [ -e /vol/held ]; do sleep 0.1; done")
    assert docker.call("exec", "left", "python3", "-c", TAKE).code == 1
    assert docker.call("exec", "right", "python3", "-c", TAKE).code == 0


def test_a_server_of_another_virtual_machine(docker: Dockerd) -> None:
    """By its socket in a volume that both have."""
    docker.ok("exec", "--detach", "left", "python3", "-c", LISTEN)
    docker.ok("exec", "right", "sh", "-c", "until [ -e /vol/up ]; do sleep 0.1; done")
    assert docker.call("exec", "left", "python3", "-c", CONNECT).code == 0
    wait_until(lambda: docker.call("exec", "right", "python3", "-c", CONNECT).code == 0, timeout=20, what="an answer")
    # the server, with the connections that it hasn't taken, and what stands for it on the host
    docker.ok("exec", "left", "sh", "-c", "pkill python3; rm /vol/s")


def test_dockers_client_finds_the_daemon_in_a_mounted_directory(docker: Dockerd) -> None:
    """As with -v /run:/run."""
    client = os.path.realpath(shutil.which(CLIENT) or CLIENT)
    directory = f"{docker.directory}/linked"
    os.mkdir(directory)
    os.link(docker.socket, f"{directory}/docker.sock")
    command = (client, "--host", "unix:///daemon/docker.sock", "version", "--format", "{{.Server.Os}}")
    assert docker.run(*HOSTS_PROGRAMS, "--volume", f"{directory}:/daemon", IMAGE, *command).text == "linux"


def test_dockers_client_in_a_container_talks_to_the_daemon(docker: Dockerd) -> None:
    """By the daemon's socket as a volume: questions, and a stream in both directions."""
    client = os.path.realpath(shutil.which(CLIENT) or CLIENT)
    volume = ("--volume", f"{docker.socket}:/var/run/docker.sock")
    docker.detached("--name", "steering", *HOSTS_PROGRAMS, *volume, IMAGE, "sleep", "600")
    assert "steering" in docker.ok("exec", "steering", client, "ps", "--format", "{{.Names}}").split()
    said = docker.ok("exec", "--interactive", "steering", client, "exec", "-i", "left", "cat", stdin=b"through")
    assert said == "through"
    docker.ok("rm", "--force", "steering")


def test_containers_of_one_pod_share_locks_and_sockets(docker: Dockerd) -> None:
    """Joined by --network container:x they are in one VM, and a volume's FIFOs, sockets and locks work between them."""
    docker.detached(
        *(
            "--name",
            "joined",
            "--network",
            "container:left",
            "--volume",
            "pair:/vol",
            *HOSTS_PROGRAMS,
            IMAGE,
            "sleep",
            "1000",
        )
    )
    docker.ok("exec", "left", "sh", "-c", "rm -rf /vol/*; mkfifo /vol/fifo")
    docker.ok("exec", "--detach", "left", "sh", "-c", "echo through >/vol/fifo")
    assert docker.ok("exec", "joined", "timeout", "20", "cat", "/vol/fifo") == "through"
    docker.ok("exec", "--detach", "left", "python3", "-c", LISTEN)
    docker.ok("exec", "joined", "sh", "-c", "until [ -e /vol/up ]; do sleep 0.1; done")
    docker.ok("exec", "joined", "python3", "-c", CONNECT)
    docker.ok("exec", "left", "rm", "/vol/s")
    docker.ok("exec", "--detach", "left", "python3", "-c", HOLD)
    docker.ok("exec", "joined", "sh", "-c", "until [ -e /vol/held ]; do sleep 0.1; done")
    assert docker.call("exec", "joined", "python3", "-c", TAKE).code == 1


def test_every_kind_of_mount(docker: Dockerd, tmp_path: os.PathLike[str]) -> None:
    """Volumes, binds read-only, recursive or not, of one file, tmpfs with options."""
    top = os.path.join(tmp_path, "top")
    os.makedirs(f"{top}/below/deep")
    os.mkdir(f"{top}/plain")
    subprocess.run(["mount", "-t", "tmpfs", "below", f"{top}/below"], check=True, timeout=10)
    try:
        with open(f"{top}/below/mounted", "w", encoding="utf-8") as file:
            file.write("mounted below\n")
        script = """
        cat /top/below/mounted; touch /top/plain/x 2>&1; ls /single-mount/below; ls /filled /unfilled
        stat -c '%a %u' /fast /flagged; df -k /fast | tail -n 1 | awk '{print $2}'
        touch /flagged/x && chmod +x /flagged/x
        cat /single; echo written >/single; grep -c ' /fast tmpfs' /proc/mounts
        """
        result = docker.run(
            *("--mount", f"type=bind,source={top},target=/top,readonly"),
            *("--mount", f"type=bind,source={top},target=/single-mount,bind-nonrecursive"),
            *("--mount", "type=volume,source=kinds,target=/filled,volume-driver=local", "--volume", "/anonymous"),
            *("--mount", "type=volume,source=empty,target=/unfilled,volume-nocopy"),
            *("--mount", "type=tmpfs,target=/fast,tmpfs-size=1m,tmpfs-mode=1700"),
            *("--tmpfs", "/flagged:rw,exec,uid=7,mode=755,size=2m"),
            *("--mount", f"type=bind,source={top}/below/mounted,target=/single", IMAGE, "sh", "-c", script),
        )
        lines = result.stdout.decode().splitlines()
        assert lines[:2] == ["mounted below", "touch: /top/plain/x: Read-only file system"], result.describe()
        assert lines[2:] == ["deep", "/filled:", "", "/unfilled:", "1700 0", "755 7", "1024", "mounted below", "1"]
        with open(f"{top}/below/mounted", encoding="utf-8") as file:
            assert file.read() == "written\n"
    finally:
        subprocess.run(["umount", f"{top}/below"], check=True, timeout=10)


def test_a_volume_is_filled_from_the_image(docker: Dockerd) -> None:
    """A new volume over a directory of the image has its files, owners included; with nocopy it stays empty."""
    assert docker.run("--volume", "filled:/home", IMAGE, "stat", "-c", "%u", "/home/user").text == "1000"
    assert docker.run("--volume", "filled:/elsewhere", IMAGE, "ls", "/elsewhere").text == "user"
    assert docker.run("--volume", "unfilled:/home:nocopy", IMAGE, "ls", "/home").text == ""


def test_the_engines_socket_in_a_container(docker: Dockerd) -> None:
    """docker.sock as a bind: a container talks to the daemon."""
    ask = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/docker.sock');"
        "s.sendall(b'GET /_ping HTTP/1.0\\r\\n\\r\\n'); print(s.recv(4096).splitlines()[0].decode())"
    )
    result = docker.run(*HOSTS_PROGRAMS, "--volume", f"{docker.socket}:/docker.sock", IMAGE, "python3", "-c", ask)
    assert "200 OK" in result.text
