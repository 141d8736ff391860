"""Directories that are named through symlinks: Docker's --root is below /var/run, which is one."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from framework import process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box, Container, Runtime


@pytest.fixture
def linked(runtime: Runtime) -> Iterator[str]:
    """Another path of the scratch directory."""
    path = f"{runtime.scratch}.link"
    os.symlink(runtime.scratch, path)
    yield path
    os.unlink(path)


@pytest.fixture
def container(box: Box) -> Iterator[Container]:
    """It shows what is mounted into it: from the host, with a mount below; and from its own root."""
    container = box.sh("cat /shown/file /shown/sub/below; ls -d /again/busybox")
    source = f"{container.bundle.path}/source"
    os.makedirs(f"{source}/sub")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", f"{source}/sub"], check=True, timeout=10)
    for name in ("file", "sub/below"):
        with open(f"{source}/{name}", "w", encoding="utf-8") as file:
            file.write(f"{name}\n")
    container.bundle.bind(source, "/shown", "rbind")
    container.bundle.bind(f"{container.bundle.rootfs}/bin", "/again", "bind")
    yield container
    subprocess.run(["umount", f"{source}/sub"], check=True, timeout=10)


SHOWN = b"file\nsub/below\n/again/busybox\n"


def test_a_root_behind_a_link(container: Container, runtime: Runtime, linked: str) -> None:
    """`--root`: containers are found there by either path, and run."""
    container.bundle.save()
    command = [runtime.path, "--root", f"{linked}/root"]
    result = process.call([*command, "run", "--bundle", container.bundle.path, container.id])
    assert (result.code, result.stdout) == (0, SHOWN), result.describe()
    container.bundle.args("sleep", "1000")
    container.create()
    assert process.call([*command, "list", "--quiet"]).text == container.id
    process.call([*command, "delete", "--force", container.id]).expect(0)
    assert runtime.ids() == []


@pytest.mark.differs("runc", "it wants a root filesystem without links in its path")
@pytest.mark.differs("crun", "state_dir is runvm's setting")
def test_all_of_it_behind_a_link(container: Container, runtime: Runtime, linked: str) -> None:
    """The bundle, its root, what is mounted, and state_dir."""
    config = f"{runtime.scratch}/linked.toml"
    with open(runtime.config_file, encoding="utf-8") as file:
        settings = file.read()
    with open(config, "w", encoding="utf-8") as file:
        file.write(settings.replace(runtime.state_dir, f"{linked}/state"))
    container.bundle.config["root"]["path"] = container.bundle.rootfs.replace(runtime.scratch, linked)
    for mount in container.bundle.config["mounts"]:
        mount["source"] = mount["source"].replace(runtime.scratch, linked)
    container.bundle.save()
    bundle = container.bundle.path.replace(runtime.scratch, linked)
    environment = dict(os.environ) | {"RUNVM_CONFIG": config}
    result = process.call(
        [runtime.path, "--root", f"{linked}/root", "run", "--bundle", bundle, container.id], env=environment
    )
    assert (result.code, result.stdout) == (0, SHOWN), result.describe()
    os.unlink(config)
