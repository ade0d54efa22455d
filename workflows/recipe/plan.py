"""The plan of a recipe, with reasons: which stages are skipped because nothing changed, and which run or run again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from m2dprep.artifacts.console import duration
from m2dprep.workflows.recipe.order import absolute
from m2dprep.workflows.recipe.recipe import Recipe, Stage
from m2dprep.workflows.recipe.state import DONE, FAILED, RUNNING, Identity, RecipeState, refreshed, same
from m2dprep.workflows.recipe.versions import Versions

SKIP, RUN, REDO, LEFT_OUT = "skip", "run", "redo", "left out"
# Options that say how a stage works and not what it makes, besides those of clusters.
HOW = {"workers", "loader_workers", "threads", "max_failures", "ignore_space"}
HOW_OF = {
    "embed-captions": {"device", "batch_tokens"},
    "captions keywords": {"device", "batch_size"},
    "zero-shot": {"device", "batch_size"},
    "train": {"device", "compile", "save_every", "save_steps", "save_minutes", "keep", "log_every", "wandb"},
}
SHOWN_CHANGES = 4


@dataclass(frozen=True)
class Decision:
    """The action for a stage, and the reason."""

    stage: str
    kind: str
    action: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """The stages that the user wants.

    ``first`` stands for itself and all stages that wait for it, ``last`` for itself and all stages that it needs, and
    ``again`` for stages that run even if nothing has changed.
    """

    first: str | None = None
    last: str | None = None
    again: tuple[str, ...] = ()

    def wanted(self, recipe: Recipe) -> set[str]:
        """The names of these stages. Raises `UserError` if a stage is not known."""
        names = {stage.name for stage in recipe.stages}
        for name in self.again:
            recipe.stage(name)
        if self.first is not None:
            names &= recipe.waiting_for(self.first)
        if self.last is not None:
            names &= recipe.needed_by(self.last)
        return names


def options_of(recipe: Recipe, stage: Stage) -> dict[str, list[str]]:
    """The settings that decide what a stage makes. Paths have one form, however the recipe writes them."""
    how = HOW | HOW_OF.get(stage.kind.name, set()) | {o.key for o in stage.kind.options if o.of_cluster}
    paths = {option.key for option in stage.kind.options if option.is_path}
    return {
        key: [recipe.shown(absolute(recipe.root, text)) if key in paths else text for text in texts]
        for key, texts in sorted(stage.values.items())
        if key not in how and texts != ["false"]
    }


def inputs_of(recipe: Recipe, state: RecipeState, stage: Stage) -> dict[str, Identity | None]:
    """The present identities of a stage's inputs, by path. Of a file that several stages write, its version counts."""
    versions = Versions(recipe, state)
    known: dict[str, Identity | None] = state.stages.get(stage.name, {}).get("inputs", {})
    found: dict[str, Identity | None] = {}
    for path in dict.fromkeys([*stage.reads, *stage.uses.changes]):
        shown = recipe.shown(path)
        if path in stage.versions:
            found[shown] = versions.of(stage.versions[path], path)
        else:
            found[shown] = refreshed(path, known.get(shown))
    return found


def decide(recipe: Recipe, state: RecipeState, stage: Stage, again: Collection[str] = ()) -> Decision:
    """The action for a stage whose needs are met, from its record and the present files."""
    record = state.stages.get(stage.name)
    if record is None:
        return _decision(stage, RUN, "not done yet")
    if record.get("kind") != stage.kind.name:
        return _decision(stage, REDO, f"it was {record.get('kind')}")
    if changes := _changes(recipe, state, stage, record):
        more = f" and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES else ""
        return _decision(stage, REDO, "; ".join(changes[:SHOWN_CHANGES]) + more)
    if record["status"] != DONE:
        return _decision(stage, RUN, _unfinished(record))
    if gone := _outputs_gone(recipe, state, stage):
        return _decision(stage, RUN, gone)
    if stage.name in again:
        return _decision(stage, RUN, "asked for")
    return _decision(stage, SKIP, f"done {local_time(record['ended'])}, nothing has changed")


def make_plan(recipe: Recipe, state: RecipeState, choice: Choice) -> list[Decision]:
    """The actions of a run, without running anything. Stages that wait for a running stage count as changed with it."""
    wanted = choice.wanted(recipe)
    plan: list[Decision] = []
    running: set[str] = set()
    for stage in recipe.stages:
        decision = decide(recipe, state, stage, choice.again)
        if stage.name not in wanted:
            reason = (
                decision.reason if decision.action == SKIP else f"though it would {decision.action}: {decision.reason}"
            )
            plan.append(_decision(stage, LEFT_OUT, reason))
            continue
        if decision.action == SKIP and (before := [name for name in stage.needs if name in running]):
            decision = _decision(stage, REDO, f"after {', '.join(before)}, unless that leaves all as it was")
        if decision.action != SKIP:
            running.add(stage.name)
        plan.append(decision)
    return plan


def missing_inputs(recipe: Recipe, plan: list[Decision]) -> list[str]:
    """A message, with the line of the recipe, for every missing input of a stage that will run.

    Inputs that another stage of the run makes are not missing.
    """
    lines = []
    runs = {decision.stage for decision in plan if decision.action in (RUN, REDO)}
    for stage in recipe.stages:
        for path in [*stage.reads, *stage.uses.how] if stage.name in runs else ():
            makers = {name for made in (path, *path.parents) for name in recipe.makers.get(made, ())} - {stage.name}
            if path.exists() or makers & runs:
                continue
            why = f"; {', '.join(sorted(makers))} makes it and is left out" if makers else ", and no stage makes it"
            lines.append(f"{recipe.file}, line {stage.where.line}: {stage.name} reads {path}, which is missing{why}.")
    return lines


def _changes(recipe: Recipe, state: RecipeState, stage: Stage, record: dict[str, Any]) -> list[str]:
    """What has changed since the stage was begun: settings by name, inputs by path."""
    old, new = record["options"], options_of(recipe, stage)
    lines = [
        f"{key}: {_shown(old.get(key))} → {_shown(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    before, after = record["inputs"], inputs_of(recipe, state, stage)
    for path in [*after, *(before.keys() - after.keys())]:
        if path not in before:
            lines.append(f"reads {path} now")
        elif path not in after:
            lines.append(f"reads {path} no more")
        elif not same(before[path], after[path]):
            lines.append(f"{path} {'is missing' if after[path] is None else 'has changed'}")
    return lines


def _shown(texts: list[str] | None) -> str:
    return "the default" if texts is None else ", ".join(texts)


def _unfinished(record: dict[str, Any]) -> str:
    after = f" after {duration(record.get('seconds') or 0)}" if record.get("seconds") else ""
    if record["status"] == RUNNING:
        return "goes on: it was killed"
    if record["status"] == FAILED:
        return f"tries again: it ended with {record.get('exit_code')}{after}"
    return f"goes on: it was stopped{after}"


def _outputs_gone(recipe: Recipe, state: RecipeState, stage: Stage) -> str | None:
    """The problem with a missing or changed output of the stage, in words; None if there is none.

    If other stages change an output later, this stage's version must be in place or kept.
    """
    versions = Versions(recipe, state)
    for path in stage.writes:
        known = state.outputs(stage.name).get(recipe.shown(path))
        makers = recipe.makers[path]
        if len(makers) > 1 or path in stage.uses.changes:
            if versions.is_foreign(path) and makers[-1] == stage.name:
                return f"{recipe.shown(path)} was changed since"
            if not versions.is_available(stage.name, path):
                return f"{recipe.shown(path)} as it left it is gone"
            continue
        current = refreshed(path, known)
        if known is not None and not same(known, current):
            return f"{recipe.shown(path)} {'is missing' if current is None else 'was changed since'}"
    return None


def local_time(utc: str) -> str:
    """A time of a state file in local time, to the minute."""
    return f"{datetime.fromisoformat(utc).astimezone():%Y-%m-%d %H:%M}"


def _decision(stage: Stage, action: str, reason: str) -> Decision:
    return Decision(stage.name, stage.kind.name, action, reason)
