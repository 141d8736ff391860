"""systemd's scopes for containers: names and the call; what systemd does with it needs a host that it runs."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from runvm.cgroup import scope, unit_properties
from runvm.cgroup.limits import NONE, Limits
from runvm.errors import SpecError


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("system.slice:docker:abc", ("system.slice", "docker-abc.scope")),
        ("machine.slice::name", ("machine.slice", "name.scope")),
        (":runvm:name", ("system.slice", "runvm-name.scope")),
        ("", ("system.slice", "runvm-c1.scope")),
    ],
)
def test_names(path: str, wanted: tuple[str, str]) -> None:
    assert scope.names(path, "c1") == wanted


@pytest.mark.parametrize("path", ["/docker/abc", "a:b", "a:b:c:d"])
def test_another_form_is_refused_in_runcs_words(path: str) -> None:
    with pytest.raises(SpecError, match='expected cgroupsPath to be of format "slice:prefix:name"'):
        scope.names(path, "c1")


def test_limits_are_properties_of_the_unit() -> None:
    """A quota is in whole hundredths of a processor, which is what systemd takes."""
    assert scope.limit_properties(Limits(0, 0, 100_000, 0), unified=True) == []
    assert scope.limit_properties(Limits(1 << 30, 33_333, 100_000, 1024), unified=True) == [
        ("MemoryMax", "t", "1073741824"),
        ("CPUQuotaPerSecUSec", "t", "340000"),
        ("CPUQuotaPeriodUSec", "t", "100000"),
        ("CPUWeight", "t", "100"),
    ]
    assert scope.limit_properties(Limits(1 << 30, 0, 100_000, 1024), unified=False) == [
        ("MemoryLimit", "t", "1073741824"),
        ("CPUShares", "t", "1024"),
    ]
    infinity = str((1 << 64) - 1)
    assert scope.limit_properties(Limits(NONE, NONE, 100_000, 0), unified=True) == [
        ("MemoryMax", "t", infinity),
        ("CPUQuotaPerSecUSec", "t", infinity),
    ]


@pytest.fixture
def bus() -> Iterator[str]:
    if not (shutil.which("dbus-daemon") and shutil.which("busctl")):
        pytest.skip("no dbus-daemon or busctl: apt-get install dbus-daemon systemd")
    argv = ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        yield daemon.stdout.readline().strip()
        daemon.kill()


def test_busctl_takes_the_call(bus: str) -> None:
    """It fits its signature and gets as far as a bus, where nobody is systemd: "Call failed", not "Too few …"."""
    limits = scope.limit_properties(Limits(600 << 20, 150_000, 100_000, 512), unified=False)
    asked = {"KillSignal": "37", "TimeoutStopSec": "5", "After": "['a.service']", "SendSIGHUP": "true", "Nice": "-5"}
    more = unit_properties.of({f"{unit_properties.PREFIX}{name}": value for name, value in asked.items()})
    busctl, *rest = scope.arguments("system.slice", "docker-abc.scope", "abc", 1, [*more, *limits])
    done = subprocess.run([busctl, f"--address={bus}", *rest], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert done.stderr.startswith("Call failed: "), done.stderr
