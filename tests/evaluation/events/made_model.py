"""A tiny model that is fine-tuned on the training clips of `made_sounds` within seconds, in EVAR's layout."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from m2dprep.audioprep.config import PRESETS
from m2dprep.audioprep.logmel import LogMel
from m2dprep.m2dclap.heads import ClassifierHead
from m2dprep.m2dclap.model import M2DCLAP
from tests.evaluation.tagging.made_classifiers import BACKBONE, HEAD, NOT_SAVED
from tests.tiny import TINY_INFERABLE

CONFIG = replace(TINY_INFERABLE, input_size=(80, 96), depth=1)
MEAN, STD = -9.0, 4.0


def read_clips(table: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised log-mels (N, 1, 80, 96), and which tags each clip has (N, C)."""
    front_end, classes = LogMel(PRESETS["16k"]), (table.parent / "tags.csv").read_text().count("\n") - 1
    log_mels, targets = [], []
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            waveform, _ = soundfile.read(table.parent / row["file_name"], dtype="float32")
            log_mels.append((front_end(waveform)[..., :96] - MEAN) / STD)
            targets.append([float(f"t{number}" in row["label"].split(",")) for number in range(classes)])
    return torch.from_numpy(np.stack(log_mels).astype(np.float32)), torch.tensor(targets)


def features(model: M2DCLAP, log_mels: torch.Tensor) -> torch.Tensor:
    """The stacked features (N, F · D) that the classifier of a checkpoint is applied to."""
    return model.encode(log_mels)[:, 1:].unflatten(1, (CONFIG.grid_size[0], -1)).mean(dim=2).flatten(1)


def write_fine_tuned(folder: Path, table: Path, *, steps: int = 60, seed: int = 0) -> Path:
    """Train encoder and head to tell the tags of the clips of a table; returns the checkpoint."""
    torch.manual_seed(seed)
    log_mels, targets = read_clips(table)
    model = M2DCLAP(CONFIG)
    head = ClassifierHead(CONFIG.grid_size[0] * CONFIG.embed_dim, targets.shape[1])
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=2e-3)
    model.train()
    head.train()
    for _ in range(steps):
        rows = torch.randperm(len(log_mels))[:48]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            head(features(model, log_mels[rows])), targets[rows]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {BACKBONE + key: value for key, value in model.state_dict().items() if not key.startswith(NOT_SAVED)}
    state[BACKBONE + "norm_stats"] = torch.tensor([MEAN, STD])
    state |= {HEAD + key: value for key, value in head.eval().state_dict().items()}
    place = folder / "m2d_clap_tiny-80x96p16x16p16k-made" / "weights_ep1it1-0.5_loss0.1.pth"
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, place)
    return place
