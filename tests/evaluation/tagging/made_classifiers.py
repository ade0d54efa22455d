"""Tiny checkpoints with a classifier, in EVAR's flat layout, and sounds for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.heads import ClassifierHead
from m2dprep.m2dclap.model import M2DCLAP
from tests.tiny import TINY_INFERABLE

RATE = 16_000
BACKBONE, HEAD = "module.ar.runtime.backbone.", "module.head."
# What EVAR's runtime saves beside the encoder; nothing of it is needed.
FRONT_END = ("mel_basis", "stft.wsin", "stft.wcos", "stft.window_mask")
NOT_SAVED = ("decoder", "mask_token", "target_", "logit_scale", "audio_proj", "text_proj")


def head_for(width: int, classes: int, seed: int = 0) -> ClassifierHead:
    """A head that has seen a batch, so that its normalisation is none that changes nothing."""
    torch.manual_seed(seed)
    head = ClassifierHead(width, classes)
    torch.nn.init.normal_(head.mlp.mlp[0].weight, std=1.0)  # type: ignore[index]
    torch.nn.init.normal_(head.mlp.mlp[0].bias, std=1.0)  # type: ignore[index]
    for _ in range(30):
        head.train()(torch.randn(16, width) * 0.5 + 0.2)
    return head.eval()


def write_classifier(
    folder: Path, classes: int = 6, *, stacked: bool = False, seed: int = 0, config: ModelConfig = TINY_INFERABLE
) -> Path:
    """A fine-tuned checkpoint of a tiny model; ``stacked`` gives its head the width of a column of patches."""
    torch.manual_seed(seed)
    model = M2DCLAP(config)
    state = {BACKBONE + key: value for key, value in model.state_dict().items() if not key.startswith(NOT_SAVED)}
    state[BACKBONE + "norm_stats"] = torch.tensor([-7.0, 4.0])
    state |= {f"module.ar.runtime.to_spec.{name}": torch.zeros(2, 2) for name in FRONT_END}
    width = config.embed_dim * (config.grid_size[0] if stacked else 1)
    state |= {HEAD + key: value for key, value in head_for(width, classes, seed).state_dict().items()}
    size = "x".join(map(str, config.input_size))
    place = folder / f"m2d_clap_tiny-{size}p16x16p16k-made" / "weights_ep1it1-0.5_loss0.1.pth"
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, place)
    return place


def write_class_list(path: Path, classes: int = 6) -> Path:
    path.write_text("".join(f"class {number}\n" for number in range(classes)))
    return path


def sound(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """A sound whose colour changes all the time, so that no window is like another."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 60 * seed + 150 * time) * time)
    return (sweep + 0.05 * rng.standard_normal(len(time))).astype(np.float32)


def write_sound(path: Path, seconds: float, seed: int = 0, rate: int = RATE, subtype: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(seconds, seed, rate), rate, subtype=subtype)
    return path
