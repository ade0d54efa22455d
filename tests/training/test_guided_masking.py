"""Training with masks that follow the clip: it goes on where it stopped, bit for bit, and says what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from m2dprep.cli.main import m2dprep
from m2dprep.m2dclap.checkpoint import find_checkpoint
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig, ValidationOptions
from m2dprep.training.data_dir import open_training_data
from m2dprep.training.dataset import BatchKey
from m2dprep.training.train import train
from tests.tiny import TINY

MakeData = Callable[..., Path]
TRAIN = TrainConfig(epochs=3, batch_size=4, blr=0.05, warmup_epochs=1)
OPTIONS = RunOptions(
    "tiny", save=SavePlan(every_steps=1, keep=0), validation=ValidationOptions(features_every=0), loader_workers=0
)


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(find_checkpoint(run), weights_only=True)["model"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("masking", ["weighted", "object", "blocks"])
def test_a_run_goes_on_with_the_masks_of_its_epoch(masking: str, tmp_path: Path, make_data: MakeData) -> None:
    data = make_data(tmp_path / "data", clips=8, frames=60)
    model = replace(TINY, masking=masking, hint_start=1, hint_power=1.0)
    train(DataChoice(data), tmp_path / "run", model, TRAIN, OPTIONS)
    whole = weights(tmp_path / "run")
    for path in (tmp_path / "run").rglob("checkpoint-*.pth"):
        if not path.stem.startswith(("checkpoint-0", "checkpoint-1")):
            path.unlink()
    train(DataChoice(data), tmp_path / "run", model, TRAIN, OPTIONS)
    again = weights(tmp_path / "run")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    train(DataChoice(data), tmp_path / "random", TINY, TRAIN, OPTIONS)
    random = weights(tmp_path / "random")
    assert not all(torch.equal(value, random[name]) for name, value in whole.items())


@pytest.mark.parametrize("masking", ["weighted", "object", "blocks"])
def test_other_masks_change_no_other_random_number(masking: str, tmp_path: Path, make_data: MakeData) -> None:
    data = open_training_data(DataChoice(make_data(tmp_path / "data", clips=8, frames=60)), 80)
    key = BatchKey(2, torch.arange(4).numpy())
    plain = data.dataset(TINY, TRAIN)[key]
    guided = data.dataset(replace(TINY, masking=masking, hint_start=1), TRAIN)[key]
    assert plain.hint is None
    assert guided.hint is not None
    assert float(guided.hint) == 1 - (2 / 3) ** 2
    assert torch.equal(guided.noise[:, : TINY.num_patches], plain.noise)
    for name in ("log_mel", "frames", "text_embedding", "clip"):
        assert torch.equal(getattr(guided, name), getattr(plain, name))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--masking", "weighted"], "hint_start 50 is not within the 30 epochs"),
        (["--hint-power", "1"], "hint_power"),
        (["--masking", "blocks", "--mask-weight", "variance", "--hint-ratio", "0"], "mask_weight"),
    ],
)
def test_the_command_refuses_what_would_do_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        m2dprep, ["train", str(tmp_path), "--model", "tiny", "-o", str(tmp_path / "run"), *arguments]
    )
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "run").exists()
