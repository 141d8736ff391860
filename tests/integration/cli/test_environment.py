"""HOME and variables that are given twice, for a container's first process and for others."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from framework import rootfs

if TYPE_CHECKING:
    from pathlib import Path

    from framework.runtime import Box, Container, Runtime


def variables(text: str) -> list[str]:
    """What `env` printed, in order."""
    return sorted(line for line in text.splitlines() if not line.startswith(("PATH=", "TERM=", "PWD=", "SHLVL=")))


@pytest.mark.parametrize(
    ("given", "uid", "expected"),
    [
        ([], 0, ["HOME=/root"]),
        (["HOME="], 1000, ["HOME=/home/user"]),
        (["A=1", "HOME=/x", "A=2", "HOME=/y"], 1000, ["A=2", "HOME=/y"]),
        ([], 4321, ["HOME=/"]),
    ],
)
def test_the_first_process_has_a_home_and_each_variable_once(
    box: Box, given: list[str], uid: int, expected: list[str]
) -> None:
    """From the image's passwd where it is unset or empty, / for an unknown user."""
    container = box("env")
    container.bundle.process["env"] += given
    container.bundle.process["user"] = {"uid": uid, "gid": uid}
    assert variables(container.run().expect(0).text) == expected


@pytest.fixture(scope="module")
def running(module_box: Box) -> Container:
    """A container that sleeps."""
    container = module_box.idle()
    container.bundle.linux["maskedPaths"] *= 2
    return container.launch()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--user", "0"], ["HOME=/root"]),
        (["--user", "1000"], ["HOME=/home/user"]),
        (["--user", "4321:5"], ["HOME=/"]),
        (["--env", "HOME="], ["HOME=/root"]),
        (["--env", "X=1", "--env", "HOME=/x", "--env", "X=2"], ["HOME=/x", "X=2"]),
    ],
)
def test_a_further_process_has_them_too(running: Container, flags: list[str], expected: list[str]) -> None:
    """`exec --user`; and paths that are masked twice are no error."""
    assert variables(running.exec("env", flags=flags).expect(0).text) == expected


SAY = """
import _socket, os
sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
print(os.environ["NOTIFY_SOCKET"])
"""


def test_the_callers_notify_socket_hears_the_container(box: Box, runtime: Runtime, tmp_path: Path) -> None:
    """`NOTIFY_SOCKET=… run`, as a service manager calls it (sd_notify(3))."""
    container = box("python3", "-SI", "/opt/say.py")
    rootfs.install_python(container.bundle.rootfs)
    container.bundle.file("/opt/say.py", SAY)
    container.bundle.save()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"{tmp_path}/notify")
        server.settimeout(runtime.timeout)
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET": f"{tmp_path}/notify"}
        result = runtime.call("run", "--bundle", container.bundle.path, container.id, env=env)
        assert result.expect(0).text == "/run/notify/notify.sock"
        assert b"READY=1" in server.recv(4096)
