"""CPU time that each test file takes, processes that it starts included, and what it may take."""

import os
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
import yaml

BUDGETS = Path(__file__).with_name("budgets.yml")


def read_budgets() -> dict[str, float]:
    """Return the CPU seconds that each file below tests/ may take on two cores of a server."""
    return yaml.safe_load(BUDGETS.read_text(encoding="utf-8"))


class Budget:
    """Adds up what each file has taken; with `--budget`, a file beyond its budget is a failure."""

    def __init__(self, *, binding: bool) -> None:
        self.binding = binding
        self.taken: Counter[str] = Counter()
        self.clock = 0.0

    def pytest_collection_finish(self) -> None:
        self.clock = cpu_seconds()  # what is imported belongs to no file

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report = yield
        before, self.clock = self.clock, cpu_seconds()
        report.cpu_seconds = self.clock - before  # travels to the process that adds up
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[0].removeprefix("tests/")
        self.taken[name] += getattr(report, "cpu_seconds", 0)  # none of a worker that died

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        budgets = read_budgets()
        if self.binding and any(taken > budgets.get(name, 0) for name, taken in self.taken.items()):
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.taken:
            return
        terminalreporter.section(f"{sum(self.taken.values()):.0f} CPU seconds, and the budgets")
        budgets = read_budgets()
        for name, taken in self.taken.most_common(None if self.binding else 10):
            beyond = "  beyond its budget" if taken > (budget := budgets.get(name, 0)) else ""
            terminalreporter.write_line(f"{taken:6.1f} of {budget:3}  {name}{beyond}")


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those of its children that have ended.

    The server that ranks are forked from has not ended: its own children are counted, too.
    """
    now = os.times()
    total = now.user + now.system + now.children_user + now.children_system
    server = forkserver._forkserver._forkserver_pid
    if server is not None:
        fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # utime to cstime
    return total
