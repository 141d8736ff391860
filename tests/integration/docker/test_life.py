"""The life of a container beyond run and stop: names, signals, init, restart policies, and what is told of it."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.docker import IMAGE
from framework.process import wait_until

if TYPE_CHECKING:
    from framework.docker import Dockerd


def test_names_labels_and_what_the_image_would_run(docker: Dockerd, tmp_path: os.PathLike[str]) -> None:
    """create with labels, an environment file, another entry point and more; rename, start -a, ls, prune."""
    for name, text in (("env", "FROM_FILE=some words\n"), ("labels", "filed=under x\n")):
        with open(os.path.join(tmp_path, name), "w", encoding="utf-8") as file:
            file.write(text)
    docker.ok(
        *("create", "--name", "early", "--label", "said=so", "--label-file", os.path.join(tmp_path, "labels")),
        *("--env-file", os.path.join(tmp_path, "env"), "--entrypoint", "/bin/sh", "--domainname", "example.org"),
        *("--pull", "never", "--disable-content-trust", "--isolation", "default", "--no-healthcheck", IMAGE),
        *("-c", 'echo "$FROM_FILE"; cat /proc/sys/kernel/domainname; exit 7'),
    )
    docker.ok("rename", "early", "late")
    result = docker.call("start", "--attach", "late")
    assert (result.code, result.text.splitlines()) == (7, ["some words", "example.org"])
    info = docker.inspect("late")
    assert info["Config"]["Labels"] == {"said": "so", "filed": "under x"}
    assert docker.call("inspect", "early").code == 1
    listed = docker.ok("container", "ls", "--all", "--filter", "label=said=so", "--format", "{{.Names}} {{.Status}}")
    assert listed.startswith("late Exited (7)")
    docker.ok("container", "prune", "--force", "--filter", "label=said=so")
    assert docker.call("inspect", "late").code == 1


def test_the_stop_signal_and_the_time_to_stop(docker: Dockerd) -> None:
    """--stop-signal is what `stop` sends; --stop-timeout later it is SIGKILL, and two that wait learn of 137."""
    script = "trap 'echo quit' QUIT; echo up; while :; do sleep 0.1; done"
    docker.detached("--name", "quits", "--stop-signal", "QUIT", "--stop-timeout", "2", IMAGE, "sh", "-c", script)
    docker.wait_log("quits", "up")
    waiting = [docker.start_client("wait", "quits") for _ in range(2)]
    begun = time.monotonic()
    docker.ok("stop", "quits")
    assert 1.5 < time.monotonic() - begun < 20
    assert docker.call("logs", "quits").stdout == b"up\nquit\n"
    assert [client.wait(30).text for client in waiting] == ["137", "137"]


@rootfs.runs_the_hosts_programs
def test_an_init_passes_signals_on_and_reaps(docker: Dockerd) -> None:
    """--init: SIGTERM ends a program that, as process 1, would ignore it; what is orphaned leaves no zombie."""
    docker.detached("--name", "tended", "--init", IMAGE, "sleep", "1000")
    docker.ok("exec", "tended", "sh", "-c", "(sh -c 'sleep 0.2 & exec sleep 0.1' &) ; sleep 1")
    assert " Z " not in docker.ok("exec", "tended", "ps", "-o", "pid,stat,args").replace("Z  ", "Z ")
    begun = time.monotonic()
    docker.ok("stop", "--time", "60", "tended")
    assert time.monotonic() - begun < 30
    assert docker.inspect("tended")["State"]["ExitCode"] == 143


def test_a_restart_policy_can_be_taken_back(docker: Dockerd) -> None:
    """--restart always starts it over and over, also after an end with 0; `update --restart no` is the end of that."""
    docker.detached("--name", "again", "--restart", "always", IMAGE, "sh", "-c", "echo life; sleep 1")
    wait_until(lambda: docker.inspect("again")["RestartCount"] >= 2, timeout=90, what="two restarts", interval=0.5)
    # a container that has ended isn't updated, and the engine takes a moment to notice the end
    wait_until(lambda: docker.call("update", "--restart", "no", "again").code == 0, timeout=90, what="the update")
    wait_until(lambda: docker.inspect("again")["State"]["Status"] == "exited", timeout=60, what="its end", interval=0.5)
    count = docker.inspect("again")["RestartCount"]
    assert docker.ok("logs", "again").count("life") == count + 1


def test_events_tell_a_containers_life(docker: Dockerd) -> None:
    """`docker events` has each step in order, with exit codes; `system df` counts the container and what it wrote."""
    since = str(time.time())
    docker.ok("create", "--name", "told", IMAGE, "sh", "-c", "dd if=/dev/zero of=/f bs=1M count=3; sleep 1000")
    docker.ok("start", "told")
    assert docker.call("exec", "told", "sh", "-c", "exit 4").code == 4
    docker.ok("pause", "told")
    docker.ok("unpause", "told")
    docker.ok("rename", "told", "renamed")
    docker.ok("kill", "renamed")
    docker.ok("wait", "renamed")
    spaces = json.loads(docker.ok("system", "df", "--verbose", "--format", "{{json .Containers}}"))
    assert next(space["Size"] for space in spaces if space["Names"] == "renamed") == "3.15MB"
    docker.ok("rm", "renamed")
    until = str(int(time.time()) + 1)  # the client's `0s` is the beginning of this second
    flags = ("--since", since, "--until", until, "--filter", "type=container", "--format", "{{json .}}")
    shown = docker.ok("events", *flags)
    events = [json.loads(line) for line in shown.splitlines()]
    names = [event["status"].partition(":")[0] for event in events]
    order = ["create", "start", "exec_create", "exec_start", "exec_die", "pause", "unpause", "rename", "kill", "die"]
    assert [name for name in names if name in order] == order
    assert names[-1] == "destroy", names
    codes = {event["status"]: event["Actor"]["Attributes"].get("exitCode") for event in events}
    assert (codes["exec_die"], codes["die"]) == ("4", "137")


@pytest.mark.only("runvm", "its own settings")
def test_annotations_choose_settings(docker: Dockerd) -> None:
    """--annotation io.runvm.…: a container's own settings hold, the host's are refused by name."""
    if "--annotation" not in docker.ok("run", "--help"):
        pytest.skip("this client has no --annotation: Docker 24 and later have it")
    assert docker.ok("run", "--rm", "--annotation", "io.runvm.vcpus=3", IMAGE, "nproc").strip() == "3"
    refused = docker.call("run", "--rm", "--annotation", "io.runvm.qemu=/bin/sh", IMAGE, "nproc")
    assert refused.code == 125 and b"io.runvm.qemu" in refused.stderr


def test_health_is_looked_at_more_often_at_first(docker: Dockerd) -> None:
    """--health-start-interval: a container whose health is checked once an hour is found healthy within seconds."""
    if "--health-start-interval" not in docker.ok("run", "--help"):
        pytest.skip("this client has no --health-start-interval: Docker 25 and later have it")
    health = ("--health-cmd", "test -e /up", "--health-interval", "1h", "--health-start-period", "5m")
    docker.detached(
        *("--name", "early", *health, "--health-start-interval", "2s"),
        *("--quiet", IMAGE, "sh", "-c", "sleep 3; touch /up; sleep 1000"),
    )
    wait_until(
        lambda: docker.inspect("early")["State"]["Health"]["Status"] == "healthy",
        timeout=90,
        what="health",
        interval=0.5,
    )
