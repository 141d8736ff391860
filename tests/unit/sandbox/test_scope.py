"""systemd's scopes for containers: names and the call; what systemd does with it needs a host that it runs."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from runvm.errors import SpecError
from runvm.sandbox import scope


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
    busctl, *rest = scope.arguments("system.slice", "docker-abc.scope", "abc", 1)
    done = subprocess.run([busctl, f"--address={bus}", *rest], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert done.stderr.startswith("Call failed: "), done.stderr
