"""`m2dprep check` proves the files of runs: alone, in a data directory, and one that another replaces."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep
from m2dprep.m2dclap.checkpoint import find_checkpoint
from m2dprep.training.config import DataChoice, RunOptions, TrainConfig
from m2dprep.training.train import train
from tests.conftest import MakeData
from tests.tiny import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> Path:
    data = make_data(tmp_path_factory.mktemp("set") / "data", clips=12, frames=60)
    train(
        DataChoice(data),
        data / "runs" / "one",
        TINY,
        TrainConfig(epochs=2, batch_size=6, warmup_epochs=1),
        RunOptions("tiny"),
    )
    return data


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "runs" / "one", tmp_path / "one")
    return tmp_path / "one"


def check(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(m2dprep, ["check", str(folder), "--workers", "0", *options])


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_whole_run_is_proven_alone_and_in_its_data(finished: Path, run: Path) -> None:
    for folder in (run, finished):
        result = check(folder)
        assert "runs" in result.output
        assert "runs/one" not in result.output, "no problem is of the run"
    assert check(run).exit_code == 0
    assert "note" not in check(run).output
    assert "checkpoints were not read" in check(run, "--quick").output


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "settings": ("config.json", lambda run: flip(run / "config.json", 40)),
    "no settings": ("config.json", lambda run: (run / "config.json").unlink()),
    "settings for --config": ("train.yaml", lambda run: flip(run / "train.yaml", 20)),
    "their digest": ("train.yaml", lambda run: flip(run / "train.yaml.xxh3", 6)),
    "no settings for --config": ("train.yaml", lambda run: (run / "train.yaml").unlink()),
    "left out": ("skipped.csv", lambda run: flip(run / "skipped.csv", 3)),
    "a line of the log": ("log.jsonl", lambda run: flip(run / "log.jsonl", 12)),
    "the end of a log": (
        "log.jsonl",
        lambda run: (run / "log.jsonl").write_bytes((run / "log.jsonl").read_bytes()[:-9]),
    ),
    "the last line": (
        "log.jsonl",
        lambda run: (run / "log.jsonl").write_text("".join((run / "log.jsonl").read_text().splitlines(True)[:-1])),
    ),
    "no log": ("log.jsonl", lambda run: (run / "log.jsonl").unlink()),
    **{
        f"byte {at} of a checkpoint": ("checkpoint-", lambda run, at=at: flip(find_checkpoint(run), at))
        for at in (0, 12, 1000, -300, -40, -26, -25, -24, -10, -1)
    },
    "an earlier checkpoint in its place": (
        "checkpoint-2.pth",
        lambda run: shutil.copy(find_checkpoint(run).with_name("checkpoint-1.pth"), find_checkpoint(run)),
    ),
    "a cut checkpoint": (
        "checkpoint-",
        lambda run: find_checkpoint(run).write_bytes(find_checkpoint(run).read_bytes()[:-24]),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_with_the_file(run: Path, damage: str) -> None:
    file, make = DAMAGE[damage]
    make(run)
    result = check(run)
    assert result.exit_code == 4, result.output
    assert file in result.output


@pytest.mark.parametrize("file", ["config.json", "log.jsonl", "checkpoint-2.pth", "train.yaml", "skipped.csv"])
def test_a_file_of_another_run_is_told(finished: Path, run: Path, file: str) -> None:
    other = finished / "runs" / "other"
    if not other.exists():
        config = TrainConfig(epochs=2, batch_size=6, warmup_epochs=1, seed=1)
        train(DataChoice(finished), other, TINY, config, RunOptions("tiny"))
        (other / "skipped.csv").write_text("file_name,reason,message\na.npy,x,y\n")
    place = next(run.rglob(file))
    shutil.copy(next(other.rglob(file)), place)
    result = check(run)
    assert result.exit_code == 4, result.output
    assert file in result.output


def test_the_earlier_run_is_checked_too(run: Path) -> None:
    shutil.copytree(run, run / "earlier-run")
    assert check(run).exit_code == 0
    flip(find_checkpoint(run / "earlier-run"), 5000)
    assert "earlier-run" in check(run).output
    assert check(run).exit_code == 4


def test_others_load_our_checkpoints(run: Path) -> None:
    value = torch.load(find_checkpoint(run), weights_only=True)
    assert {"model", "optimizer", "epoch"} <= set(value)


def test_damaged_settings_are_not_trained_with(run: Path) -> None:
    flip(run / "train.yaml", 20)
    result = CliRunner().invoke(m2dprep, ["train", "--config", str(run / "train.yaml"), "-o", str(run / "again")])
    assert result.exit_code == 2
    assert "train.yaml is damaged" in result.output
