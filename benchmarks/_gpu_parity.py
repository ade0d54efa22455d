"""Runs the tests marked ``gpu`` and counts how they end; the figures hold each result as soon as it is known."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
from _machine import Figures
from gpu_wheels import ROOT

PER_TEST = 0.4  # of the part's time, so that a test that hangs leaves some for the others


class Endings:
    """A pytest plugin that counts."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        figures.add(passed=0, failed=0, skipped=0, failures=[], reasons=[])

    def pytest_runtest_logreport(self, report: Any) -> None:
        values = self._figures.values
        if report.when != "call" and not report.failed and not report.skipped:
            return
        self._figures.add(**{report.outcome: values[report.outcome] + 1})
        if report.failed:
            self._figures.add(failures=[*values["failures"], report.nodeid])
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._figures.add(reasons=sorted({*values["reasons"], reason.removeprefix("Skipped: ")}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--match", default="", help="only tests whose names have this, too")
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    # Only the files with such tests: others import packages that a GPU machine need not have.
    files = [str(path) for path in sorted((ROOT / "tests").glob("*/test_gpu.py"))]
    chosen = f"{options.device} and {options.match}" if options.match else options.device
    command = [*files, "-m", "gpu", "-k", chosen, "--timeout", str(max(10, round(PER_TEST * options.seconds)))]
    figures = Figures(options.json)
    code = int(pytest.main([*command, "-v", "--tb=short", "-p", "no:xdist"], plugins=[Endings(figures)]))
    sys.exit(code or not figures.values["passed"])  # if all tests are skipped, nothing has been shown


if __name__ == "__main__":
    main()
