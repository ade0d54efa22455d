"""Clips of any length are encoded in chunks of the model's width, as the original does it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m2dprep.m2dclap.encode import AudioEncoder, embed_texts
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import M2DCLAP
from tests.tiny import TINY

STATS = Normalization(-7.0, 4.0)


def make_model(frames: int) -> M2DCLAP:
    torch.manual_seed(0)
    return M2DCLAP(replace(TINY, input_size=(80, frames), depth=2, off_emb_dim=8)).eval()


def log_mel(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-7, 4, (1, 80, frames)).astype(np.float32)


def patches_encoded(model: M2DCLAP, frames: int) -> int:
    """The number of patch tokens that a clip's average covers."""
    counts = []
    encode = model.encode

    def counting(chunk: torch.Tensor) -> torch.Tensor:
        latents = encode(chunk)
        counts.append(len(latents) * (latents.shape[1] - 1))  # of all chunks of the clip
        return latents

    model.encode = counting  # type: ignore[method-assign]
    AudioEncoder(model, STATS).embed([log_mel(frames)])
    model.encode = encode  # type: ignore[method-assign]
    return sum(counts)


def test_ten_seconds_are_315_patches_of_the_base_input() -> None:
    assert patches_encoded(make_model(608), 1001) == 315


@pytest.mark.parametrize(
    ("width", "frames", "columns"),
    [(48, 48, 3), (48, 96, 6), (48, 49, 4), (48, 1, 1), (1001, 1001, 62), (1001, 1000, 62)],
)
def test_patches_of_other_lengths(width: int, frames: int, columns: int) -> None:
    assert patches_encoded(make_model(width), frames) == 5 * columns


def test_average_is_over_all_patches_of_all_chunks() -> None:
    model, clip = make_model(48), log_mel(60)
    normalised = torch.from_numpy(np.pad(STATS.normalise(clip), [(0, 0), (0, 0), (0, 4)]))[None]
    with torch.no_grad():
        patches = torch.cat([model.encode(normalised[..., :48])[:, 1:], model.encode(normalised[..., 48:])[:, 1:]], 1)
        expected = F.normalize(model.audio_proj(patches.mean(dim=1)), dim=-1)
    assert patches.shape[1] == 20
    assert AudioEncoder(model, STATS).embed([clip]) == pytest.approx(expected.numpy(), abs=1e-6)


def test_a_clip_of_the_models_width_is_its_clap_audio() -> None:
    model, clip = make_model(48), log_mel(48)
    with torch.no_grad():
        expected = F.normalize(model.clap_audio(torch.from_numpy(STATS.normalise(clip))[None]), dim=-1)
    assert AudioEncoder(model, STATS).embed([clip]) == pytest.approx(expected.numpy(), abs=1e-6)


def test_order_and_batches_do_not_matter() -> None:
    model = make_model(48)
    clips = [log_mel(frames, seed) for seed, frames in enumerate((50, 48, 50, 100, 48, 50))]
    together = AudioEncoder(model, STATS, batch_size=2).embed(clips)
    alone = np.concatenate([AudioEncoder(model, STATS).embed([clip]) for clip in clips])
    assert together == pytest.approx(alone, abs=1e-6)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(6), abs=1e-6)


def test_texts_become_unit_vectors() -> None:
    model = make_model(48)
    texts = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    directions = embed_texts(model, texts)
    assert directions.shape == (3, 32)
    assert directions == pytest.approx(embed_texts(model, texts * 5), abs=0.5)
    assert np.linalg.norm(directions, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
