"""plan.py and apt.py: which packages a build takes, against an archive in a directory that apt really reads.

The archive is unsigned, and apt told to trust it, in a copy of the settings that only these tests have; that apt
refuses an unsigned one without this is a test, too.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runvm.config import Config
from runvm.errors import HostError
from runvm.guest import archive, plan
from runvm.guest.apt import native_architecture
from runvm.guest.commands import CommandError
from runvm.guest.plan import Chosen, Manifest, Plan, Report, is_of

USERLAND = dict.fromkeys(("python3-minimal", "libpython3-stdlib", "kmod", "busybox-static", "libc-bin"), "1")


class Mirror:
    """A Debian archive of empty packages in a directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.architecture = native_architecture()

    def publish(self, *, kernel: str = "6.12.5-1", crun: str = "1.21-1", **others: str) -> None:
        """Have these versions, and no others."""
        names = {**USERLAND, "crun": crun, **{name.replace("_", "-"): version for name, version in others.items()}}
        image = f"linux-image-{kernel.rpartition('-')[0]}-{self.architecture}"
        stanzas = [self._build(name, version, "") for name, version in names.items()]
        stanzas.append(self._build(image, kernel, ""))
        stanzas.append(self._build(f"linux-image-{self.architecture}", kernel, image))
        folder = self.base / "dists/sid/main" / f"binary-{self.architecture}"
        folder.mkdir(parents=True, exist_ok=True)
        packages = "\n".join(stanzas)
        (folder / "Packages").write_text(packages)
        digest = hashlib.sha256(packages.encode()).hexdigest()
        (self.base / "dists/sid/Release").write_text(
            f"Suite: sid\nCodename: sid\nArchitectures: {self.architecture}\nComponents: main\nSHA256:\n"
            f" {digest} {len(packages)} main/binary-{self.architecture}/Packages\n"
        )

    def _build(self, name: str, version: str, depends: str) -> str:
        control = f"Package: {name}\nVersion: {version}\nArchitecture: {self.architecture}\n"
        control += "Maintainer: nobody <nobody@example.org>\nDescription: nothing\n"
        control += f"Depends: {depends}\n" if depends else ""
        tree = self.base / "trees" / f"{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (tree / "DEBIAN/control").write_text(control)
        path = self.base / f"{name}_{version}_{self.architecture}.deb"
        if not path.exists():
            subprocess.run(("dpkg-deb", "--root-owner-group", "-b", tree, path), check=True, capture_output=True)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return f"{control}Filename: {path.name}\nSize: {len(data)}\nSHA256: {digest}\n"


class Host:
    """A cache, a configuration, and what a build said."""

    def __init__(self, base: Path) -> None:
        self.mirror = Mirror(base / "mirror")
        self.cache = str(base / "cache")
        keyring = base / "keys.gpg"
        keyring.touch()
        self.config = Config(guest_suite="sid", guest_mirror=f"copy:{base}/mirror", guest_keyring=str(keyring))
        self.notices: list[str] = []
        self.steps: list[str] = []

    def gather(self, manifest: Manifest | None = None, *, update: bool = False) -> Plan:
        """What a build does first; *manifest* is the current image's."""
        report = Report(self.steps.append, self.notices.append)
        return plan.gather(self.config, self.cache, manifest or {}, report, update=update)[0]


def manifest_of(made: Plan) -> Manifest:
    """The part of a manifest that a later build reads, as it is read."""
    listed = [plan.described(package, kernel=package in made.chosen.kernel) for package in made.chosen.packages]
    fields = {"suite": made.suite, "architecture": made.architecture, "taken": made.chosen.taken, "packages": listed}
    return dict(json.loads(json.dumps(fields)))


def versions(chosen: Chosen) -> dict[str, str]:
    return {package.name: package.version for package in chosen.packages}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    signed: Callable[[archive.Archive, str], str] = archive.Archive.sources
    monkeypatch.setattr(
        archive.Archive,
        "sources",
        lambda self, architecture: signed(self, architecture).replace("signed-by=", "trusted=yes signed-by="),
    )
    made = Host(tmp_path)
    made.mirror.publish()
    return made


def age(host: Host, seconds: float) -> None:
    """Let the lists be older."""
    folder = Path(host.cache, "apt", f"sid-{host.mirror.architecture}")
    for name in ("fetched", "tried"):
        then = (folder / name).stat().st_mtime - seconds
        os.utime(folder / name, (then, then))


def test_the_first_build_takes_the_newest(host: Host) -> None:
    made = host.gather()
    assert versions(made.chosen)["crun"] == "1.21-1"
    assert [package.name for package in made.chosen.kernel] == [f"linux-image-6.12.5-{host.mirror.architecture}"]
    assert all(Path(host.cache, f"{package.sha256}.deb").exists() for package in made.chosen.packages)
    assert host.notices == []


def test_another_build_keeps_its_packages_and_says_that_newer_ones_are_there(host: Host) -> None:
    first = host.gather()
    host.mirror.publish(crun="1.21-2", kernel="6.12.6-1")
    assert host.gather(manifest_of(first)).chosen == first.chosen
    assert host.notices == []  # the lists are of today
    age(host, 100_000)
    assert host.gather(manifest_of(first)).chosen == first.chosen
    assert host.notices == [
        f"newer packages for the guest are there (linux-image-6.12.6-{host.mirror.architecture} 6.12.6-1,"
        " crun 1.21-2): 'runvm image build --update' takes them"
    ]


def test_update_takes_the_newest_at_once(host: Host) -> None:
    first = host.gather()
    host.mirror.publish(crun="1.21-2")
    made = host.gather(manifest_of(first), update=True)
    assert versions(made.chosen) == {**versions(first.chosen), "crun": "1.21-2"}
    assert host.notices == []


def test_the_same_packages_are_the_same_plan(host: Host) -> None:
    """Whether they come from the archive or from a manifest: an image that is there isn't built again."""
    first = host.gather()
    assert host.gather().inputs == host.gather(manifest_of(first)).inputs == first.inputs


def test_a_build_goes_on_without_the_archive(host: Host) -> None:
    first = host.gather()
    (host.mirror.base / "dists").rename(host.mirror.base / "gone")
    age(host, 100_000)
    assert host.gather(manifest_of(first)).chosen == first.chosen
    assert any("stay those of" in step for step in host.steps)
    with pytest.raises(CommandError, match=r"can't fetch the lists of sid's packages: .*guest_mirror"):
        host.gather(manifest_of(first), update=True)


def test_packages_that_the_mirror_has_dropped_give_way_to_the_newest(host: Host) -> None:
    first = host.gather()
    host.mirror.publish(crun="1.21-2")
    for package in first.chosen.packages:
        os.unlink(Path(host.cache, f"{package.sha256}.deb"))
    (host.mirror.base / f"crun_1.21-1_{host.mirror.architecture}.deb").unlink()
    assert versions(host.gather(manifest_of(first)).chosen)["crun"] == "1.21-2"


def test_a_kernel_of_another_series_is_refused_by_name(host: Host) -> None:
    host.config = host.config._replace(guest_kernel="6.1")
    with pytest.raises(HostError, match=r"the kernel of sid is 6\.12\.5-1, and 6\.1 is.*guest_kernel"):
        host.gather()


def test_packages_of_another_pin_are_not_kept(host: Host) -> None:
    first = host.gather()
    host.mirror.publish(crun="1.22-1")
    host.config = host.config._replace(guest_crun="1.22")
    age(host, 100_000)
    assert versions(host.gather(manifest_of(first)).chosen)["crun"] == "1.22-1"


def test_an_image_of_an_older_runvm_is_made_of_new_packages(host: Host) -> None:
    made = host.gather({"packages": [{"name": "crun", "version": "1.8.1-1", "sha256": "aa"}]})
    assert versions(made.chosen)["crun"] == "1.21-1"


def test_an_archive_that_is_not_signed_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(CommandError) as caught:
        host.gather()
    assert "is not signed" in caught.value.details


@pytest.mark.parametrize(
    ("version", "series", "fits"),
    [
        ("6.12.118-1", "6.12", True),
        ("6.12.118-1", "6.1", False),
        ("1.21-1", "1.21", True),
        ("2:1.21-1", "1.21-1", True),
        ("1.21-10", "1.21-1", False),
    ],
)
def test_a_series_ends_at_a_whole_number(version: str, series: str, fits: bool) -> None:
    assert is_of(version, series) is fits
