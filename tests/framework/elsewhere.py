"""A plugin: tests that are for a host on which KVM works, or for one of another architecture, are run on such a host
(framework.emulated_host), and reported here as if they had run here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from framework import arm64_host, kvm_host
from framework.emulated_host import EMULATED, HERE, HERE_VARIABLE, EmulatedHost

if TYPE_CHECKING:
    from collections.abc import Iterator


class Elsewhere:
    """Decides which tests run on the other host, which is booted for the first of them: those of KVM, with *kvm* all
    that need a VM, with *arm64* all."""

    def __init__(self, *, kvm: bool, arm64: bool) -> None:
        self._machine = arm64_host.MACHINE if arm64 else kvm_host.MACHINE
        self._mark = "" if arm64 else "vm" if kvm else "kvm"
        self._items: list[str] = []
        self._host: EmulatedHost | None = None
        self._records: Iterator[dict[str, Any]] | None = None
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._missing: set[str] = set()

    def wants(self, item: pytest.Item) -> bool:
        """Whether *item* is to run on the other host."""
        if os.environ.get(HERE_VARIABLE) in (HERE, EMULATED) or item.get_closest_marker("skip") is not None:
            return False
        return not self._mark or item.get_closest_marker(self._mark) is not None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Deadlines are the other host's matter: it runs pytest, too."""
        for item in items:
            if self.wants(item):
                item.add_marker(pytest.mark.timeout(0), append=False)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """What is left of the chosen tests."""
        self._items = [item.nodeid for item in session.items if self.wants(item)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Instead of running *item*: tell what became of it."""
        if not self.wants(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in self._result_of(item):
            if isinstance(data["longrepr"], list):
                data["longrepr"] = tuple(data["longrepr"])  # where and why it was skipped, which JSON has no tuples for
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_unconfigure(self) -> None:
        """Switch the other host off."""
        if self._host is not None:
            self._host.close()

    def _result_of(self, item: pytest.Item) -> list[dict[str, Any]]:
        try:
            self._run_until(item)
        except Exception as error:
            return [_failure(item, str(error) or type(error).__name__)]
        return self._reports.pop(item.nodeid)

    def _run_until(self, item: pytest.Item) -> None:
        if self._records is None:
            images = os.environ.get("RUNVM_TEST_DATA_DIR", "/var/lib/runvm") + "/images"
            options = ["--tb", str(item.config.getoption("tbstyle"))]
            self._host = EmulatedHost(self._machine, self._items, options, images)
            self._records = self._host.records()
        while item.nodeid not in self._reports or self._reports[item.nodeid][-1]["when"] != "teardown":
            assert item.nodeid not in self._missing, "the other host has no such test"
            record = next(self._records, None)
            assert record is not None, "the other host has ended"
            assert "failed" not in record, record["failed"]
            assert "done" not in record, f"the other host is done without it: {self._host and self._host.console()}"
            self._missing.update(record.get("missing", ()))
            if report := record.get("report"):
                self._reports.setdefault(report["nodeid"], []).append(report)


def _failure(item: pytest.Item, why: str) -> dict[str, Any]:
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=why,
        when="setup",
    )
    data: dict[str, Any] = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
    return data
