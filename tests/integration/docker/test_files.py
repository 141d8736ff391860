"""Volumes, binds, tmpfs, read-only roots, docker cp, diff, commit, export."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

from framework.docker import IMAGE
from framework.engine import unmount_below

if TYPE_CHECKING:
    from framework.docker import Dockerd


def test_volumes_binds_and_tmpfs(docker: Dockerd, tmp_path: os.PathLike[str]) -> None:
    """-v of a directory, a file and a name, read-only ones, --mount, --tmpfs and --read-only do as they say."""
    bound = os.path.join(tmp_path, "bound")
    os.makedirs(bound)
    for name in ("file", "single"):
        with open(os.path.join(bound, name), "w", encoding="utf-8") as file:
            file.write(f"host {name}\n")
    script = """
    cat /bound/file; echo guest >/bound/made; echo x >/ro/made; cat /single; echo kept >/vol/kept; ls /home-copy
    touch /root-file; touch /scratch/x && echo tmpfs-ok; stat -c %a /scratch
    df -k /scratch | tail -1 | awk '{print $2}'
    """
    result = docker.run(
        *("--volume", f"{bound}:/bound", "--volume", f"{bound}:/ro:ro", "--volume", f"{bound}/single:/single:ro"),
        *("--volume", "named:/vol", "--mount", "type=volume,source=copied,target=/home-copy"),
        *("--tmpfs", "/scratch:size=1m,mode=1750", "--read-only", IMAGE, "sh", "-c", script),
    )
    lines = result.stdout.decode().splitlines()
    assert lines == ["host file", "host single", "tmpfs-ok", "1750", "1024"], result.describe()
    errors = result.stderr.decode()
    assert errors.count("Read-only file system") == 2
    with open(os.path.join(bound, "made"), encoding="utf-8") as file:
        assert file.read() == "guest\n"
    assert docker.run("--volume", "named:/elsewhere:ro", IMAGE, "cat", "/elsewhere/kept").text == "kept"


def test_two_containers_share_a_volume_live(docker: Dockerd) -> None:
    """What one writes the other reads at once, in both directions; --volumes-from too."""
    docker.detached("--name", "one", "--volume", "both:/data", IMAGE, "sleep", "1000")
    docker.detached("--name", "two", "--volumes-from", "one", IMAGE, "sleep", "1000")
    docker.ok("exec", "one", "sh", "-c", "echo first >/data/a")
    assert docker.ok("exec", "two", "cat", "/data/a") == "first"
    docker.ok("exec", "two", "sh", "-c", "echo second, longer >/data/a; mv /data/a /data/b")
    assert docker.ok("exec", "one", "cat", "/data/b") == "second, longer"
    assert docker.call("exec", "one", "cat", "/data/a").code == 1


def test_cp_diff_commit_and_export_of_a_running_container(docker: Dockerd, tmp_path: os.PathLike[str]) -> None:
    """docker cp both ways, live; diff lists the change; commit and export have it."""
    docker.detached("--name", "copied", IMAGE, "sleep", "1000")
    source = os.path.join(tmp_path, "source")
    os.makedirs(source)
    with open(os.path.join(source, "file"), "w", encoding="utf-8") as file:
        file.write("copied in\n")
    docker.ok("cp", source, "copied:/var/into")
    assert docker.ok("exec", "copied", "cat", "/var/into/file") == "copied in"
    docker.ok(
        "exec",
        "copied",
        "sh",
        "-c",
        "echo made inside >/var/into/new; chown 12:34 /var/into/new",
    )
    docker.ok("cp", "copied:/var/into/new", os.path.join(tmp_path, "out"))
    with open(os.path.join(tmp_path, "out"), encoding="utf-8") as file:
        assert file.read() == "made inside\n"
    changes = docker.ok("diff", "copied").splitlines()
    assert "A /var/into" in changes
    assert "A /var/into/new" in changes
    with tarfile.open(fileobj=io.BytesIO(docker.call("export", "copied").expect(0).stdout)) as archive:
        member = archive.getmember("var/into/new")
        assert (member.uid, member.gid, member.size) == (12, 34, 12)
    docker.ok("commit", "copied", "committed:test")
    assert docker.run("committed:test", "cat", "/var/into/new").text == "made inside"
    docker.ok("rmi", "committed:test")
    docker.ok("rm", "--force", "copied")
    # Docker 26 leaves an exported container's root mounted, whatever the runtime
    unmount_below(f"{docker.directory}/data/overlay2")


def test_the_files_that_docker_binds_are_live(docker: Dockerd) -> None:
    """/etc/hosts, /etc/hostname and /etc/resolv.conf are Docker's, and a connected network's change shows in them."""
    docker.detached("--name", "etc", "--hostname", "named", "--dns", "192.0.2.53", IMAGE, "sleep", "1000")
    assert docker.ok("exec", "etc", "cat", "/etc/hostname") == "named"
    assert "nameserver 192.0.2.53" in docker.ok("exec", "etc", "cat", "/etc/resolv.conf")
    address = docker.inspect("etc")["NetworkSettings"]["IPAddress"]
    assert f"{address}\tnamed" in docker.ok("exec", "etc", "cat", "/etc/hosts")
