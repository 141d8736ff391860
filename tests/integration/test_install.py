"""`runvm install`: real engines read what it writes. That they then run containers is for the engines' own folders."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from runvm.host import engines


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system's root with this machine's configuration of engines, and a runtime where runvm would be."""
    for name in ("containers", "containerd"):
        if Path(f"/etc/{name}").is_dir():
            shutil.copytree(f"/etc/{name}", tmp_path / "etc" / name)
    program = tmp_path / "usr/bin/crun"
    program.parent.mkdir(parents=True)
    shutil.copy("/usr/bin/crun", program)
    return tmp_path


@pytest.mark.podman
@pytest.mark.skipif(not shutil.which("podman"), reason="no podman")
def test_podman_knows_the_runtime_and_keeps_its_own(root: Path) -> None:
    """Podman with that /etc/containers: the runtime is found by name, also as the default; crun is still there."""
    engines.install("podman", runtime_path="/usr/bin/crun", default=True, root=str(root))
    for flags in ([], ["--runtime=runvm"], ["--runtime=crun"]):
        told = _in_private_mounts(
            f"mount --bind {root}/etc/containers /etc/containers && exec podman {' '.join(flags)} "
            "info --format '{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}}'"
        )
        assert told == f"{'crun' if '--runtime=crun' in flags else 'runvm'} /usr/bin/crun\n"


@pytest.mark.containerd
@pytest.mark.skipif(not shutil.which("containerd"), reason="no containerd")
@pytest.mark.parametrize("text", ["version = 2\n", "version = 1\n", 'root = "/x"\n', None])
def test_containerd_knows_the_runtime(root: Path, text: str | None) -> None:
    """containerd's own reading of the file has the runtime where CRI looks for it; None: the file as it is here."""
    file = root / "etc/containerd/config.toml"
    if text is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    engines.install("containerd", runtime_path="/usr/bin/crun", root=str(root))
    argv = ["containerd", "--config", str(file), "config", "dump"]
    dump = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout
    runtimes = tomllib.loads(dump)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert runtimes["runvm"]["runtime_type"] == "io.containerd.runc.v2"
    assert runtimes["runvm"]["options"]["BinaryName"] == "/usr/bin/crun"
    assert runtimes["runvm"]["pod_annotations"] == ["io.runvm.*"]


def _in_private_mounts(script: str) -> str:
    """What a shell script prints whose mounts nobody else sees."""
    argv = ["unshare", "--mount", "sh", "-c", script]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
