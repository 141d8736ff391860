"""Templates that are damaged, missing, made by two at once, by a command that is killed: a container starts anyway."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from typing import IO, TYPE_CHECKING

import pytest

from framework import process
from framework.process import wait_until
from framework.runtime import SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.process import Process, Result
    from framework.runtime import Box, Container, Runtime

pytestmark = [
    pytest.mark.only("runvm", "there are templates"),
    pytest.mark.capability("snapshot", "each of its virtual machines boots"),
]

_serial = itertools.count(1)
# runvm, in which a process is killed that is about to do a certain thing (sys.addaudithook)
_KILLED = """
import os, signal, sys

def look(event, given):
    if {moment}:
        os.kill(os.getpid(), signal.SIGKILL)

sys.path[0] = {source!r}
sys.addaudithook(look)
from runvm.__main__ import entry
sys.exit(entry())
"""
BOOT_S = 240
"""A guest's boot may take so long on a host that has much else to do."""


class Data:
    """A data directory of a test's own: the session's image, and with *templates* a copy of its templates."""

    def __init__(self, runtime: Runtime, *, templates: bool, settings: str = "") -> None:
        self.runtime = runtime
        self.path = f"{runtime.scratch}/data-{next(_serial)}"
        self.templates = f"{self.path}/templates"
        self._real = os.environ.get("RUNVM_TEST_DATA_DIR", "/var/lib/runvm")
        os.makedirs(self.path)
        os.symlink(f"{self._real}/images", f"{self.path}/images")
        with open(runtime.config_file, encoding="utf-8") as file:
            lines = [line for line in file if not line.startswith(("data_dir", "boot_timeout_s"))]
        self.config = f"{self.path}/config.toml"
        self.write(
            "".join(lines) + f'data_dir = "{self.path}"\nboot_timeout_s = {BOOT_S * process.FACTOR:.0f}\n{settings}'
        )
        self.environment = dict(os.environ) | {"RUNVM_CONFIG": self.config}
        if templates:
            self.restore()

    def restore(self) -> str:
        """Copy the default machine's template anew; its name."""
        shutil.rmtree(self.templates, ignore_errors=True)
        name = self.runtime.ok("template", "build", timeout=2 * BOOT_S).text
        os.makedirs(self.templates, mode=0o700)
        source = f"{self._real}/templates/{name}"
        subprocess.run(["cp", "-a", "--sparse=always", source, self.templates], check=True, timeout=60)
        return name

    def write(self, text: str) -> None:
        """The configuration."""
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(text)

    def names(self) -> list[str]:
        """What is in the directory of templates."""
        return sorted(name for name in os.listdir(self.templates) if name != ".lock")

    def call(self, *args: str) -> Result:
        """A command with this data."""
        return self.runtime.call(*args, env=self.environment, timeout=2 * BOOT_S)

    def start(self, *args: str, stdout: int | IO[bytes] = -1, stderr: int | IO[bytes] = -1) -> Process:
        """The same without waiting."""
        return self.runtime.start(*args, env=self.environment, stdout=stdout, stderr=stderr)

    def run(self, container: Container) -> Result:
        """A container in the foreground."""
        container.bundle.save()
        return self.call("run", "--bundle", container.bundle.path, container.id)


@pytest.fixture(scope="module")
def whole(runtime: Runtime) -> Iterator[Data]:
    """Data with the default machine's template."""
    made = Data(runtime, templates=True)
    yield made
    shutil.rmtree(made.path)


def spoil(path: str) -> None:
    """Change all bits of a file; its length and times are what they were."""
    status = os.stat(path)
    with open(path, "r+b") as file:
        noise = os.urandom(1 << 20)
        for offset in range(0, status.st_size, len(noise)):
            file.seek(offset)
            file.write(noise[: status.st_size - offset])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["state", "ram"])
def test_a_template_with_bits_changed_is_dropped_and_the_guest_boots(box: Box, whole: Data, name: str) -> None:
    """What no look at the file tells, QEMU or the guest does: the container runs all the same; the log says why."""
    spoil(f"{whole.templates}/{whole.restore()}/{name}")
    result = whole.run(box("echo", "hello"))
    assert (result.code, result.stdout) == (0, b"hello\n"), result.describe()
    assert [record["msg"] for record in result.log if "broken, booting instead" in record["msg"]], result.describe()
    assert whole.names() == [], "the next start makes it anew"


@pytest.mark.parametrize(
    "moment",
    [
        "event == 'open' and '/templates/' in str(given[0]) and given[0].endswith('/ram')",
        "event == 'os.exec' and '-incoming' in given[1]",
    ],
    ids=["the copy of its memory", "QEMU"],
)
def test_a_process_that_is_killed_isnt_the_templates_fault(box: Box, whole: Data, moment: str) -> None:
    """By the kernel, say, for want of memory: the guest boots, and the next start has the template all the same."""
    name = whole.restore()
    container = box("echo", "hello")
    container.bundle.save()
    script = _KILLED.format(source=SOURCE, moment=moment)
    argv = whole.runtime.argv("run", "--bundle", container.bundle.path, container.id)
    result = process.Process(["/usr/bin/python3", "-c", script, *argv[1:]], env=whole.environment).wait(2 * BOOT_S)
    assert (result.code, result.stdout) == (0, b"hello\n"), result.describe()
    assert whole.names() == [name]


def test_two_makers_at_once_make_one_of_a_damaged_one(whole: Data) -> None:
    """A file that was cut short: found before any guest starts; both commands name the new one; then prune."""
    key = whole.restore()
    os.truncate(f"{whole.templates}/{key}/ram", 1 << 20)
    before = os.stat(f"{whole.templates}/{key}").st_ctime_ns
    makers = [whole.start("template", "build") for _ in range(2)]
    results = [maker.wait(2 * BOOT_S).expect(0) for maker in makers]
    assert [result.text for result in results] == [key, key]
    assert os.stat(f"{whole.templates}/{key}").st_ctime_ns != before
    assert sum(b"made anew" in result.stderr for result in results) == 1
    assert whole.names() == [key]
    listed = whole.call("template", "list").expect(0).text
    assert key in listed
    assert "MiB" in listed
    assert "image=" in listed
    os.unlink(f"{whole.templates}/{key}/meta.json")
    os.makedirs(f"{whole.templates}/.other.1/jail")
    whole.call("template", "prune").expect(0)
    assert whole.names() == [], "broken and half-made ones, too"


def test_a_maker_that_is_killed_leaves_nothing_after_delete(box: Box, runtime: Runtime) -> None:
    """SIGKILL to the first start of a host while it boots the guest: `delete --force` takes all of it away."""
    data = Data(runtime, templates=False)
    try:
        container = box("true")
        container.bundle.save()
        command = data.start("run", "--bundle", container.bundle.path, container.id)
        wait_until(
            lambda: (
                any(os.path.exists(f"{data.templates}/{name}/vmm.log") for name in data.names())
                if os.path.isdir(data.templates)
                else False
            ),
            timeout=60,
            what="the boot for the template",
        )
        os.kill(command.pid, signal.SIGKILL)
        command.wait(30)
        assert data.names(), "a half-made one"
        data.call("delete", "--force", container.id).expect(0)
        assert data.names() == []
        assert not [name for name in os.listdir(runtime.state_dir) if name.startswith("prove-")]
    finally:
        shutil.rmtree(data.path)


def test_no_room_for_a_template(box: Box, runtime: Runtime) -> None:
    """A full disk where templates are kept: the container boots, and the log says why."""
    data = Data(runtime, templates=False)
    os.makedirs(data.templates)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", data.templates], check=True, timeout=10)
    try:
        result = data.run(box("echo", "hello"))
        assert (result.code, result.stdout) == (0, b"hello\n"), result.describe()
        told = " ".join(record["msg"] for record in result.log)
        assert "no template could be made, booting instead" in told
        assert "no space left on device" in told.lower()
        assert data.names() == []
    finally:
        subprocess.run(["umount", data.templates], check=True, timeout=10)
        shutil.rmtree(data.path)


def test_no_template_wanted(box: Box, runtime: Runtime) -> None:
    """`template = false`: the guest boots, though there is a template, and nothing is said or made."""
    data = Data(runtime, templates=True, settings="template = false\n")
    container = box("cat", "/proc/uptime")
    try:
        before = data.names()
        result = data.run(container)
        assert result.code == 0, result.describe()
        assert result.log == ()
        assert data.names() == before
    finally:
        shutil.rmtree(data.path)


def test_a_template_is_pruned_under_a_running_vm(box: Box, whole: Data) -> None:
    """prune while a clone runs and another starts: both are well."""
    whole.restore()
    one, other = box.idle(), box("echo", "hello")
    for container in (one, other):
        container.bundle.save()
    with open(os.devnull, "wb") as null:
        arguments = ("run", "--detach", "--bundle", one.bundle.path, one.id)
        whole.start(*arguments, stdout=null, stderr=null).wait(2 * BOOT_S).expect(0)
    starting = whole.start("run", "--bundle", other.bundle.path, other.id)
    whole.call("template", "prune").expect(0)
    assert starting.wait(2 * BOOT_S).expect(0).stdout == b"hello\n"
    assert whole.call("exec", one.id, "echo", "well").text == "well"
    process.reap_orphans()
