"""Options and fixtures of the tests that run containers; the unit tests use none of them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from typing import TYPE_CHECKING

import pytest

from framework import elsewhere, emulated_host, process, rootfs
from framework.host import Host, remove_cgroups
from framework.runtime import HYPERVISOR, Box, Runtime, has_capability

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = os.path.dirname(os.path.abspath(__file__))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--runtime`: what the tests call."""
    parser.addoption(
        "--runtime",
        default=os.environ.get("RUNTIME", "runvm"),
        help="the runtime under test: runvm (this checkout), runc, crun, or the path of one (environment: RUNTIME)",
    )
    parser.addoption(
        "--kvm-host",
        action="store_true",
        help="run all chosen tests that need a VM on an emulated host whose KVM works, as those of tests/kvm always do",
    )
    parser.addoption(
        "--arm64-host", action="store_true", help="run all chosen tests on an emulated host of the architecture arm64"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marks by which a test says that runtimes differ."""
    # A run that SIGTERM stops (a job's time limit) takes its daemons, containers and interfaces away all the same
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kvm, arm64 = bool(config.getoption("--kvm-host")), bool(config.getoption("--arm64-host"))
    config.pluginmanager.register(elsewhere.Elsewhere(kvm=kvm, arm64=arm64))
    config.addinivalue_line("markers", "only(runtime, why): what is so by design of one runtime; skipped on others")
    config.addinivalue_line("markers", "capability(name, why): what a hypervisor needs for it; skipped on one without")
    config.addinivalue_line("markers", "hypervisor(name, why): what is so of one hypervisor; skipped with others")
    config.addinivalue_line("markers", "differs(runtime, why): what this runtime does otherwise; skipped on it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark by folder what needs root and a VM, and skip what is another runtime's or not for this user."""
    name = runtime_name(config)
    for item in items:
        folder = os.path.relpath(str(item.path), HERE).split(os.sep)
        if folder[0] not in ("integration", "faults", "kvm", "arm64"):
            continue
        item.add_marker(pytest.mark.root)
        item.add_marker(pytest.mark.vm)
        if folder[0] == "kvm":
            mark_for_kvm(item)
        if process.FACTOR != 1:
            scale_timeout(item)
        for engine in ("docker", "podman", "containerd", "cri"):
            if engine in folder:
                item.add_marker(getattr(pytest.mark, engine))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        skip_where_it_differs(item, name)


def skip_where_it_differs(item: pytest.Item, name: str) -> None:
    """What is another runtime's, or needs what the hypervisor lacks."""
    for mark in item.iter_markers("only"):
        if mark.args[0] != name:
            item.add_marker(pytest.mark.skip(reason=f"{mark.args[0]} only: {mark.args[1]}"))
    for mark in item.iter_markers("capability"):
        if not has_capability(mark.args[0]):
            reason = f"hypervisor {HYPERVISOR} has no {mark.args[0]}: {mark.args[1]}"
            item.add_marker(pytest.mark.skip(reason=reason))
    for mark in item.iter_markers("hypervisor"):
        if mark.args[0] != HYPERVISOR:
            item.add_marker(pytest.mark.skip(reason=f"hypervisor {mark.args[0]} only: {mark.args[1]}"))
    for mark in item.iter_markers("differs"):
        if mark.args[0] == name:
            item.add_marker(pytest.mark.skip(reason=f"{name} differs: {mark.args[1]}"))


def mark_for_kvm(item: pytest.Item) -> None:
    """Those of tests/kvm are slow, and run on a host whose KVM works; on one's own not all of them."""
    item.add_marker(pytest.mark.kvm)
    item.add_marker(pytest.mark.slow)
    here = os.environ.get(emulated_host.HERE_VARIABLE) == emulated_host.HERE
    if here and item.get_closest_marker("throwaway") is not None:
        item.add_marker(pytest.mark.skip(reason="it changes the host, so it runs on the emulated one alone"))


def scale_timeout(item: pytest.Item) -> None:
    """pytest-timeout's limit, times the factor of all deadlines."""
    mark = item.get_closest_marker("timeout")
    seconds = float(mark.args[0] if mark is not None else item.config.getini("timeout"))
    item.add_marker(pytest.mark.timeout(seconds * process.FACTOR), append=False)


def runtime_name(config: pytest.Config) -> str:
    """runvm, runc or crun."""
    name = os.path.basename(str(config.getoption("--runtime")))
    return next((known for known in ("runvm", "runc", "crun") if name.startswith(known)), name)


@pytest.fixture(scope="session")
def scratch() -> Iterator[str]:
    """The session's directory; its path is short, since Unix sockets lie below it. RUNVM_KEEP=1 keeps it."""
    path = tempfile.mkdtemp(prefix="rvt-", dir="/tmp")
    os.chmod(path, 0o755)
    yield path
    if os.environ.get("RUNVM_KEEP"):
        print(f"kept: {path}")
    else:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def template(scratch: str) -> str:
    """The root filesystem that bundles are made of."""
    path = f"{scratch}/rootfs"
    rootfs.make(path)
    return path


@pytest.fixture(scope="session")
def runtime(request: pytest.FixtureRequest, scratch: str, template: str) -> Iterator[Runtime]:
    """The runtime under test, proved to work by one container: where it doesn't, every test says so at once."""
    process.become_subreaper()
    found = Runtime(str(request.config.getoption("--runtime")), scratch)
    box = Box(found, template, "first")
    try:
        # The first VM of a host boots for long, and leaves the template that the next ones start from
        result = box("echo", "hello").run(timeout=180)
    finally:
        box.close()
    if result.code != 0 or result.stdout != b"hello\n":
        why = f"{found.name} doesn't run a container, so nothing here can pass\n{result.describe()}"
        pytest.fail(why, pytrace=False)
    yield found
    remove_cgroups()


@pytest.fixture(scope="session")
def host(runtime: Runtime) -> Host:
    """The host's books."""
    return Host(watched=(runtime.root, runtime.state_dir), marks=(f"rvt{os.getpid()}-", f"{runtime.scratch}/"))


@pytest.fixture
def box(request: pytest.FixtureRequest, runtime: Runtime, template: str) -> Iterator[Box]:
    """Makes this test's containers."""
    made = Box(runtime, template, request.node.name)
    yield made
    made.close()


@pytest.fixture(scope="module")
def module_box(request: pytest.FixtureRequest, runtime: Runtime, template: str) -> Iterator[Box]:
    """Makes containers that the tests of one file share."""
    made = Box(runtime, template, os.path.basename(str(request.node.path)).removesuffix(".py"))
    yield made
    made.close()
