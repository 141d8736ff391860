"""What Podman's own tests look at in a runtime: exit codes, attach, restarts, options of run that the process sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.podman import IMAGE
from framework.process import wait_until

if TYPE_CHECKING:
    from framework.podman import Podman


def test_codes_of_run_and_exec(podman: Podman) -> None:
    """127 for what isn't there, 126 for what can't be run, 137 for what was killed, 255 where nothing runs."""
    podman.detached("--name", "c", IMAGE, "sleep", "1000")
    for command, code, words in (
        (("no-such-program",), 127, b"executable file not found"),
        (("/no/such/program",), 127, b"no such file or directory"),
        (("/etc/passwd",), 126, b"permission denied"),
        (("/etc",), 126, b"permission denied"),
        (("sh", "-c", "kill -9 $$"), 137, b""),
        (("sh", "-c", "exit 9"), 9, b""),
    ):
        result = podman.call("exec", "c", *command)
        assert (result.code, words in result.stderr) == (code, True), result.describe()
    assert podman.call("exec", "--workdir", "/no/directory", "c", "true").code == 127
    podman.ok("pause", "c")
    assert podman.call("exec", "c", "true").code == 255
    podman.ok("kill", "c")
    podman.call("unpause", "c")
    assert podman.ok("wait", "c") == "137"
    assert podman.run(IMAGE, "/etc").code == 126
    assert podman.call("container", "checkpoint", "c").code == 125


def test_attach_and_restarts(podman: Podman) -> None:
    """attach and start -a -i have the streams, on-failure:1 tries once more."""
    script = "read word; echo got $word; exit 4"
    podman.detached("--interactive", "--name", "a", IMAGE, "sh", "-c", script)
    attached = podman.call("attach", "a", stdin=b"one\n")
    assert attached.text == "got one"  # its code is 0 with Podman 4.3 and any runtime
    again = podman.call("start", "--attach", "--interactive", "a", stdin=b"two\n")
    assert (again.code, again.text) == (4, "got two")
    podman.detached("--name", "l", "--restart", "on-failure:1", IMAGE, "sh", "-c", "echo life; sleep 1; exit 3")
    state = "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}"
    wait_until(
        lambda: podman.ok("inspect", "--format", state, "l") == "exited 1 3", timeout=60, what="two lives", interval=0.5
    )
    assert podman.ok("logs", "l").split() == ["life", "life"]


def test_options_that_the_process_sees(podman: Podman) -> None:
    """Security options, /dev/shm, the OOM score, groups, umask, hosts, in one container."""
    script = """
        df -m /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2
        cat /proc/self/oom_score_adj
        wc -l </proc/cpuinfo
        grep NoNewPrivs /proc/self/status | cut -f2
        grep Seccomp: /proc/self/status | cut -f2
        id -G
        umask
        grep -c 1.2.3.4 /etc/hosts
    """
    flags = ["--shm-size", "3m", "--oom-score-adj", "500", "--user", "1000:44", "--group-add", "55", "--umask", "077"]
    flags += ["--security-opt", "mask=/proc/cpuinfo", "--security-opt", "no-new-privileges"]
    flags += ["--security-opt", "seccomp=unconfined", "--add-host", "foo:1.2.3.4", "--cgroups", "no-conmon"]
    seen = podman.run(*flags, IMAGE, "sh", "-c", script).expect(0).text.splitlines()
    assert seen == ["3", "500", "0", "1", "0", "44 55", "0077", "1"]
