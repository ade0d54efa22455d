"""A head that begins as a linear probe is that of `evaluate linear`, stays normalised alike, and goes on as any run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.protocols.result import Result
from tests.evaluation.made_clips import write_checkpoint
from tests.training.fine_tuning.made import fine_tune, lines_of, newest_checkpoint, write_labels

pytestmark = pytest.mark.slow
MakeData = Callable[..., Path]
PROBE = (
    "--recipe", "small", "--head", "probe", "--frames", 48, "--epochs", 2, "--batch-size", 8, "--log-every", 1,
    "--seed", 43, "--loader-workers", 0,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> Path:
    """Log-mels of the model's own width with the three splits, as a table and as a task; and a checkpoint."""
    place = tmp_path_factory.mktemp("set")
    data = make_data(place / "data", clips=60, frames=48)
    names = sorted(one.relative_to(data).as_posix() for one in data.rglob("made_lms/*.npy"))
    splits = ["train" if number < 28 else "valid" if number < 36 else "test" for number in range(len(names))]
    rows = [(name, f"kind_{name[-5]}", split) for name, split in zip(names, splits, strict=True)]
    (place / "task").mkdir()
    write_labels(place / "task/metadata.csv", rows, ("file_name", "label", "split"))
    (place / "task/task.yaml").write_text("name: kinds\n")
    (place / "task/prepared.json").write_text(json.dumps({"root": str(data)}))
    write_checkpoint(place)
    return place


def probed(place: Path, out: Path, *more: object) -> str:
    checkpoint = next(place.glob("m2d_clap_vit_tiny-*/checkpoint-1.pth"))
    result = fine_tune(checkpoint, place / "task", *PROBE, "-o", out, *more)
    assert result.exit_code == 0, result.output
    return result.stderr


def test_it_begins_with_the_head_of_linear_evaluation(place: Path, tmp_path: Path) -> None:
    """A model that hardly learns any more has its score, class for class; statistics are those of all features."""
    said = probed(place, tmp_path / "run", "--lr", 1e-12, "--min-lr", 0)
    checkpoint = next(place.glob("m2d_clap_vit_tiny-*/checkpoint-1.pth"))
    command = ["evaluate", "linear", checkpoint, place / "task", "--lr", 3e-3, "--seeds", 43, "-o", tmp_path / "l.json"]
    assert CliRunner().invoke(m2dprep, [*map(str, command)]).exit_code == 0
    linear, tuned = Result.read(tmp_path / "l.json"), Result.read(tmp_path / "run/result.json")
    assert tuned.score == linear.score and tuned.score > 0.25
    assert tuned.details["predicted"] == linear.details["predicted"]
    assert f"linear probe: valid accuracy {linear.details['runs'][0]['best_valid']:.4f}" in said
    weights = torch.load(next((tmp_path / "run").rglob("weights_*.pth")), weights_only=True)
    state = torch.load(newest_checkpoint(tmp_path / "run"), weights_only=True)["model"]
    for found in (weights, state):
        assert found["module.head.norm.running_mean"].abs().max() > 1e-3
        assert found["module.head.norm.num_batches_tracked"] == 0


def test_statistics_stay_and_the_rest_learns(place: Path, tmp_path: Path) -> None:
    probed(place, tmp_path / "still", "--lr", 1e-12, "--min-lr", 0)
    probed(place, tmp_path / "run", "--lr", 1e-3)
    one, other = (torch.load(newest_checkpoint(tmp_path / run), weights_only=True)["model"] for run in ("still", "run"))
    for name in ("running_mean", "running_var"):
        assert one[f"module.head.norm.{name}"].equal(other[f"module.head.norm.{name}"])
    assert not one["module.head.mlp.mlp.0.weight"].equal(other["module.head.mlp.mlp.0.weight"])
    first = next(key for key in one if key.endswith("blocks.0.attn.qkv.weight"))
    assert not one[first].equal(other[first])


def test_it_goes_on_without_another_probe(place: Path, tmp_path: Path) -> None:
    """From its first checkpoint, to the same log and weights."""
    probed(place, tmp_path / "whole", "--save-every", 1, "--keep", 0)
    probed(place, tmp_path / "cut", "--save-every", 1, "--keep", 0)
    cut = tmp_path / "cut"
    for path in [*cut.rglob("weights_*.pth"), cut / "result.json", newest_checkpoint(cut)]:
        path.unlink()
    said = probed(place, cut, "--save-every", 1, "--keep", 0)
    assert "going on from" in said and "linear probe" not in said
    assert lines_of(cut)[-1]["loss"] == lines_of(tmp_path / "whole")[-1]["loss"]
    one, other = (torch.load(newest_checkpoint(tmp_path / run), weights_only=True)["model"] for run in ("whole", "cut"))
    assert all(value.equal(other[key]) for key, value in one.items())


def test_several_labels(place: Path, tmp_path: Path) -> None:
    rows = [
        (f"made_lms/clip{number:04d}-{number % 4}.npy", f"kind_{number % 4}{',odd' if number % 2 else ''}",
         "train" if number < 40 else "test")
        for number in range(60)
    ]  # fmt: skip
    labels = write_labels(tmp_path / "labels.csv", rows, ("file_name", "label", "split"))
    checkpoint = next(place.glob("m2d_clap_vit_tiny-*/checkpoint-1.pth"))
    result = fine_tune(checkpoint, labels, place / "data", *PROBE, "-o", tmp_path / "run", "--lr", 1e-12, "--min-lr", 0)
    assert result.exit_code == 0, result.output
    found = Result.read(tmp_path / "run/result.json")
    assert found.metric == "mAP" and found.score is not None and found.score > 0.5
    assert "linear probe: valid mAP" in result.stderr


def test_one_label_has_a_mean_average_precision_too(place: Path, tmp_path: Path) -> None:
    probed(place, tmp_path / "run")
    details = Result.read(tmp_path / "run/result.json").details
    assert 0 < details["mAP"] <= 1
    assert details["mAP"] == pytest.approx(np.mean([one["ap"] for one in details["per_class"]]))
