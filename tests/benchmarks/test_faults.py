"""benchmarks/faults.py: light stages survive a few kills and faults, and a command that does not is noticed.

The programs under the preloaded library, or in Python if there is no compiler, run as processes of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
needs_compiler = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler"
)
HOW = [pytest.param(True, id="library", marks=needs_compiler), pytest.param(False, id="python")]

# A command that takes an existing file for a finished one and ignores errors; the benchmark must notice it.
CARELESS = """
import json, sys
from pathlib import Path
import _fault_process, _fault_trials
from _fault_injection import Injection, Injector, FAIL, KILL_BEFORE
from _fault_stages import Stage

def careless(arguments):
    out = Path("out.txt")
    if not out.exists():
        with out.open("wb", buffering=0) as file:
            for word in (b"one ", b"two ", b"three"):
                try:
                    file.write(word)
                except OSError:
                    pass
    return 0

_fault_process.run_command = careless
root = Path(sys.argv[1])
bench = _fault_trials.Bench(root, Injector(root / "work"))
stage = Stage("careless", "careless")
(root / "kept/world").mkdir(parents=True)
bench._prepare(stage)
_fault_trials.choose = lambda chance, kind, calls, errors: INJECTION
_fault_trials.AT_RANDOM = 0
print(json.dumps([bench.try_out(number, stage, KIND, 0).problems for number in range(2)]))
"""

# A program that writes files with Python, NumPy and system calls, and prints which were refused.
WRITER = """
import errno, json, os, sys
from pathlib import Path
from _fault_injection import *
from _fault_process import Runner
import _fault_process

def write(arguments):
    try:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT)
        for _ in range(3):
            os.write(descriptor, b"x")
        os.fsync(descriptor)
        os.rename("a", "b")
        Path("c").mkdir()
        os.unlink("b")
    except OSError as error:
        print(errno.errorcode[error.errno])
    return 0

_fault_process.run_command = write
root = Path(sys.argv[1])
(root / "work").mkdir()
injector = Injector(root / "work")
runner = Runner(root / "work", root / "words", injector)
ended = []
for injection in (None, *(Injection(*each) for each in INJECTIONS)):
    for path in root.glob("work/*"):
        path.rmdir() if path.is_dir() else path.unlink()
    result = runner.run(["write"], injection)
    ended.append([result.code, result.out.strip(), sorted(path.name for path in root.glob("work/*")), result.struck])
print(json.dumps(ended))
"""


def compile_into(folder: Path) -> dict[str, str]:
    """The environment of a process with the library preloaded."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from _fault_injection import LIBRARY, compile_library
    finally:
        sys.path.remove(str(BENCHMARKS))
    library = compile_library(folder)
    assert library is not None
    return {LIBRARY: str(library), "LD_PRELOAD": str(library)}


def run(program: str, folder: Path, native: bool, **values: str) -> Any:
    """The JSON that ``program`` prints, with ``values`` for its names."""
    place = folder / "place"
    place.mkdir()
    source = "".join(f"{name} = {value}\n" for name, value in values.items())
    head, _, body = program.strip().partition("\nroot = ")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(BENCHMARKS), **(compile_into(folder) if native else {})}
    command = [sys.executable, "-c", f"{head}\n{source}\nroot = {body}", str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("native", HOW)
def test_calls_are_refused_or_the_last(tmp_path: Path, native: bool) -> None:
    """Errors happen once or from then on, and kills happen, each at the chosen call, and all are counted."""
    injections = """[
        (FAIL, ("write",), 2, errno.ENOSPC),
        (FAIL, ("rename", "mkdir"), 2, errno.EACCES, True),
        (FAIL, ("sync",), 1, errno.EIO),
        (KILL_BEFORE, ("unlink",), 1),
        (KILL_BEFORE, ("rename",), 1),
        (FAIL, ("write",), 9, errno.EIO),
    ]"""
    ended = run(WRITER, tmp_path, native, INJECTIONS=injections)
    assert ended == [
        [0, "", ["c"], 0],
        [0, "ENOSPC", ["a"], 1],
        [0, "EACCES", ["b"], 1],
        [0, "EIO", ["a"], 1],
        [-9, "", ["b", "c"], 1],
        [-9, "", ["a"], 1],
        [0, "", ["c"], 0],
    ]


@pytest.mark.slow
@needs_compiler
def test_kills_within_and_after_a_call(tmp_path: Path) -> None:
    injections = '[(KILL_AFTER, ("rename",), 1), (KILL_WITHIN, ("write",), 1), (KILL_AFTER, ("mkdir",), 1)]'
    ended = run(WRITER, tmp_path, True, INJECTIONS=injections)
    assert [[code, left] for code, _, left, _ in ended[1:]] == [[-9, ["b"]], [-9, ["a"]], [-9, ["b", "c"]]]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("kind", "injection", "problems"),
    [
        ("'kill'", 'Injection(KILL_BEFORE, ("write",), 3)', {"lost"}),
        ("'fault'", 'Injection(FAIL, ("write",), 2, 28)', {"exit 0, incomplete", "lost"}),
    ],
)
def test_a_careless_command_is_found_out(tmp_path: Path, kind: str, injection: str, problems: set[str]) -> None:
    for found in run(CARELESS, tmp_path, True, KIND=kind, INJECTION=injection):
        assert set(found) == problems, found
        assert "out.txt differs" in found["lost"]


@pytest.mark.slow
def test_light_stages_survive(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "faults.py", "--stages", "captions fill,stats", "--seed", "1", "--json"]
    command += ["--kills", "6", "--faults", "6", "--minutes", "3", "--jobs", "1"]
    done = subprocess.run(
        command, env={**ENVIRONMENT, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert done.returncode == 0, result["outcomes"]
    counts = result["stages"]["all"]
    assert counts["kill"] >= 6
    assert counts["fault"] >= 6
    assert counts["resumed equal"] == counts["trials"]
    assert not list(tmp_path.iterdir()), "nothing is left behind"
