"""Several runs, or the reports of all tasks, compared with the first: as text, JSON, Markdown or a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.pages.document import document
from m2dprep.artifacts.pages.markup import Markup, table, tag
from m2dprep.evaluation.reports.compare import Comparison, Difference, compare
from m2dprep.evaluation.reports.figures import shown, signed
from m2dprep.evaluation.reports.markdown import markdown_table, text_cell
from m2dprep.evaluation.reports.outcomes import Reported, read_reported

RESULTS, RESULT = "results", "result.json"
HEADER = ("metric", "first", "second", "difference", "95 % interval", "over", "the second is")


def side_by_side(places: Sequence[Path], *, draws: int, seed: int) -> list[Comparison]:
    """Compare the second and all later places with the first; a place is a result, the folder of one
    of events or scenes, or a report of all tasks.

    Raises `UserError` if there is one alone, or if two reports share no task.
    """
    if len(places) < 2:
        raise UserError("give at least two results, or two reports of all tasks.")
    runs = [_runs(place) for place in places]
    found = []
    for place, others in zip(places[1:], runs[1:], strict=True):
        single = len(runs[0]) == len(others) == 1 and not _is_report(places[0]) and not _is_report(place)
        pairs = (
            [(*runs[0].values(), *others.values())]
            if single
            else [(runs[0][key], others[key]) for key in runs[0] if key in others]
        )
        if not pairs:
            raise UserError(f"{places[0]} and {place} have no task and protocol in common.")
        found += [compare(first, second, draws=draws, seed=seed) for first, second in pairs]
    return found


def _is_report(place: Path) -> bool:
    """Whether a place is a report of all tasks, and no result or folder of one (of events or scenes)."""
    return place.is_dir() and not (place / RESULT).is_file()


def _runs(place: Path) -> dict[str, Reported]:
    """The results of a place by their names; those of a report by task and protocol."""
    if _is_report(place):
        paths = sorted((place / RESULTS).glob("*.json"))
        if not paths:
            raise UserError(
                f"{place} is no report of `m2dprep evaluate all`: it has no {RESULTS}/*.json, nor {RESULT}."
            )
        return {path.stem: replace(read_reported(path), name=place.name) for path in paths}
    path = place / RESULT if place.is_dir() else place
    return {place.stem: replace(read_reported(path), name=str(place))}


def row_of(one: Difference) -> list[str]:
    """A line of the table."""
    difference, low, high = (signed(value, one.metric) for value in (one.difference, one.low, one.high))
    n = f"{one.n:,} {one.over}"
    return [
        one.metric, shown(one.first, one.metric), shown(one.second, one.metric), difference, f"{low} … {high}", n,
        one.verdict,
    ]  # fmt: skip


def _title(one: Comparison) -> str:
    return f"{one.first.result.task or 'task'}, {one.first.result.protocol}: {one.first.name} → {one.second.name}"


def markdown(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as Markdown."""
    parts = ["# Runs side by side"]
    for one in comparisons:
        parts += [f"## {text_cell(_title(one))}", markdown_table(HEADER, map(row_of, one.differences))]
        parts += ["\n".join(f"- {text_cell(note)}" for note in one.notes)] if one.notes else []
    return "\n\n".join(parts) + "\n"


def page(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a self-contained page."""
    body: list[Markup] = [tag("h1", "Runs side by side")]
    for one in comparisons:
        rows: list[list[object]] = [list(row_of(difference)) for difference in one.differences]
        notes = tag("ul", *(tag("li", note) for note in one.notes)) if one.notes else ""
        body.append(tag("section", tag("h2", _title(one)), table(list(HEADER), rows), notes))
    return document("Runs side by side", body)
