"""archive.py: which mirror the guest's packages come from, and what of the host's apt settings holds for it."""

from pathlib import Path

import pytest

from runvm.config import Config
from runvm.errors import HostError
from runvm.guest import archive, pins
from runvm.guest.archive import Archive

LISTED = """\
'http://engine.example/linux/debian/dists/bookworm/InRelease' engine.example_linux 0
'http://mirror.example/pub/debian/dists/bookworm/InRelease' mirror.example_InRelease 0
'http://mirror.example/pub/debian/dists/bookworm-updates/InRelease' mirror.example_updates_InRelease 0
'http://mirror.example/security/dists/bookworm-security/InRelease' mirror.example_security_InRelease 0
'http://mirror.example/pub/debian/dists/bookworm/main/binary-amd64/Packages.xz' mirror.example_Packages 0
"""
ARCHIVE = Archive("trixie", "http://m.example/debian", "http://m.example/sec", "/keys.gpg", "6.12", "1.21")


def test_the_mirror_is_the_one_that_has_the_updates_too() -> None:
    """Archives of others for Debian name their suites like Debian's own."""
    assert archive.host_mirrors(LISTED, "bookworm") == (
        "http://mirror.example/pub/debian",
        "http://mirror.example/security",
    )


@pytest.mark.parametrize(
    ("listed", "mirrors"),
    [
        ("'http://a.example/x/dists/bookworm/InRelease' a 0\n", ("http://a.example/x", "")),
        (
            "'http://a.example/x/dists/bookworm/InRelease' a 0\n"
            "'http://b.example/debian/dists/bookworm/InRelease' b 0\n",
            ("http://b.example/debian", ""),
        ),
        ("'http://b.example/debian/dists/stable/InRelease' b 0\n", ("http://b.example/debian", "")),
        ("'mirror+file:/etc/apt/debian.list/dists/sid/InRelease' b 0\n", ("mirror+file:/etc/apt/debian.list", "")),
        ("'http://c.example/s/dists/bullseye/updates/InRelease' b 0\n", ("", "http://c.example/s")),
        ("'cdrom:[Debian 12]/dists/bookworm/Release' b 0\n", ("", "")),
        ("'http://u.example/ubuntu/dists/noble/InRelease' u 0\n", ("", "")),
        ("", ("", "")),
    ],
)
def test_a_host_with_less_has_what_there_is(listed: str, mirrors: tuple[str, str]) -> None:
    assert archive.host_mirrors(listed, "bullseye" if "bullseye" in listed else "bookworm") == mirrors


def test_sources_are_of_one_architecture_and_one_keyring() -> None:
    options = "[arch=arm64 target=Packages signed-by=/keys.gpg]"
    assert ARCHIVE.sources("arm64").splitlines() == [
        f"deb {options} http://m.example/debian trixie main",
        f"deb {options} http://m.example/debian trixie-updates main",
        f"deb {options} http://m.example/sec trixie-security main",
    ]


def test_a_suite_without_updates_of_its_own_is_one_source() -> None:
    assert ARCHIVE._replace(suite="sid").sources("amd64").count("\n") == 1
    assert "security" not in ARCHIVE._replace(security="").sources("amd64")


def test_settings_of_the_host_are_how_to_reach_servers_and_no_more() -> None:
    dump = """\
Acquire "";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::CAInfo "/etc/ssl/own.pem";
Acquire::IndexTargets::deb::DEP-11 "";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::odd "a"b";
APT::Update::Post-Invoke:: "touch /tmp/x";
Dir::Etc::main "apt.conf";
"""
    assert archive.inherited_settings(dump) == (
        'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::https::CAInfo "/etc/ssl/own.pem";\n'
    )


def test_the_configuration_comes_before_the_host(tmp_path: Path) -> None:
    """A suite of one's own has no pins but those that are set; the pinned one may get others."""
    keyring = tmp_path / "keys.gpg"
    keyring.touch()
    config = Config(guest_mirror="http://m.example/d", guest_security_mirror="file:/s", guest_keyring=str(keyring))
    expected = Archive(pins.SUITE, "http://m.example/d", "file:/s", str(keyring), pins.KERNEL, pins.CRUN)
    assert archive.chosen(config) == expected
    assert archive.chosen(config._replace(guest_kernel="6.16")) == expected._replace(kernel="6.16")
    assert archive.chosen(config._replace(guest_suite="forky", guest_crun="1.25")) == expected._replace(
        suite="forky", kernel="", crun="1.25"
    )


def test_a_keyring_that_is_not_there_is_named() -> None:
    with pytest.raises(HostError, match=r"/nowhere\.gpg isn't there.*guest_keyring"):
        archive.chosen(Config(guest_mirror="http://m.example/d", guest_keyring="/nowhere.gpg"))


def test_a_host_without_a_mirror_of_debian_is_told_which_keys_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring = tmp_path / "keys.gpg"
    keyring.touch()
    monkeypatch.setattr(archive, "_host_sources", lambda: "'http://u.example/ubuntu/dists/noble/InRelease' u 0\n")
    with pytest.raises(HostError, match=r"no mirror of Debian.*guest_mirror"):
        archive.chosen(Config(guest_keyring=str(keyring)))
