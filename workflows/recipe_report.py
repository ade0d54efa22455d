"""Plans, outcomes and states of recipes as tables for a terminal."""

from __future__ import annotations

from typing import Any

from artifacts.progress import duration
from workflows.recipe import Recipe
from workflows.recipe_plan import Decision
from workflows.recipe_run import Outcome
from workflows.recipe_status import StageStatus


def plan_table(recipe: Recipe, plan: list[Decision]) -> str:
    """A line a stage: what would be done, why, and for whom it waits."""
    waits = {stage.name: ", ".join(stage.needs) for stage in recipe.stages}
    rows = [[decision.stage, decision.action, decision.reason, waits[decision.stage]] for decision in plan]
    return table([["stage", "", "why", "waits for"], *rows])


def outcome_table(outcomes: list[Outcome]) -> str:
    """A line a stage: what became of it, how long it took, and its figures or the reason."""
    rows = [["stage", "", "time", ""]]
    for outcome in outcomes:
        words = figures(outcome.figures) if outcome.status in ("done", "skipped") else outcome.reason
        code = f" ({outcome.exit_code})" if outcome.exit_code else ""
        rows.append([outcome.stage, outcome.status + code, _time(outcome.seconds), words])
    return table(rows)


def status_table(stages: list[StageStatus]) -> str:
    """A line a stage: its state, how long it took, and its figures or what comes next."""
    rows = [["stage", "state", "time", ""]]
    for stage in stages:
        words = (
            figures(stage.figures) if stage.state == "done" else "; ".join(filter(None, [stage.progress, stage.next]))
        )
        rows.append([stage.stage, stage.state, _time(stage.seconds), words])
    return table(rows)


def figures(values: dict[str, Any]) -> str:
    """``accuracy 0.96, clips 100``."""
    return ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in values.items())


def table(rows: list[list[str]]) -> str:
    """Columns two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
