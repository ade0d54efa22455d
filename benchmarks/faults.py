"""Claim: no stage loses a row, a file or a value to a kill or an error of the system, and none fails silently.

Every stage is killed at calls of every kind and at random times. It also meets full disks, errors of disks and
networks, missing permissions, too many open files and unreadable pages, once or from then on. Then the same command
must succeed and leave what an undisturbed run leaves, byte for byte (checkpoints: value for value). Columns: how often
a stage was killed or disturbed; how the disturbed command ended; whether the same command then gave the same; and
columns that must be 0: lost, traceback, died (of a signal), hung, exit 0 with something missing, processes that outlive
the command. A command that replaces something and fails leaves the earlier files or the new ones, all of them.

The commands run in forks of a process that has imported everything, so that a trial takes a fraction of a second. The
exit code is 1 if there was any problem; ``--trial N`` repeats trial N of a seed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from _fault_injection import LIBRARY, Injector, compile_library
from _fault_process import adopt_orphans, fork_stages, freeze
from _fault_report import as_dict, as_text
from _fault_stages import STAGES, Stage, in_small_parts
from _fault_trials import FAULT, KILL, Bench, Outcome, with_predecessors
from _machine import ONE_THREAD

FOLDER = "M2DPREP_FAULTS_FOLDER"
# No hub is contacted, and libraries start no threads of their own.
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
# The average number of kills per trial: some kills are followed by another one while the command resumes.
KILLS_PER_TRIAL = 1.4
SAY_SECONDS = 30.0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="stop after so many kills (default 1000)")
    parser.add_argument("--faults", type=int, default=500, help="and so many faults (default 500)")
    parser.add_argument("--minutes", type=float, default=30.0, help="or after so many minutes (default 30)")
    parser.add_argument("--stages", default="", help="only stages whose names contain one of these words, with commas")
    parser.add_argument("--seed", type=int, default=0, help="of what is tried (default 0)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="trials at a time")
    parser.add_argument("--trial", type=int, default=None, metavar="N", help="only this trial, with its words")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser.parse_args()


def chosen_stages(words: str) -> list[Stage]:
    """The stages to try. Raises `SystemExit` if there is no stage of that name."""
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    found = [s for s in STAGES if s.weight and (not wanted or any(word in s.name for word in wanted))]
    if not found:
        raise SystemExit(f"no stage is called {words!r}; there are: {', '.join(s.name for s in STAGES if s.weight)}.")
    return found


class Campaign:
    """Runs trials on several benches at a time, until there are enough or the time is over."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.stages = chosen_stages(arguments.stages)
        self.end = time.monotonic() + 60 * arguments.minutes
        self.seconds, self.broken = 0.0, False
        context = multiprocessing.get_context("fork")
        self._next = context.Value("q", 0)
        self._done = {kind: context.Value("q", 0) for kind in (KILL, FAULT)}

    def run(self) -> list[Outcome]:
        """Prepare one bench here, which shows the modules to import; fork the others; gather their outcomes."""
        first = self._bench(0)
        first.prepare(self.stages, lambda: import_noted(self.folder / "0" / "modules"))
        if self.arguments.trial is not None:
            first.runner.loud = True
            return [first.try_out(self.arguments.trial, *self._trial(self.arguments.trial), self.arguments.seed)]
        freeze()
        lanes = {}
        for lane in range(self.arguments.jobs):
            child = os.fork()
            if child == 0:
                self._lane(lane, first)
            lanes[child] = lane
        self._wait(set(lanes))
        return [read for lane in lanes.values() for read in read_outcomes(self.folder / f"{lane}.jsonl")]

    def _wait(self, lanes: set[int]) -> None:
        """Wait until the processes ``lanes`` have ended, and report their progress now and then."""
        started = said = time.monotonic()
        while lanes:
            time.sleep(0.2)
            for lane in [*lanes]:
                child, status = os.waitpid(lane, os.WNOHANG)
                lanes.discard(child)
                self.broken |= status != 0
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                done = ", ".join(f"{value.value:,} {kind}s" for kind, value in self._done.items())
                print(f"faults: {done}; {max(0.0, self.end - said) / 60:.1f} minutes left", file=sys.stderr, flush=True)
        self.seconds = time.monotonic() - started

    def _bench(self, lane: int) -> Bench:
        folder = self.folder / str(lane)
        folder.mkdir()
        return Bench(folder, Injector(folder / "work"))

    def _lane(self, lane: int, first: Bench) -> None:
        """Run trials in a process of its own."""
        code = 1
        try:
            adopt_orphans()
            bench = first
            if lane:
                bench = self._bench(lane)
                bench.prepare(self.stages)
            with (self.folder / f"{lane}.jsonl").open("w") as file:
                while (number := self._take()) is not None:
                    stage, kind = self._trial(number)
                    outcome = bench.try_out(number, stage, kind, self.arguments.seed)
                    with self._done[kind].get_lock():
                        self._done[kind].value += outcome.counts[kind]
                    file.write(json.dumps(vars(outcome)) + "\n")
                    file.flush()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)

    def _take(self) -> int | None:
        """The number of the next trial, or None if all are done. Kinds with enough trials are skipped."""
        goals = {KILL: self.arguments.kills, FAULT: self.arguments.faults}
        with self._next.get_lock():
            while time.monotonic() < self.end:
                wanted = {kind for kind, goal in goals.items() if self._done[kind].value < goal}
                if not wanted:
                    return None
                number = self._next.value
                self._next.value += 1
                if self._trial(number)[1] in wanted:
                    return number
        return None

    def _trial(self, number: int) -> tuple[Stage, str]:
        """The stage and kind of a trial. In every round each stage comes as often as its weight, in a new order."""
        arguments = self.arguments
        deck = [stage for stage in self.stages for _ in range(stage.weight)]
        turn, place = divmod(number, len(deck))
        random.Random(f"{arguments.seed}-{turn}").shuffle(deck)
        kills = arguments.kills / KILLS_PER_TRIAL
        share = kills / max(kills + arguments.faults, 1)
        kind = KILL if random.Random(f"{arguments.seed}-{number}-kind").random() < share else FAULT
        return deck[place], FAULT if deck[place].errors else kind


def read_outcomes(path: Path) -> list[Outcome]:
    lines = path.read_text().splitlines() if path.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    for outcome in outcomes:
        outcome.counts = Counter(outcome.counts)
    return outcomes


def import_noted(path: Path) -> None:
    """Import the modules that a command has imported, so that its forks need not."""
    for name in path.read_text().split("\n") if path.exists() else ():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def run_below(folder: Path) -> int:
    """Restart this script with the library preloaded and one thread per process, as forks need it."""
    library = compile_library(folder)
    preload = {}
    if library is None:
        print("faults: no C compiler: only Python's own calls are disturbed.", file=sys.stderr)
    else:
        preload = {LIBRARY: str(library), "LD_PRELOAD": f"{library} {os.environ.get('LD_PRELOAD', '')}".strip()}
    environment = {**os.environ, **ONE_THREAD, **preload, FOLDER: str(folder), **QUIET}
    return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def main() -> int:
    arguments = read_arguments()
    stages = chosen_stages(arguments.stages)
    if FOLDER not in os.environ:
        with tempfile.TemporaryDirectory(prefix="m2dprep-faults-") as name:
            return run_below(Path(name).resolve())
    for name in {name: None for stage in with_predecessors(stages) for name in stage.imports}:
        importlib.import_module(name)
    in_small_parts()
    fork_stages()
    adopt_orphans()
    campaign = Campaign(arguments, Path(os.environ[FOLDER]))
    outcomes = campaign.run()
    notes = {"seed": arguments.seed, "preloaded": LIBRARY in os.environ, "seconds": round(campaign.seconds, 1)}
    shown = as_dict(outcomes, stages, notes) if arguments.json else as_text(outcomes, stages, notes)
    print(json.dumps(shown, indent=2) if arguments.json else shown)
    return int(campaign.broken or any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
