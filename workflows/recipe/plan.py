"""The plan of a recipe, with reasons: which stages are skipped because nothing changed, and which run or run again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from m2dprep.artifacts.clips.addresses import is_address, without_secrets
from m2dprep.artifacts.console import duration
from m2dprep.workflows.recipe.declare import absolute
from m2dprep.workflows.recipe.recipe import Recipe, Stage
from m2dprep.workflows.recipe.servers import UNSEEN, server_identity, shown
from m2dprep.workflows.recipe.state import DONE, FAILED, RUNNING, Identity, RecipeState, Record, identity, same

SKIP, RUN, REDO, LEFT_OUT = "skip", "run", "redo", "left out"
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
    paths = {option.key for option in stage.kind.options if option.role is not None}
    return {
        key: [
            recipe.shown(absolute(recipe.root, text)) if key in paths and not is_address(text) else text
            for text in shown(texts)
        ]
        for key, texts in sorted(stage.values.items())
        if key not in stage.kind.how and texts != ["false"]
    }


def identities(
    recipe: Recipe, paths: Collection[Path], known: dict[str, Identity | None]
) -> dict[str, Identity | None]:
    """The present identities of ``paths``, by the names that they have in a state; see `identity` for ``known``."""
    return {recipe.shown(path): identity(path, known.get(recipe.shown(path))) for path in paths}


def inputs_of(recipe: Recipe, stage: Stage, known: dict[str, Identity | None]) -> dict[str, Identity | None]:
    """The present identities of what a stage reads, here and on servers, by the names that they have in a state."""
    on_servers = {without_secrets(url, url): server_identity(url) for url in stage.servers}
    return identities(recipe, stage.reads, known) | on_servers


def decide(recipe: Recipe, state: RecipeState, stage: Stage, again: Collection[str] = ()) -> Decision:
    """The action for a stage whose needs are met, from its record and the present files."""
    record = state.record(stage.name)
    if "status" not in record:
        return _decision(stage, RUN, "not done yet")
    if record["kind"] != stage.kind.name:
        return _decision(stage, REDO, f"it was {record['kind']}")
    before = record["inputs"]
    inputs = inputs_of(recipe, stage, before)
    if changes := [*changed_options(recipe, stage, record), *changed_inputs(before, inputs)]:
        more = f" and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES else ""
        return _decision(stage, REDO, "; ".join(changes[:SHOWN_CHANGES]) + more)
    if record["status"] != DONE:
        return _decision(stage, RUN, _unfinished(record))
    if gone := changed_outputs(recipe, stage, record):
        return _decision(stage, RUN, gone[0])
    if stage.name in again:
        return _decision(stage, RUN, "asked for")
    silent = {path: now[UNSEEN] for path, now in inputs.items() if now and UNSEEN in now}
    unseen = [f"; what {path} holds now is unknown ({why})" for path, why in silent.items()]
    return _decision(stage, SKIP, f"done {local_time(record['ended'])}, nothing has changed{''.join(unseen)}")


def make_plan(recipe: Recipe, state: RecipeState, choice: Choice) -> list[Decision]:
    """The actions of a run, without running anything. Stages that wait for a running stage count as changed with it."""
    wanted = choice.wanted(recipe)
    plan: list[Decision] = []
    running: set[str] = set()
    for stage in recipe.stages:
        decision = decide(recipe, state, stage, choice.again)
        if stage.name not in wanted:
            though = "" if decision.action == SKIP else f"though it would {decision.action}: "
            decision = _decision(stage, LEFT_OUT, f"{though}{decision.reason}")
        elif decision.action == SKIP and (before := [name for name in stage.needs if name in running]):
            decision = _decision(stage, REDO, f"after {', '.join(before)}, unless that leaves all as it was")
        if decision.action in (RUN, REDO):
            running.add(stage.name)
        plan.append(decision)
    return plan


def missing_inputs(recipe: Recipe, plan: list[Decision]) -> list[str]:
    """A message, with the line of the recipe, for every missing input of a stage that will run.

    Inputs that another stage of the run makes, or makes something below, are not missing.
    """
    lines = []
    runs = {decision.stage for decision in plan if decision.action in (RUN, REDO)}
    for stage in recipe.stages:
        for path in [*stage.reads, *stage.how] if stage.name in runs else ():
            below = {maker for made, maker in recipe.makers.items() if made.is_relative_to(path)}
            makers = (recipe.makers_of(path) | (below & set(stage.needs))) - {stage.name}
            if path.exists() or makers & runs:
                continue
            why = f"; {', '.join(sorted(makers))} makes it and is left out" if makers else ", and no stage makes it"
            lines.append(f"{recipe.file}, line {stage.where.line}: {stage.name} reads {path}, which is missing{why}.")
    return lines


def changed_options(recipe: Recipe, stage: Stage, record: Record) -> list[str]:
    """A line for every setting that has changed since the stage was begun."""
    new = options_of(recipe, stage)
    old = record.get("options", new)
    shown = {
        key: [", ".join(values[key]) if key in values else "the default" for values in (old, new)]
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
    return [f"{key}: {before} → {after}" for key, (before, after) in shown.items()]


def changed_inputs(before: dict[str, Identity | None], after: dict[str, Identity | None]) -> list[str]:
    """A line for every input that has changed since the stage was begun. What a server does not tell has not."""
    lines = [f"reads {path} now" for path in after if path not in before]
    lines += [f"reads {path} no more" for path in before if path not in after]
    both = [path for path, now in after.items() if path in before and not (now and UNSEEN in now)]
    changed = [path for path in both if not same(before[path], after[path])]
    return lines + [f"{path} {'is missing' if after[path] is None else 'has changed'}" for path in changed]


def changed_outputs(recipe: Recipe, stage: Stage, record: Record) -> list[str]:
    """A line for every output that is not as the stage left it when it last succeeded."""
    known = record.get("outputs", {})
    found = identities(recipe, stage.writes, known)
    changed = {path: now for path, now in found.items() if path in known and not same(known[path], now)}
    return [f"{path} {'is missing' if now is None else 'was changed since'}" for path, now in changed.items()]


def _unfinished(record: Record) -> str:
    after = f" after {duration(record.get('seconds') or 0)}" if record.get("seconds") else ""
    if record["status"] == RUNNING:
        return "goes on: it was killed"
    if record["status"] == FAILED:
        return f"tries again: it ended with {record.get('exit_code')}{after}"
    return f"goes on: it was stopped{after}"


def local_time(utc: str) -> str:
    """A time of a state file in local time, to the minute."""
    return f"{datetime.fromisoformat(utc).astimezone():%Y-%m-%d %H:%M}"


def _decision(stage: Stage, action: str, reason: str) -> Decision:
    return Decision(stage.name, stage.kind.name, action, reason)
