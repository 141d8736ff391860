"""`make deb`: what is in the package, and that it comes and goes as Debian's packages do, on a copy of this host."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from runvm import __version__

from .conftest import REPOSITORY, HostCopy, build_deb, copy_of_checkout, run

SOURCE = REPOSITORY / "src"
NEXT_STEPS = ("runvm image build", "runvm doctor", "runvm install docker")
BESIDES = {
    "etc/runvm/config.toml",
    "usr/lib/systemd/system/runvm@.service",
    "usr/sbin/runvm",
    "usr/share/bash-completion/completions/runvm",
    "usr/share/doc/runvm/changelog.gz",
    "usr/share/doc/runvm/copyright",
    "usr/share/doc/runvm/how-to/docker.md",
    "usr/share/man/man8/runvm.8.gz",
    "usr/share/python3/runtime.d/runvm.rtupdate",
}


@pytest.fixture
def installed(host_copy: HostCopy, deb: Path) -> HostCopy:
    """A copy of this host with the package."""
    install(host_copy, deb)
    return host_copy


def install(copy: HostCopy, deb: Path) -> str:
    """The words of dpkg, which refuses a package whose dependencies this host lacks."""
    shutil.copy(deb, copy.root / "tmp")
    return copy.run("dpkg", "--install", f"/tmp/{deb.name}")


def contents(deb: Path) -> set[str]:
    """The paths of the package's files."""
    lines = run("dpkg-deb", "--contents", str(deb)).splitlines()
    return {line.split(" ./")[-1] for line in lines if not line.startswith("d")}


def test_the_package_has_the_whole_program_and_nothing_compiled(deb: Path) -> None:
    """Bytecode is made at the installation, for the Python that is there."""
    there = contents(deb)
    assert there >= BESIDES
    program = {f"usr/share/runvm/{path.relative_to(SOURCE)}" for path in SOURCE.rglob("*") if path.is_file()}
    program = {name for name in program if "__pycache__" not in name and ".egg-info" not in name}
    assert {name for name in there if name.startswith("usr/share/runvm/")} == program


def test_the_package_says_what_it_is_and_needs(deb: Path) -> None:
    assert deb.name == f"runvm_{__version__}_all.deb"
    fields = dict.fromkeys(("Package", "Version", "Architecture", "Depends"), "")
    for name in fields:
        fields[name] = run("dpkg-deb", "--field", str(deb), name).strip()
    assert (fields["Package"], fields["Version"], fields["Architecture"]) == ("runvm", __version__, "all")
    # Debian 12 has virtiofsd in a package of QEMU's, 13 in one of its own
    assert "virtiofsd | qemu-system-common (<< 1:8.0~)" in fields["Depends"]
    # what `make deps` installs for a checkout, an installed package needs, too
    listed = (REPOSITORY / "packaging/deps/run.txt").read_text().splitlines()
    needed = {line.split()[0].rstrip("?") for line in listed if line and not line.startswith("#")}
    assert needed <= set(re.findall(r"[a-z0-9+.-]{2,}", fields["Depends"]))


def test_the_same_source_gives_the_same_package(deb: Path, tmp_path: Path) -> None:
    """Wherever and whenever it is built: to the byte."""
    again = build_deb(copy_of_checkout(tmp_path / "elsewhere"))
    assert again.read_bytes() == deb.read_bytes()


def test_the_maintainer_is_debians_variables(tmp_path: Path) -> None:
    deb = build_deb(copy_of_checkout(tmp_path / "mine"), DEBFULLNAME="A B", DEBEMAIL="a@example.com")
    assert run("dpkg-deb", "--field", str(deb), "Maintainer") == "A B <a@example.com>\n"


@pytest.mark.skipif(not shutil.which("lintian"), reason="no lintian: apt-get install lintian")
def test_lintian_finds_nothing(deb: Path) -> None:
    assert run("lintian", "--allow-root", "--display-info", "--fail-on=error,warning,info", str(deb)) == ""


def test_installing_asks_nothing_and_ends_with_what_to_do_next(host_copy: HostCopy, deb: Path) -> None:
    """No file but the package's own is written: no engine's configuration, and no unit is enabled."""
    before = host_copy.changed()
    shutil.copy(deb, host_copy.root / "tmp")
    words = host_copy.run("apt-get", "install", "-y", "--no-install-recommends", f"/tmp/{deb.name}")
    end = words.rstrip().splitlines()[-3:]
    assert [line.split("  ")[1] for line in end] == list(NEXT_STEPS)
    assert host_copy.run("/usr/sbin/runvm", "--version").startswith(f"runvm version {__version__}\n")
    assert "RUNVM" in host_copy.run("man", "--encoding=ascii", "runvm")
    new = {name for name in host_copy.changed() - before if not name.endswith("/")}
    compiled = {name for name in new if name.endswith(".pyc")}
    assert new - compiled == {name for name in contents(deb) if (host_copy.root / name).exists()}
    assert len(compiled) == len([name for name in new if name.endswith(".py")])
    assert host_copy.run("dpkg", "--verify", "runvm") == ""


def test_the_settings_in_etc_are_all_defaults(installed: HostCopy) -> None:
    lines = installed.run("runvm", "config").splitlines()
    assert lines and not [line for line in lines if "/etc/runvm" in line]


def test_an_upgrade_keeps_edited_settings_and_asks_nothing(
    installed: HostCopy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It says that the guest image has to be made anew if there is one, and not again what to do first."""
    config = installed.root / "etc/runvm/config.toml"
    config.write_text("vcpus = 1\n")
    (installed.root / "var/lib/runvm/images").mkdir(parents=True)
    later = copy_of_checkout(tmp_path_factory.mktemp("later") / "checkout")
    init = later / "src/runvm/__init__.py"
    init.write_text(init.read_text().replace(__version__, "9.9"))
    words = install(installed, build_deb(later))
    assert config.read_text() == "vcpus = 1\n"
    assert installed.run("runvm", "--version").startswith("runvm version 9.9\n")
    assert "'runvm image build'" in words and "runvm install docker" not in words


def test_removing_keeps_settings_and_purging_leaves_nothing(host_copy: HostCopy, deb: Path) -> None:
    """Guest images, templates, what containers had in memory when they were warm, and state go with the purge; bytecode
    written by a call in between goes, too."""
    before = host_copy.changed()
    install(host_copy, deb)
    for made in (
        "images/x/vmlinuz", "templates/y/ram", "warm/z/ram", "cache/z.deb", "kernels/uml/linux", "engines/docker.json",
    ):  # fmt: skip
        file = host_copy.root / "var/lib/runvm" / made
        file.parent.mkdir(parents=True)
        file.write_text("")
    words = host_copy.run("dpkg", "--remove", "runvm")
    assert "docker still names runvm" in words
    assert {name for name in host_copy.changed() - before if "var/lib/runvm" not in name} == {
        "etc/runvm/",
        "etc/runvm/config.toml",
    }
    host_copy.run("dpkg", "--purge", "runvm")
    assert host_copy.changed() == before


def test_purging_leaves_what_is_in_use_and_what_isnt_its_own(installed: HostCopy, deb: Path) -> None:
    """A virtual machine holds its image open, so a purge beneath it takes neither image nor state, and says so."""
    bundle = installed.root / "var/lib/runvm/bundles/web/config.json"
    image = installed.root / "var/lib/runvm/images/x/vmlinuz"
    for file in (bundle, image):
        file.parent.mkdir(parents=True)
        file.write_text("")
    use = ("sh", "-c", "(exec sleep 300 3</var/lib/runvm/images/x >/dev/null 2>&1) & echo $!")
    pid = installed.run(*use).strip()
    assert "they are in use" in installed.run("dpkg", "--purge", "runvm")
    assert image.exists()
    installed.run("sh", "-c", f"kill {pid}")
    install(installed, deb)
    assert "what isn't runvm's: /var/lib/runvm" in installed.run("dpkg", "--purge", "runvm")
    assert bundle.exists() and not image.exists()


def test_another_python_of_the_distributions_gets_bytecode_of_its_own(installed: HostCopy) -> None:
    package = installed.root / "usr/share/runvm/runvm"
    stale = package / "__pycache__/config.cpython-39.pyc"
    stale.write_text("")
    installed.run("/usr/share/python3/runtime.d/runvm.rtupdate", "rtupdate", "python3.9", "python3")
    compiled = [path.name for path in (package / "__pycache__").iterdir()]
    assert stale.name not in compiled and [name for name in compiled if name.startswith("config.cpython-3")]
