"""The six kinds of hooks: when they run, where, with what on stdin, and what their failure does."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from typing import TYPE_CHECKING, Any

import pytest

from framework import host as books
from framework import rootfs

if TYPE_CHECKING:
    from framework.runtime import Box, Container, Runtime

RUNTIME_KINDS = ("prestart", "createRuntime", "poststart", "poststop")
CONTAINER_KINDS = ("createContainer", "startContainer")


def recorder(container: Container) -> str:
    """A host program that appends to <bundle>/hooks: its argv, the state it got, and what it sees. Gives its path."""
    path = f"{container.bundle.path}/record"
    directory = container.bundle.path
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            "#!/bin/sh\n"
            f'kind="$1"; cat >"{directory}/state-$kind"\n'
            f'echo "$kind" >>"{directory}/order"\n'
            f'tr "\\0" "\\n" </proc/$$/environ >"{directory}/env-$kind"\n'
            f'readlink /proc/self/ns/net >"{directory}/net-$kind"\n'
            f'readlink /proc/self/ns/mnt >"{directory}/mnt-$kind"\n'
        )
    os.chmod(path, 0o755)
    return path


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def order(container: Container) -> list[str]:
    path = f"{container.bundle.path}/order"
    return read(path).split() if os.path.exists(path) else []


def test_hooks_run_in_order_with_the_state_on_stdin(box: Box) -> None:
    """prestart, createRuntime at create, poststart at start, poststop at delete: on the host, the state as input."""
    container = box.idle()
    path = recorder(container)
    container.bundle.config["annotations"] = {"some.key": "some value"}
    for kind in RUNTIME_KINDS:
        container.bundle.hook(kind, path, ["record", kind], env=[f"KIND={kind}"])
    container.create()
    if container.runtime.name != "runc":  # 1.1 runs poststart at the end of create
        assert order(container) == ["prestart", "createRuntime"]
    container.start()
    assert "poststart" in order(container), "before start returns"
    container.delete("--force")
    assert order(container) == ["prestart", "createRuntime", "poststart", "poststop"]

    states: dict[str, dict[str, Any]] = {
        kind: json.loads(read(f"{container.bundle.path}/state-{kind}")) for kind in RUNTIME_KINDS
    }
    for kind, state in states.items():
        assert state["id"] == container.id, kind
        assert state["bundle"] == container.bundle.path, kind
        assert state["annotations"] == {"some.key": "some value"}, kind
        assert state["ociVersion"].startswith("1."), kind
    assert states["prestart"]["status"] in ("creating", "created")
    assert states["createRuntime"]["status"] in ("creating", "created")
    assert container.runtime.name == "runc" or states["poststart"]["status"] == "running"
    assert states["poststop"]["status"] == "stopped"
    for kind in ("prestart", "createRuntime", "poststart"):
        assert states[kind]["pid"] == container.init_pid, kind
    for kind in RUNTIME_KINDS:
        assert f"KIND={kind}" in read(f"{container.bundle.path}/env-{kind}").splitlines()
        assert read(f"{container.bundle.path}/net-{kind}").strip() == books.namespace("self", "net"), "the host's"
        assert read(f"{container.bundle.path}/mnt-{kind}").strip() == books.namespace("self", "mnt")


def test_a_prestart_hook_finds_a_live_pid_in_an_empty_network_namespace(box: Box) -> None:
    """Docker's way: the hook bind-mounts or enters /proc/PID/ns/net of the state's pid, and moves an interface in."""
    container = box.sh("ip -o link; ip -o addr")
    script = (
        "#!/bin/sh -e\n"
        'pid=$(sed "s/.*\\"pid\\": *\\([0-9]*\\).*/\\1/")\n'
        "ip link add rvthook0 type veth peer name rvthook1\n"
        "ip link set rvthook1 netns $pid\n"
        f'echo "$0 $@" >"{container.bundle.path}/argv"\n'
        f'tr "\\0" " " </proc/$$/cmdline >"{container.bundle.path}/cmdline"\n'
    )
    path = f"{container.bundle.path}/hook"
    with open(path, "w", encoding="utf-8") as file:
        file.write(script)
    os.chmod(path, 0o755)
    container.bundle.hook(
        "prestart", path, ["libnetwork-setkey", "one", "two words"], env=["PATH=" + os.environ["PATH"]]
    )
    container.create()
    net = books.namespace(container.init_pid, "net")
    assert net != books.namespace("self", "net")
    container.start()
    assert container.wait() == 0
    assert b"rvthook1" in container.stdout(), "the interface is in the container"
    assert read(f"{container.bundle.path}/argv").endswith("one two words\n")


def test_a_hooks_argv0_is_what_the_config_says(box: Box) -> None:
    """args[0] is argv[0] of the program at `path`, not the path: busybox and dockerd choose by it."""
    container = box("true")
    target = f"{container.bundle.path}/touched"
    container.bundle.hook("prestart", rootfs.find_busybox(), ["touch", target])
    container.create()
    assert os.path.exists(target)


def test_container_hooks_run_in_the_container(box: Box) -> None:
    """createContainer before the root is changed, startContainer in the container, after start, before its process."""
    container = box.sh("cat /tmp/started; echo main")
    container.bundle.file(
        "/hook", "#!/bin/sh\ncat >/tmp/state; hostname >/tmp/started; echo $1 >>/tmp/started\n", mode=0o755
    )
    container.bundle.hook("startContainer", "/hook", ["hook", "argument"], env=["PATH=/bin"])
    container.create()
    assert not os.path.exists(f"{container.bundle.rootfs}/tmp/started"), "not before start"
    container.start()
    assert container.wait() == 0
    assert container.stdout() == b"box\nargument\nmain\n"
    state = json.loads(read(f"{container.bundle.rootfs}/tmp/state"))
    assert state["id"] == container.id
    assert state["status"] in ("created", "creating", "starting")  # the last is crun's own word


def test_a_create_container_hook_runs_during_create(box: Box) -> None:
    """createContainer: after createRuntime, before create returns, with the state on stdin and a live pid."""
    container = box.idle()
    path = recorder(container)
    for kind in ("createRuntime", "createContainer"):
        container.bundle.hook(kind, path, ["record", kind], env=["PATH=" + os.environ["PATH"]])
    container.create()
    assert order(container) == ["createRuntime", "createContainer"]
    state = json.loads(read(f"{container.bundle.path}/state-createContainer"))
    assert state["id"] == container.id
    assert state["status"] in ("creating", "created")


def test_a_create_container_hook_runs_in_the_container_namespaces(box: Box) -> None:
    """createContainer runs in the mount namespace of the container, before pivot_root: it may mount into the root."""
    container = box.sh("cat /tmp/mounted/file")
    os.makedirs(f"{container.bundle.rootfs}/tmp/mounted")
    source = f"{container.bundle.path}/source"
    os.makedirs(source)
    with open(f"{source}/file", "w", encoding="utf-8") as file:
        file.write("from the hook\n")
    script = f"#!/bin/sh\nmount --bind {source} {container.bundle.rootfs}/tmp/mounted\n"
    path = f"{container.bundle.path}/hook"
    with open(path, "w", encoding="utf-8") as file:
        file.write(script)
    os.chmod(path, 0o755)
    container.bundle.hook("createContainer", path, ["hook"], env=["PATH=" + os.environ["PATH"]])
    result = container.run().expect(0)
    assert result.stdout == b"from the hook\n"
    assert os.listdir(f"{container.bundle.rootfs}/tmp/mounted") == [], "not in the host's mount namespace"


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_hooks_find_the_containers_mounts_and_mount_there(box: Box, kind: str) -> None:
    """At the root's path, in the mount namespace of the container's process; what they mount over root, volume, tmpfs
    or another mount is in the container, and nowhere on the host."""
    container = box.sh(
        "cat /vol/file /vol/sub/from /in-root/from /in-root/deeper/from /vol2/from /tmp/t/from /written;"
        " touch /vol/sub/x || echo ro; grep ' /vol/sub ' /proc/mounts | grep -c nosuid; touch /x || echo ro"
    )
    bundle = container.bundle
    for name in ("vol/sub", "vol2", "source/deeper", "rootfs/in-root/deeper"):
        os.makedirs(f"{bundle.path}/{name}")
    for name, text in (("vol/file", "volume"), ("source/from", "hook")):
        with open(f"{bundle.path}/{name}", "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
    bundle.bind(f"{bundle.path}/vol", "/vol").bind(f"{bundle.path}/vol2", "/vol2").mount("/tmp/t", "tmpfs", "tmpfs")
    bundle.config["root"]["readonly"] = True
    source = f"{bundle.path}/source"
    script = (
        f"set -e; cd {bundle.rootfs}; cat vol/file >{bundle.path}/seen; test -d dev; echo written >written\n"
        f"mount --bind {source} vol/sub; mount -o remount,bind,ro,nosuid {source} vol/sub\n"
        f"mount --bind {source} in-root; mount --bind {source} in-root/deeper\n"
        f"mount --bind {source} vol2; mkdir -p tmp/t; mount --bind {source} tmp/t\n"
    )
    with open(f"{bundle.path}/script", "w", encoding="utf-8") as file:
        file.write(script)
    enter = f'pid=$(sed "s/.*\\"pid\\": *\\([0-9]*\\).*/\\1/"); exec nsenter -t $pid -m sh {bundle.path}/script'
    command = f"exec sh {bundle.path}/script" if kind == "createContainer" else enter
    bundle.hook(kind, "/bin/sh", ["sh", "-c", command], env=["PATH=" + os.environ["PATH"]])
    result = container.run().expect(0)
    assert result.stdout.decode().splitlines() == ["volume", *["hook"] * 5, "written", "ro", "1", "ro"]
    assert read(f"{bundle.path}/seen") == "volume\n"
    assert bundle.path not in read("/proc/self/mountinfo")
    for name in ("vol/sub", "vol2", "rootfs/in-root/deeper"):
        assert os.listdir(f"{bundle.path}/{name}") == []


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_failing_hook_at_create_undoes_all(box: Box, runtime: Runtime, kind: str) -> None:
    """A hook that fails during create makes create fail, naming it with what it wrote; nothing is left."""
    container = box("true")
    container.bundle.hook(kind, "/bin/sh", ["sh", "-c", "echo the reason >&2; exit 3"])
    result = container.try_create()
    assert result.code == 1
    assert "hook" in result.error, result.describe()
    assert "exit status 3" in result.error, result.describe()
    assert runtime.ids() == []


def test_a_missing_hook_program_makes_create_fail(box: Box, runtime: Runtime) -> None:
    """A hook that can't be run is a failing hook."""
    container = box("true")
    container.bundle.hook("prestart", "/no/such/hook")
    result = container.try_create()
    assert result.code == 1
    assert "/no/such/hook" in result.error
    assert runtime.ids() == []


def test_a_hook_beyond_its_timeout_is_killed_and_fails(box: Box, runtime: Runtime) -> None:
    """`timeout: 1` ends a hook that hangs, and create fails within seconds, saying so."""
    container = box("true")
    container.bundle.hook("prestart", "/bin/sleep", ["sleep", "100"], timeout=1)
    result = container.try_create(timeout=runtime.timeout)
    assert result.code == 1
    assert "hook" in result.error
    words = ("timeout", "timed out", "deadline", "1s", "1 s", "ran past", "ran out")
    assert any(word in result.error for word in words), result.error
    assert runtime.ids() == []


def test_a_failing_start_container_hook_stops_the_container(box: Box, runtime: Runtime) -> None:
    """startContainer fails: the process never runs, and the container is stopped."""
    container = box.sh("echo never")
    container.bundle.hook("startContainer", "/bin/sh", ["sh", "-c", "exit 3"])
    container.create()
    runtime.call("start", container.id)
    container.wait()
    container.wait_status("stopped")
    assert b"never" not in container.stdout()
    container.delete()


@pytest.mark.parametrize(
    ("path", "argv", "timeout", "wanted"),
    [
        ("/bin/sh", ["sh", "-c", "echo one; echo two >&2; exit 3"], None, "exit status 3, stdout: one"),
        ("/bin/sh", ["sh", "-c", "exit 7"], None, "error running hook: exit status 7, stdout: , stderr: "),
        ("/no/such", ["such"], None, "fork/exec /no/such: no such file or directory"),
        ("/bin/sleep", ["sleep", "1000"], 1, "hook ran past specified timeout of 1.0s"),
    ],
)
def test_a_start_container_hooks_error_reads_as_the_others(
    box: Box, path: str, argv: list[str], timeout: int | None, wanted: str
) -> None:
    """What the caller sees is that error and nothing else, with the number of the hook that has failed."""
    container = box("echo", "never")
    container.bundle.hook("startContainer", "/bin/sh", ["sh", "-c", "exit 0"])
    container.bundle.hook("startContainer", path, argv, timeout=timeout)
    result = container.run()
    assert result.code != 0
    assert result.stdout == b""
    text = result.stderr.decode()
    assert re.match(r"error running (startContainer )?hook #1: ", text), text
    assert wanted in text
    assert '"msg"' not in text


def test_a_failing_poststart_hook_ends_the_container(box: Box, runtime: Runtime) -> None:
    """run fails and leaves nothing; after start the container is stopped. The hooks after it don't run."""
    container = box.idle()
    second = f"{container.bundle.path}/second"
    container.bundle.hook("poststart", "/bin/false", ["false"])
    container.bundle.hook("poststart", "/usr/bin/touch", ["touch", second])
    result = container.try_create("--detach", command="run")
    assert result.code == 1, result.describe()
    assert "hook #0: error running hook: exit status 1" in result.error
    assert runtime.ids() == []
    if runtime.name != "runc":  # 1.1 runs poststart at the end of create
        container.create()
        assert "hook #0" in runtime.call("start", container.id).expect(1).error
        assert container.wait() == 128 + signal.SIGKILL
        assert container.status == "stopped"
    assert not os.path.exists(second)


@pytest.mark.differs("runc", "1.1 skips the hooks after a failing poststop hook")
def test_a_failing_poststop_hook_is_a_warning(box: Box, runtime: Runtime) -> None:
    """poststop: the failure is logged, delete goes on to the end and runs the next hook."""
    container = box("true")
    target = f"{container.bundle.path}/second"
    container.bundle.hook("poststop", "/bin/false", ["false"])
    container.bundle.hook("poststop", "/usr/bin/touch", ["touch", target])
    container.create()
    container.start()
    container.wait()
    container.wait_status("stopped")
    container.delete()
    assert runtime.ids() == []
    assert stat.S_ISREG(os.stat(target).st_mode)


def test_a_killed_container_gets_its_poststop_hooks_by_delete(box: Box, runtime: Runtime) -> None:
    """SIGKILL to the pid, then delete --force: poststop runs once."""
    container = box.idle()
    path = recorder(container)
    container.bundle.hook("poststop", path, ["record", "poststop"])
    container.launch()
    os.kill(container.init_pid, signal.SIGKILL)
    container.wait()
    container.delete("--force")
    container.delete("--force")
    assert order(container) == ["poststop"]
    assert runtime.ids() == []


def test_a_hook_in_the_container_that_hangs_is_ended(box: Box) -> None:
    """startContainer with a timeout: its process never runs, and the container ends with an error."""
    container = box("echo", "main")
    container.bundle.file("/hook", "#!/bin/sh\nexec sleep 1000\n", mode=0o755)
    container.bundle.hook("startContainer", "/hook", timeout=1)
    container.create()
    started = container.runtime.call("start", container.id)
    assert started.code in (0, 1)
    assert container.wait(20) != 0
    assert container.stdout() == b""
