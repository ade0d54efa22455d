"""The tasks that come with the package, as a table."""

from __future__ import annotations

from typing import Any

from m2dprep.evaluation.preparation.rule import read_rule
from m2dprep.evaluation.task import known_tasks, read_task

COLUMNS = ("task", "protocols", "metric", "clips", "classes", "seconds", "licence", "address")


def task_facts() -> list[dict[str, Any]]:
    """What each task is, needs and has been solved with, as plain values."""
    found = []
    for path in known_tasks().values():
        task = read_task(path)
        found.append(
            {
                "task": task.name,
                "title": task.title,
                "protocols": list(task.protocols),
                "metric": task.metric,
                "layout": task.layout,
                "clips": dict(task.counts),
                "classes": task.classes,
                "unit_seconds": task.unit_seconds,
                "licence": task.licence,
                "address": task.address,
                "to_fetch": dict(read_rule(task.metadata).fetched),
                "papers": task.to_dict()["papers"],
            }
        )
    return found


def render(facts: list[dict[str, Any]]) -> str:
    """A table of one line per task, and the lists that are to be fetched."""
    rows = [list(COLUMNS)]
    for one in facts:
        seconds = one["unit_seconds"]
        rows.append(
            [
                one["task"],
                ", ".join(one["protocols"]),
                one["metric"],
                f"{sum(one['clips'].values()):,}",
                "" if one["classes"] is None else f"{one['classes']:,}",
                "whole" if seconds is None else f"{seconds:g}",
                one["licence"],
                one["address"],
            ]
        )
    numbers = {COLUMNS.index(name) for name in ("clips", "classes", "seconds")}
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += ["", "lists that are no part of a download (--lists):"]
    lines += [f"  {one['task']}: {name}, {place}" for one in facts for name, place in one["to_fetch"].items()]
    return "\n".join(lines)
