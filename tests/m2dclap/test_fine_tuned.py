"""Fine-tuned models are written as EVAR writes them: names, order, shapes and dtypes; and they are read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import PRESETS
from m2dprep.audioprep.logmel import LogMel
from m2dprep.m2dclap.audio_model import AudioModel
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.layouts import parts_of
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.reuse.fine_tuned import (
    FineTuned,
    evar_weights,
    load_encoder,
    load_evar_weights,
)
from m2dprep.m2dclap.reuse.initialise import initialise
from m2dprep.m2dclap.reuse.spectrogram import spectrogram_tables
from m2dprep.m2dclap.vit import interpolate_pos_embed
from tests.evaluation.made_clips import write_checkpoint
from tests.tiny import TINY, TINY_INFERABLE

GOLDEN = Path(__file__).parents[1] / "golden" / "keys_2025.json"
STATS = Normalization(-7.0, 4.0)
BACKBONE = "module.ar.runtime.backbone."


@pytest.mark.parametrize("count", [177, 164, 160])
def test_layout_is_evars(count: int) -> None:
    layout = json.loads(GOLDEN.read_text())["layouts"][f"c_evar_ft_{count}"]
    given = {
        name.removeprefix(BACKBONE): torch.empty(shape, device="meta")
        for name, shape, _ in layout["keys"]
        if name.startswith(BACKBONE)
    }
    with torch.device("meta"):
        encoder = AudioModel(ModelConfig(input_size=(80, 1001)), given)
        model = FineTuned(encoder, STATS, 527, flat=True)
    written = evar_weights(model, spectrogram_tables(PRESETS["16k"]))
    found = [[name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in written.items()]
    assert found == layout["keys"]
    assert len(found) == count


@pytest.mark.parametrize("preset", ["16k", "32k"])
def test_tables_compute_the_log_mel(preset: str) -> None:
    config = PRESETS[preset]
    tables = {name: table.numpy() for name, table in spectrogram_tables(config).items()}
    waveform = np.random.default_rng(0).normal(scale=0.1, size=config.sample_rate // 2).astype(np.float32)
    padded = np.pad(waveform, config.n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    power = sum((frames @ tables[f"stft.{wave}"][:, 0].T) ** 2 for wave in ("wsin", "wcos"))
    log_mel = np.log(tables["mel_basis"] @ power.T + config.eps)  # type: ignore[union-attr]
    np.testing.assert_allclose(log_mel, LogMel(config)(waveform)[0], atol=2e-3)
    assert tables["stft.window_mask"].shape == (1, config.n_fft, 1)


def fine_tuned(config: ModelConfig = TINY_INFERABLE, *, flat: bool = True, classes: int = 4) -> FineTuned:
    torch.manual_seed(1)
    return FineTuned(AudioModel(config, M2DCLAP(config).state_dict()), STATS, classes, flat=flat)


@pytest.mark.parametrize("flat", [True, False])
def test_weights_come_back(flat: bool) -> None:
    model, other = fine_tuned(flat=flat), fine_tuned(flat=flat)
    with torch.no_grad():
        for value in other.parameters():
            value += 1
    model.train()
    model(torch.randn(6, 1, 80, 48))  # changes the head's statistics
    load_evar_weights(other, evar_weights(model, spectrogram_tables(PRESETS["16k"])))
    for (name, one), (_, same) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert one.equal(same), name
    with pytest.raises(RuntimeError):
        load_evar_weights(fine_tuned(flat=flat, classes=5), evar_weights(model, {}))


def test_features_are_averages() -> None:
    """Flat over all patches, or over those that are seen; stacked over time with the lowest row first."""
    model = fine_tuned().eval()
    log_mel = torch.randn(2, 1, 80, 48)
    latent = model.encoder.encode(log_mel)[:, 1:]
    torch.testing.assert_close(model.features(log_mel), latent.mean(dim=1))
    seen = torch.tensor([[0, 4, 14], [1, 2, 3]])
    tokens = torch.stack([model.encoder.embed_patches(log_mel)[row, seen[row]] for row in (0, 1)])
    torch.testing.assert_close(model.features(log_mel, seen), model.encoder.encode_tokens(tokens)[:, 1:].mean(dim=1))
    stacked = fine_tuned(flat=False).eval()
    stacked.encoder.load_state_dict(model.encoder.state_dict())
    expected = torch.cat([latent[:, 3 * row : 3 * row + 3].mean(dim=1) for row in range(5)], dim=1)
    torch.testing.assert_close(stacked.features(log_mel), expected)
    with pytest.raises(ValueError, match="all patches"):
        stacked.features(log_mel, seen)


def test_heads_for_captions_are_kept_and_do_not_learn() -> None:
    model = fine_tuned()
    model(torch.randn(4, 1, 80, 48)).sum().backward()
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None}
    assert with_gradient == {name for name, value in model.named_parameters() if value.requires_grad}
    assert not any(name.startswith(("encoder.audio_proj", "encoder.text_proj")) for name in with_gradient)


@pytest.mark.parametrize("frames", [None, 48, 32, 80, 95])
def test_positions_are_cut_or_interpolated(tmp_path: Path, frames: int | None) -> None:
    checkpoint = Checkpoint.read(write_checkpoint(tmp_path))
    encoder = load_encoder(checkpoint, frames)
    assert encoder.config.input_size == (80, frames or 48)
    table = checkpoint.weights["pos_embed"]
    expected = interpolate_pos_embed(table, (5, 3), (5, (frames or 48) // 16), always=True)
    assert encoder.pos_embed.equal(expected)
    assert encoder.encode(torch.zeros(1, 1, 80, frames or 48)).shape == (1, 1 + 5 * ((frames or 48) // 16), 64)


def test_fewer_frames_than_a_patch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fewer than one patch"):
        load_encoder(Checkpoint.read(write_checkpoint(tmp_path)), 15)


def test_files_are_read_as_any_other(tmp_path: Path) -> None:
    """By what evaluates, by training that begins with them, and by what reads their classifier."""
    model = fine_tuned()
    place = tmp_path / "m2d_clap_vit_tiny-80x48p16x16p16k-x" / "weights_ep66it3124-0.49058_loss0.0147.pth"
    place.parent.mkdir()
    torch.save(evar_weights(model, spectrogram_tables(PRESETS["16k"])), place)
    checkpoint = Checkpoint.read(place)
    assert checkpoint.layout == "fine-tuned, 2024"
    assert checkpoint.norm_stats == STATS
    assert checkpoint.config.input_size == (80, 48)
    audio = checkpoint.load_audio_model(torch.device("cpu"))
    log_mel = torch.randn(1, 1, 80, 48)
    assert audio.encode(log_mel).equal(model.eval().encoder.encode(log_mel))
    head = parts_of(torch.load(place, weights_only=True)).head
    assert head["mlp.mlp.0.weight"].shape == (4, 64)
    assert initialise(M2DCLAP(TINY_INFERABLE), place).startswith("")
    begun = M2DCLAP(replace(TINY_INFERABLE, input_size=(80, 80)))
    initialise(begun, place)
    assert begun.blocks[0].mlp.fc1.weight.equal(model.encoder.blocks[0].mlp.fc1.weight)  # type: ignore[union-attr]


def test_a_model_without_captions_has_no_heads_for_them() -> None:
    weights: dict[str, Any] = {
        key: value for key, value in M2DCLAP(TINY).state_dict().items() if not key.startswith(("audio_", "text_"))
    }
    model = FineTuned(AudioModel(TINY, weights), STATS, 3, flat=True)
    assert not any("_proj." in key for key in evar_weights(model, {}) if "attn" not in key and "patch" not in key)
