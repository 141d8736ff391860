"""The commands beside the life of a container: spec, features, list, help, and those that can't be had."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from framework import process

if TYPE_CHECKING:
    from framework.runtime import Box, Runtime


def test_spec_writes_a_config_that_run_takes(box: Box, runtime: Runtime) -> None:
    """`spec` in an empty bundle, then `run` of it (without its terminal, which is another test's)."""
    container = box()
    directory = f"{runtime.scratch}/spec-bundle"
    os.makedirs(directory)
    shutil.move(container.bundle.rootfs, f"{directory}/rootfs")
    runtime.ok("spec", "--bundle", directory)
    path = f"{directory}/config.json"
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    assert config["process"]["args"] == ["sh"]
    assert config["process"]["terminal"] is True
    assert config["root"] == {"path": "rootfs", "readonly": True}
    again = runtime.call("spec", "--bundle", directory)
    assert again.code == 1
    assert "config.json exists" in again.error.replace("File ", "")

    config["process"]["terminal"] = False
    config["process"]["args"] = ["sh", "-c", "hostname; cat"]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    result = runtime.call("run", "--bundle", directory, container.id, stdin=b"input\n").expect(0)
    assert result.text.splitlines() == [config["hostname"], "input"]
    shutil.rmtree(directory)


def test_spec_rootless_adds_a_user_namespace(runtime: Runtime) -> None:
    """`spec --rootless` maps the caller's ids."""
    directory = f"{runtime.scratch}/rootless-bundle"
    os.makedirs(directory)
    runtime.ok("spec", "--rootless", "-b", directory)
    with open(f"{directory}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    assert {"type": "user"} in config["linux"]["namespaces"]
    assert config["linux"]["uidMappings"][0]["hostID"] == os.geteuid()
    shutil.rmtree(directory)


def test_features_is_json_that_tells_what_is_known(runtime: Runtime) -> None:
    """`features`: hooks, mount options, namespaces, capabilities, cgroup, seccomp as the features document has them."""
    features = runtime.ok("features").json()
    assert set(features["hooks"]) >= {"prestart", "createRuntime", "createContainer", "startContainer", "poststart"}
    assert {"rbind", "ro", "rprivate", "nosuid"} <= set(features["mountOptions"])
    linux = features["linux"]
    assert {"mount", "pid", "network", "ipc", "uts"} <= set(linux["namespaces"])
    assert "CAP_KILL" in linux["capabilities"]
    assert linux["seccomp"]["enabled"] is True
    assert features["ociVersionMin"].startswith("1.0")


def test_help_and_version_end_with_0(runtime: Runtime) -> None:
    """--help, help, COMMAND --help and --version print on stdout."""
    for arguments in (["--help"], ["help"], ["create", "--help"], ["exec", "-h"], ["--version"], ["-v"]):
        result = process.call([runtime.path, *arguments])
        assert result.code == 0, result.describe()
        assert result.stdout
        assert not result.stderr
    create = process.call([runtime.path, "create", "--help"]).text
    for flag in ("--bundle", "--console-socket", "--pid-file", "--no-pivot", "--preserve-fds", "--no-new-keyring"):
        assert flag in create


@pytest.mark.only("runvm", "it needs new versions of QEMU and virtiofsd, where runc needs CRIU")
@pytest.mark.capability("checkpoint", "which refuses it by that name: test_uml.py")
def test_checkpoints_that_cant_be_had_are_refused_by_version(box: Box, runtime: Runtime) -> None:
    """At once, naming what was found and what it takes; the container goes on. `doctor` tells the same."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] == "true":
        pytest.skip("QEMU and virtiofsd are new enough")
    container = box.sleeper()
    for command in (["checkpoint", container.id], ["restore", "--bundle", "/tmp", "x"]):
        result = runtime.call(*command)
        assert result.code == 1
        assert "is not supported here: it takes QEMU 9.0 or later, and /" in result.error, result.describe()
        assert "virtiofsd 1.11 or later" in result.error
    assert container.status == "running"
    assert "checkpoints" in runtime.call("doctor").text


def test_list_shows_what_state_shows(box: Box, runtime: Runtime) -> None:
    """`list` of a stopped and a created container: statuses, pids (0 when stopped), JSON with the state's fields."""
    stopped = box("true").launch()
    stopped.wait()
    created = box("true")
    created.bundle.config["annotations"] = {"key": "value"}
    created.create()
    listed = {entry["id"]: entry for entry in runtime.ok("list", "-f", "json").json()}
    assert listed[stopped.id]["status"] == "stopped"
    assert listed[stopped.id]["pid"] == 0
    entry = listed[created.id]
    state = created.state()
    for field in ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner", "annotations"):
        if field in state:
            assert entry[field] == state[field] or field == "owner"
    rows = {line.split()[0]: line.split() for line in runtime.ok("list").text.splitlines()[1:]}
    assert rows[stopped.id][1:3] == ["0", "stopped"]
    assert rows[created.id][1:3] == [str(created.init_pid), "created"]
    assert sorted(runtime.ids()) == sorted([stopped.id, created.id])


def test_roots_are_apart(box: Box, runtime: Runtime) -> None:
    """A container is known under its --root only: the same id may exist under another."""
    container = box.idle()
    container.create()
    other = f"{runtime.scratch}/other-root"
    result = process.call([runtime.path, "--root", other, "state", container.id])
    assert result.code == 1
    assert b"container does not exist" in result.stderr
    assert process.call([runtime.path, "--root", other, "list", "-q"]).text == ""
    shutil.rmtree(other, ignore_errors=True)


@pytest.mark.only("runvm", "others have no virtual machine")
def test_debug_shell_runs_beside_the_agent(box: Box, runtime: Runtime) -> None:
    """Its streams and its exit code pass; it is in no container: it sees the agent as process 1, and other programs."""
    container = box.sleeper()
    result = runtime.call("debug", "shell", container.id, stdin=b"echo $$ >&2; exit 7\n")
    assert (result.code, result.stdout) == (7, b"")
    assert int(result.stderr) > 1
    assert runtime.call("debug", "shell", container.id, "cat", stdin=b"through").stdout == b"through"
    assert runtime.call("debug", "shell", container.id, "no-such-program").code == 127
    runtime.ok("debug", "shell", container.id, "test", "-d", f"/sys/fs/cgroup/containers/{container.id}")
