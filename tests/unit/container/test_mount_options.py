"""Mount options for the guest."""

import pytest

from runvm.config import Config
from runvm.container import mount_options
from runvm.errors import SpecError, UnsupportedError
from runvm.oci.features import features


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], False),
        (["ro"], True),
        (["ro", "rw"], False),
        (["rw", "ro"], True),
        (["rbind", "rro"], True),
        (["rro", "rrw"], False),
    ],
)
def test_the_last_option_about_writing_counts(options: list[str], wanted: bool) -> None:
    assert mount_options.read_only(options) is wanted


def test_what_crun_does_not_know_is_not_passed_on() -> None:
    given = ["nosuid", "lazytime", "rnoatime", "silent", "mode=755", "rrelatime"]
    assert mount_options.for_guest(given, "x") == ["nosuid", "noatime", "mode=755", "relatime"]


def test_what_a_later_option_takes_back_is_left_out() -> None:
    given = ["ro", "noexec", "rnosuid", "rw", "rsuid", "exec", "nosuid"]
    assert mount_options.for_guest(given, "x") == ["rw", "rsuid", "exec", "nosuid"]


def test_what_runc_takes_without_effect_is_left_out() -> None:
    """An empty option, and for a bind what only a tmpfs can do."""
    given = ["rbind", "", "tmpcopyup", "ro"]
    mount_options.check_bind(given, "x")
    assert mount_options.for_guest(given, "x", bind=True) == ["rbind", "ro"]
    assert mount_options.for_guest(given[1:], "x") == ["tmpcopyup", "ro"]


def test_what_would_protect_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"mounts\[3\]\.options: nosymfollow"):
        mount_options.for_guest(["ro", "nosymfollow"], "mounts[3].options")


def test_every_option_of_a_mount_is_one_of_binds() -> None:
    """Those that runc knows and we tell of, Podman's own words, and crun's; none that is a file system's."""
    listed = features(Config(), hypervisor="qemu", checkpoint=False)["mountOptions"]
    mount_options.check_bind([*listed, "copy-symlink", "nocopy", "z", "U", "subpath=a"], "x")
    for option in ("uid=0", "size=5", "mode=755", "context=x", "lowerdir=/a", "nosuch"):
        with pytest.raises(SpecError, match=option):
            mount_options.check_bind(["rbind", option], "x")


@pytest.mark.parametrize("option", ["shared", "rshared"])
def test_a_pods_bind_whose_mounts_the_host_should_see_is_refused(option: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"mounts\[3\]\.options: {option}: .* can't be seen on the host"):
        mount_options.check_pods_bind(["rbind", option], "mounts[3].options")
    mount_options.check_pods_bind(["rbind", "rslave"], "mounts[3].options")


def test_features_lists_what_is_taken() -> None:
    listed = set(features(Config(), hypervisor="qemu", checkpoint=False)["mountOptions"])
    assert listed >= mount_options.WITHOUT_EFFECT | mount_options.RECURSIVE_TIMES
    assert not listed & {"nosymfollow", "rnosymfollow", "idmap"}


@pytest.mark.parametrize(
    ("options", "recursively", "private"),
    [
        ([], False, False),
        (["rbind", "ro", "rprivate"], False, True),
        (["rro", "rslave"], True, False),
        (["rro", "rrw", "private", "slave"], False, False),
        (["ro", "rro", "shared", "unbindable"], True, True),
    ],
)
def test_what_is_mounted_below_is_as_the_last_option_says(options: list[str], recursively: bool, private: bool) -> None:
    assert mount_options.recursively_read_only(options) is recursively
    assert mount_options.private(options) is private
