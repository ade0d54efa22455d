"""Running a recipe: each stage in turn, as the command that one would type, unless it is done and unchanged.

The commands find out by themselves what is done, and refuse to mix settings (exit code 5). What is left to decide here
is whether an output that is in the way may be replaced; see `RecipeRun._may_replace`.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from m2dprep.artifacts.console import duration, is_quiet, is_verbose
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import load_json
from m2dprep.artifacts.locks import exclusive
from m2dprep.workflows.recipe.declare import Given
from m2dprep.workflows.recipe.plan import (
    LEFT_OUT,
    SKIP,
    Choice,
    Decision,
    changed_options,
    decide,
    identities,
    inputs_of,
    make_plan,
    missing_inputs,
    options_of,
)
from m2dprep.workflows.recipe.recipe import Recipe, Stage
from m2dprep.workflows.recipe.servers import shown
from m2dprep.workflows.recipe.stage_process import SignalRelay, run_stage
from m2dprep.workflows.recipe.state import DONE, FAILED, RUNNING, STOPPED, RecipeState, identity, is_there, now, same

SKIPPED, BLOCKED = "skipped", "blocked"
CONFLICT, INTERRUPTED, REQUEUE = 5, 130, 75
OVERWRITE = "--overwrite"
# More work than this is not replaced because something changed, unless the user asks for it.
MAX_REPLACED_SECONDS = 3600.0
MAX_FIGURES = 4
MEANINGS = {
    1: "an error",
    2: "a bad request",
    3: "too many failures",
    4: "a check failed",
    CONFLICT: "other settings",
    INTERRUPTED: "interrupted",
    REQUEUE: "told to stop, or the machine was lost",
}


def read_figures(stage: Stage, result: Path) -> dict[str, Any]:
    """The figures in a stage's result that are to be shown, by name; none if it cannot be read.

    Numbers and the lengths of lists count; those of several parts are added up.
    """
    try:
        value = load_json(result)
    except (OSError, ValueError):
        return {}
    parts = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]
    numbers: dict[str, Any] = {}
    for key, item in ((key, item) for part in parts for key, item in part.items()):
        item = len(item) if isinstance(item, list) and isinstance(value, list) else item
        if isinstance(item, int | float) and not isinstance(item, bool):
            numbers[key] = numbers.get(key, 0) + item
    shown = stage.kind.declared.shows or list(numbers)[:MAX_FIGURES]
    return {key: numbers[key] for key in shown if key in numbers}


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

    def run(self) -> None:
        """Run the planned stages.

        Raises `UserError` before anything runs if an input is missing or this recipe is already running, and
        `StageFailedError` with the exit code of the first stage that failed.
        """
        if missing := missing_inputs(self.recipe, make_plan(self.recipe, self.state, self.choice)):
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
            self._note(stage, SKIPPED, decision.reason)
            _say(f"── {stage.name}: {decision.reason}")
            return
        _say(f"\n── {stage.name} ({decision.action}: {decision.reason})")
        self._begin(stage)
        anew = stage.kind.replaces and self._is_to_begin_anew(stage)
        code = self._attempt(stage, signals, *([OVERWRITE] if anew else []))
        if code == CONFLICT and stage.kind.replaces and self._may_replace(stage):
            code = self._attempt(stage, signals, OVERWRITE)
        self._finish(stage, decision, code, signals)

    def _begin(self, stage: Stage) -> None:
        """Note what an output is, before the stage changes it.

        ``own``: it is this recipe's work; nothing was there when the stage first began, and nobody has changed since
        what it had finished. ``settled``: it was made with the settings that the stage has now, by whatever inputs.
        """
        record = self.state.record(stage.name)
        there = [path for path in stage.writes if is_there(path)]
        known = record.get("outputs", {}) if record.get("status") == DONE else {}
        others = [
            path
            for path in there
            if (name := self.recipe.shown(path)) in known and not same(known[name], identity(path, known[name]))
        ]
        own = not there or (record.get("own", False) and not others)
        settled = record.get("settled", True) and not changed_options(self.recipe, stage, record)
        self.state.put(stage.name, own=own, settled=settled)

    def _is_to_begin_anew(self, stage: Stage) -> bool:
        """Whether a stage starts over at once: the user asks for it, or another stage has made its sources anew.

        What was made of sources that are gone would otherwise stay, such as the arrays of recordings.
        """
        if self.overwrite and stage.name in self.choice.again:
            return True
        record, source = self.state.record(stage.name), stage.kind.declared.remade_from
        if source is None or not record["own"]:
            return False
        if record.get("status") in (RUNNING, STOPPED) and OVERWRITE in record["command"]:
            return True  # it was about it
        before = record.get("inputs", {})
        paths = [path for path in Given(stage.values, self.recipe.root).paths(source) if self.recipe.makers_of(path)]
        made = {self.recipe.shown(path): path for path in paths}
        return any(name in before and not same(before[name], identity(path)) for name, path in made.items())

    def _attempt(self, stage: Stage, signals: SignalRelay, *flags: str) -> int:
        """Run the stage's command once. Returns its exit code."""
        verbose = ["--verbose"] if is_verbose() else []
        arguments = stage.kind.arguments(stage.values, *verbose, *flags, "--json")
        record = self.state.record(stage.name)
        self.state.put(
            stage.name,
            kind=stage.kind.name,
            status=RUNNING,
            options=options_of(self.recipe, stage),
            inputs=inputs_of(self.recipe, stage, record.get("inputs", {})),
            command=["m2dprep", *shown(arguments)],
            started=now(),
            ended=None,
            exit_code=None,
            **({"own": True, "worked_seconds": 0.0} if OVERWRITE in flags else {}),
        )
        started = time.monotonic()
        _say(f"$ m2dprep {shlex.join(shown(arguments))}")
        code = run_stage(
            arguments,
            folder=self.recipe.root,
            log=self.state.log(stage),
            result=self.state.result(stage),
            signals=signals,
            started=lambda pid: self.state.put(stage.name, pid=pid, host=platform.node()),
        )
        seconds = round(time.monotonic() - started, 1)
        worked = round(self.state.record(stage.name).get("worked_seconds", 0.0) + seconds, 1)
        self.state.put(stage.name, seconds=seconds, worked_seconds=worked)
        return code

    def _may_replace(self, stage: Stage) -> bool:
        """Whether a stage that found an output of other settings or inputs may replace it.

        It may if the user says so. Otherwise the output must be this recipe's own (`_begin`), and little work: up to an
        hour, or none that would be lost, because the command uses again what the same settings made.
        """
        record = self.state.record(stage.name)
        worked = record.get("worked_seconds", 0.0)
        cheap = worked <= MAX_REPLACED_SECONDS or (stage.kind.declared.updates and record["settled"])
        if self.overwrite or (record["own"] and cheap):
            _say(f"{stage.name}: what was made with other settings or inputs is replaced.")
            return True
        why = f"took {duration(worked)}" if record["own"] else "is not just this recipe's work"
        _say(
            f"{stage.name}: what is there was made with other settings or inputs, and {why}: give the stage another "
            f"output, or replace it with `m2dprep run {self.recipe.file.name} --overwrite`."
        )
        return False

    def _finish(self, stage: Stage, decision: Decision, code: int, signals: SignalRelay) -> None:
        status = DONE if code == 0 else STOPPED if signals.received or code in (INTERRUPTED, REQUEUE) else FAILED
        figures = read_figures(stage, self.state.result(stage)) if status == DONE else {}
        done = {"outputs": identities(self.recipe, stage.writes, {}), "result": figures, "settled": True}
        self.state.put(stage.name, status=status, exit_code=code, ended=now(), **(done if status == DONE else {}))
        seconds = self.state.record(stage.name)["seconds"]
        self.outcomes.append(Outcome(stage.name, stage.kind.name, status, decision.reason, code, seconds, figures))

    def _note(self, stage: Stage, status: str, reason: str) -> None:
        figures = self.state.record(stage.name).get("result", {}) if status == SKIPPED else {}
        self.outcomes.append(Outcome(stage.name, stage.kind.name, status, reason, figures=figures))

    def _raise_for_failures(self, signal: str | None) -> None:
        file, here = self.recipe.file, Path.cwd()
        again = f"`m2dprep run {file.relative_to(here) if file.is_relative_to(here) else file}` goes on there"
        stopped = next((outcome for outcome in self.outcomes if outcome.status == STOPPED), None)
        cut_short = signal is not None and len(self.outcomes) < len(self.recipe.stages)
        if cut_short or stopped is not None:
            where = f"stage {stopped.stage}" if stopped is not None else "between two stages"
            code = INTERRUPTED if signal == "SIGINT" or (stopped and stopped.exit_code == INTERRUPTED) else REQUEUE
            by_itself = "" if stopped is None else meaning(stopped.exit_code)
            words = f" Its words are in {self.state.log(self.recipe.stage(stopped.stage))}." if stopped else ""
            raise StageFailedError(f"stopped ({signal or by_itself}) in {where}; {again}.{words}", code)
        failed = [outcome for outcome in self.outcomes if outcome.status == FAILED]
        if not failed:
            return
        first = self.recipe.stage(failed[0].stage)
        result = self.state.result(first)
        printed = f", what it found in {result}" if is_there(result) and result.stat().st_size else ""
        waiting = [outcome.stage for outcome in self.outcomes if outcome.status == BLOCKED]
        held = f" {', '.join(waiting)} wait{'s' if len(waiting) == 1 else ''} for it." if waiting else ""
        names = ", ".join(f"{outcome.stage} ({meaning(outcome.exit_code)})" for outcome in failed)
        words = "in" if is_quiet() else "above and in"
        raise StageFailedError(
            f"not done: {names}; its words are {words} {self.state.log(first)}{printed}.{held} Once it is mended, "
            f"{again}.",
            failed[0].exit_code or 1,
        )


def meaning(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code > 128:
        return f"killed by signal {code - 128}"
    return f"exit code {code}" + (f": {MEANINGS[code]}" if code in MEANINGS else "")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
