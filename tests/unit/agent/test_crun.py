"""crun's errors as messages that callers know."""

import pytest

from runvm.agent.crun import as_runc_says

START = "unable to start container process: "


@pytest.mark.parametrize(
    ("said", "program", "wanted"),
    [
        (
            "executable file `sh` not found in $PATH: No such file or directory",
            "sh",
            f'{START}exec: "sh": executable file not found in $PATH',
        ),
        (
            "executable file `/bin/x` not found: No such file or directory",
            "/bin/x",
            f'{START}exec: "/bin/x": stat /bin/x: no such file or directory',
        ),
        (
            "cannot find `` in $PATH: No such file or directory",
            "",
            f'{START}exec: "": executable file not found in $PATH',
        ),
        (
            "the path `/etc` is not a regular file: Operation not permitted",
            "/etc",
            f'{START}exec: "/etc": permission denied',
        ),
        (
            "the path `/etc/passwd` exists but it is not executable: Permission denied",
            "/etc/passwd",
            f'{START}exec: "/etc/passwd": permission denied',
        ),
        (
            "opening file `/sys/fs/cgroup/containers/c/none/cgroup.procs` for writing: No such file or directory",
            "sh",
            f"{START}error adding pid to cgroups: openat2 /sys/fs/cgroup/containers/c/none/cgroup.procs: no such file"
            " or directory",
        ),
        ("open executable: Too many levels of symbolic links", "/loop", f'{START}exec: "/loop": permission denied'),
        (
            "the path `/usr/bin/sh` exists but it is not executable: Permission denied",
            "sh",
            f'{START}exec: "sh": executable file not found in $PATH',
        ),
        (
            "chdir `/nope`: No such file or directory",
            "sh",
            f'{START}chdir to cwd ("/nope") set in config.json failed: no such file or directory',
        ),
        ("writing file `cpu.weight`: Invalid argument", "", "writing file `cpu.weight`: invalid argument"),
        ("mount `x` to `y`: Permission denied", "sh", "mount `x` to `y`: permission denied"),
    ],
)
def test_as_runc_says(said: str, program: str, wanted: str) -> None:
    assert as_runc_says(said, program) == wanted
