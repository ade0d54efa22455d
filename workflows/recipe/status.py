"""The status of recipes, for people and machines: every stage with its state, its times and its next action.

Plans, outcomes and states are also laid out as tables for a terminal.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from m2dprep.artifacts.console import duration
from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.recipe.plan import SKIP, Choice, Decision, make_plan
from m2dprep.workflows.recipe.recipe import Recipe
from m2dprep.workflows.recipe.run import Outcome
from m2dprep.workflows.recipe.stage_process import last_line
from m2dprep.workflows.recipe.state import DONE, FOLDER, RUNNING, RecipeState, Record, is_locked, read_state

# A stage that prints nothing for this long is not running: stages print something at least every half minute.
SILENT_SECONDS = 300.0


@dataclass(frozen=True)
class StageStatus:
    """The status of a stage: done, outdated (something has changed since), running, failed, stopped, killed, remaining.

    ``next`` is the action of a run and its reason; None if a run would do nothing.
    """

    stage: str
    kind: str
    state: str
    seconds: float | None = None
    ended: str | None = None
    exit_code: int | None = None
    progress: str | None = None
    next: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def recipe_status(recipe: Recipe) -> list[StageStatus]:
    """The status of every stage of a recipe."""
    state = RecipeState.of(recipe)
    plan = {decision.stage: decision for decision in make_plan(recipe, state, Choice())}
    found = []
    for stage in recipe.stages:
        decision = plan[stage.name]
        then = None if decision.action == SKIP else f"{decision.action}: {decision.reason}"
        found.append(_stage(stage.name, stage.kind.name, state.record(stage.name), state.folder, then))
    return found


def folder_status(folder: Path) -> list[StageStatus]:
    """The status of every stage in a state folder, for use if the recipe itself is not at hand."""
    return [_stage(name, record["kind"], record, folder, None) for name, record in read_state(folder)["stages"].items()]


def recipes_of(data: Path) -> list[tuple[Path, Path]]:
    """``(state folder, recipe)`` of every recipe that has run on a data directory. Raises `UserError` without any."""
    folders = sorted(path.parent for path in (data / FOLDER).glob("*/state.json"))
    if not folders:
        raise UserError(f"{data}: no recipe has run here (no {FOLDER}/*/state.json); `m2dprep run RECIPE` does.")
    return [(folder, Path(read_state(folder)["recipe"])) for folder in folders]


def _stage(name: str, kind: str, record: Record, folder: Path, then: str | None) -> StageStatus:
    if not record.get("status"):
        return StageStatus(name, kind, "remaining", next=then)
    log = folder / f"{name.replace(' ', '-')}.log"
    state, seconds, progress = record["status"], record.get("seconds"), None
    if state == RUNNING and _is_alive(record, folder, log):
        seconds = time.time() - datetime.fromisoformat(record["started"]).timestamp()
        progress = f"pid {record.get('pid')} on {record.get('host')}: {last_line(log) or 'no word yet'}"
        then = None
    elif state == RUNNING:
        state, progress = "killed", last_line(log)
    elif state == DONE and then is not None:
        state = "outdated"
    figures = record.get("result", {})
    return StageStatus(
        name, kind, state, seconds, record.get("ended"), record.get("exit_code"), progress, then, figures
    )


def _is_alive(record: Record, folder: Path, log: Path) -> bool:
    """Whether the run that works on a stage is alive.

    It holds the lock. A lock on another machine may be invisible here; then a recent line in the log counts.
    """
    if is_locked(folder):
        return True
    if record.get("host") == platform.node():
        return False
    return log.exists() and time.time() - log.stat().st_mtime < SILENT_SECONDS


def plan_table(recipe: Recipe, plan: list[Decision]) -> str:
    """One line per stage: the action, the reason, and the stages that it waits for."""
    waits = {stage.name: ", ".join(stage.needs) for stage in recipe.stages}
    rows = [[decision.stage, decision.action, decision.reason, waits[decision.stage]] for decision in plan]
    return table([["stage", "", "why", "waits for"], *rows])


def outcome_table(outcomes: list[Outcome]) -> str:
    """One line per stage: the outcome, the time, and the figures or the reason."""
    rows = [["stage", "", "time", ""]]
    for outcome in outcomes:
        words = figures(outcome.figures) if outcome.status in ("done", "skipped") else outcome.reason
        code = f" ({outcome.exit_code})" if outcome.exit_code else ""
        rows.append([outcome.stage, outcome.status + code, _time(outcome.seconds), words])
    return table(rows)


def status_table(stages: list[StageStatus]) -> str:
    """One line per stage: the state, the time, and the figures or the next action."""
    rows = [["stage", "state", "time", ""]]
    for stage in stages:
        words = (
            figures(stage.figures) if stage.state == "done" else "; ".join(filter(None, [stage.progress, stage.next]))
        )
        rows.append([stage.stage, stage.state, _time(stage.seconds), words])
    return table(rows)


def figures(values: dict[str, Any]) -> str:
    """Figures as a text like ``accuracy 0.96, clips 100``."""
    return ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in values.items())


def table(rows: list[list[str]]) -> str:
    """``rows`` as text, with columns two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
