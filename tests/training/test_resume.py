"""A run that is killed at any point, or told to stop, and started again equals an undisturbed run bit for bit.

Runs are forks, so that each may be killed for real.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2dprep.artifacts.tables import read_file_list, write_file_list
from m2dprep.m2dclap.checkpoint import find_checkpoint
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig, ValidationOptions
from m2dprep.training.log import RunLog, read_log
from m2dprep.training.signals import REQUEUE_EXIT_CODE, StoppedError
from m2dprep.training.speed import TIMING_METRICS
from m2dprep.training.state import TrainState
from m2dprep.training.train import train
from tests.forks import ended, run_together, start
from tests.tiny import TINY

pytestmark = pytest.mark.slow

MakeData = Callable[..., Path]
TRAIN = TrainConfig(
    epochs=3,
    batch_size=8,
    accumulate=2,
    blr=0.05,
    warmup_epochs=1,
    ema_decay_init=0.9,
    ema_decay_end=0.99,
    noise_ratio=0.1,
)
OPTIONS = RunOptions(
    "tiny",
    log_every=3,
    save=SavePlan(every_steps=2, keep=2),
    validation=ValidationOptions(features_every=1),
    loader_workers=0,
)
Point = tuple[str, int]


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> DataChoice:
    """36 clips of which 3 are held out and 2 are mixed in: 33 to train on, which 8 does not divide."""
    data = make_data(tmp_path_factory.mktemp("set") / "data", clips=36, frames=60)
    names = read_file_list(data / "files_made.csv")
    write_file_list(data / "held_out.csv", names[:3])
    write_file_list(data / "noise.csv", names[3:5])
    return DataChoice(data, held_out=(data / "held_out.csv",), backgrounds=(data / "noise.csv",))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Calls an action when it has been passed a given number of times."""

    def __init__(self, passes: int, act: Callable[[], None]) -> None:
        self._left, self._act = passes, act

    def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            self._act()


def _wrap(owner: Any, name: str, *, before: Callable[..., None] | None = None, after: Countdown | None = None) -> None:
    """Call functions of the test before and after a method of ``owner``; only checkpoints count as renamed."""
    method = getattr(owner, name)

    def wrapped(self: Any, *arguments: Any) -> Any:
        counts = name != "replace" or str(arguments[0]).endswith(".pth")
        if before is not None and counts:
            before(self)
        value = method(self, *arguments)
        if after is not None and counts:
            after()
        return value

    setattr(owner, name, wrapped)


def _write_half_a_line(log: RunLog) -> None:
    log._file.write('{"step": 3, "ep')
    log._file.flush()
    _die()


def _arm(point: Point) -> None:
    """Kill or signal this process at a point of training: (where, how often the point is passed before)."""
    where, passes = point
    if where.startswith("SIG"):
        tell = Countdown(passes, lambda: os.killpg(0, signal.Signals[where]))  # also its loading process
        return _wrap(M2DCLAP, "update_target", after=tell)
    die = Countdown(passes, _die)
    return {
        "within a step": lambda: _wrap(M2DCLAP, "update_target", after=die),
        "within a line": lambda: _wrap(RunLog, "write", before=_write_half_a_line),
        "after a line": lambda: _wrap(RunLog, "write", after=die),
        "before saving": lambda: _wrap(TrainState, "save", before=lambda _: die()),
        "before rename": lambda: _wrap(pathlib.Path, "replace", before=lambda _: die()),
        "after rename": lambda: _wrap(pathlib.Path, "replace", after=die),
    }[where]()


def _train(choice: DataChoice, out: Path, point: Point | None = None) -> None:
    os.setpgrp()
    if point is not None:
        _arm(point)
    try:
        train(choice, out, TINY, TRAIN, replace(OPTIONS, loader_workers=1 if point == ("SIGUSR1", 4) else 0))
    except StoppedError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def run(choice: DataChoice, out: Path, point: Point | None = None) -> int | None:
    """The exit code of a process that trains, and gets no further than a point of training."""
    return ended(start(_train, choice, out, point, output=written_by(out)))


def written_by(out: Path) -> Path:
    return out.parent / f"{out.name}.err"


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = read_log(out / "log.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMING_METRICS} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    assert log_of(first) == log_of(second)
    one, other = (torch.load(find_checkpoint(out), weights_only=True) for out in (first, second))
    assert find_checkpoint(first).name == find_checkpoint(second).name == "checkpoint-3.pth"
    assert one["m2dprep"]["step"] == other["m2dprep"]["step"]
    for key, value in one["model"].items():
        assert value.equal(other["model"][key]), key
    for number, moments in one["optimizer"]["state"].items():
        for key, value in moments.items():
            assert value.equal(other["optimizer"]["state"][number][key]), (number, key)
    assert not list(first.rglob("*.tmp"))


@pytest.fixture(scope="module")
def undisturbed(choice: DataChoice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(choice, out) == 0
    assert [line["step"] for line in log_of(out)] == [3, 4, 6, 8, 9, 12]
    return out


def test_killed_at_every_kind_of_point(choice: DataChoice, undisturbed: Path, tmp_path: Path) -> None:
    """Nine kills in one run, each after some steps of progress or none."""
    points = [
        ("within a step", 0),
        ("within a line", 0),
        ("before rename", 0),
        ("after rename", 0),
        ("within a step", 2),
        ("after a line", 0),
        ("before saving", 1),
        ("after rename", 0),
        ("after a line", 0),
    ]
    out = tmp_path / "run"
    for point in points:
        assert run(choice, out, point) == -signal.SIGKILL, point
    assert run(choice, out) == 0
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_told_to_stop_it_saves_and_exits_with_75(
    choice: DataChoice, undisturbed: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "run"
    assert run(choice, out, (name, 4)) == REQUEUE_EXIT_CODE
    assert find_checkpoint(out).name == "checkpoint-1-1.pth", "after step 5, of 4 an epoch"
    assert len(list(out.rglob("*.pth"))) == 2
    assert f"told to stop ({name}). Saved after step 5 of 12" in written_by(out).read_text()
    assert run(choice, out) == 0
    assert_same_run(out, undisturbed)


def run_pair(
    choice: DataChoice, out: Path, points: tuple[Point | None, Point | None] = (None, None)
) -> list[int | None]:
    return run_together(_train, [(choice, out, point) for point in points], written_by(out))


def test_two_processes_killed_and_stopped(choice: DataChoice, undisturbed: Path, tmp_path: Path) -> None:
    out, pair = tmp_path / "run", tmp_path / "pair"
    assert run_pair(choice, pair) == [0, 0]
    assert run_pair(choice, out, (None, ("within a step", 4)))[1] == -signal.SIGKILL
    assert run_pair(choice, out, (None, ("SIGTERM", 2))) == [REQUEUE_EXIT_CODE] * 2, "one is told, both stop"
    assert find_checkpoint(out).name == "checkpoint-1-3.pth", "three steps after that of step 4"
    assert run_pair(choice, out) == [0, 0]
    assert_same_run(out, pair)
    for ours, alone in zip(log_of(pair), log_of(undisturbed), strict=True):
        assert ours.keys() == alone.keys()
        for name in {"loss", "loss_m2d", "loss_clap", "grad_norm", "valid_loss", "rank_me"} & set(ours):
            assert ours[name] == pytest.approx(alone[name], rel=1e-3), name
    half = tmp_path / "half"
    shutil.copytree(undisturbed, half)
    assert run_pair(choice, half) == [0, 0], "a run of one process is the same run for two"
