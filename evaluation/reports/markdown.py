"""A result as Markdown, for a repository or an issue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from m2dprep.evaluation.reports.figures import (
    all_figures,
    commonest_confusions,
    counts_text,
    facts_of,
    papers_for,
    per_class,
    score_text,
    shown,
)
from m2dprep.evaluation.reports.outcomes import Reported
from m2dprep.evaluation.task import Task

ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>|#"})


def text_cell(value: object) -> str:
    """A value as it can stand in a table, with nothing that Markdown reads as its own."""
    return " ".join(str(value).split()).translate(ESCAPED)


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; every cell is escaped."""
    lines = [header, *rows]
    cells = [[text_cell(cell) for cell in row] for row in lines]
    cells.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def markdown(reported: Reported, task: Task | None = None) -> str:
    """The document of a result."""
    result = reported.result
    title = (task and task.title) or result.task or "Clips"
    parts = [
        f"# {text_cell(title)}: {text_cell(result.protocol)}",
        f"**{text_cell(result.metric)} {score_text(result)}** ({text_cell(counts_text(result))})",
    ]
    if papers := papers_for(result, task):
        parts.append(markdown_table(["published, %", "of what"], [(str(one), one.note) for one in papers]))
    figures = all_figures(result)
    if len(figures) > 1:
        parts.append(markdown_table(["metric", "value"], [(name, shown(value, name)) for name, value in figures]))
    if result.deviations:
        parts.append("## Otherwise than EVAR\n\n" + "\n".join(f"- {text_cell(one)}" for one in result.deviations))
    if notes := result.details.get("notes"):
        parts.append("## To know\n\n" + "\n".join(f"- {text_cell(one)}" for one in notes))
    if rows := per_class(result):
        table = markdown_table(
            ["class", "clips", "%"], [(label, n, "–" if v is None else f"{100 * v:.1f}") for label, n, v in rows]
        )
        parts.append(f"## Classes, the worst first\n\n{table}")
    if confusions := commonest_confusions(result):
        parts.append("## Commonest confusions\n\n" + markdown_table(["clips", "class", "taken for"], confusions))
    if result.failures:
        failures = [[one.get(key, "") for key in ("file_name", "reason", "message")] for one in result.failures]
        parts.append("## Clips that could not be read\n\n" + markdown_table(["clip", "reason", "message"], failures))
    parts.append("## Conditions\n\n" + markdown_table(["what", "value"], facts_of(result)))
    return "\n\n".join(parts) + "\n"
