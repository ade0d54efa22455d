"""Running a recipe: each stage in turn, as the command that one would type, unless it is done and unchanged.

A few figures of each stage come from the JSON that its command prints.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from m2dprep.artifacts.console import duration, is_quiet, is_verbose
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import load_json
from m2dprep.artifacts.locks import exclusive
from m2dprep.workflows.recipe.order import absolute
from m2dprep.workflows.recipe.plan import (
    LEFT_OUT,
    REDO,
    SKIP,
    Choice,
    Decision,
    decide,
    inputs_of,
    make_plan,
    missing_inputs,
    options_of,
)
from m2dprep.workflows.recipe.recipe import Recipe, Stage
from m2dprep.workflows.recipe.stage_process import SignalRelay, run_stage
from m2dprep.workflows.recipe.state import (
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    RecipeState,
    identity,
    now,
    same,
    this_process,
)
from m2dprep.workflows.recipe.versions import Versions, remove_old_store, restore_store, reuse_flags, set_store_aside

# The keys of a result to show, by kind of stage. For other kinds, the first `MAX_FIGURES` numbers are shown.
CHOSEN = {
    "stats": ("mean", "std", "count_files"),
    "embed-captions": ("rows", "dim"),
    "train": ("epochs", "steps", "loss", "clips"),
    "zero-shot": ("accuracy", "clips", "failed"),
}
MAX_FIGURES = 4


def read_figures(kind: str, result: Path) -> dict[str, Any]:
    """The figures of a result by name, none if it cannot be read. For ``check``: the items checked and the problems."""
    try:
        value = load_json(result)
    except (OSError, ValueError):
        return {}
    if kind == "check" and isinstance(value, list):
        return {key: sum(_count(part.get(key)) for part in value) for key in ("checked", "problems")}
    if not isinstance(value, dict):
        return {}
    numbers = {key: item for key, item in value.items() if isinstance(item, int | float) and not isinstance(item, bool)}
    if kind in CHOSEN:
        return {key: numbers[key] for key in CHOSEN[kind] if key in numbers}
    return dict(list(numbers.items())[:MAX_FIGURES])


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value or 0)


BLOCKED = "blocked"
CONFLICT, INTERRUPTED, REQUEUE = 5, 130, 75
# More work than this is not replaced because of a changed setting, unless the user asks for it.
MAX_REPLACED_SECONDS = 3600.0
# Kinds that recognise an output with other settings (exit code 5), so they first run without --overwrite. The other
# kinds replace what the recipe made before.
DETECT_OTHER_SETTINGS = {
    *("sound-set", "melspec", "pack", "embed-captions", "embeddings import", "train", "captions keywords"),
}


class StageFailedError(UserError):
    """A stage failed; the exit code is that of the stage."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Outcome:
    """The outcome of a stage: ``status`` is done, skipped, failed, stopped, blocked or left out."""

    stage: str
    kind: str
    status: str
    reason: str
    exit_code: int | None = None
    seconds: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class RecipeRun:
    """One run of a recipe. Every stage adds to ``outcomes``. ``overwrite`` replaces outputs that are in the way."""

    def __init__(self, recipe: Recipe, choice: Choice, *, overwrite: bool = False) -> None:
        self.recipe, self.choice, self.overwrite = recipe, choice, overwrite
        self.state = RecipeState.of(recipe)
        self.outcomes: list[Outcome] = []
        self._versions = Versions(recipe, self.state)

    def run(self) -> None:
        """Run the planned stages.

        Raises `UserError` before anything runs if an input is missing or this recipe is already running, and
        `StageFailedError` with the exit code of the first stage that failed.
        """
        plan = make_plan(self.recipe, self.state, self.choice)
        if missing := missing_inputs(self.recipe, plan):
            raise UserError("\n  ".join(missing))
        wanted = self.choice.wanted(self.recipe)
        self.state.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(self.state.folder), SignalRelay() as signals:
            self.state.stages = RecipeState.of(self.recipe).stages  # another run may have ended just now
            for stage in self.recipe.stages:
                if stage.name in wanted:
                    self._stage(stage, signals)
                else:
                    self._note(stage, LEFT_OUT, "not asked for")
                if signals.received is not None or self.outcomes[-1].status == STOPPED:
                    break
        self._raise_for_failures(signals.received)

    def _stage(self, stage: Stage, signals: SignalRelay) -> None:
        bad = [outcome.stage for outcome in self.outcomes if outcome.status in (FAILED, STOPPED, BLOCKED)]
        if waits := [name for name in stage.needs if name in bad]:
            self._note(stage, BLOCKED, f"waits for {', '.join(waits)}")
            return
        decision = decide(self.recipe, self.state, stage, self.choice.again)
        if decision.action == SKIP:
            self._versions.restore(stage)
            self._note(stage, "skipped", decision.reason)
            _say(f"── {stage.name}: {decision.reason}")
            return
        _say(f"\n── {stage.name} ({decision.action}: {decision.reason})")
        code = self._attempt(stage, decision, signals)
        if code == CONFLICT:
            code = self._replace(stage, decision, signals)
        self._finish(stage, decision, code, signals)

    def _attempt(self, stage: Stage, decision: Decision, signals: SignalRelay, *flags: str) -> int:
        """Run the stage's command once. Returns its exit code."""
        self._versions.need(stage)
        for path in stage.uses.writes:
            self._versions.save_foreign(path)
        again = self.overwrite and stage.name in self.choice.again and stage.kind.replaces
        anew = again or self._has_old_output(stage) or self._has_other_sources(stage)
        extra = sorted({*flags, *(["--overwrite"] if anew else [])})
        extra += [] if extra else reuse_flags(stage)
        arguments = [*stage.kind.words, *extra, "--json", *stage.kind.arguments(stage.values)[len(stage.kind.words) :]]
        record = self.state.stages.get(stage.name, {})
        going_on = record.get("status", DONE) != DONE
        self.state.put(
            stage.name,
            kind=stage.kind.name,
            status=RUNNING,
            redo=decision.reason if decision.action == REDO else record.get("redo") if going_on else None,
            options=options_of(self.recipe, stage),
            inputs=inputs_of(self.recipe, self.state, stage),
            command=["m2dprep", *arguments],
            started=now(),
            ended=None,
            exit_code=None,
        )
        started = time.monotonic()
        _say(f"$ m2dprep {shlex.join(arguments)}")
        code = run_stage(
            [*stage.kind.words, *(["--verbose"] if is_verbose() else []), *arguments[len(stage.kind.words) :]],
            folder=self.recipe.root,
            log=self.state.log(stage),
            result=self.state.result(stage),
            signals=signals,
            started=lambda pid: self.state.put(stage.name, **this_process(pid)),
        )
        seconds = round(time.monotonic() - started, 1)
        worked = 0.0 if "--overwrite" in extra else record.get("worked_seconds", 0.0)
        self.state.put(stage.name, seconds=seconds, worked_seconds=round(worked + seconds, 1))
        return code

    def _has_old_output(self, stage: Stage) -> bool:
        """Whether earlier output of this recipe is in the way of a stage that does not recognise it itself."""
        if not stage.kind.replaces or stage.kind.name in DETECT_OTHER_SETTINGS:
            return False
        began = stage.name in self.state.stages
        return any(path.exists() and (self.overwrite or began) for path in stage.uses.writes)

    def _has_other_sources(self, stage: Stage) -> bool:
        """Whether a stage makes the recordings of this conversion, and they have changed.

        Arrays of recordings that are gone must then go. If a user moves recordings of their own away, arrays stay.
        """
        if stage.kind.name != "melspec" or stage.name not in self.state.stages:
            return False
        src = absolute(self.recipe.root, stage.values["src"][0])
        made = any(path in self.recipe.makers for path in (src, *src.parents))
        return made and not same(self.state.stages[stage.name]["inputs"].get(self.recipe.shown(src)), identity(src))

    def _replace(self, stage: Stage, decision: Decision, signals: SignalRelay) -> int:
        """Rerun a stage that found an output with other settings, if it may replace it. Returns its exit code."""
        if self.state.stages[stage.name].get("redo") and not self.overwrite and set_store_aside(stage):
            _say(f"{stage.name}: what was encoded before is used where texts are the same.")
            code = self._attempt(stage, decision, signals)
            if code != CONFLICT:
                return code
            restore_store(stage)
        flag = self._may_replace(stage)
        return CONFLICT if flag is None else self._attempt(stage, decision, signals, flag)

    def _may_replace(self, stage: Stage) -> str | None:
        """``--overwrite`` if the stage, which found an output with other settings, may replace it."""
        record = self.state.stages[stage.name]
        if not stage.kind.replaces:
            return None
        if self.overwrite:
            return "--overwrite"
        worked = record.get("worked_seconds", 0.0)
        if record.get("redo") is None or worked > MAX_REPLACED_SECONDS:
            hours = f", which took {duration(worked)}" if record.get("redo") else ""
            _say(
                f"{stage.name}: what is there was made with other settings or inputs{hours}: give the stage another "
                f"output, or replace it with `m2dprep run {self.recipe.file.name} --overwrite`."
            )
            return None
        _say(f"{stage.name}: what this recipe made with other settings is replaced.")
        return "--overwrite"

    def _finish(self, stage: Stage, decision: Decision, code: int, signals: SignalRelay) -> None:
        status = DONE if code == 0 else STOPPED if signals.received or code in (INTERRUPTED, REQUEUE) else FAILED
        figures = read_figures(stage.kind.name, self.state.result(stage)) if code == 0 else {}
        changes: Mapping[str, Any] = {}
        if status == DONE:
            outputs = {self.recipe.shown(path): identity(path) for path in stage.writes}
            for path in stage.writes:
                if path in stage.versions or len(self.recipe.makers[path]) > 1:
                    self._versions.keep(stage.name, path)
            remove_old_store(stage)
            changes = {"outputs": outputs, "result": figures, "redo": None}
        self.state.put(stage.name, status=status, exit_code=code, ended=now(), **changes)
        seconds = self.state.stages[stage.name]["seconds"]
        self.outcomes.append(Outcome(stage.name, stage.kind.name, status, decision.reason, code, seconds, figures))

    def _note(self, stage: Stage, status: str, reason: str) -> None:
        figures = self.state.stages.get(stage.name, {}).get("result", {}) if status == "skipped" else {}
        self.outcomes.append(Outcome(stage.name, stage.kind.name, status, reason, figures=figures))

    def _raise_for_failures(self, signal: str | None) -> None:
        file, here = self.recipe.file, Path.cwd()
        again = f"`m2dprep run {file.relative_to(here) if file.is_relative_to(here) else file}` goes on there"
        stopped = next((outcome for outcome in self.outcomes if outcome.status == STOPPED), None)
        cut_short = signal is not None and len(self.outcomes) < len(self.recipe.stages)
        if cut_short or stopped is not None:
            where = f"stage {stopped.stage}" if stopped is not None else "between two stages"
            code = INTERRUPTED if signal == "SIGINT" or (stopped and stopped.exit_code == INTERRUPTED) else REQUEUE
            raise StageFailedError(f"stopped ({signal or 'by itself'}) in {where}; {again}.", code)
        failed = [outcome for outcome in self.outcomes if outcome.status == FAILED]
        if not failed:
            return
        first = failed[0]
        log, result = (find(self.recipe.stage(first.stage)) for find in (self.state.log, self.state.result))
        printed = f", what it found in {result}" if result.exists() and result.stat().st_size else ""
        waiting = [outcome.stage for outcome in self.outcomes if outcome.status == BLOCKED]
        held = f" {', '.join(waiting)} wait{'s' if len(waiting) == 1 else ''} for it." if waiting else ""
        names = ", ".join(f"{outcome.stage} ({meaning(outcome.exit_code)})" for outcome in failed)
        words = "in" if is_quiet() else "above and in"
        raise StageFailedError(
            f"not done: {names}; its words are {words} {log}{printed}.{held} Once it is mended, {again}.",
            first.exit_code or 1,
        )


def meaning(code: int | None) -> str:
    meanings = {1: "an error", 2: "a bad request", 3: "too many failures", 4: "a check failed", 5: "other settings"}
    if code is not None and code > 128:
        return f"killed by signal {code - 128}"
    return f"exit code {code}" + (f": {meanings[code]}" if code in meanings else "")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
