"""engines.py: `runvm install` and `uninstall` change an engine's configuration and nothing else."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from runvm.errors import ConfigError, HostError, UsageError
from runvm.host import engines

RUNVM = "/usr/local/sbin/runvm"
FILES = {
    "docker": "etc/docker/daemon.json",
    "podman": "etc/containers/containers.conf.d/runvm.conf",
    "containerd": "etc/containerd/config.toml",
}
CONTAINERD_DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"  # Debian's
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""
# What an engine's file may look like before; None: there is no such file
BEFORE: list[tuple[str, str | None]] = [
    ("docker", None),
    ("docker", ""),
    ("docker", "{}"),
    ("docker", '{"debug":true}'),
    ("docker", '{\n\t"hosts": [ "unix://" ],\n\t"log-opts": {"max-size":   "10m"}\n}'),
    ("docker", '{\n  "runtimes": {},\n  "default-runtime": "runc"\n}\n'),
    ("docker", '{\n  "runtimes": {"kata": {"path": "/bin/kata"}}\n}\n'),
    ("podman", None),
    ("containerd", None),
    ("containerd", ""),
    ("containerd", 'disabled_plugins = ["cri"]'),
    ("containerd", CONTAINERD_DEBIAN),
    ("containerd", 'version = 3\nroot = "/x"\n'),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system's root directory with runvm in it."""
    program = tmp_path / RUNVM.lstrip("/")
    program.parent.mkdir(parents=True)
    program.write_text("")
    program.chmod(0o755)
    return tmp_path


def write(root: Path, engine: str, text: str | None) -> Path:
    file = root / FILES[engine]
    if text is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    return file


def content(file: Path) -> str | None:
    return file.read_bytes().decode() if file.exists() else None


@pytest.mark.parametrize(("engine", "before"), BEFORE)
def test_uninstall_undoes_install_exactly(root: Path, engine: str, before: str | None) -> None:
    """To the byte, also where the file, or an object in it, was not there; and no record is left."""
    file = write(root, engine, before)
    engines.install(engine, root=str(root))
    assert RUNVM in (content(file) or "")
    engines.uninstall(engine, root=str(root))
    assert content(file) == before
    assert list((root / "var/lib/runvm/engines").iterdir()) == []


@pytest.mark.parametrize(("engine", "before"), BEFORE)
def test_install_twice_is_the_same_as_once(
    root: Path, engine: str, before: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(root, engine, before)
    engines.install(engine, root=str(root))
    once = content(file)
    capsys.readouterr()
    engines.install(engine, root=str(root))
    assert content(file) == once
    assert capsys.readouterr().out == f"{file}: runvm is there already, nothing to change\n"
    engines.uninstall(engine, root=str(root))
    assert content(file) == before


@pytest.mark.parametrize(("engine", "before"), BEFORE)
def test_a_dry_run_shows_the_change_and_makes_none(
    root: Path, engine: str, before: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(root, engine, before)
    engines.install(engine, root=str(root), dry_run=True)
    out = capsys.readouterr().out
    assert out.startswith("--- ")
    assert f"+++ {file}" in out
    assert any(line.startswith("+") and RUNVM in line for line in out.splitlines())
    assert content(file) == before
    assert not (root / "var").exists()


@pytest.mark.parametrize("engine", FILES)
def test_uninstall_without_install_changes_nothing(root: Path, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(root, engine, None)
    engines.uninstall(engine, root=str(root))
    assert content(file) is None
    assert capsys.readouterr().out == f"{file}: runvm is not there, nothing to change\n"


def test_docker_keeps_bytes_of_other_settings(root: Path) -> None:
    text = '{\n  "log-opts": {"max-size":   "10m"},\n  "z": 1,\n  "a": [ 1,2 ]\n}\n'
    file = write(root, "docker", text)
    engines.install("docker", root=str(root))
    added = ',\n  "runtimes": {\n    "runvm": {\n      "path": "/usr/local/sbin/runvm"\n    }\n  }\n}\n'
    assert file.read_text() == text.removesuffix("\n}\n") + added


def test_docker_uninstall_after_an_edit_takes_only_ours_out(root: Path) -> None:
    file = write(root, "docker", '{\n  "debug": true\n}\n')
    engines.install("docker", root=str(root), default=True)
    file.write_text(file.read_text().replace('"debug": true', '"debug": false,\n  "experimental": true'))
    engines.uninstall("docker", root=str(root))
    assert file.read_text() == '{\n  "debug": false,\n  "experimental": true\n}\n'


def test_docker_default_gives_the_former_default_back(root: Path) -> None:
    file = write(root, "docker", '{\n  "default-runtime": "kata"\n}\n')
    engines.install("docker", root=str(root), default=True)
    assert json.loads(file.read_text())["default-runtime"] == "runvm"
    file.write_text(file.read_text().replace("{\n", '{\n  "debug": true,\n', 1))
    engines.uninstall("docker", root=str(root))
    assert json.loads(file.read_text()) == {"debug": True, "default-runtime": "kata"}


def test_docker_another_path_replaces_the_first_and_keeps_arguments(root: Path) -> None:
    file = write(root, "docker", '{"runtimes": {"runvm": {"path": "/old", "runtimeArgs": ["--debug"]}}}')
    engines.install("docker", root=str(root))
    assert json.loads(file.read_text())["runtimes"] == {"runvm": {"path": RUNVM, "runtimeArgs": ["--debug"]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # Python 3.13 names the comma, those before it what comes after
        ('{\n  "debug": true,\n}\n', "daemon.json is not valid JSON: .* in line (2, column 16|3, column 1)"),
        ("[]", r"daemon\.json is not a JSON object"),
        ('{"runtimes": []}', r"daemon\.json: runtimes is not an object"),
        ('{"runtimes": {"runvm": {"runtimeType": "x"}}}', r"daemon\.json: runtimes\.runvm has a runtimeType already"),
        ('{"a": NaN}', r"daemon\.json is not valid JSON: NaN"),
    ],
)
def test_docker_a_wrong_file_is_named_and_stays(root: Path, text: str, message: str) -> None:
    file = write(root, "docker", text)
    with pytest.raises(ConfigError, match=message):
        engines.install("docker", root=str(root))
    assert file.read_text() == text


def test_mode_and_symlink_of_the_file_stay(root: Path) -> None:
    real = root / "elsewhere.json"
    real.write_text("{}")
    real.chmod(0o640)
    file = write(root, "docker", None)
    file.parent.mkdir(parents=True)
    file.symlink_to(real)
    engines.install("docker", root=str(root))
    assert file.is_symlink()
    assert RUNVM in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(root)) == ["elsewhere.json", "etc", "usr", "var"]


def test_the_record_is_private(root: Path) -> None:
    """daemon.json may name a proxy with its password."""
    write(root, "docker", '{"http-proxy": "http://user:secret@proxy"}').chmod(0o600)
    engines.install("docker", root=str(root))
    assert (root / "var/lib/runvm/engines").stat().st_mode & 0o777 == 0o700
    assert (root / "var/lib/runvm/engines/docker.json").stat().st_mode & 0o777 == 0o600


def test_podman_keeps_the_list_of_the_system(root: Path) -> None:
    (root / "etc/containers").mkdir(parents=True)
    (root / "etc/containers/containers.conf").write_text('[engine]\nruntime_supports_json = ["mine"]\n')
    file = write(root, "podman", None)
    engines.install("podman", root=str(root), default=True)
    engine = tomllib.loads(file.read_text())["engine"]
    assert engine == {
        "runtime": "runvm",
        "runtime_supports_json": ["mine", "runvm"],
        "runtimes": {"runvm": [RUNVM]},
    }
    engines.install("podman", root=str(root))
    assert tomllib.loads(file.read_text())["engine"]["runtime"] == "runvm", "a default stays one"


def test_podman_a_file_that_is_not_ours_stays(root: Path) -> None:
    file = write(root, "podman", "[engine]\n")
    with pytest.raises(ConfigError, match="did not make it"):
        engines.install("podman", root=str(root))
    engines.uninstall("podman", root=str(root))
    assert file.read_text() == "[engine]\n"


def test_podman_a_wrong_system_file_is_named_with_its_line(root: Path) -> None:
    (root / "etc/containers").mkdir(parents=True)
    (root / "etc/containers/containers.conf").write_text("[engine]\nx = \n")
    with pytest.raises(ConfigError, match=r"containers\.conf is not valid TOML: .*line 2"):
        engines.install("podman", root=str(root))


def test_containerd_appends_only(root: Path) -> None:
    file = write(root, "containerd", CONTAINERD_DEBIAN)
    engines.install("containerd", root=str(root))
    text = file.read_text()
    assert text.startswith(CONTAINERD_DEBIAN)
    runtimes = tomllib.loads(text)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert runtimes["runvm"]["runtime_type"] == "io.containerd.runc.v2"
    assert runtimes["runvm"]["options"] == {"BinaryName": RUNVM}


def test_containerd_uninstall_after_an_edit_takes_only_ours_out(root: Path) -> None:
    file = write(root, "containerd", CONTAINERD_DEBIAN)
    engines.install("containerd", root=str(root))
    edited = "# mine\n" + file.read_text() + '\n# about debug\n[debug]\n  level = "info"\n'
    file.write_text(edited)
    engines.uninstall("containerd", root=str(root))
    assert file.read_text() == "# mine\n" + CONTAINERD_DEBIAN + '\n# about debug\n[debug]\n  level = "info"\n'


def test_containerd_another_path_changes_one_line(root: Path) -> None:
    other = root / "opt/runvm"
    other.parent.mkdir()
    other.write_text("")
    other.chmod(0o755)
    file = write(root, "containerd", CONTAINERD_DEBIAN)
    engines.install("containerd", root=str(root))
    first = file.read_text()
    engines.install("containerd", root=str(root), runtime_path="/opt/runvm")
    assert file.read_text() == first.replace(RUNVM, "/opt/runvm")
    engines.uninstall("containerd", root=str(root))
    assert file.read_text() == CONTAINERD_DEBIAN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 2\n[plugins\n", "is not valid TOML: .*line 2"),
        ("version = 9\n", "version 9 of containerd's configuration"),
        ('version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {}}\n', "can't be edited safely"),
        ('version = 2\n[plugins]\n"io.containerd.grpc.v1.cri" = 1\n', r"cri is not a table"),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runvm]\nruntime_type = "other"\n',
            "can't be edited safely",
        ),
    ],
)
def test_containerd_a_file_that_cannot_be_edited_stays(root: Path, text: str, message: str) -> None:
    file = write(root, "containerd", text)
    with pytest.raises(ConfigError, match=message):
        engines.install("containerd", root=str(root))
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('disabled_plugins = ["cri"]\n', "cri"),
        ('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri", "x"]\n', "io.containerd.grpc.v1.cri"),
        ('version = 3\ndisabled_plugins = ["io.containerd.cri.v1.images"]\n', "io.containerd.cri.v1.images"),
        ('version = 2\ndisabled_plugins = ["x"]\n', ""),
    ],
)
def test_containerd_a_plugin_that_is_off_is_told(
    root: Path, text: str, named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Docker's packages of containerd bring such a file along: the change is made, and has no effect."""
    write(root, "containerd", text)
    for _ in range(2):
        assert engines.install("containerd", root=str(root)) == 0
        said = capfd.readouterr().err
        assert said.endswith(f": take {named} out of disabled_plugins\n") if named else said == ""


def test_runvm_must_be_there(root: Path) -> None:
    """An engine that is told of a program which isn't there would fail later, and less clearly."""
    for path in ("/nowhere/runvm", "usr/local/sbin/runvm", "/usr/local"):
        with pytest.raises(HostError, match="is not the absolute path of a program"):
            engines.install("docker", root=str(root), runtime_path=path)


def test_an_unknown_engine_is_an_error_that_names_those_known() -> None:
    with pytest.raises(UsageError, match="unknown engine lxc: it is one of docker, podman, containerd"):
        engines.install("lxc")


def test_a_damaged_record_is_no_obstacle(root: Path) -> None:
    file = write(root, "docker", '{\n  "debug": true\n}\n')
    engines.install("docker", root=str(root))
    (root / "var/lib/runvm/engines/docker.json").write_text('{"before": 1}')
    engines.uninstall("docker", root=str(root))
    assert json.loads(file.read_text()) == {"debug": True}
