"""The process that `exec` runs: the container's own, with the command line's flags as runc applies them."""

import copy
from typing import Any

import pytest

from runvm.errors import SpecError, UsageError
from runvm.oci.process import exec_process

BASE: dict[str, Any] = {
    "terminal": True,
    "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
    "args": ["sh"],
    "env": ["A=1"],
    "cwd": "/",
    "capabilities": {"bounding": ["CAP_KILL"], "inheritable": ["CAP_KILL"]},
    "noNewPrivileges": True,
    "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}],
}


def test_only_args_and_the_terminal_change_without_flags() -> None:
    assert exec_process(BASE, args=["ls", "-l"]) == {**BASE, "args": ["ls", "-l"], "terminal": False}


def test_every_flag() -> None:
    before = copy.deepcopy(BASE)
    made = exec_process(
        BASE,
        args=["id"],
        cwd="/tmp",
        env=["B=2", "A=3"],
        user="1000:1001",
        additional_gids=[8],
        caps=["CAP_CHOWN"],
        tty=True,
        no_new_privs=False,
        apparmor="profile",
        process_label="label",
    )
    assert before == BASE
    assert made == {
        **BASE,
        "args": ["id"],
        "cwd": "/tmp",
        "env": ["A=1", "B=2", "A=3"],
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [7, 8]},
        "capabilities": {
            "bounding": ["CAP_KILL", "CAP_CHOWN"],
            "inheritable": ["CAP_KILL"],
            "effective": ["CAP_CHOWN"],
            "permitted": ["CAP_CHOWN"],
            "ambient": ["CAP_CHOWN"],
        },
        "noNewPrivileges": False,
        "apparmorProfile": "profile",
        "selinuxLabel": "label",
    }


def test_capabilities_where_the_container_has_none() -> None:
    base = {key: value for key, value in BASE.items() if key != "capabilities"}
    sets = exec_process(base, args=["x"], caps=["CAP_KILL"])["capabilities"]
    assert sets == {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted", "ambient")}


def test_a_uid_alone_keeps_the_gid() -> None:
    assert exec_process(BASE, args=["x"], user="9")["user"] == {"uid": 9, "gid": 6, "additionalGids": [7]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"args": []}, "process args cannot be empty"),
        ({"user": "root"}, 'parsing root as int for uid failed: strconv.Atoi: parsing "root": invalid syntax'),
        ({"user": "0:wheel"}, 'parsing wheel as int for gid failed: strconv.Atoi: parsing "wheel": invalid syntax'),
        ({"user": "-1"}, 'parsing -1 as int for uid failed: strconv.Atoi: parsing "-1": invalid syntax'),
        ({"user": "4294967295"}, "value out of range"),
        ({"user": "9" * 5000}, "value out of range"),
        ({"user": "1:"}, "as int for gid failed"),
        ({"additional_gids": [-1]}, "additional-gids must be a positive number -1"),
    ],
)
def test_bad_flags(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        exec_process(BASE, **{"args": ["x"], **flags})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"cwd": "tmp"}, 'process: cwd: must be an absolute path, got "tmp"'),
        ({"env": ["X"]}, "process: env[1]: invalid environment variable: \"X\" has no '='"),
        ({"args": ["a\0"]}, "process: args[0]: holds a NUL byte"),
    ],
)
def test_what_makes_no_process(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        exec_process(BASE, **{"args": ["x"], **flags})
    assert str(caught.value) == message
