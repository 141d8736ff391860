"""Mounts and files: binds, tmpfs and the root are the host's own files, live in both directions."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from framework import host, rootfs
from framework.process import call, wait_until
from framework.runtime import facts
from runvm.linux import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box, Container, Runtime


def mount_lines(text: str) -> dict[str, tuple[str, set[str]]]:
    """Destination to (type, options) out of /proc/self/mountinfo; of several at one place the last."""
    found = {}
    for line in text.splitlines():
        fields = line.split()
        found[fields[4]] = (fields[fields.index("-") + 1], set(fields[5].split(",")))
    return found


@pytest.fixture(scope="module")
def seen(module_box: Box, runtime: Runtime) -> Iterator[dict[str, str]]:
    """What a container with mounts of every kind sees, out of one run."""
    container = module_box()
    bundle = container.bundle
    source = f"{bundle.path}/source"
    for name in ("rw", "ro", "noexec", "tree/sub", "nested/sub"):
        os.makedirs(f"{source}/{name}")
    for name in ("rw/file", "ro/file", "single", "single-ro", "with space"):
        with open(f"{source}/{name}", "w", encoding="utf-8") as file:
            file.write(f"host {name}\n")
    os.link(f"{bundle.rootfs}/bin/busybox", f"{source}/noexec/busybox")
    os.symlink("rw", f"{source}/link")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", f"{source}/tree/sub"], check=True, timeout=10)
    with open(f"{source}/tree/sub/below", "w", encoding="utf-8") as file:
        file.write("below\n")
    bundle.bind(f"{source}/rw", "/mnt/new/rw", "rbind", "rw", "rprivate")
    bundle.bind(f"{source}/ro", "/mnt/ro", "bind", "ro")
    bundle.bind(f"{source}/noexec", "/mnt/noexec", "bind", "noexec", "nosuid", "nodev")
    bundle.bind(f"{source}/single", "/mnt/single/file", "bind")
    bundle.bind(f"{source}/single-ro", "/etc/hostname", "bind", "ro")
    bundle.bind(f"{source}/with space", "/mnt/with space", "bind")
    bundle.bind(f"{source}/link", "/mnt/link", "bind")
    bundle.bind(f"{source}/tree", "/mnt/rbind", "rbind")
    bundle.bind(f"{source}/tree", "/mnt/bind", "bind")
    bundle.bind("rw", "/mnt/over", "bind")
    bundle.config["mounts"][-1]["source"] = f"{source}/rw"
    bundle.bind(f"{source}/ro", "/mnt/over", "bind")
    bundle.mount(
        "/mnt/tmpfs", "tmpfs", "tmpfs", "size=1m", "mode=0751", "uid=1000", "gid=2000", "noexec", "nr_inodes=50"
    )
    bundle.mount("/mnt/rotmp", "tmpfs", "tmpfs", "ro")
    try:
        yield facts(
            container,
            {
                "mounts": "cat /proc/self/mountinfo",
                "rw": "cat /mnt/new/rw/file; echo guest >/mnt/new/rw/made && cat /mnt/new/rw/made",
                "ro": "cat /mnt/ro/file; touch /mnt/ro/made",
                "noexec": "/mnt/noexec/busybox true",
                "single": "cat /mnt/single/file; echo changed >>/mnt/single/file;"
                " cat /etc/hostname; echo x >/etc/hostname",
                "space": "cat '/mnt/with space'",
                "link": "cat /mnt/link/file",
                "rbind": "cat /mnt/rbind/sub/below",
                "bind": "ls /mnt/bind/sub",
                "over": "cat /mnt/over/file",
                "tmpfs": "stat -c '%a %u %g' /mnt/tmpfs;"
                " dd if=/dev/zero of=/mnt/tmpfs/big bs=1k count=2000; wc -c </mnt/tmpfs/big",
                "rotmp": "touch /mnt/rotmp/x",
            },
        ) | {"source": source}
    finally:
        subprocess.run(["umount", f"{source}/tree/sub"], check=True, timeout=10)


def test_a_bound_directory_is_the_hosts(seen: dict[str, str]) -> None:
    """Both see each other's files; a destination that is missing is made."""
    assert seen["rw"].splitlines() == ["host rw/file", "guest"]
    with open(f"{seen['source']}/rw/made", encoding="utf-8") as file:
        assert file.read() == "guest\n"


def test_a_read_only_bind_takes_no_writes(seen: dict[str, str]) -> None:
    """EROFS, also for root."""
    assert seen["ro"].splitlines()[0] == "host ro/file"
    assert "Read-only file system" in seen["ro"]
    assert not os.path.exists(f"{seen['source']}/ro/made")


def test_flags_of_a_bind_hold(seen: dict[str, str]) -> None:
    """noexec: nothing can be run from it; nosuid and nodev are on the mount."""
    assert "Permission denied" in seen["noexec"]
    assert {"noexec", "nosuid", "nodev"} <= mount_lines(seen["mounts"])["/mnt/noexec"][1]


def test_a_single_file_can_be_bound(seen: dict[str, str]) -> None:
    """Onto a path that isn't there, over a file that is, read-only, and with a space in its name."""
    lines = seen["single"].splitlines()
    assert lines[0] == "host single"
    assert lines[1] == "host single-ro"
    assert "Read-only file system" in seen["single"]
    with open(f"{seen['source']}/single", encoding="utf-8") as file:
        assert file.read() == "host single\nchanged\n"
    assert seen["space"] == "host with space"


def test_a_symlink_as_source_is_followed(seen: dict[str, str]) -> None:
    """The source of a bind may be a symlink on the host."""
    assert seen["link"] == "host rw/file"


def test_rbind_takes_submounts_along_and_bind_does_not(seen: dict[str, str]) -> None:
    """What is mounted below the source shows with rbind only."""
    assert seen["rbind"] == "below"
    assert seen["bind"] == ""


def test_later_mounts_cover_earlier_ones(seen: dict[str, str]) -> None:
    """Mounts are made in the order of the config."""
    assert seen["over"] == "host ro/file"


def test_tmpfs_options_hold(seen: dict[str, str]) -> None:
    """size, mode, uid, gid, noexec, ro."""
    assert seen["tmpfs"].splitlines()[0] == "751 1000 2000"
    assert "No space left on device" in seen["tmpfs"]
    assert int(seen["tmpfs"].splitlines()[-1]) == 1 << 20
    assert "Read-only file system" in seen["rotmp"]
    kind, options = mount_lines(seen["mounts"])["/mnt/tmpfs"]
    assert kind == "tmpfs"
    assert "noexec" in options


@pytest.fixture(scope="module")
def live(module_box: Box) -> Container:
    """A running container with a bound directory at /shared."""
    container = module_box.idle()
    os.makedirs(f"{container.bundle.path}/shared")
    container.bundle.bind(f"{container.bundle.path}/shared", "/shared", "rbind", "rw", "rprivate")
    return container.launch()


def settle(runtime: Runtime) -> None:
    """Until a guest asks anew for what it knows of a file: it keeps sizes, owners and names for a second."""
    if runtime.is_vm:
        time.sleep(1.1)


def test_changes_are_seen_on_both_sides(live: Container, runtime: Runtime) -> None:
    """Created, changed, renamed and removed on one side, and so on the other: in the root and in a bind. What a
    container does shows on the host at once."""
    for inside, outside in (("/shared", f"{live.bundle.path}/shared"), ("/tmp", f"{live.bundle.rootfs}/tmp")):
        with open(f"{outside}/one", "w", encoding="utf-8") as file:
            file.write("first")
        assert live.sh(f"cat {inside}/one") == "first"
        with open(f"{outside}/one", "w", encoding="utf-8") as file:
            file.write("second, longer")
        settle(runtime)
        assert live.sh(f"cat {inside}/one; rm {inside}/one; echo back >{inside}/two") == "second, longer"
        assert not os.path.exists(f"{outside}/one")
        with open(f"{outside}/two", encoding="utf-8") as file:
            assert file.read() == "back\n"
        os.rename(f"{outside}/two", f"{outside}/three")
        settle(runtime)
        assert live.sh(f"cat {inside}/three; ls {inside}").splitlines()[0] == "back"
        os.unlink(f"{outside}/three")
        settle(runtime)
        assert live.sh(f"ls {inside} | grep -c three || true") == "0"


def test_owners_modes_links_and_special_files_pass_both_ways(live: Container, runtime: Runtime) -> None:
    """chown, chmod with setuid, symlinks, hard links, FIFOs, sockets, times are the host's own."""
    shared = f"{live.bundle.path}/shared"
    live.sh(
        "cd /shared && touch f && chown 1234:5678 f && chmod 4751 f && ln -s ../etc/passwd s"
        " && ln f hard && mkfifo fifo"
        " && touch -d '2001-02-03 04:05:06' f && mkdir -m 1777 d"
    )
    info = os.stat(f"{shared}/f")
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode), info.st_nlink) == (1234, 5678, 0o4751, 2)
    assert int(info.st_mtime) == 981173106
    assert os.readlink(f"{shared}/s") == "../etc/passwd"
    assert stat.S_ISFIFO(os.stat(f"{shared}/fifo").st_mode)
    assert stat.S_IMODE(os.stat(f"{shared}/d").st_mode) == 0o1777

    os.chown(f"{shared}/f", 42, 43)
    settle(runtime)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{shared}/sock")
    shown = live.sh("cd /shared && stat -c '%u %g %F' f sock fifo")
    listener.close()
    assert shown.splitlines() == ["42 43 regular empty file", "0 0 socket", "0 0 fifo"]
    assert live.sh("cd /shared && (echo through >fifo & cat fifo)") == "through"
    live.sh("rm -rf /shared/f /shared/s /shared/hard /shared/fifo /shared/d")
    # it was a server's until a moment ago: see docs/limitations.md
    wait_until(lambda: live.exec("rm", "/shared/sock").code == 0, timeout=5, what="the removal of the socket")


def test_what_is_written_between_create_and_start_is_there(box: Box) -> None:
    """Engines write /etc/resolv.conf when they set up the network, which may be then."""
    container = box("cat", "/mounted")
    source = f"{container.bundle.path}/source"
    with open(source, "w", encoding="utf-8"):
        pass
    container.bundle.bind(source, "/mounted", "bind")
    container.create()
    with open(source, "w", encoding="utf-8") as file:
        file.write("nameserver 10.0.0.1")
    container.start()
    container.wait()
    assert container.stdout() == b"nameserver 10.0.0.1"


def test_large_and_many_files_arrive_whole(live: Container) -> None:
    """20 MB written by one side have the same digest on the other; so do 300 small files in a tree."""
    shared = f"{live.bundle.path}/shared"
    data = os.urandom(1 << 20) * 20
    with open(f"{shared}/large", "wb") as file:
        file.write(data)
    import hashlib

    assert live.sh("sha256sum </shared/large").split()[0] == hashlib.sha256(data).hexdigest()
    live.sh("cat /shared/large /shared/large >/shared/twice; for n in $(seq 300); do echo $n >/shared/small$n; done")
    with open(f"{shared}/twice", "rb") as file:
        assert hashlib.sha256(file.read()).hexdigest() == hashlib.sha256(data * 2).hexdigest()
    for number in range(1, 301):
        with open(f"{shared}/small{number}", encoding="ascii") as small:
            assert small.read() == f"{number}\n"
    live.sh("rm /shared/large /shared/twice /shared/small*")
    assert not [name for name in os.listdir(shared) if name.startswith(("large", "twice", "small"))]


@pytest.mark.differs("runvm", "a lock is among the containers of one virtual machine: see docs/limitations.md")
def test_a_lock_of_the_host_is_seen_in_the_container(box: Box) -> None:
    """flock on the host keeps a container's flock out, and one of the container keeps the host's out."""
    container = box.idle()
    rootfs.install(container.bundle.rootfs, "flock")
    path = container.bundle.file("/tmp/lock")
    container.launch()
    container.exec("flock", "-n", "/tmp/lock", "true").expect(0)
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        container.exec("flock", "-n", "/tmp/lock", "true").expect(1)
        fcntl.flock(file, fcntl.LOCK_UN)
        script = "flock -n /tmp/lock sh -c 'touch /tmp/held; exec sleep 1000' >/dev/null 2>&1 &"
        container.sh(script + " while ! test -e /tmp/held; do sleep 0.05; done")
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_mount_made_later_on_the_host_propagates_with_rslave(box: Box) -> None:
    """A bind with rslave of a shared mount: what the host mounts below it later shows in the running container."""
    container = box.idle()
    shared = f"{container.bundle.path}/shared"
    os.makedirs(shared)
    subprocess.run(["mount", "--bind", shared, shared], check=True, timeout=10)
    mounted = [shared]
    try:
        subprocess.run(["mount", "--make-shared", shared], check=True, timeout=10)
        os.makedirs(f"{shared}/sub")
        container.bundle.bind(shared, "/shared", "rbind", "rslave")
        container.launch()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", f"{shared}/sub"], check=True, timeout=10)
        mounted.append(f"{shared}/sub")
        with open(f"{shared}/sub/late", "w", encoding="utf-8") as file:
            file.write("late\n")
        wait_until(lambda: container.exec("cat", "/shared/sub/late").stdout == b"late\n", timeout=10, what="the mount")
        container.close()
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", path], check=True, timeout=10)


@pytest.mark.parametrize("propagation", ["private", "rprivate"])
def test_nothing_comes_later_with_a_private_root(box: Box, propagation: str) -> None:
    """linux.rootfsPropagation: neither to the root nor to a bind with rslave."""
    container = box.idle()
    bundle = container.bundle
    subprocess.run(["mount", "--bind", bundle.path, bundle.path], check=True, timeout=10)
    mounted = [bundle.path]
    try:
        subprocess.run(["mount", "--make-shared", bundle.path], check=True, timeout=10)
        bundle.linux["rootfsPropagation"] = propagation
        for path in ("vol/sub", "rootfs/sub"):
            os.makedirs(f"{bundle.path}/{path}")
        bundle.bind(f"{bundle.path}/vol", "/vol", "rbind", "rslave")
        container.launch()
        for path in ("vol/sub", "rootfs/sub"):
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", f"{bundle.path}/{path}"], check=True, timeout=10)
            mounted.append(f"{bundle.path}/{path}")
            with open(f"{bundle.path}/{path}/late", "w", encoding="utf-8") as file:
                file.write("late\n")
        time.sleep(1.5)  # the guest believes names for a second
        assert container.sh("ls /vol/sub /sub").split() == ["/sub:", "/vol/sub:"]
        container.close()
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", path], check=True, timeout=10)


def test_mounts_below_a_bind_keep_their_flags(box: Box) -> None:
    """nosuid, noexec and nodev of what the host has mounted below the source; what has none gets none."""
    container = box.sh(
        "grep ' /mnt/' /proc/mounts; mknod /mnt/nodev/null c 1 3; echo >/mnt/nodev/null || echo refused;"
        " mknod /mnt/plain/null c 1 3; echo >/mnt/plain/null && echo written; /mnt/noexec/busybox true || echo $?;"
        " /mnt/plain/busybox true && echo run"
    )
    source = f"{container.bundle.path}/source"
    kinds = {"noexec": "noexec", "nodev": "nodev", "nosuid": "nosuid", "ro": "ro", "plain": "rw"}
    container.bundle.process["capabilities"]["ambient"] = []
    container.bundle.resources["devices"] = [{"allow": True, "access": "rwm"}]
    mounted = []
    try:
        for name, option in kinds.items():
            os.makedirs(f"{source}/{name}")
            subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", f"{source}/{name}"], check=True, timeout=10)
            mounted.append(f"{source}/{name}")
            if name != "ro":
                shutil.copy(f"{container.bundle.rootfs}/bin/busybox", f"{source}/{name}/busybox")
        container.bundle.bind(source, "/mnt", "rbind")
        result = container.run().expect(0)
        lines = result.stdout.decode().splitlines()
        options = {line.split()[1]: set(line.split()[3].split(",")) for line in lines if " /mnt/" in line}
        for name in kinds:
            flags = {*kinds} - {"plain"}
            assert options[f"/mnt/{name}"] & flags == ({name} & flags), name
        assert lines[-4:] == ["refused", "written", "126", "run"]
        container.close()
    finally:
        for path in mounted:
            subprocess.run(["umount", path], check=True, timeout=10)


def test_the_hosts_private_mounts_are_kept_busy_by_no_container_that_has_none(box: Box) -> None:
    """One that was there when the container was made: none of its processes has it, so that a disk is free once the
    host has unmounted it."""
    container = box.idle()
    point = f"{container.bundle.path}/disk"
    os.mkdir(point)
    subprocess.run(["mount", "-t", "tmpfs", "disk", point], check=True, timeout=10)
    try:
        subprocess.run(["mount", "--make-private", point], check=True, timeout=10)
        container.launch()
    finally:
        subprocess.run(["umount", point], check=True, timeout=10)
    pids = [container.init_pid]
    if container.runtime.is_vm:
        pids += host.processes_of(container).values()
    for pid in pids:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as file:
            assert point not in file.read(), pid
    assert container.sh("echo up") == "up"


def test_a_file_system_that_does_not_answer_holds_up_nobody(box: Box) -> None:
    """One below a bind, as of a server that is gone: the container starts, its other files are there, and it ends."""
    container = box.idle()
    source = f"{container.bundle.path}/source"
    os.makedirs(f"{source}/hangs")
    os.makedirs(f"{source}/other")
    server = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
        syscalls.mount("test", f"{source}/hangs", "fuse", 0, options)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", f"{source}/other"], check=True, timeout=10)
        with open(f"{source}/other/file", "w", encoding="utf-8") as file:
            file.write("there\n")
        container.bundle.bind(source, "/mnt", "rbind")
        container.launch()
        assert container.sh("cat /mnt/other/file") == "there"
        container.kill("KILL")
        container.wait()
        container.delete()
    finally:
        os.close(server)
        for name in ("hangs", "other"):
            subprocess.run(["umount", "--lazy", f"{source}/{name}"], check=True, timeout=10)


@pytest.mark.only("runvm", "mounts of a virtual machine's kernel can't be the host's")
def test_a_pods_bind_that_should_propagate_to_the_host_is_refused(box: Box, runtime: Runtime) -> None:
    """rshared, Kubernetes' Bidirectional: an error at once, which says what works."""
    container = box("true")
    container.bundle.config["annotations"] = {"io.kubernetes.cri.sandbox-id": container.id}
    container.bundle.bind(container.bundle.path, "/mnt", "rbind", "rshared")
    result = container.try_create()
    assert result.code == 1
    assert "rshared: what is mounted in a virtual machine can't be seen on the host" in result.error
    assert container.id not in runtime.ids()


def test_a_file_is_bound_over_a_symlink_that_leads_nowhere(box: Box) -> None:
    """Many images have /etc/resolv.conf as a symlink into /run, to nothing: the engine's file is there all the same."""
    container = box("cat", "/etc/resolv.conf")
    os.symlink("../run/systemd/resolve/stub-resolv.conf", f"{container.bundle.rootfs}/etc/resolv.conf")
    source = f"{container.bundle.path}/resolv.conf"
    with open(source, "w", encoding="utf-8") as file:
        file.write("nameserver 192.0.2.53\n")
    container.bundle.bind(source, "/etc/resolv.conf", "rbind", "rprivate")
    assert container.run().expect(0).stdout == b"nameserver 192.0.2.53\n"


def test_a_missing_source_is_named(box: Box, runtime: Runtime) -> None:
    """A bind whose source isn't there: create fails naming it, and nothing is left."""
    container = box("true")
    container.bundle.bind("/no/such/source", "/mnt", "bind")
    result = container.try_create()
    assert result.code == 1
    assert "/no/such/source" in result.error
    assert container.id not in runtime.ids()


def test_the_last_of_contradicting_options_wins(box: Box) -> None:
    """[ro, rw] can be written to, [rw, ro] can't; options about the inside of file systems are taken."""
    container = box()
    bundle = container.bundle
    for name in ("one", "two", "three"):
        os.makedirs(f"{bundle.path}/{name}")
    bundle.bind(f"{bundle.path}/one", "/mnt/one", "rbind", "ro", "rw")
    bundle.bind(f"{bundle.path}/two", "/mnt/two", "bind", "rw", "nosuid", "suid", "ro")
    bundle.bind(f"{bundle.path}/three", "/mnt/three", "rbind", "lazytime", "rnoatime", "silent", "iversion")
    bundle.mount("/mnt/tmp", "tmpfs", "tmpfs", "ro", "noexec", "rw", "exec", "lazytime", "size=1m")
    seen = facts(
        container,
        {
            "mounts": "cat /proc/self/mountinfo",
            "writes": "for at in one two three tmp; do touch /mnt/$at/x 2>/dev/null && echo $at; done",
        },
    )
    assert seen["writes"].split() == ["one", "three", "tmp"]
    options = mount_lines(seen["mounts"])
    assert "nosuid" not in options["/mnt/two"][1]
    assert "noatime" in options["/mnt/three"][1]
    assert "noexec" not in options["/mnt/tmp"][1]


def test_a_bind_keeps_the_flags_of_the_mount_that_its_source_lies_on(box: Box) -> None:
    """nosuid, nodev, noexec and noatime of the host's mount hold in the container, as a kernel's bind has them; options
    that say otherwise count, and so does what else they ask for."""
    container = box()
    source = f"{container.bundle.path}/source"
    os.makedirs(source)
    call(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec,noatime", "tmpfs", source]).expect(0)
    try:
        with open(f"{source}/program", "w", encoding="ascii") as file:
            file.write("#!/bin/sh\necho ran\n")
            os.fchmod(file.fileno(), 0o755)
        container.bundle.bind(source, "/plain", "rbind", "rprivate")
        container.bundle.bind(source, "/ro", "rbind", "ro")
        container.bundle.bind(source, "/asked", "rbind", "ro", "exec", "dev")
        seen = facts(
            container,
            {
                name: f"grep ' /{name} ' /proc/self/mountinfo | cut -d' ' -f6; /{name}/program; true"
                for name in ("plain", "ro", "asked")
            },
        )
    finally:
        call(["umount", source])
    flags, said = seen["plain"].splitlines()
    assert {"rw", "nosuid", "nodev", "noexec", "noatime"} <= set(flags.split(","))
    assert "ermission denied" in said
    if box.runtime.is_vm:  # runc's remount loses them for root, and keeps them in a user namespace only
        flags, said = seen["ro"].splitlines()
        assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(flags.split(","))
        assert "ermission denied" in said
    flags, said = seen["asked"].splitlines()
    assert {"nodev", "noexec"}.isdisjoint(flags.split(","))
    assert "ro" in flags.split(",")
    assert said == "ran"


@pytest.mark.only("runvm", "others can mount so")
def test_an_option_that_would_protect_and_cannot_be_had_is_refused(box: Box) -> None:
    """Not passed over: create fails naming mount and option."""
    container = box("true")
    container.bundle.mount("/mnt", "tmpfs", "tmpfs", "nosymfollow")
    result = container.try_create()
    assert result.code == 1
    assert f"mounts[{len(container.bundle.config['mounts']) - 1}].options: nosymfollow" in result.error


def test_the_hosts_shm_can_be_bound_and_a_size_given(box: Box) -> None:
    """A directory of a tmpfs of the host's over /dev/shm, as engines bind it for the host's IPC namespace: files pass
    both ways. Without it /dev/shm has the size that the config says."""
    container = box()
    shm = f"/dev/shm/{container.id}"
    os.mkdir(shm)
    try:
        [entry] = [entry for entry in container.bundle.config["mounts"] if entry["destination"] == "/dev/shm"]
        entry["options"][-1] = "size=3m"
        seen = facts(container, {"size": "df -k /dev/shm | tail -n 1"})
        assert seen["size"].split()[1] == "3072"
        other = box("sh", "-c", "cat /dev/shm/host; echo guest >/dev/shm/guest; df /dev/shm | tail -n 1")
        mount = other.bundle.config["mounts"]
        mount[:] = [entry for entry in mount if entry["destination"] != "/dev/shm"]
        other.bundle.bind(shm, "/dev/shm", "bind", "nosuid", "noexec", "nodev")
        with open(f"{shm}/host", "w", encoding="utf-8") as file:
            file.write("host\n")
        assert other.run().expect(0).text.splitlines()[0] == "host"
        with open(f"{shm}/guest", encoding="utf-8") as file:
            assert file.read() == "guest\n"
    finally:
        shutil.rmtree(shm)
