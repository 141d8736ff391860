"""A VM that can't grow: what its containers may ask for then."""

from __future__ import annotations

from typing import cast

import pytest

from runvm.config import Config
from runvm.errors import UnsupportedError
from runvm.hypervisor.driver import Machine, Vm
from runvm.hypervisor.uml.driver import Uml
from runvm.linux.loop import Loop
from runvm.sandbox.growth import Growth
from runvm.sandbox.guest_link import GuestLink
from runvm.sandbox.members import Member

MACHINE = Machine("ptrace", 1, 1, 1024, 0, "", "", "", "")


def fit(limit_mib: int, resources: dict[str, object], config: Config = Config()) -> tuple[bool, dict[str, object]]:  # noqa: B008
    member = Member("one")
    member.limit_mib = limit_mib
    answers: list[bool] = []
    growth = Growth(Loop(), config, MACHINE, 0, cast("Vm", None), cast("GuestLink", None), Uml.capabilities)
    growth.fit([member], resources, lambda error, plugged: answers.append(error is None and not plugged))
    return answers == [True], resources


def test_limits_within_it_need_nothing() -> None:
    assert fit(1024, {})[0]


def test_a_limit_beyond_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="has 1024 MiB of memory and can't grow, and 2048 MiB are asked for"):
        fit(2048, {})


def test_memory_that_the_settings_name_is_the_users_choice() -> None:
    assert fit(2048, {}, Config(memory_mib=1024))[0]


def test_its_only_cpu_is_every_cpuset() -> None:
    done, resources = fit(0, {"cpu": {"cpus": "0-3", "mems": "0", "quota": 200_000}})
    assert done
    assert resources == {"cpu": {"quota": 200_000}}
