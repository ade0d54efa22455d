"""A clip that is shorter than the input of a model that fuses is filled up as in its training, whoever embeds it.

One file goes through every way to embed, tag or score it; all must agree with the channels that training makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m2dprep.evaluation.embedding.model import Model
from m2dprep.evaluation.encoders import FLAT, CheckpointEncoder
from m2dprep.evaluation.events.listening.ear import TAGS, Ear
from m2dprep.evaluation.features import features
from m2dprep.evaluation.reading import Crop
from m2dprep.evaluation.tagging.class_names import ClassNames
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.fusion.channels import ChannelRule, make_channels
from m2dprep.m2dclap.heads import ClassifierHead
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.portable.bundle import portable_state
from m2dprep.m2dclap.portable.runtime import PortableEncoder
from m2dprep.m2dclap.reuse.classifier import load_head
from tests.tiny import TINY

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
WIDTH, PATCH, NAMES = 48, 16, ("a", "b", "c")


def a_checkpoint(fill: str, place: Path) -> Checkpoint:
    path = place / "checkpoint-1.pth"
    path.write_text("what counts is in memory")
    torch.manual_seed(1)
    config = replace(TINY, fusion="aff", fusion_fill=fill)
    weights = {key: value.clone() for key, value in M2DCLAP(config).state_dict().items()}
    torch.nn.init.normal_(weights["patch_embed.gate"])
    weights["norm_stats"] = torch.tensor([-7.25, 4.5])
    head = ClassifierHead(config.embed_dim, len(NAMES)).state_dict()
    head["mlp.mlp.0.weight"] *= 100
    return Checkpoint(path, config, weights, {}, head_weights=head)


def of_training(checkpoint: Checkpoint, path: Path) -> torch.Tensor:
    """The scores of the patches that training fills."""
    log_mel, channels = np.load(path)[0], np.empty((4, 80, WIDTH), np.float32)
    filled = make_channels(log_mel, ChannelRule(WIDTH, checkpoint.config.fusion_fill), channels)
    assert not filled.longer
    columns = -(-filled.frames // PATCH)
    normal = checkpoint.norm_stats.normalise(channels)
    normal[..., filled.frames :] = 0
    model, seen = checkpoint.load_audio_model(CPU), torch.from_numpy(normal[None])
    with torch.inference_mode():
        if filled.frames == WIDTH:  # as a batch of training has it
            tokens = model.encode(seen, torch.tensor([False]))[:, 1:]
        else:
            tokens = model.encode(seen[:, :1, :, : columns * PATCH])[:, 1:]
        return load_head(checkpoint, CPU)(tokens.mean(dim=1))[0]


def scored(checkpoint: Checkpoint, flat: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return load_head(checkpoint, CPU)(torch.from_numpy(flat))[0]


def by_python(checkpoint: Checkpoint, path: Path) -> torch.Tensor:
    return scored(checkpoint, Model(CheckpointEncoder(checkpoint, device="cpu")).encode_audio(path, kind="flat"))


def by_evaluate(checkpoint: Checkpoint, path: Path) -> torch.Tensor:
    found = features(CheckpointEncoder(checkpoint, device="cpu"), [path], [path.name], Crop(), quiet=True)
    return scored(checkpoint, np.array(found.part(FLAT)))


def by_events(checkpoint: Checkpoint, path: Path) -> torch.Tensor:
    ear = Ear(CheckpointEncoder(checkpoint, device="cpu"), tags=ClassNames(NAMES), clap=False)
    return torch.from_numpy(ear.hear([np.load(path)])[TAGS][0])


def by_tag(checkpoint: Checkpoint, path: Path) -> torch.Tensor:
    names = path.with_suffix(".txt")
    names.write_text("\n".join(NAMES) + "\n")
    model = Model(CheckpointEncoder(checkpoint, device="cpu"))
    rows = model.tag(path, classes=names, activation="logits", top=len(NAMES))
    scores = dict(zip(rows["label"], rows["score"], strict=True))
    return torch.tensor([float(scores[name]) for name in NAMES])


def by_portable(checkpoint: Checkpoint, path: Path) -> torch.Tensor:
    return PortableEncoder(portable_state(checkpoint)).classify([torch.from_numpy(np.load(path))])[0]


@pytest.mark.parametrize("way", [by_python, by_evaluate, by_events, by_tag, by_portable])
@pytest.mark.parametrize("fill", ["pad", "repeatpad", "repeat"])
def test_every_way_hears_what_training_heard(
    way: Callable[[Checkpoint, Path], torch.Tensor], fill: str, tmp_path: Path
) -> None:
    """A single frame, less than a patch, less than half, more than half, all but a frame, and the whole input."""
    checkpoint = a_checkpoint(fill, tmp_path)
    for frames in (1, 10, 20, 30, WIDTH - 1, WIDTH):
        path = tmp_path / f"{frames}.npy"
        np.save(path, np.random.default_rng(frames).normal(-7, 4, (1, 80, frames)).astype(np.float32))
        assert way(checkpoint, path).tolist() == pytest.approx(
            of_training(checkpoint, path).tolist(), abs=2e-4, rel=1e-4
        ), f"{frames} frames"


def test_filling_matters_here(tmp_path: Path) -> None:
    """The scores of the three ways to fill differ, so that a way which ignores them would not pass."""
    path_values = np.random.default_rng(1).normal(-7, 4, (1, 80, 10)).astype(np.float32)
    found = [
        scored(one, Model(CheckpointEncoder(one, device="cpu")).encode_log_mels([path_values], kind="flat"))
        for one in (a_checkpoint(fill, tmp_path) for fill in ("pad", "repeatpad", "repeat"))
    ]
    assert min((found[a] - found[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.05
