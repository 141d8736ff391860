"""kernel.py: the modules of the initramfs are the core ones, what they depend on, and none that is built in."""

import lzma
from pathlib import Path

import pytest

from runvm.errors import HostError
from runvm.guest import kernel


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A tree as depmod leaves it: all of CORE there or built in, virtio_net with a dependency, xz for one of them."""
    directory = tmp_path / "modules"
    (directory / "kernel").mkdir(parents=True)
    built_in = {"pciehp", "vmgenid", "ipv6"}
    lines = []
    for name in (*kernel.CORE, "failover", "nouveau"):
        if name in built_in:
            continue
        file = f"kernel/{name.replace('_', '-')}.ko" + (".xz" if name == "overlay" else "")
        data = f"module {name}".encode()
        (directory / file).write_bytes(lzma.compress(data) if name == "overlay" else data)
        lines.append(f"{file}:" + (" kernel/failover.ko" if name == "virtio_net" else ""))
    (directory / "modules.dep").write_text("\n".join(lines) + "\n")
    (directory / "modules.builtin").write_text("kernel/net/ipv6/ipv6.ko\nkernel/drivers/virt/vmgenid.ko\n")
    (directory / "modules.builtin.modinfo").write_bytes(b"pciehp.parmtype=pciehp_poll_time:int\0")
    return directory


def test_core_modules_come_with_their_dependencies_and_uncompressed(modules: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    names = kernel.copy_core(str(modules), str(target))
    assert "failover" in names
    assert "nouveau" not in names
    assert (target / "kernel" / "overlay.ko").read_bytes() == b"module overlay"
    assert (target / "kernel" / "virtio-net.ko").read_bytes() == b"module virtio_net"
    assert sorted(path.name for path in (target / "kernel").iterdir()) == sorted(
        f"{name.replace('_', '-')}.ko" for name in names
    )
    assert (target / "modules.builtin").exists()


def test_a_kernel_without_a_core_module_is_refused(modules: Path, tmp_path: Path) -> None:
    text = (modules / "modules.dep").read_text()
    (modules / "modules.dep").write_text("\n".join(line for line in text.splitlines() if "virtiofs" not in line))
    with pytest.raises(HostError, match="the kernel has no virtiofs"):
        kernel.copy_core(str(modules), str(tmp_path / "target"))


def test_an_unknown_compression_is_refused(modules: Path, tmp_path: Path) -> None:
    text = (modules / "modules.dep").read_text()
    (modules / "modules.dep").write_text(text.replace("overlay.ko.xz", "overlay.ko.gz"))
    (modules / "kernel" / "overlay.ko.gz").touch()
    with pytest.raises(HostError, match=r"overlay\.ko\.gz is compressed"):
        kernel.copy_core(str(modules), str(tmp_path / "target"))


@pytest.mark.parametrize("path", ["kernel/a/virtio-rng.ko", "virtio-rng.ko.xz", "/lib/virtio_rng.ko"])
def test_a_module_is_named_as_in_proc_modules(path: str) -> None:
    assert kernel.module_name(path) == "virtio_rng"
