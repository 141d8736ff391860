"""`podman run --arch`: an image for another architecture than the host's, and a pod, which is of one architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from framework import archives, foreign, rootfs
from framework.foreign import OTHER
from framework.podman import IMAGE
from runvm.linux.architecture import KNOWN

if TYPE_CHECKING:
    from framework.podman import Podman

pytestmark = [
    pytest.mark.only("runvm", "a kernel of its own"),
    pytest.mark.capability("architectures", "an emulated processor of another kind"),
    pytest.mark.skipif(bool(foreign.lacks(OTHER)), reason=foreign.lacks(OTHER)),
    pytest.mark.timeout(600),
]


@rootfs.is_the_hosts
def test_arch_and_a_pod_of_one_architecture(podman: Podman, scratch: str) -> None:
    path, name = f"{scratch}/podman-{OTHER}", f"localhost/busybox:{OTHER}"
    rootfs.make(path, OTHER)
    archives.write(f"{path}.tar", name=name, root=path, command=["sh"], architecture=OTHER)
    podman.ok("load", "--input", f"{path}.tar", timeout=200)
    # the first one boots, and leaves the template that the others start from
    result = podman.call("run", "--rm", "--arch", OTHER, name, "sh", "-c", "uname -m; exit 8", timeout=400)
    assert (result.code, result.text) == (8, KNOWN[OTHER].machine)
    first = podman.detached("--arch", OTHER, name, "sleep", "1000")
    assert podman.ok("exec", first, "uname", "-m") == KNOWN[OTHER].machine
    mixed = podman.run("--network", f"container:{first}", IMAGE, "true")
    assert mixed.code == 126
    assert f"the virtual machine that it would join is of {OTHER}" in mixed.stderr.decode()
    # a pod's own container is of the host's architecture, if it isn't told
    podman.ok("pod", "create", "--name", "pod", "--infra-image", name, "--infra-command", "sleep 1000", timeout=200)
    assert podman.run("--pod", "pod", "--arch", OTHER, name, "uname", "-m").expect(0).text == KNOWN[OTHER].machine
    podman.ok("pod", "rm", "--force", "pod")
