# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that reports which assumptions about the Ascend runtime hold.

A test that settles an assumption has the marker `assumption` with a sentence that states it. If a run writes a report
(--junitxml), it prints the assumptions with their verdicts at its end, and writes them to assumptions.json beside the
report. The file is rewritten with each test, so it is there even if a test ends the process.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from utils import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import machine

HOLDS, FAILS, NOT_RUN = "holds", "fails", "not run"
OUTCOMES = {"passed": HOLDS, "failed": FAILS, "skipped": NOT_RUN}


class Assumptions:
    """The tests of each assumption and their outcomes.

    Args:
        report: The file of --junitxml.
    """

    def __init__(self, report: str) -> None:
        self.file = Path(report).with_name("assumptions.json")
        self.environment = machine.facts()
        self.tests: dict[str, dict[str, dict[str, Any]]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Runs before -m deselects tests: an assumption that no test settles is listed as not run."""
        for item in items:
            for marker in item.iter_markers("assumption"):
                (assumption,) = marker.args
                self.tests.setdefault(assumption, {})[item.nodeid] = {"outcome": NOT_RUN}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.note(nodeid, {"outcome": FAILS, "detail": "the process ended in this test"})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            crash = getattr(report.longrepr, "reprcrash", None)
            detail = crash.message if crash else report.longreprtext
            noted = {"outcome": OUTCOMES[report.outcome], "seconds": round(report.duration, 3)}
            self.note(report.nodeid, noted | ({"detail": detail} if detail else {}) | dict(report.user_properties))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("assumptions about the runtime")
        for assumption, tests in self.tests.items():
            ran = sum(test["outcome"] != NOT_RUN for test in tests.values())
            terminalreporter.write_line(f"{verdict(tests):<8} {ran:>2} of {len(tests):>2} tests  {assumption}")
        terminalreporter.write_line(f"written to {self.file}")

    def note(self, nodeid: str, noted: dict[str, Any]) -> None:
        concerned = [tests for tests in self.tests.values() if nodeid in tests]
        for tests in concerned:
            tests[nodeid] = noted
        if concerned:
            found = [{"assumption": a, "verdict": verdict(tests), "tests": tests} for a, tests in self.tests.items()]
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps({"environment": self.environment, "assumptions": found}, indent=2) + "\n")


def verdict(tests: dict[str, dict[str, Any]]) -> str:
    """One failure is enough to fail. Tests that were not run count only where no other was."""
    outcomes = {test["outcome"] for test in tests.values()}
    return next(outcome for outcome in (FAILS, HOLDS, NOT_RUN) if outcome in outcomes)
