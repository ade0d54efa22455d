"""Training starts from the weights of any form of checkpoint, at any duration; weights that do not fit are named."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.reuse.initialise import initialise
from m2dprep.m2dclap.vit import interpolate_pos_embed, sincos_positions
from m2dprep.training.config import DataChoice, RunOptions, TrainConfig
from m2dprep.training.train import train
from tests.tiny import TINY_INFERABLE

FOLDER = "m2d_clap_vit_tiny-80x48p16x16p16k-a"


def model(seed: int = 0, **changes: Any) -> M2DCLAP:
    torch.manual_seed(seed)
    return M2DCLAP(replace(TINY_INFERABLE, **changes))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(value: Any) -> Path:
        path = tmp_path / FOLDER / "checkpoint-3.pth"
        path.parent.mkdir(exist_ok=True)
        torch.save(value, path)
        return path

    return save


def encoder_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefixes = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm.")
    return {key: value for key, value in weights.items() if key.startswith(prefixes)}


def test_whole_checkpoints_are_taken_whole_but_for_the_statistics(save: Callable[..., Path]) -> None:
    weights = model(1).state_dict() | {"norm_stats": torch.tensor([-1.0, 2.0])}
    for value in ({"model": weights, "args": argparse.Namespace(epochs=3)}, weights):
        fresh = model(2)
        words = initialise(fresh, save(value))
        assert "new ones" not in words
        assert all(fresh.state_dict()[key].equal(weights[key]) for key in weights if key != "norm_stats")
        assert fresh.norm_stats.tolist() == pytest.approx([-7.1, 4.2])


@pytest.mark.parametrize("form", ["encoder", "fine-tuned", "backbone"])
def test_an_encoder_alone_is_its_own_target(save: Callable[..., Path], form: str) -> None:
    weights = encoder_of(model(1).state_dict())
    prefix = {"encoder": "", "fine-tuned": "module.ar.runtime.backbone.", "backbone": "backbone."}[form]
    value = {f"{prefix}{key}": tensor for key, tensor in weights.items()}
    fresh, before = model(2), model(2).state_dict()
    words = initialise(fresh, save({"model": {**value, "head.weight": torch.ones(2)}} if form != "encoder" else value))
    assert "new ones: decoder_embed (2)" in words
    assert "audio_proj (4)" in words
    after = fresh.state_dict()
    assert all(after[key].equal(value) for key, value in weights.items())
    assert after["target_blocks.1.attn.qkv.weight"].equal(weights["blocks.1.attn.qkv.weight"])
    assert after["target_norm.bias"].equal(weights["norm.bias"])
    assert after["decoder_embed.weight"].equal(before["decoder_embed.weight"])


def test_another_text_model_and_another_predictor_begin_anew(save: Callable[..., Path]) -> None:
    path = save({"model": model(1).state_dict()})
    words = initialise(model(2, off_emb_dim=24, decoder_embed_dim=64, decoder_num_heads=2), path)
    assert "text_proj (2)" in words
    assert "decoder_embed (2)" in words
    assert "audio_proj" not in words


@pytest.mark.parametrize("frames", [32, 96, 1001])
def test_another_duration(save: Callable[..., Path], frames: int) -> None:
    path = save({"model": model(1).state_dict()})
    longer = model(2, input_size=(80, frames))
    initialise(longer, path)
    assert longer.pos_embed.equal(sincos_positions(64, longer.config.grid_size))
    assert longer.clap_audio(torch.ones(1, 1, 80, frames)).shape == (1, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 128, "num_heads": 2}, "choose the --model and --patch-size"),
        ({"patch_size": (16, 4)}, "--patch-size"),
        ({"depth": 3}, r"lacks blocks\.2\."),
        ({"depth": 1}, r"more blocks than the model \(blocks\.1"),
    ],
)
def test_other_encoders_are_refused(save: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        initialise(model(2, **changes), save({"model": model(1).state_dict()}))


def test_learned_positions_are_trimmed_and_resampled_along_time() -> None:
    torch.manual_seed(0)
    table = torch.randn(1, 1 + 2 * 4, 8)
    grid = table[:, 1:].view(2, 4, 8)
    shorter = interpolate_pos_embed(table, (2, 4), (2, 3))
    assert shorter[:, :1].equal(table[:, :1])
    assert shorter[:, 1:].view(2, 3, 8).equal(grid[:, :3])
    longer = interpolate_pos_embed(table, (2, 4), (2, 8))[:, 1:].view(2, 8, 8)
    reversed_in_time = torch.cat([table[:, :1], grid.flip(1).reshape(1, 8, 8)], dim=1)
    backwards = interpolate_pos_embed(reversed_in_time, (2, 4), (2, 8))[:, 1:].view(2, 8, 8)
    torch.testing.assert_close(longer, backwards.flip(1))
    torch.testing.assert_close(longer.mean(1), grid.mean(1), atol=0.2, rtol=0)
    constant = torch.ones_like(table)
    torch.testing.assert_close(interpolate_pos_embed(constant, (2, 4), (2, 8)), torch.ones(1, 17, 8))
    assert interpolate_pos_embed(table, (2, 4), (2, 4)) is table


@pytest.mark.slow
def test_a_run_begins_with_a_checkpoint_and_notices_another(
    tmp_path: Path, make_data: Callable[..., Path], save: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataChoice(make_data(tmp_path / "data", clips=4, frames=60))
    config = TrainConfig(epochs=1, batch_size=4, warmup_epochs=0)
    path = save({"model": model(1).state_dict()})
    options = RunOptions("tiny", init=path)
    train(data, tmp_path / "run", TINY_INFERABLE, config, options)
    assert f"weights from {path}" in capsys.readouterr().err
    train(data, tmp_path / "run", TINY_INFERABLE, config, options)
    save({"model": model(5).state_dict()})
    with pytest.raises(FingerprintConflictError, match="init: "):
        train(data, tmp_path / "run", TINY_INFERABLE, config, options)


def test_weights_that_are_not_finite_begin_no_training(save: Callable[..., Path]) -> None:
    weights = model(1).state_dict()
    weights["blocks.0.norm1.weight"][0] = torch.inf
    with pytest.raises(UserError, match=r"checkpoint-3\.pth: 1 of its weights are not finite"):
        initialise(model(2), save(weights))
