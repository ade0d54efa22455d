"""Shows failures: the first ten at the end of a command, and all of them as a table, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from m2dprep.artifacts.console import one_line
from m2dprep.artifacts.errors import Failure, UserError, top_reasons
from m2dprep.artifacts.failures.reading import failures_in

SHOWN = 10
FORMATS = TABLE, CSV, JSON, JSONL = "table", "csv", "json", "jsonl"
# Wider names and reasons are not aligned.
WIDEST_NAME, WIDEST_REASON = 60, 24
# Rows of a table that are aligned with one another.
ALIGNED = 1000


def first_lines(failures: Iterable[Failure], count: int, all_of_them: str) -> list[str]:
    """A line for each of the first ten failures of ``count``, and one that says how to see all."""
    found = list(islice(failures, min(SHOWN, count)))
    lines = [
        one_line(f"failed: {one.file_name}: {one.reason}{f', {one.message}' if one.message else ''}") for one in found
    ]
    more = count - len(found)
    return [*lines, f"… and {more:,} more failures ({all_of_them})"] if more > 0 else lines


def say_first(failures: Iterable[Failure], count: int, all_of_them: str) -> None:
    """`first_lines` on stderr."""
    if count:
        for line in first_lines(failures, count, all_of_them):
            print(line, file=sys.stderr)


def say_first_in(path: Path | str, count: int) -> None:
    """The first ten failures that ``path`` lists, on stderr, and the command that lists all; nothing if none failed.

    If the list cannot be read, a line says that: the command that made it has done its work.
    """
    try:
        say_first(failures_in(Path(path)) if count else (), count, f"`m2dprep failures {path}` lists all")
    except UserError as error:
        print(f"what failed cannot be listed: {error}", file=sys.stderr)


def chosen(failures: Iterable[Failure], reasons: Iterable[str]) -> Iterator[Failure]:
    """The failures with one of the ``reasons``; all if none are named."""
    wanted = set(reasons)
    return (one for one in failures if not wanted or one.reason in wanted)


def write(failures: Iterable[Failure], form: str, out: Callable[[str], object]) -> Counter[str]:
    """Give the failures in a ``form`` to ``out``, line by line, and return the counts of the reasons."""
    counts: Counter[str] = Counter()
    lines = {TABLE: _table, CSV: _csv, JSON: _json, JSONL: _jsonl}[form]
    for line in lines(_counted(failures, counts)):
        out(line)
    return counts


def summary(counts: Counter[str]) -> str:
    """``12 failures: truncated 9, empty 3``."""
    total = counts.total()
    return f"{total:,} failure{'' if total == 1 else 's'}" + (f": {top_reasons(counts, len(counts))}" if total else "")


def _counted(failures: Iterable[Failure], counts: Counter[str]) -> Iterator[Failure]:
    for one in failures:
        counts[one.reason] += 1
        yield one


def _table(failures: Iterator[Failure]) -> Iterator[str]:
    named = (one._replace(file_name=one_line(one.file_name)) for one in failures)
    while rows := list(islice(named, ALIGNED)):
        name = min(WIDEST_NAME, max(len(one.file_name) for one in rows))
        reason = min(WIDEST_REASON, max(len(one.reason) for one in rows))
        for one in rows:
            yield f"{one.file_name:<{name}}  {one.reason:<{reason}}  {' '.join(one.message.split())}".rstrip()


def _csv(failures: Iterator[Failure]) -> Iterator[str]:
    yield ",".join(Failure._fields)
    for one in failures:
        text = io.StringIO()
        if "\r" in "".join(one):  # Python up to 3.12 does not quote it
            csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL).writerow(one)
        else:
            csv.writer(text, lineterminator="").writerow(one)
        yield text.getvalue()


def _jsonl(failures: Iterator[Failure]) -> Iterator[str]:
    for one in failures:
        yield json.dumps(one._asdict(), ensure_ascii=False)


def _json(failures: Iterator[Failure]) -> Iterator[str]:
    last = "["
    for line in _jsonl(failures):
        yield last if last == "[" else f"{last},"
        last = f"  {line}"
    if last == "[":
        yield "[]"
    else:
        yield last
        yield "]"
