"""doctor.py and checks.py: what the host lacks is told with the command that fixes it; only what matters fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runvm.config import Config
from runvm.host import architectures, checks, doctor
from runvm.host.checks import Check
from runvm.hypervisor.qemu.boards import BOARDS
from runvm.hypervisor.qemu.driver import Qemu
from runvm.linux.architecture import KNOWN, host

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces and cgroups: needs root")


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_programs_that_the_settings_name_wrongly_are_told() -> None:
    """No package would mend that."""
    for check, key in (
        (checks.check_hypervisor(Config(hypervisor="qemu", qemu="/nonexistent")), "qemu"),
        (checks.check_virtiofsd(Config(virtiofsd="/nonexistent")), "virtiofsd"),
    ):
        assert not check.ok
        assert check.found == f"{key}: /nonexistent is no program"
        assert check.fix == f"set {key} in /etc/runvm/config.toml, or leave it out"


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo QEMU emulator version 5.2.0", "is 5.2.0, older than 6.2"),
        ("echo hello", "is of unknown version, older than 6.2"),
        (
            '[ $1 = --version ] && echo QEMU emulator version 10.1.2 || echo name \\"pcie-root-port\\"',
            "10.1.2 has no vhost",
        ),
        ("echo no such library >&2; exit 127", "failed: no such library"),
    ],
)
def test_qemu_that_will_not_do_is_told(tmp_path: Path, script: str, found: str) -> None:
    check = checks.check_hypervisor(Config(hypervisor="qemu", qemu=program(tmp_path / "qemu", script)))
    assert not check.ok
    assert found in check.found


def test_a_virtiofsd_that_does_not_run_is_told(tmp_path: Path) -> None:
    check = checks.check_virtiofsd(Config(virtiofsd=program(tmp_path / "virtiofsd", "exit 1")))
    assert not check.ok
    assert check.fix.startswith("apt-get install ")


def test_another_architecture_is_looked_at_where_there_is_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = next(name for name in KNOWN if name != host())
    config = Config(data_dir=str(tmp_path))
    assert architectures.installed(config) == []
    (tmp_path / "images" / "one").mkdir(parents=True)
    (tmp_path / "images" / f"current-{other}").symlink_to("one")
    assert architectures.installed(config) == [other]
    monkeypatch.setattr(Qemu, "program", lambda self: "/nonexistent/qemu")
    check = architectures.check(config, other)
    assert (check.ok, check.needed, check.name) == (False, False, f"{other} containers")
    assert check.fix == f"apt-get install {BOARDS[other].package}"


def test_a_missing_image_is_told_once(tmp_path: Path) -> None:
    """crun can't be looked for without an image, but that is not a second thing to fix."""
    config = Config(data_dir=str(tmp_path))
    image, crun = checks.check_image(config), checks.check_crun(config)
    assert (image.ok, image.fix) == (False, "runvm image build")
    assert (crun.ok, crun.needed) == (False, False)


@pytest.mark.parametrize(
    ("content", "ok", "needed", "found"),
    [
        (b"070701" + b"0" * 104 + b"usr/bin/crun\0", True, True, "/initramfs"),
        (b"070701" + b"0" * 104 + b"usr/bin/crunch\0", False, True, "has no usr/bin/crun"),
        (b"\x28\xb5\x2f\xfd", False, False, "is compressed"),
        (b"", False, True, "/initramfs"),
    ],
)
def test_crun_is_looked_for_in_the_initramfs(
    tmp_path: Path, content: bytes, ok: bool, needed: bool, found: str
) -> None:
    (tmp_path / "initramfs").write_bytes(content)
    (tmp_path / "vmlinuz").write_bytes(b"")
    config = Config(kernel=str(tmp_path / "vmlinuz"), initramfs=str(tmp_path / "initramfs"))
    check = checks.check_crun(config)
    assert (check.ok, check.needed) == (ok, needed)
    assert found in check.found


def test_too_little_memory_is_told() -> None:
    assert not checks.check_memory(Config(default_memory_mib=16 * 1024 * 1024)).ok


def test_too_little_room_on_disk_is_told(tmp_path: Path) -> None:
    """A small file system: /proc has no free blocks at all."""
    check = checks.check_disk(Config(data_dir="/proc/runvm/data"))
    assert not check.ok
    assert "0 MiB free for /proc/runvm/data, 1024 MiB needed" in check.found
    assert "/proc," in check.fix


def test_kvm_is_not_tried_where_emulation_is_chosen() -> None:
    check = checks.check_kvm(Config(accelerator="tcg"))
    assert (check.ok, check.needed) == (True, False)


@needs_root
@pytest.mark.parametrize("check", [checks.check_namespaces, checks.check_cgroups, checks.check_redirect])
def test_what_root_may_do_is_found_possible_and_leaves_nothing(check: object) -> None:
    """On a machine that can run the integration tests these hold; mounts and interfaces are as before."""
    before = Path("/proc/self/mountinfo").read_text(), sorted(os.listdir("/sys/class/net"))
    assert callable(check)
    result = check(Config())
    assert result.ok, result
    assert (Path("/proc/self/mountinfo").read_text(), sorted(os.listdir("/sys/class/net"))) == before


@needs_root
def test_cgroups_that_are_mounted_elsewhere_are_not_asked(tmp_path: Path) -> None:
    """A container's, or those of another root, are as they are shown there: read-only."""
    ask = "from runvm.host import checks; print(checks.check_cgroups(None).ok)"
    hierarchy = "$(ls -d /sys/fs/cgroup/memory || echo /sys/fs/cgroup)"
    command = (
        f"mount --bind {hierarchy} {tmp_path} && mount -o remount,bind,ro {tmp_path} && {sys.executable} -c '{ask}'"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = ["unshare", "--mount", "sh", "-c", command]
    assert subprocess.run(argv, env=environment, stdout=subprocess.PIPE, check=True).stdout == b"True\n"


def test_doctor_fails_where_something_needed_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an image: exit 1, the command that fixes it, and nothing is booted."""
    assert doctor.run(Config(data_dir=str(tmp_path), accelerator="tcg"), json=False) == 1
    out = capsys.readouterr().out
    assert "missing  guest image" in out
    assert "to fix it: runvm image build" in out
    assert "a container would not start here: " in out.splitlines()[-1]
    assert "not tried, see " in out


def test_doctor_tells_programs_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(Config(data_dir=str(tmp_path), accelerator="tcg"), json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    image = next(check for check in told["checks"] if check["name"] == "guest image")
    assert image == {
        "name": "guest image",
        "ok": False,
        "found": f"there is no guest image in {tmp_path}/images",
        "fix": "runvm image build",
        "needed": True,
    }


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (Check("tun", True, "opens"), "ok       tun                opens"),
        (
            Check("tun", False, "no", "modprobe tun"),
            "missing  tun                no\n                            to fix it: modprobe tun",
        ),
        (Check("KVM", False, "no", needed=False), "note     KVM                no"),
    ],
)
def test_a_check_is_one_line_and_the_command_that_mends_it(check: Check, text: str) -> None:
    assert doctor.format_check(check) == text
