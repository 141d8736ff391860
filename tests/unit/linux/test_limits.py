"""Limits read off /proc are those of getrlimit(2)."""

import resource

from runvm.linux import limits


def test_limits_are_the_systems() -> None:
    found = limits.own()
    assert len(found) == 16
    for name, (soft, hard) in found.items():
        number = 10 if name == "RLIMIT_LOCKS" else getattr(resource, name)  # the library lacks this one
        wanted = tuple(
            limits.INFINITY if each == resource.RLIM_INFINITY else each for each in resource.getrlimit(number)
        )
        assert (soft, hard) == wanted, name
