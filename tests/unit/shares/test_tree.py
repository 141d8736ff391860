"""The served directory: what is one mount, what isn't, and what is told of the mounts below."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from framework.apart import apart
from runvm.linux import mounts, syscalls
from runvm.shares.tree import Share, Tree

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


class Host:
    """A directory of the host with a source, and a served directory: in a mount namespace of its own."""

    def __init__(self, path: Path) -> None:
        self.source = path / "source"
        self.tree = Tree(str(path / "share"))

    def add(self, name: str, *, private: bool = False, rro: bool = False, source: str = "") -> str:
        """Show the source to a container: the mount that it has."""
        share = Share(source or str(self.source), True, rro, submounts_too=rro, private=private)
        self.tree.add(name, {"m1": share}, os.getpid())
        return os.readlink(f"{self.tree.path}/containers/{name}/m1").removeprefix("../../")

    def below(self, name: str) -> dict[str, list[str]]:
        """What the guest is told of mounts below."""
        found: dict[str, list[str]] = json.loads(
            Path(f"{self.tree.path}/containers/{name}/submounts").read_text("utf-8")
        )
        return found

    def mount(self, name: str, *flags: int) -> None:
        """Mount below the source."""
        (self.source / name).mkdir(exist_ok=True)
        syscalls.mount("test", str(self.source / name), "tmpfs", sum(flags))


@pytest.fixture
def on_host(tmp_path: Path) -> Callable[[Callable[[Host], None]], None]:
    """Runs a test where its mounts are nobody else's. The source is a shared mount."""

    def run(test: Callable[[Host], None]) -> None:
        def prepared() -> None:
            (tmp_path / "source").mkdir()
            syscalls.mount("test", str(tmp_path / "source"), "tmpfs")
            syscalls.mount("none", str(tmp_path / "source"), "", syscalls.MS_SHARED)
            test(Host(tmp_path))

        apart(prepared)

    return run


@pytest.mark.parametrize("kind", ["private", "rro"])
def test_a_later_container_sees_what_is_mounted_below_a_private_source_now(
    on_host: Callable[[Callable[[Host], None]], None], kind: str
) -> None:
    """Its mount is the first one's only as long as the same is below; the first one's stays as it was."""

    def test(host: Host) -> None:
        def add(name: str) -> str:
            return host.add(name, private=kind == "private", rro=kind == "rro")

        first, second = add("a"), add("b")
        assert first == second
        host.mount("sub")
        third, fourth = add("c"), add("d")
        assert third == fourth != first
        (host.source / "sub" / "file").touch()
        assert os.listdir(f"{host.tree.path}/{third}/sub") == ["file"]
        assert os.listdir(f"{host.tree.path}/{first}/sub") == []
        for name in "abc":
            host.tree.remove(name)
        assert os.listdir(f"{host.tree.path}/shared") == [os.path.basename(third)]
        host.tree.remove("d")
        assert os.listdir(f"{host.tree.path}/shared") == []

    on_host(test)


def test_one_source_is_one_mount(on_host: Callable[[Callable[[Host], None]], None]) -> None:
    """Also one that gets the host's later mounts: they come to both."""

    def test(host: Host) -> None:
        first = host.add("a")
        host.mount("sub")
        assert host.add("b") == first
        assert mounts.table(f"{host.tree.path}/{first}/sub")

    on_host(test)


def test_the_flags_of_mounts_below_are_told(on_host: Callable[[Callable[[Host], None]], None]) -> None:
    """Those of the host's mounts, not those that the served ones have besides."""

    def test(host: Host) -> None:
        host.mount("plain")
        host.mount("all", syscalls.MS_NOSUID, syscalls.MS_NODEV, syscalls.MS_NOEXEC, syscalls.MS_RDONLY)
        host.mount("nodev", syscalls.MS_NODEV)
        (host.source.parent / "link").symlink_to("source")
        place = host.add("a", private=True, source=f"{host.source.parent}/link")
        assert host.below("a") == {
            f"{place}/all": ["nodev", "noexec", "nosuid", "ro"],
            f"{place}/nodev": ["nodev"],
            f"{place}/plain": [],
        }

    on_host(test)


def test_what_the_host_mounts_onto_a_source_goes_with_it(on_host: Callable[[Callable[[Host], None]], None]) -> None:
    """However often; and where something stays, removing goes on."""

    def test(host: Host) -> None:
        host.add("a")
        for _ in range(3):
            syscalls.mount("test", str(host.source), "tmpfs")
            syscalls.mount("none", str(host.source), "", syscalls.MS_SHARED)
        host.tree.remove("a")
        assert os.listdir(f"{host.tree.path}/shared") == os.listdir(f"{host.tree.path}/containers") == []
        place = host.add("b")
        os.mkdir(f"{place}/in-the-way", dir_fd=host.tree._own)
        host.tree.remove("b")
        assert os.listdir(f"{host.tree.path}/containers") == []

    on_host(test)
