"""The example that newcomers start: a Compose application, by Debian's docker-compose and by `docker compose`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import urllib.request
from typing import TYPE_CHECKING

import pytest

from framework.docker import CLIENT, RUNTIME
from framework.images import SERVICES
from framework.process import call, wait_until

if TYPE_CHECKING:
    from framework.docker import Dockerd

EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "..", "..", "examples", "guestbook")
# What the public images of these names do, as far as the example asks for it
IMAGES = {
    "nginx:stable": ('CMD ["nginx", "-g", "daemon off;"]', "STOPSIGNAL SIGQUIT"),
    "postgres:15": (
        'ENTRYPOINT ["postgres-entrypoint"]', 'CMD ["postgres", "-c", "listen_addresses=*"]', "STOPSIGNAL SIGINT",
    ),
    "redis:7": ('CMD ["redis-server"]',),
    "python:3-slim": ('CMD ["python"]',),
}  # fmt: skip
UP_SECONDS = 600.0


class Compose:
    """Compose on a copy of the example."""

    def __init__(self, client: list[str], environment: dict[str, str], directory: str) -> None:
        self.client = client
        self.environment = environment
        self.directory = directory
        self.port = int(environment["PORT"])

    def __call__(self, *args: str) -> str:
        """A command that must succeed; its output."""
        result = call([*self.client, *args], env=self.environment, cwd=self.directory, timeout=UP_SECONDS)
        return result.expect(0).text


@pytest.fixture(params=["docker-compose", "docker compose"])
def compose(request: pytest.FixtureRequest, docker: Dockerd, tmp_path: os.PathLike[str]) -> Compose:
    """The example, up; it is taken down afterwards."""
    client = [CLIENT, "compose"] if request.param == "docker compose" else ["docker-compose"]
    if shutil.which(client[0]) is None or call([*client, "version"]).code:
        pytest.skip(f"{request.param} isn't installed")
    for name, changes in IMAGES.items():
        docker.provide(name, SERVICES, *changes)
    directory = f"{tmp_path}/guestbook"
    shutil.copytree(EXAMPLE, directory)
    environment = dict(
        os.environ, DOCKER_HOST=f"unix://{docker.socket}", DOCKER_BUILDKIT="0", RUNTIME=RUNTIME, PORT=str(free_port()),
        COMPOSE_HTTP_TIMEOUT="300",
    )  # fmt: skip

    made = Compose(client, environment, directory)
    request.addfinalizer(lambda: made("down", "--volumes"))
    made("up", "--detach", "--build")
    return made


SERVICES_THAT_SLEEP = """version: "3.7"
services:
  one:
    image: busybox:test
    command: ["sleep", "1002"]
  two:
    image: busybox:test
    command: ["sleep", "1003"]
"""


@pytest.mark.parametrize("client", ["docker-compose", "docker compose"])
def test_top_lists_the_processes_of_each_service(docker: Dockerd, client: str, tmp_path: os.PathLike[str]) -> None:
    """By each client: a table for each container with what runs there, as far as it has a pid on the host."""
    argv = [CLIENT, "compose"] if client == "docker compose" else ["docker-compose"]
    if shutil.which(argv[0]) is None or call([*argv, "version"]).code:
        pytest.skip(f"{client} isn't installed")
    directory = f"{tmp_path}/sleepers"
    os.mkdir(directory)
    with open(f"{directory}/docker-compose.yml", "w", encoding="ascii") as file:
        file.write(SERVICES_THAT_SLEEP)
    environment = dict(os.environ, DOCKER_HOST=f"unix://{docker.socket}", COMPOSE_HTTP_TIMEOUT="300")
    compose = Compose(argv, {**environment, "PORT": "0"}, directory)
    try:
        compose("up", "--detach")
        shown = compose("top")
        assert "sleep 1002" in shown
        assert "sleep 1003" in shown
    finally:
        compose("down", "--timeout", "1")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ask(port: int, text: str = "") -> dict[str, object]:
    """The guest book's answer to a GET, or to a POST of *text*; {} where there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", text.encode() or None, timeout=60) as response:
            found: dict[str, object] = json.load(response)
            return found
    except OSError:
        return {}


@pytest.mark.slow
def test_the_example_runs_scales_and_keeps_its_data(docker: Dockerd, compose: Compose) -> None:
    """One command brings it up; every replica answers, one more is found by its name, and a restart loses nothing."""
    port = compose.port
    wait_until(lambda: ask(port), timeout=60, what="the proxy's answer")
    assert ask(port, "first")["added"] == "first"
    seen: set[object] = set()

    def replicas(count: int) -> bool:
        seen.add(ask(port).get("replica"))
        return len(seen - {None}) >= count

    wait_until(lambda: replicas(2), timeout=60, what="both replicas' answers")
    compose("up", "--detach", "--scale", "web=3", "--no-recreate")
    wait_until(lambda: replicas(3), timeout=180, what="the third replica's answer", interval=0.5)
    visits = int(str(ask(port)["visits"]))
    compose("restart", "db", "cache")
    found = wait_until(lambda: ask(port), timeout=180, what="an answer after the restart", interval=0.5)
    assert found["entries"] == ["first"]
    assert int(str(found["visits"])) > visits
