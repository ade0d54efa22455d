"""Every command that replaces something: whatever stops it late, the earlier files or the new ones are there, all of
them, and the same command then gives the result of an undisturbed run.

The commands, what they replace and what comes before them are the stages of benchmarks/_fault_stages.py; its campaign
tries faults at random, this test the last calls, one after another. Earlier files are compared byte for byte.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.invocation import commands

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}

sys.path.insert(0, str(BENCHMARKS))
try:
    from _fault_injection import LIBRARY, compile_library
    from _fault_stages import STAGES
    from _fault_trials import with_predecessors
finally:
    sys.path.remove(str(BENCHMARKS))

# Events and scenes are tried by tests of their own, and by the campaign.
REPLACING = [stage for stage in STAGES if stage.replaces and stage.command.split()[0] not in ("events", "scenes")]
# Stages that need torch, themselves or for what comes before them, run in one process: it is imported once.
GROUPS: dict[str, list[str]] = {}
for _stage in REPLACING:
    _group = "torch" if any(each.imports for each in with_predecessors([_stage])) else "light"
    GROUPS.setdefault(_group, []).append(_stage.name)

# Tries every stage of NAMES at its last calls, and prints the problems by stage and failure.
PROGRAM = """
import errno, importlib, json, sys
from pathlib import Path
from _fault_injection import FAIL, KILL_AFTER, KILL_BEFORE, TAKES_SPACE, Injection, Injector
from _fault_process import adopt_orphans, fork_stages, freeze
from _fault_stages import STAGES, in_small_parts
from _fault_trials import FAULT, KILL, Bench, with_predecessors
from faults import import_noted

def failures(calls):
    "The last calls that take space, rename, or read the inputs, refused or the last of the process."
    space = sum(calls[kind] for kind in TAKES_SPACE)
    for back in (0, 2, 5):
        yield "disk full", FAULT, Injection(FAIL, TAKES_SPACE, max(1, space - back), errno.ENOSPC, True)
    for back in range(min(3, calls["rename"])):
        at = calls["rename"] - back
        yield "refused rename", FAULT, Injection(FAIL, ("rename",), at, errno.EACCES)
        yield "killed before a rename", KILL, Injection(KILL_BEFORE, ("rename",), at)
    yield "killed after the last rename", KILL, Injection(KILL_AFTER, ("rename",), max(1, calls["rename"]))
    for part in (0.5, 1.0):
        yield "unreadable", FAULT, Injection(FAIL, ("open", "read"), max(1, int(part * calls["open"])), errno.EIO, True)
    yield "no unlinking", FAULT, Injection(FAIL, ("unlink",), 1, errno.EACCES, True)

names, root = json.loads(sys.argv[1]), Path(sys.argv[2])
stages = [stage for stage in STAGES if stage.name in names]
for name in {name: None for stage in with_predecessors(stages) for name in stage.imports}:
    importlib.import_module(name)
in_small_parts()
fork_stages()
adopt_orphans()
bench = Bench(root, Injector(root / "work"))
bench.prepare(stages, lambda: import_noted(root / "modules"))
freeze()
found = {}
for stage in stages:
    tried, struck, problems = 0, 0, {}
    for number, (what, kind, injection) in enumerate(failures(bench.undisturbed[stage.name].calls)):
        outcome = bench.try_at(number, stage, kind, injection)
        tried, struck = tried + 1, struck + outcome.counts[kind]
        if outcome.problems:
            problems[f"{what}: {outcome.plan[0]}"] = outcome.problems
    found[stage.name] = {"tried": tried, "struck": struck, "problems": problems}
(root / "found.json").write_text(json.dumps(found))
"""


def test_every_command_with_overwrite_is_tried() -> None:
    names: dict[object, list[str]] = {}
    for name, command in commands():
        if any("--overwrite" in option.opts for option in command.params):
            names.setdefault(command.callback, []).append(f"{name} ")  # some commands have two names
    tried = [stage.command for stage in REPLACING if "--overwrite" in stage.arguments]
    missing = [each for each in names.values() if not any(command.startswith(tuple(each)) for command in tried)]
    assert missing == []
    assert len(names) >= 15


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("group", GROUPS)
def test_a_command_that_fails_late_loses_nothing(group: str, tmp_path: Path) -> None:
    library = compile_library(tmp_path)
    native = {} if library is None else {LIBRARY: str(library), "LD_PRELOAD": str(library)}
    (tmp_path / "bench").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(GROUPS[group]), str((tmp_path / "bench").resolve())],
        env={**os.environ, **ONE_THREAD, **OFFLINE, **native, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "bench" / "found.json").read_text())
    assert list(found) == GROUPS[group]
    for name, result in found.items():
        assert result["problems"] == {}, name
        assert result["struck"] >= result["tried"] // 2, f"{name}: the failures were not reached"
