"""One trial: a stage is killed or disturbed, and the same command must then give the result of an undisturbed run."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from _fault_compare import Condition, Snapshot, conditions, content, differences, leftovers, snapshot
from _fault_injection import ERRORS, FAIL, KILLS, TAKES_SPACE, UNREADABLE, Injection, Injector
from _fault_process import Ended, Runner
from _fault_stages import NEVER_COMPARED, STAGES, Stage
from _fault_world import make_world

KILL, FAULT = "kill", "fault"
# The share of kills that come at a random time and not at a call.
AT_RANDOM = 0.2
# The time limit of a command: a multiple of its undisturbed time, and at least this many seconds.
PATIENCE, MIN_SECONDS = 60.0, 90.0
# A path in a message, a file name with its suffix, or the first words of a system error.
NAMES_A_FILE = re.compile(
    r"\w/[\w.]|\w\.(npy|parquet|csv|jsonl?|yaml|wav|pth|txt)\b|error: (?!system:|\.m2dprep-)[\w.-]+: "
)
# The shares of faults that hit every later call of the kind, and that are a disk full from then on.
LASTING, FULL_DISK = 0.3, 0.3
# The share of kills at a call that are at a reading call.
AT_READING, READING = 0.2, ("read", "stat", "list", "mmap")


@dataclass(frozen=True)
class Undisturbed:
    """An undisturbed stage: the place of its input, the files before and after, its output, calls and seconds."""

    before: Path
    earlier: Snapshot
    files: Snapshot
    out: str
    calls: dict[str, int]
    seconds: float


@dataclass
class Outcome:
    """The outcome of one trial; ``problems`` must be empty, and are keyed by the name of their column."""

    number: int
    stage: str
    kind: str
    plan: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class Bench:
    """A place to try stages in: ``folder``/work, always under the same name because some files hold paths."""

    def __init__(self, folder: Path, injector: Injector) -> None:
        self.work, self._kept = folder / "work", folder / "kept"
        self.runner = Runner(self.work, folder / "words", injector)
        self._injector = injector
        self.undisturbed: dict[str, Undisturbed] = {}
        # The folder that was laid out last, and the condition of its copy then.
        self._source = Path()
        self._laid_out: dict[str, Condition] = {}
        # From which files, by stage, the undisturbed command is known to give its result.
        self._good: dict[str, set[frozenset[Any]]] = {}

    def prepare(self, stages: Sequence[Stage], after_each: Any = None) -> None:
        """Run ``stages`` and the stages before them, undisturbed. Raises `SystemExit` if one fails."""
        needed = with_predecessors(stages)
        make_world(self._kept / "world", encoder=any(stage.imports for stage in needed))
        for stage in needed:
            self._prepare(stage)
            if after_each is not None:
                after_each()

    def _prepare(self, stage: Stage) -> None:
        self._lay_out(self._kept / (f"{stage.after} done" if stage.after else "world"))
        stage.edit(self.work)
        for command in stage.setup:
            self._run_well(command)
        before = self._kept / f"{stage.name} before"
        shutil.copytree(self.work, before, symlinks=True)
        earlier = self._snapshot(stage)
        self._good[stage.name] = {content(self.work)}
        ended = self._run_well(stage.command)
        self.undisturbed[stage.name] = Undisturbed(
            before, earlier, self._snapshot(stage), ended.out, self._injector.calls(), ended.seconds
        )
        shutil.copytree(self.work, self._kept / f"{stage.name} done", symlinks=True)

    def _run_well(self, command: str) -> Ended:
        ended = self.runner.run(command.split(), limit=600, report=_note_imports(self.work))
        if ended.code != 0:
            raise SystemExit(f"undisturbed, m2dprep {command} ended with {ended.code}:\n{ended.err}")
        return ended

    def _lay_out(self, source: Path) -> None:
        """Make the place a copy of ``source``. What is still as it was copied from there is not copied again."""
        found = conditions(self.work) if self._source == source else {}
        kept = {name for name, condition in found.items() if self._laid_out.get(name) == condition}
        for name in sorted(found.keys() - kept, reverse=True):  # what is in a folder comes before the folder
            _remove(self.work / name)
        if not kept:
            _remove(self.work)
        self.work.mkdir(exist_ok=True)
        folders = [source]
        for path in sorted(source.rglob("*")):
            copy = self.work / path.relative_to(source)
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
                copy.mkdir(parents=True, exist_ok=True)
            elif not os.path.lexists(copy):
                shutil.copy2(path, copy, follow_symlinks=False)
        for folder in reversed(folders):
            shutil.copystat(folder, self.work / folder.relative_to(source))
        self._source, self._laid_out = source, conditions(self.work)

    def _snapshot(self, stage: Stage) -> Snapshot:
        return snapshot(self.work, (*NEVER_COMPARED, *stage.ignored))

    def try_out(self, number: int, stage: Stage, kind: str, seed: int) -> Outcome:
        """Run trial ``number`` of ``seed``: one or more kills in a row, or one fault."""
        chance = random.Random(f"{seed}-{number}")
        self._lay_out(self.undisturbed[stage.name].before)
        outcome = Outcome(number, stage.name, kind)
        rounds = chance.choice((1, 1, 1, 2, 3)) if kind == KILL else 1
        for _ in range(rounds):
            if outcome.plan and not stage.again and not self._missing(stage):
                break
            ended = self._strike(stage, kind, chance, outcome)
            self._judge(stage, kind, ended, outcome)
        self._go_on(stage, outcome)
        return outcome

    def _strike(self, stage: Stage, kind: str, chance: random.Random, outcome: Outcome) -> Ended:
        undisturbed = self.undisturbed[stage.name]
        if kind == KILL and chance.random() < AT_RANDOM:
            after, whole = chance.uniform(0, undisturbed.seconds), chance.random() < 0.7
            outcome.plan.append(f"kill after {after:.3f} s{'' if whole else ', the parent alone'}")
            ended = self.runner.run(stage.arguments, kill_after=after, whole_tree=whole)
            if ended.is_killed:
                outcome.calls.append("kill at a random time")
            return ended
        return self._strike_at(stage, choose(chance, kind, undisturbed.calls, stage.errors), outcome)

    def try_at(self, number: int, stage: Stage, kind: str, injection: Injection) -> Outcome:
        """Run a trial with one chosen kill or fault."""
        self._lay_out(self.undisturbed[stage.name].before)
        outcome = Outcome(number, stage.name, kind)
        self._judge(stage, kind, self._strike_at(stage, injection, outcome), outcome)
        self._go_on(stage, outcome)
        return outcome

    def _strike_at(self, stage: Stage, injection: Injection, outcome: Outcome) -> Ended:
        outcome.plan.append(str(injection))
        ended = self.runner.run(stage.arguments, injection, limit=self._limit(stage))
        if ended.struck:
            outcome.calls.append(injection.label)
            outcome.plan[-1] += f" ({self._injector.where})"
        return ended

    def _limit(self, stage: Stage) -> float:
        return max(MIN_SECONDS, PATIENCE * self.undisturbed[stage.name].seconds)

    def _judge(self, stage: Stage, kind: str, ended: Ended, outcome: Outcome) -> None:
        """Count how the disturbed command ended, and note its problems."""
        counts = outcome.counts
        struck = ended.is_killed or ended.struck > 0
        counts[kind] += struck
        counts["not reached"] += not struck
        if lost := self._lost(stage, ended.is_killed or stage.moves):
            outcome.problems["earlier one gone"] = f"{lost}\n{_tail(ended.err)}"
        if ended.outlived:
            outcome.problems["outlived"] = "a process outlived the command"
        if ended.code is None:
            outcome.problems["hung"] = _tail(ended.err)
        elif ended.is_killed and kind == KILL:
            counts["killed"] += 1
        elif "Traceback (most recent call last)" in ended.err or ended.code == 1:
            outcome.problems["traceback"] = _tail(ended.err)
        elif ended.code < 0:
            outcome.problems["died"] = f"{signal.Signals(-ended.code).name}: {_tail(ended.err)}"
        elif ended.code == 0 or (stage.errors and self._injector.where.startswith("wavs/")):
            wrong = self._wrong(stage, ended) if ended.code == 0 else f"exit {ended.code} for a moment's error"
            counts["done"] += not wrong
            if wrong:
                outcome.problems["exit 0, incomplete"] = f"{wrong}\n{_tail(ended.err)}"
        else:
            struck, words = Path(self._injector.where).parts[-2:], _tail(ended.err)
            named = NAMES_A_FILE.search(words) is not None or any(part in words for part in struck)
            counts["stopped, file named" if named else "stopped, no file named"] += 1
            if not named:
                outcome.notes["no file named"] = _tail(ended.err)

    def _wrong(self, stage: Stage, ended: Ended) -> str:
        """What is missing after a command that claims to be complete."""
        expected = self.undisturbed[stage.name].out
        if stage.reads_only and ended.out != expected:
            return f"it prints {ended.out[-300:]!r}, not {expected[-300:]!r}"
        return "; ".join(self._missing(stage)[:5])

    def _missing(self, stage: Stage) -> list[str]:
        return differences(self.undisturbed[stage.name].files, self._snapshot(stage))

    def _lost(self, stage: Stage, anywhere: bool) -> str:
        """The files that a command was to replace and that are neither the earlier nor the new ones, all together.

        They may be ``anywhere``, under other names.
        """
        undisturbed, found = self.undisturbed[stage.name], self._snapshot(stage)
        gone = []
        for pattern in stage.replaces:
            earlier, new = (_matching(files, pattern) for files in (undisturbed.earlier, undisturbed.files))
            if anywhere:
                there = set(found.values())
                wrong = not (there.issuperset(earlier.values()) or there.issuperset(new.values()))
            else:
                wrong = not (earlier.items() <= found.items() or new.items() <= found.items())
            if wrong:
                gone += [name for name, digest in earlier.items() if found.get(name) != digest]
        return ", ".join(gone)

    def _go_on(self, stage: Stage, outcome: Outcome) -> None:
        """Run the same command undisturbed: it must succeed, with the same files and no leftovers.

        That is known if it has done so from just these files before.
        """
        found = content(self.work)
        if found in self._good[stage.name] or (not stage.again and not self._missing(stage)):
            outcome.counts["resumed equal"] += 1
            return
        ended = self.runner.run(stage.arguments, limit=self._limit(stage))
        wrong = f"exit {ended.code}: {_tail(ended.err)}" if ended.code != 0 else self._wrong(stage, ended)
        if wrong:
            outcome.problems["lost"] = wrong
        else:
            outcome.counts["resumed equal"] += 1
        if left := leftovers(self._snapshot(stage)):
            outcome.counts["temporaries left"] += len(left)
            outcome.notes["temporaries left"] = ", ".join(left[:3])
        elif not wrong:
            self._good[stage.name].add(found)


def with_predecessors(stages: Sequence[Stage]) -> list[Stage]:
    """``stages`` and the stages before them, in the order of the table."""
    by_name, wanted = {stage.name: stage for stage in STAGES}, set()
    for stage in stages:
        name = stage.name
        while name and name not in wanted:
            wanted.add(name)
            name = by_name[name].after
    return [stage for stage in STAGES if stage.name in wanted]


def choose(
    chance: random.Random, kind: str, calls: dict[str, int], errors: Sequence[tuple[str, int]] = ()
) -> Injection:
    """Choose a kill or an error at one of a stage's calls (``calls`` by kind); every kind is equally likely.

    If there are ``errors``, one of them is chosen, at one call.
    """
    if errors:
        name, error = chance.choice(errors)
        return Injection(FAIL, (name,), chance.randint(1, calls[name]), error)
    made = [name for name, count in calls.items() if count]
    if kind == KILL:
        reading = chance.random() < AT_READING
        name = chance.choice([one for one in made if (one in READING) == reading] or made)
        how = chance.choice(list(KILLS)) if name == "write" else chance.choice(("before", "after"))
        return Injection(KILLS[how], (name,), chance.randint(1, calls[name]))
    name = chance.choice(made)
    if name in TAKES_SPACE and chance.random() < FULL_DISK:
        at = chance.randint(1, sum(calls[one] for one in TAKES_SPACE))
        return Injection(FAIL, TAKES_SPACE, at, errno.ENOSPC, lasting=True)
    at = chance.randint(1, calls[name])
    if name == "mmap" and chance.random() < 0.5:
        return Injection(UNREADABLE, (name,), at)
    return Injection(FAIL, (name,), at, chance.choice(ERRORS[name]), lasting=chance.random() < LASTING)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _matching(files: Snapshot, pattern: str) -> Snapshot:
    """The files that match, without the digests beside them, which may be those of two files for a moment."""
    return {name: each for name, each in files.items() if fnmatch(name, pattern) and not name.endswith(".xxh3")}


def _note_imports(work: Path) -> Any:
    """After a command, write down the modules that it has imported, so that later forks have them already."""
    before = set(sys.modules)

    def report() -> None:
        new = [name for name in sys.modules if name not in before and not name.startswith("__")]
        (work.parent / "modules").write_text("\n".join(new))

    return report


def _tail(err: str, lines: int = 12) -> str:
    """The last lines of a command's output, without progress."""
    kept = [line for line in err.splitlines() if line.strip()]
    return "\n".join(kept[-lines:])
