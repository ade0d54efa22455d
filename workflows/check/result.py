"""The results of checks: problems, notes, and a summary for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from m2dprep.artifacts.console import one_line
from m2dprep.artifacts.errors import UserError, first_line


@dataclass(frozen=True)
class Problem:
    """One problem: the check that found it, the item, and what is wrong."""

    check: str
    item: str
    message: str


@dataclass
class CheckResult:
    """One check: how many items it checked, and its problems.

    ``absent`` says what was missing if there was nothing to check. ``notes`` say what could not be proven or was not
    checked.
    """

    check: str
    checked: int = 0
    absent: str = ""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, item: str, message: str) -> None:
        self.problems.append(Problem(self.check, item, message))

    @property
    def state(self) -> str:
        return "FAILED" if self.problems else "absent" if self.absent else "ok"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state}


class Collecting:
    """Turns an error inside the block into a problem of the check, so that one bad file does not hide the rest.

    This includes unforeseen errors: damaged files of earlier versions, which have no digests, may raise anything.
    """

    def __init__(self, result: CheckResult, item: str) -> None:
        self._result, self._item = result, item

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self._result.problem(self._item, str(error))
            return True
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            self._result.problem(self._item, f"cannot be read: {where}{error.strerror or error}")
            return True
        if isinstance(error, Exception):
            self._result.problem(self._item, f"cannot be checked: {type(error).__name__}: {first_line(error)}")
            return True
        return False


def problems_in_words(count: int) -> str:
    """``1 problem``, ``2 problems``."""
    return f"{count:,} problem{'' if count == 1 else 's'}"


def summary(results: Iterable[CheckResult], most: int = 20) -> str:
    """The checks as a table, then the first ``most`` problems."""
    results = list(results)
    lines = [
        f"{result.state:>6}  {result.check:<22} {result.absent or f'{result.checked:,} checked'}"
        + (f", {problems_in_words(len(result.problems))}" if result.problems else "")
        for result in results
    ]
    problems = [problem for result in results for problem in result.problems]
    lines += [f"  note: {result.check}: {note}" for result in results for note in result.notes]
    lines += [one_line(f"  {problem.check}: {problem.item}: {problem.message}") for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  … and {len(problems) - most:,} more (all with --json)")
    return "\n".join(lines)
