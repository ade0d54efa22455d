"""A clip of any length is one vector, in chunks, whole or fused, and the same one alone and in any batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.fusion.channels import ChannelRule, channels_of
from m2dprep.m2dclap.fusion.patches import FusedPatchEmbed
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.vit import interpolate_pos_embed
from m2dprep.m2dclap.whole import LEAST_SHARE, length_batches, positions_of
from tests.tiny import TINY

pytestmark = pytest.mark.slow

STATS = Normalization(-7.0, 4.0)
LENGTHS = (1, 7, 16, 30, 48, 49, 95, 96, 97, 210, 211, 1000)
WAYS = [
    ("daf", {}), ("aff", {}), ("iaff", {}), ("aff", {"length": "chunks"}), ("aff", {"length": "whole"}),
    ("none", {"length": "whole"}), ("none", {"length": "whole", "positions": "chunked"}), ("none", {}),
]  # fmt: skip


def model(fusion: str = "none", **changes: Any) -> M2DCLAP:
    torch.manual_seed(0)
    made = M2DCLAP(replace(TINY, depth=2, off_emb_dim=8, fusion=fusion, **changes)).eval()
    if isinstance(made.patch_embed, FusedPatchEmbed) and made.patch_embed.gate is not None:
        torch.nn.init.normal_(made.patch_embed.gate)
    return made


def log_mel(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).normal(-7, 4, (1, 80, frames)).astype(np.float32)


CLIPS = [log_mel(frames) for frames in LENGTHS]


@pytest.mark.parametrize("sem_mode", [0, 1])
@pytest.mark.parametrize(("fusion", "settings"), WAYS)
def test_alone_and_in_any_batch(fusion: str, settings: dict[str, Any], sem_mode: int) -> None:
    made = model(fusion, sem_mode=sem_mode)
    order = np.random.default_rng(0).permutation(len(CLIPS))
    expected = AudioEncoder(made, STATS, **settings).encode(CLIPS)
    assert expected.clap is not None
    for batch_size in (1, 3):
        encoder = AudioEncoder(made, STATS, batch_size, **settings)
        alone = [encoder.encode([clip]) for clip in CLIPS]
        mixed = encoder.encode([CLIPS[clip] for clip in order])
        for place, clip in enumerate(order):
            torch.testing.assert_close(alone[clip].rows[0], expected.rows[clip], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(alone[clip].clap[0], expected.clap[clip], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mixed.rows[place], expected.rows[clip], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mixed.clap[place], expected.clap[clip], atol=1e-5, rtol=1e-5)
    again = AudioEncoder(made, STATS, **settings).encode(CLIPS)
    assert torch.equal(again.rows, expected.rows)
    assert torch.equal(again.clap, expected.clap)
    assert len(np.unique(expected.clap.numpy().round(5), axis=0)) == len(CLIPS)


@pytest.mark.parametrize(("fusion", "settings"), WAYS)
def test_a_clip_that_is_not_longer_is_what_it_always_was(fusion: str, settings: dict[str, Any]) -> None:
    """Also of one frame: fusing, or encoding whole, changes nothing for a clip that fits into the model."""
    short = [clip for clip in CLIPS if clip.shape[-1] <= 48]
    found = AudioEncoder(model(fusion), STATS, **settings).encode(short)
    expected = AudioEncoder(model(), STATS).encode(short)
    torch.testing.assert_close(found.rows, expected.rows, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.clap, expected.clap, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("frames", [49, 211, 1000])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_fused_clip_is_its_channels(frames: int, antialias: bool) -> None:
    made = model("aff", antialias=antialias)
    channels, _ = channels_of(log_mel(frames)[0], ChannelRule(48, antialias=antialias))
    with torch.inference_mode():
        normalised = torch.from_numpy(STATS.normalise(channels))[None]
        latent = made.encode(normalised, torch.tensor([True]))[:, 1:]
        expected = F.normalize(made.project_tokens(latent), dim=-1)
    found = AudioEncoder(made, STATS).embed([log_mel(frames)])
    assert found == pytest.approx(expected.numpy(), abs=1e-6)
    assert found != pytest.approx(AudioEncoder(made, STATS, length="chunks").embed([log_mel(frames)]), abs=1e-3)


@pytest.mark.parametrize(
    ("fill", "frames", "same_as"),
    [
        ("repeat", 20, np.tile(log_mel(20), 3)[..., :48]),
        ("repeatpad", 20, np.tile(log_mel(20), 2)),
        ("repeatpad", 30, log_mel(30)),
        ("repeat", 1, np.tile(log_mel(1), 48)),
        ("repeatpad", 1, np.tile(log_mel(1), 48)),
    ],
)
def test_short_clips_that_are_repeated(fill: str, frames: int, same_as: np.ndarray) -> None:
    found = AudioEncoder(model("aff", fusion_fill=fill), STATS).embed([log_mel(frames)])
    assert found == pytest.approx(AudioEncoder(model(), STATS).embed([same_as]), abs=1e-6)


def test_a_whole_clip_is_one_sequence() -> None:
    """As a model would have it whose input is as long as the clip."""
    made, clip = model(), log_mel(210)  # 14 columns, of which 3 are known
    longer = M2DCLAP(replace(made.config, input_size=(80, 224))).eval()
    longer.load_state_dict({**made.state_dict(), "decoder_pos_embed": longer.decoder_pos_embed, "pos_embed":
        interpolate_pos_embed(made.pos_embed, (5, 3), (5, 14), always=True)})  # fmt: skip
    expected = AudioEncoder(longer, STATS).embed([clip])
    assert AudioEncoder(made, STATS, length="whole").embed([clip]) == pytest.approx(expected, abs=1e-6)
    chunked = AudioEncoder(made, STATS, length="whole", positions="chunked").embed([clip])
    assert chunked != pytest.approx(expected, abs=1e-3)


def test_positions() -> None:
    made = model()
    table = made.pos_embed[0, 1:].view(5, 3, -1)
    for how in ("interpolated", "chunked"):
        assert torch.equal(positions_of(made, 2, how), table[:, :2])
        assert torch.equal(positions_of(made, 3, how), table)
    assert torch.equal(positions_of(made, 8, "chunked"), torch.cat([table, table, table[:, :2]], dim=1))
    assert positions_of(made, 8, "interpolated").shape == (5, 8, 32)


@pytest.mark.parametrize(
    ("columns", "budget", "expected"),
    [
        ([], 10, []),
        ([1], 10, [[0]]),
        ([3, 9, 3, 9], 18, [[1, 3], [0, 2]]),
        ([10, 8, 7, 4], 40, [[0, 1], [2], [3]]),  # not shorter than three quarters of the longest
        ([50, 2, 2], 4, [[0], [1, 2]]),  # beyond the budget, alone
        ([4, 4, 4, 4, 4], 8, [[0, 1], [2, 3], [4]]),
    ],
)
def test_batches_of_like_length(columns: list[int], budget: int, expected: list[list[int]]) -> None:
    assert length_batches(columns, budget) == expected


def test_batches_stay_within_their_budget() -> None:
    columns = np.random.default_rng(0).integers(1, 400, 500).tolist()
    batches = length_batches(columns, 800)
    assert sorted(clip for batch in batches for clip in batch) == list(range(500))
    for batch in batches:
        longest = max(columns[clip] for clip in batch)
        assert len(batch) * longest <= 800
        assert min(columns[clip] for clip in batch) >= LEAST_SHARE * longest
    assert len(batches) < 200


@pytest.mark.parametrize(
    ("fusion", "settings", "words"),
    [
        ("none", {"length": "fused"}, "is for checkpoints with fusion"),
        ("aff", {"length": "long"}, "length is 'long'; it must be one of chunks, whole, fused"),
        ("none", {"length": "whole", "positions": "sine"}, "positions is 'sine'"),
    ],
)
def test_what_cannot_be_asked_for(fusion: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AudioEncoder(model(fusion), STATS, **settings)


@pytest.mark.parametrize(("fusion", "settings"), WAYS)
def test_latents_have_places_in_time_whatever_the_way(fusion: str, settings: dict[str, Any]) -> None:
    found = AudioEncoder(model(fusion), STATS, **settings).latents(CLIPS)
    expected = AudioEncoder(model(), STATS).latents(CLIPS)
    assert [own.shape[1] for own in found] == [-(-frames // 16) for frames in LENGTHS]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_nothing_is_nothing() -> None:
    for fusion, settings in WAYS:
        assert AudioEncoder(model(fusion), STATS, **settings).encode([]).rows.shape == (0, 5, 32)
