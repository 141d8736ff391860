"""Further options of files: docker cp as a stream and onto a volume, propagation, live binds, drivers, sizes."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

from framework.docker import IMAGE
from framework.process import wait_until

if TYPE_CHECKING:
    from framework.docker import Dockerd


def test_cp_as_a_stream_and_onto_a_volume_of_a_running_container(docker: Dockerd, tmp_path: os.PathLike[str]) -> None:
    """`docker cp -` both ways with owners kept; what is copied to a volume or a tmpfs's place; links are followed."""
    docker.detached("--name", "streamed", "--volume", "streamed:/vol", IMAGE, "sleep", "1000")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as made:
        member = tarfile.TarInfo("dir/file")
        member.size, member.uid, member.gid, member.mode = 5, 1000, 2000, 0o640
        made.addfile(member, io.BytesIO(b"bytes"))
    for place in ("/root", "/vol"):
        docker.ok("cp", "--archive", "-", f"streamed:{place}", stdin=archive.getvalue())
        look = ("exec", "streamed", "stat", "-c", "%u %g %a %s", f"{place}/dir/file")
        assert docker.ok(*look) == "1000 2000 640 5", place
        back = docker.call("cp", f"streamed:{place}/dir", "-").expect(0).stdout
        with tarfile.open(fileobj=io.BytesIO(back)) as found:
            member = found.getmember("dir/file")
            assert (member.uid, member.gid, member.mode & 0o777) == (1000, 2000, 0o640)
    docker.ok("exec", "streamed", "ln", "-s", "/vol/dir/file", "/root/link")
    docker.ok("cp", "--follow-link", "streamed:/root/link", f"{tmp_path}/out")
    with open(f"{tmp_path}/out", encoding="utf-8") as file:
        assert file.read() == "bytes"
    # the volume is the same one afterwards, for container and engine
    docker.ok("exec", "streamed", "sh", "-c", "echo more >/vol/after")
    assert docker.run("--volume", "streamed:/other", IMAGE, "cat", "/other/after").text == "more"


def test_diff_and_commit_know_changes_and_deletions(docker: Dockerd) -> None:
    """Deleted, changed and added files in `docker diff`; an image of it has a command and an environment given."""
    docker.detached("--name", "changed", IMAGE, "sleep", "1000")
    docker.ok("exec", "changed", "sh", "-c", "rm /etc/group; echo x >>/etc/passwd; mkfifo /pipe; rm -rf /home/user")
    changes = set(docker.ok("diff", "changed").splitlines())
    assert {"D /etc/group", "C /etc/passwd", "A /pipe", "D /home/user"} <= changes
    command = 'CMD ["sh", "-c", "ls -l /pipe; ls /etc/group; echo $ONE"]'
    docker.ok("commit", "--change", command, "--change", "ENV ONE=1", "changed", "changed:test")
    result = docker.run("changed:test")
    assert result.text.startswith("p")
    assert result.text.endswith("\n1")
    assert b"No such file" in result.stderr
    docker.ok("rmi", "changed:test")


def test_a_networks_change_shows_in_the_files_that_docker_binds(docker: Dockerd) -> None:
    """/etc/hosts of a running container has the address on a network that it is connected to, and loses it."""
    docker.ok("network", "create", "lately")
    docker.detached("--name", "etc", IMAGE, "sleep", "1000")
    docker.ok("network", "connect", "lately", "etc")
    address = docker.inspect("etc")["NetworkSettings"]["Networks"]["lately"]["IPAddress"]
    hosts = ("exec", "etc", "cat", "/etc/hosts")
    wait_until(lambda: address in docker.ok(*hosts), timeout=10, what="the new address")
    docker.ok("exec", "etc", "sh", "-c", "echo 192.0.2.1 mine >>/etc/hosts")
    docker.ok("network", "disconnect", "lately", "etc")
    wait_until(lambda: address not in docker.ok(*hosts), timeout=10, what="the address's end")
    assert "192.0.2.1 mine" in docker.ok(*hosts)


def test_propagation_drivers_and_sizes(docker: Dockerd, tmp_path: os.PathLike[str]) -> None:
    """rslave shows what the host mounts later; a local volume has its options; --shm-size and --tmpfs theirs."""
    shared, late = f"{tmp_path}/shared", f"{tmp_path}/shared/late"
    os.makedirs(late)
    subprocess.run(["mount", "--bind", shared, shared], check=True, timeout=10)
    subprocess.run(["mount", "--make-shared", shared], check=True, timeout=10)
    try:
        options = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=3m,uid=1000")
        docker.ok("volume", "create", "--driver", "local", *options, "sized")
        docker.detached(
            *("--name", "mounts", "--mount", f"type=bind,source={shared},target=/shared,bind-propagation=rslave"),
            *("--volume", "sized:/sized", "--shm-size", "5m", "--volume-driver", "local", "--volume", "plain:/plain"),
            *("--tmpfs", "/scratch:size=2m,noexec", IMAGE, "sleep", "1000"),
        )
        subprocess.run(["mount", "-t", "tmpfs", "late", late], check=True, timeout=10)
        with open(f"{late}/file", "w", encoding="utf-8") as file:
            file.write("mounted later\n")
        shown = ("exec", "mounts", "cat", "/shared/late/file")
        wait_until(lambda: docker.call(*shown).text == "mounted later", timeout=10, what="the later mount")
        script = "for d in /sized /dev/shm /scratch; do df -k $d | awk 'END {print $2}'; done; stat -c %u /sized"
        assert docker.ok("exec", "mounts", "sh", "-c", script).split() == ["3072", "5120", "2048", "1000"]
        refused = docker.call("exec", "mounts", "sh", "-c", "cp /bin/busybox /scratch/echo; /scratch/echo")
        assert b"Permission denied" in refused.stderr
    finally:
        docker.call("rm", "--force", "mounts")  # a VM that has looked into a mount keeps it busy
        subprocess.run(["umount", "--recursive", shared], check=True, timeout=10)
