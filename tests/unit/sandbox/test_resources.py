"""Sizes of a VM from limits: a container's, a pod's, and what the cgroup above leaves."""

from __future__ import annotations

from typing import Any

import pytest

from runvm.config import Config
from runvm.errors import UnsupportedError
from runvm.sandbox import resources

MIB = 1 << 20


@pytest.mark.parametrize(
    ("limit_mib", "room_mib", "ram_mib"),
    [
        (0, 0, 512),  # the default
        (64, 0, 256),  # the least
        (300, 0, 512),  # 300 + 128, rounded up
        (1 << 40, 0, 512),  # an engine's "none"
        (0, 384, 256),  # a pod's limit, the VMM's share taken off
        (0, 700, 512),
        (1000, 1384, 1152),  # a pod with an overhead of 384: not cut
    ],
)
def test_ram_follows_the_limit_within_the_room(limit_mib: int, room_mib: int, ram_mib: int) -> None:
    """The container's limit and the overhead, no more than a cgroup above leaves beside the VMM."""
    limits: dict[str, Any] = {"memory": {"limit": limit_mib * MIB}}
    assert resources.memory_mib(Config(), limits, room_mib=room_mib) == ram_mib


def test_a_pod_too_small_for_any_vm_is_told_so() -> None:
    """Better than a VMM that the host's kernel kills later."""
    with pytest.raises(UnsupportedError, match=r"allows 256 MiB of memory.*at least 384 MiB"):
        resources.memory_mib(Config(), {}, room_mib=256)


def test_a_pods_vm_is_sized_by_what_cri_says_of_the_pod() -> None:
    """containerd tells the sums of the containers' limits by annotations of the sandbox."""
    annotations = {
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-memory": str(700 * MIB),
        "io.kubernetes.cri.sandbox-cpu-quota": "100000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
    }
    own: dict[str, Any] = {"cpu": {"shares": 2}}
    limits = resources.of_vm(annotations, own)
    assert resources.memory_mib(Config(), limits) == 896
    assert resources.vcpus(Config(), limits) == 1
    assert resources.of_vm({}, own) is own
    # without limits, as kubelet writes it for a pod of best effort
    none = resources.of_vm({**annotations, "io.kubernetes.cri.sandbox-memory": "0"}, own)
    assert resources.memory_mib(Config(), none) == Config().default_memory_mib
