"""`docker --platform`: images for another architecture than the host's, run and built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from framework import archives, foreign, rootfs
from framework.foreign import OTHER
from runvm.linux.architecture import KNOWN, host

if TYPE_CHECKING:
    from framework.docker import Dockerd

pytestmark = [
    pytest.mark.only("runvm", "a kernel of its own"),
    pytest.mark.capability("architectures", "an emulated processor of another kind"),
    pytest.mark.skipif(bool(foreign.lacks(OTHER)), reason=foreign.lacks(OTHER)),
    pytest.mark.timeout(600),
]
MACHINE = KNOWN[OTHER].machine
PLATFORM = ("--platform", f"linux/{OTHER}")
IMAGE = f"busybox:{OTHER}"
SOURCE = """
#include <stdio.h>
#include <sys/utsname.h>
int main(void) { struct utsname name; uname(&name); printf("built on %s\\n", name.machine); return 0; }
"""


def load(docker: Dockerd, name: str, root: str, scratch: str) -> None:
    """Have the image *name* of the directory *root*; Docker 20.10's `import` would take it for the host's."""
    path = f"{scratch}/{name.replace(':', '-')}.tar"
    archives.write(path, name=name, root=root, command=["sh"], architecture=OTHER)
    docker.ok("load", "--input", path, timeout=200)


@pytest.fixture(scope="module")
def image(docker: Dockerd, scratch: str) -> str:
    """An image of busybox for the other architecture."""
    path = f"{scratch}/docker-{OTHER}"
    rootfs.make(path, OTHER)
    load(docker, IMAGE, path, scratch)
    # the first one boots, and leaves the template that the others start from
    docker.ok("run", "--rm", *PLATFORM, IMAGE, "true", timeout=400)
    return IMAGE


def test_run_gives_the_platforms_machine_output_and_exit_code(docker: Dockerd, image: str) -> None:
    result = docker.run(*PLATFORM, image, "sh", "-c", "uname -m; echo problem >&2; exit 9")
    assert (result.code, result.text, result.stderr) == (9, MACHINE, b"problem\n")


def test_network_volumes_exec_and_stop(docker: Dockerd, image: str) -> None:
    """With Docker's own seccomp profile, which is written for the host."""
    container = docker.detached(*PLATFORM, "--init=false", "-v", "/v", "-m", "256m", image, "sleep", "1000")
    script = f"ping -c 1 -W 5 {docker.gateway} >/dev/null && echo reached; echo kept >/v/file; cat /v/file; uname -m"
    assert docker.ok("exec", container, "sh", "-c", script).split() == ["reached", "kept", MACHINE]
    assert docker.ok("exec", container, "cat", "/sys/fs/cgroup/memory.max") == str(256 << 20)
    docker.ok("kill", "--signal", "KILL", container)
    assert docker.ok("wait", container) == "137"


def test_an_init_of_the_hosts_is_refused(docker: Dockerd, image: str) -> None:
    result = docker.run(*PLATFORM, "--init", image, "true")
    assert result.code == 125
    assert f"a program for {host()}, and the container is for {OTHER}" in result.stderr.decode()


@pytest.mark.slow
def test_the_classic_builder_compiles_for_the_platform(docker: Dockerd, scratch: str) -> None:
    base = f"{scratch}/compiler-{OTHER}"
    foreign.unpack(base, OTHER, "tcc", "libc6-dev", "bash", "coreutils", "dash")
    load(docker, "compiler:test", base, scratch)
    written = SOURCE.replace("\\", "\\\\").replace("\n", "\\n")
    lines = (
        "FROM compiler:test",
        f"RUN printf '{written.replace(chr(37), chr(37) * 2)}' >/program.c",
        "RUN tcc -o /program /program.c && /program >/said && uname -m >>/said",
        'CMD ["/bin/cat", "/said"]',
    )
    docker.ok("build", *PLATFORM, "--tag", "built:test", "-", stdin="\n".join(lines).encode(), timeout=500)
    assert docker.run(*PLATFORM, "built:test").expect(0).text.splitlines() == [f"built on {MACHINE}", MACHINE]
    assert docker.ok("image", "inspect", "--format", "{{.Architecture}}", "built:test") == OTHER
