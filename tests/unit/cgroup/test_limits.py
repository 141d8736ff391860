"""A container's limits as the host's cgroups have them."""

import pytest

from runvm.cgroup.limits import DEFAULT_SHARES, DEFAULT_WEIGHT, Limits, weight_of


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(1, 1), (2, 1), (3, 2), (102, 17), (512, 59), (1024, 100), (2048, 174), (262144, 10000), (1 << 20, 10000)],
)
def test_shares_are_the_weight_that_runc_gives(shares: int, weight: int) -> None:
    """Since runc 1.3.3: by the curve, no straight line, by which 1024 shares were less than the default."""
    assert weight_of(shares) == weight


def test_the_default_is_the_default() -> None:
    """What lifting relies on: fewer shares than the default are less than the default's weight, no others."""
    assert Limits(0, 0, 100_000, DEFAULT_SHARES).weight == DEFAULT_WEIGHT
    assert Limits(0, 0, 100_000, DEFAULT_SHARES - 20).weight < DEFAULT_WEIGHT
