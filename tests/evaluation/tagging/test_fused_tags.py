"""A classifier that fuses scores longer sounds by their channels, whatever pieces they come in, as it was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.evaluation.tagging import scores
from m2dprep.evaluation.tagging.scores import Batcher, Scored
from m2dprep.evaluation.tagging.sounds import Segment
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.fusion.channels import ChannelRule, filled_up
from m2dprep.m2dclap.heads import ClassifierHead
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.reuse.classifier import Classifier, column_frames, load_head
from tests.tiny import TINY

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FRAMES = (5, 20, 48, 49, 130, 300, 1000)


def a_checkpoint(stacked: bool, **changes: Any) -> Checkpoint:
    torch.manual_seed(1)
    config = replace(TINY, **changes)
    weights = {key: value.clone() for key, value in M2DCLAP(config).state_dict().items()}
    if "patch_embed.gate" in weights:
        torch.nn.init.normal_(weights["patch_embed.gate"])
    head = ClassifierHead(config.embed_dim * (config.grid_size[0] if stacked else 1), 7).state_dict()
    head["mlp.mlp.0.weight"] *= 100
    return Checkpoint(Path("checkpoint-1.pth"), config, weights, {}, head_weights=head)


def log_mel(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).normal(-7, 4, (1, 80, frames)).astype(np.float32)


def scored(checkpoint: Checkpoint, *, columns: bool, batch_size: int) -> list[Scored]:
    """All clips, in pieces, each of which goes to the model as soon as there is a batch."""
    batcher = Batcher(Classifier(checkpoint, CPU, batch_size), batch_size)
    complete = []
    for frames in FRAMES:
        one = Scored(frames, Segment(0, frames, 0.0, frames / 100), frames, columns)
        clip = log_mel(frames)
        for start in range(0, frames, batcher.most_frames):
            complete += batcher.add(one, clip[..., start : start + batcher.most_frames])
    complete += batcher.flush()
    assert sorted(one.owner for one in complete) == sorted(FRAMES), "each is complete once"
    return sorted(complete, key=lambda one: one.frames)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "aff"},
        {"fusion": "daf", "antialias": True},
        {"fusion": "daf", "fusion_fill": "repeat"},
        {"fusion": "aff", "fusion_fill": "repeatpad"},
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_fused_clips(
    changes: dict[str, Any], stacked: bool, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "CHUNKS_PER_PIECE", 2)
    checkpoint = a_checkpoint(stacked, **changes)
    encoder = AudioEncoder(checkpoint.load_audio_model(CPU), checkpoint.norm_stats)
    encoded = encoder.encode([log_mel(frames) for frames in FRAMES])
    expected = load_head(checkpoint, CPU)(encoded.stacked if stacked else encoded.flat)
    for columns in (False, True):
        found = scored(checkpoint, columns=columns, batch_size=batch_size)
        logits = torch.from_numpy(np.stack([one.logits for one in found]))
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    rule = ChannelRule(checkpoint.config.input_size[1], checkpoint.config.fusion_fill)
    heard = [log_mel(frames) if frames > rule.width else filled_up(log_mel(frames), rule) for frames in FRAMES]
    chunks = AudioEncoder(checkpoint.load_audio_model(CPU), checkpoint.norm_stats, length="chunks").latents(heard)
    for one, own in zip(found, chunks, strict=True):
        own = own[:, : len(column_frames(one.frames, rule.width, checkpoint.config.patch_size[1]))]  # no copies
        features = own.transpose(0, 1).flatten(1) if stacked else own.mean(dim=0)
        by_column = torch.from_numpy(one.column_logits)
        torch.testing.assert_close(by_column, load_head(checkpoint, CPU)(features), atol=2e-4, rtol=1e-4)
    away = np.abs(found[-1].column_logits.mean(axis=0) - found[-1].logits).max()
    assert away > 0.01, "the average of a fused clip's columns is not its score"
