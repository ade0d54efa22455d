"""The named recipes are the authors' commands; files and options win over them, and they win over the named size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from click.testing import CliRunner

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_captions
from m2dprep.cli.main import m2dprep
from m2dprep.cli.train import TrainRequest, read_request
from m2dprep.cli.train import train as command
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.training.config import SETTINGS, DataChoice, RunOptions, TrainConfig
from m2dprep.training.log import read_log
from m2dprep.training.recipes.second_generation import RECIPES
from m2dprep.training.train import train
from tests.conftest import write_store
from tests.tiny import TINY

STAGE1, STAGE2, STAGE21 = RECIPES


def asked(*arguments: object) -> TrainRequest:
    """What a command line asks for."""
    context = command.make_context("train", ["data", "-o", "run", *map(str, arguments)])
    options: dict[str, Any] = dict(context.params)
    for name in ("data", "output", "dry_run", "as_json"):
        options.pop(name)
    with context:
        return read_request(context, Path("data"), options)


def test_recipes_set_what_there_is_to_set() -> None:
    for recipe in RECIPES.values():
        assert set(recipe) <= set(SETTINGS)


def test_stage_1_is_the_authors() -> None:
    request = asked("--recipe", STAGE1)
    assert request.config.lr == pytest.approx(2.4e-3)
    model, config = request.model, request.config
    assert (model.sem_mode, model.loss_m2d, model.loss_clap, model.mask_ratio) == (1, 1.0, 0.01, 0.7)
    assert (config.epochs, config.batch_size, config.warmup_epochs, config.seed) == (300, 2048, 20, 7)
    assert (request.options.save.every_epochs, config.objective, model.input_size) == (50, "masked-clap", (80, 608))


@pytest.mark.parametrize(
    ("recipe", "heads", "mask", "seed"), [(STAGE2, "fresh", 0.3, 7), (STAGE21, "restored", 0.0, 0)]
)
def test_stages_2_and_2_1_are_the_authors(recipe: str, heads: str, mask: float, seed: int) -> None:
    request = asked("--recipe", recipe, "--init", "base.pth")
    config = request.config
    assert (config.objective, config.heads, config.audio_mask, config.seed) == ("text-clap", heads, mask, seed)
    assert config.lr == pytest.approx(2.4e-5)
    assert (config.epochs, config.warmup_epochs, config.audio_frames) == (30, 5, 1001)
    assert (config.betas, config.weight_decay, config.clip_grad, config.min_lr) == ((0.9, 0.95), 0.05, 3.0, 0.0)


def test_options_win_over_a_file_that_wins_over_a_recipe_that_wins_over_the_size(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"seed": 11, "batch_size": 64}))
    for order in (["--recipe", STAGE1, "--config", settings], ["--config", settings, "--recipe", STAGE1]):
        request = asked("--model", "tiny", "--batch-size", 32, "--loss-clap", 0.5, *order)
        assert (request.config.batch_size, request.config.seed, request.config.blr) == (32, 11, 3e-4)
        assert (request.model.loss_clap, request.model.embed_dim, request.model.input_size) == (0.5, 192, (80, 208))
        assert request.options.save.every_epochs == 50


def test_the_warm_up_of_a_recipe_keeps_its_share_of_the_epochs() -> None:
    assert asked("--recipe", STAGE2, "--init", "a", "--epochs", 6).config.warmup_epochs == 1
    assert asked("--recipe", STAGE2, "--init", "a", "--epochs", 6, "--warmup-epochs", 2).config.warmup_epochs == 2
    assert asked("--recipe", STAGE1, "--epochs", 30).config.warmup_epochs == 2


def test_a_recipe_that_is_not_there_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="m2d-clap-2025-stage1"):
        asked("--recipe", "m2d-clap-2026")
    result = CliRunner().invoke(m2dprep, ["train", "data", "-o", "run", "--recipe", "m2d-clap-2026"])
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"audio_mask": 0.5}, "audio_mask is 0.5, which only"), ({"text_model": "bert"}, "text_model is bert"),
     ({"heads": "restored"}, "heads is restored"), ({"strict_original": True}, "strict_original is True")],
)  # fmt: skip
def test_settings_of_another_objective_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TrainConfig(**changes)


@pytest.mark.parametrize(
    ("ends", "epoch", "expected"),
    [
        ({}, 7, (1.0, 0.01)),
        ({"loss_clap_end": 1.0}, 0, (1.0, 0.01)),
        ({"loss_clap_end": 1.0}, 1, (1.0, 0.01 + 0.99 / 10)),
        ({"loss_clap_end": 1.0}, 10, (1.0, 1.0)),
        ({"loss_m2d_end": 0.5, "loss_clap_end": 0.0}, 5, (0.75, 0.005)),
    ],
)
def test_weights_of_losses_change_in_equal_steps(
    ends: dict[str, float], epoch: int, expected: tuple[float, float]
) -> None:
    assert ModelConfig(**ends).epoch_weights(epoch, 10) == pytest.approx(expected)


@pytest.mark.slow
def test_weights_change_after_every_epoch_also_in_a_resumed_run(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    data = DataChoice(make_data(tmp_path / "data", clips=8, frames=60))
    model = replace(TINY, sem_mode=1, loss_m2d_end=0.5, loss_clap=0.2, loss_clap_end=1.0)
    config = TrainConfig(epochs=4, batch_size=4, blr=0.05, warmup_epochs=1)
    train(data, tmp_path / "run", model, config, RunOptions("tiny", log_every=1))
    lines = read_log(tmp_path / "run/log.jsonl")
    assert [line["weight_clap"] for line in lines] == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8])
    for line in lines:
        parts = line["weight_m2d"] * line["loss_m2d"] + line["weight_clap"] * line["loss_clap"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
    weights = torch.load(next((tmp_path / "run").rglob("checkpoint-4.pth")), weights_only=True)["model"]
    next((tmp_path / "run").rglob("checkpoint-4.pth")).unlink()
    train(data, tmp_path / "run", model, config, RunOptions("tiny", log_every=1))
    again = torch.load(next((tmp_path / "run").rglob("checkpoint-4.pth")), weights_only=True)["model"]
    assert all(value.equal(weights[key]) for key, value in again.items())


@pytest.mark.slow
@pytest.mark.parametrize("length", [3584, 4096])
def test_stage_1_learns_from_several_stores_of_the_lengths_of_large_models(
    tmp_path: Path, make_data: Callable[..., Path], length: int
) -> None:
    """gte-Qwen2 has 3,584 numbers per caption, NV-Embed-v2 4,096."""
    root = make_data(tmp_path / "data", clips=8, frames=60, dim=length)
    captions = read_captions(root / "captions.parquet")
    other = captions.set_column(1, captions.schema.field(1), pa.array([f"other {n}" for n in range(len(captions))]))
    write_store(root / "capemb_other", other, np.random.default_rng(0).normal(size=(len(captions), length)))
    write_store(root / "short", other, np.ones((len(captions), 16)))
    stores = tuple(root / name for name in ("capemb_made", "capemb_other"))
    model, config = replace(TINY, sem_mode=1), TrainConfig(epochs=1, batch_size=4, blr=0.05, warmup_epochs=0)
    result = train(DataChoice(root, stores=stores), tmp_path / "run", model, config, RunOptions("tiny"))
    weights = torch.load(result.checkpoint, weights_only=True)["model"]
    assert weights["text_proj.weight"].shape == (model.embed_dim, length)
    assert result.loss is not None and np.isfinite(result.loss)
    with pytest.raises(UserError, match=f"of {length} numbers, short of 16"):
        train(DataChoice(root, stores=(*stores, root / "short")), tmp_path / "no", model, config, RunOptions("tiny"))
