"""Sizes of a VM from limits: a container's, a pod's, and what the cgroup above leaves."""

from __future__ import annotations

from typing import Any

import pytest

from runvm.config import Config
from runvm.errors import UnsupportedError
from runvm.sandbox import sizes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("limits", "room_mib", "base_mib", "ram_mib"),
    [
        ([0], 0, 1024, 1024),  # the default: it needn't grow
        ([64], 0, 512, 256),
        ([300], 0, 512, 512),  # 300 + 128, rounded up
        ([0], 384, 256, 256),  # a pod's limit, the VMM's share taken off
        ([0], 700, 512, 512),
        ([1000], 1384, 512, 1152),  # a pod with an overhead of 384: not cut
        ([300, 700], 0, 512, 1152),
        ([300, 0, 0], 0, 512, 1408),  # what has no limit shares the default
    ],
)
def test_ram_follows_the_limits_within_the_room(limits: list[int], room_mib: int, base_mib: int, ram_mib: int) -> None:
    """The containers' limits and the overhead, no more than a cgroup above leaves beside the VMM."""
    max_mib = sizes.max_mib(room_mib)
    first = {"memory": {"limit": limits[0] * MIB}}
    assert sizes.base_mib(Config(), first, max_mib) == base_mib
    assert sizes.memory_mib(Config(), limits, max_mib) == ram_mib


def test_an_engines_none_is_no_limit() -> None:
    """The largest number of pages is how engines write it."""
    assert sizes.limit_mib({"memory": {"limit": 1 << 60}}) == 0
    assert sizes.limit_mib({"memory": {"limit": MIB + 1}}) == 2


def test_a_pod_too_small_for_any_vm_is_told_so() -> None:
    """Better than a VMM that the host's kernel kills later."""
    with pytest.raises(UnsupportedError, match=r"allows 256 MiB of memory.*at least 384 MiB"):
        sizes.max_mib(256)


def test_a_pods_vm_is_sized_by_what_cri_says_of_the_pod() -> None:
    """containerd tells the sums of the containers' limits by annotations of the sandbox."""
    annotations = {
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-memory": str(700 * MIB),
        "io.kubernetes.cri.sandbox-cpu-quota": "100000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
    }
    own: dict[str, Any] = {"cpu": {"shares": 2}}
    assert sizes.pod_mib(annotations) == 700
    assert sizes.vcpus(Config(), sizes.of_vm(annotations, own)) == 1
    assert sizes.of_vm({}, own) is own
    assert sizes.pod_mib({}) == 0
    # without limits, as kubelet writes it for a pod of best effort
    assert sizes.pod_mib({**annotations, "io.kubernetes.cri.sandbox-memory": "0"}) == 0


@pytest.mark.parametrize(
    ("cpu", "wanted"),
    [
        ({}, 0),
        ({"shares": 512, "quota": -1}, 0),
        ({"quota": 150_000, "period": 100_000}, 2),
        ({"quota": 1_000_000}, 4),
        ({"cpus": "0-1,3"}, 3),
        ({"cpus": "0-1", "quota": 300_000}, 2),
        ({"cpus": "0-3", "quota": 50_000}, 1),
    ],
)
def test_how_many_processors_limits_call_for(cpu: dict[str, Any], wanted: int) -> None:
    """The quota, rounded up, and the cpuset, whichever is less; never more than the host has."""
    assert sizes.wanted_vcpus(cpu, 4) == wanted


def test_without_a_limit_there_are_as_many_cpus_as_the_host_has() -> None:
    """Up to 32, which each take some of a guest's memory."""
    for host, expected in ((1, 1), (6, 6), (32, 32), (96, 32)):
        assert sizes.vcpus(Config(), {}, available=host) == expected
    assert sizes.vcpus(Config(vcpus=3), {}, available=64) == 3
    assert sizes.vcpus(Config(), {"cpu": {"quota": 150000, "period": 100000}}, available=64) == 2


def test_a_machine_that_cant_grow_has_the_whole_limit_and_never_less_than_one_without() -> None:
    limit = {"memory": {"limit": 3 << 30}}
    assert sizes.fixed_mib(Config(), limit) == 3072 + 128
    assert sizes.fixed_mib(Config(), {}) == 2048
    assert sizes.fixed_mib(Config(fixed_memory_mib=1536), {"memory": {"limit": 64 << 20}}) == 1536
    assert sizes.fixed_mib(Config(default_memory_mib=4096), {}) == 4096
    assert sizes.fixed_mib(Config(), limit, 1920) == 1920
    assert sizes.fixed_mib(Config(memory_mib=512), limit) == 512
