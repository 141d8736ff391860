"""`runvm template`: what `list` shows a person."""

from runvm.cli import template
from runvm.hypervisor.template import Template


def test_the_table_has_lines_that_fit_a_terminal() -> None:
    """Of what a template was made from, what tells one from another: no paths, no kernel's command line."""
    booted = {
        "driver": "qemu",
        "vmm": "/usr/bin/qemu-system-x86_64:18397984:1779741869000000000",
        "accelerator": "tcg",
        "vcpus": "2",
        "max_vcpus": "2",
        "memory_mib": "1024",
        "kernel": "/var/lib/runvm/images/b22adf155861/vmlinuz",
        "image_key": "b22adf1558613f68a0f49e549c286c90",
        "cmdline": "quiet " * 50,
        "architecture": "amd64",
    }
    warm = {"warm": "web1", "driver": "qemu", "vmm": "10.0", "image_key": "b22adf1558613f68a0f49e549c286c90"}
    lines = template.rendered([Template("1f17", "/x", each, 1 << 20, 0.0) for each in (booted, warm)]).splitlines()
    assert [line.partition("MiB")[2].strip() for line in lines[1:]] == [
        "driver=qemu accelerator=tcg architecture=amd64 vcpus=2 memory_mib=1024 image=b22adf155861",
        "warm=web1 driver=qemu image=b22adf155861",
    ]
