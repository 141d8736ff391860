"""Runs on the host that framework.emulated_host boots: pytest on the tests of a job, each report a line of JSON on the
serial line. `python3 -m framework.emulated_inside JOB`."""

from __future__ import annotations

import json
import os
import sys
import tty
from typing import Any

import pytest


class _Reporter:
    """A plugin that hands on what becomes of each test."""

    def __init__(self, line: int, tests: list[str]) -> None:
        self._line = line
        self._tests = set(tests)

    def tell(self, record: dict[str, Any]) -> None:
        """Write one line."""
        data = json.dumps(record).encode() + b"\n"
        while data:
            data = data[os.write(self._line, data) :]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Run the tests of the job alone, of which some may not be there: they can depend on the host's Python."""
        items[:] = [item for item in items if item.nodeid in self._tests]
        self.tell({"missing": sorted(self._tests - {item.nodeid for item in items})})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins: whoever waits sees that it goes on."""
        self.tell({"started": nodeid})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        """Each of a test's three reports: setup, call, teardown."""
        report = yield
        self.tell({"report": item.config.hook.pytest_report_to_serializable(config=item.config, report=report)})
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that can't be read."""
        if report.failed:
            self.tell({"failed": str(report.longrepr)})


def main(path: str) -> None:
    """Run the job that the file *path* describes."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    line = os.open(job["line"], os.O_WRONLY | os.O_NOCTTY)
    tty.setraw(line)
    reporter = _Reporter(line, job["tests"])
    options = ["-p", "no:cacheprovider", "-v", *job["options"]]
    files = dict.fromkeys(test.partition("::")[0] for test in job["tests"])
    code = pytest.main([*options, *files], plugins=[reporter])
    reporter.tell({"done": int(code)})


if __name__ == "__main__":
    main(sys.argv[1])
