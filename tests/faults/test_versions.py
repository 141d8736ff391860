"""Containers that another runvm has started: what can be done with them, and what is said of the rest."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from framework.host import processes_of
from runvm import __version__

if TYPE_CHECKING:
    from framework.runtime import Box, Container

pytestmark = pytest.mark.only("runvm", "there is a supervisor")

SAID = f"the container was started by runvm {{}}; this is {__version__}, which can only show, kill and delete it"


def made_by_0_1(container: Container) -> Container:
    """Bring what is on disk of a container to what runvm 0.1 wrote: no version of the protocol, a state.json that names
    the bundle's config.json, and no copy of that."""
    runtime = container.runtime
    path = f"{runtime.root}/{container.id}"
    with open(f"{path}/state.json", encoding="utf-8") as file:
        state = json.load(file)
    state["config_path"] = f"{container.bundle.path}/config.json"
    with open(f"{path}/state.json", "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.unlink(f"{path}/config.json")
    os.unlink(f"{runtime.state_dir}/sandboxes/{state['sandbox']}/version")
    return container


def made_by(container: Container, release: str) -> Container:
    """A later release, whose protocol is another one."""
    with open(f"{container.runtime.root}/{container.id}/state.json", encoding="utf-8") as file:
        sandbox = json.load(file)["sandbox"]
    with open(f"{container.runtime.state_dir}/sandboxes/{sandbox}/version", "w", encoding="utf-8") as file:
        file.write(f"999 {release}")
    return container


def test_a_container_of_0_1_can_be_shown_killed_and_deleted(box: Box) -> None:
    """As an engine does it, which knows nothing of the upgrade; its poststop hook runs."""
    container = box.idle()
    told = f"{container.runtime.scratch}/{container.id}.told"
    script = f"#!/bin/sh\necho gone >{told}\n"
    hook = f"{container.runtime.scratch}/{container.id}.hook"
    with open(hook, "w", encoding="utf-8") as file:
        file.write(script)
    os.chmod(hook, 0o755)
    container.bundle.hook("poststop", hook)
    made_by_0_1(container.launch())
    assert container.status == "running"
    assert container.id in container.runtime.ids()
    assert container.runtime.ok("ps", "--format", "json", container.id).json() == [container.init_pid]
    container.kill("TERM")
    assert container.wait(20) == 0
    container.wait_status("stopped")
    container.delete()
    with open(told, encoding="utf-8") as file:
        assert file.read() == "gone\n"


@pytest.mark.parametrize("role", ["", "supervisor"])
def test_delete_force_takes_a_running_container_of_0_1_away(box: Box, role: str) -> None:
    """With all of its virtual machine; also where its supervisor has been killed."""
    container = made_by_0_1(box.sleeper())
    if role:
        os.kill(processes_of(container)[role], 9)
    container.delete("--force")
    container.wait(20)
    assert container.id not in container.runtime.ids()


def test_of_two_containers_of_0_1_each_can_be_deleted(box: Box) -> None:
    """The first one's end isn't the other's."""
    one = box.sleeper()
    other = box.idle()
    other.bundle.namespace("network", f"/proc/{one.init_pid}/ns/net")
    made_by_0_1(other.launch())
    one.kill("KILL")
    assert one.wait(20) == 137
    one.delete()
    assert other.status == "running"
    other.kill("TERM")
    assert other.wait(20) == 0
    other.delete()


@pytest.mark.parametrize("release", ["0.1", "7.8"])
def test_other_commands_say_that_it_is_another_version_s(box: Box, release: str) -> None:
    """Not that the container isn't running."""
    container = box.sleeper()
    if release == "0.1":
        made_by_0_1(container)
    else:
        made_by(container, release)
    said = SAID.format(release)
    commands = (["pause"], ["exec", "CID", "true"], ["update", "--memory", "200000000"], ["events", "--stats"])
    for command in commands:
        argv = [container.id if word == "CID" else word for word in command]
        result = container.runtime.call(*argv, *([] if "CID" in command else [container.id]))
        assert result.code != 0
        assert said in result.error, result.describe()
    joining = box.idle()
    joining.bundle.namespace("network", f"/proc/{container.init_pid}/ns/net")
    assert said in joining.try_create().error
    created = box.idle()
    created.create()
    made_by(created, "7.8")
    assert SAID.format("7.8") in created.runtime.call("start", created.id).error
    assert container.status == "running"
    container.delete("--force")
