"""Begins a head as a linear probe: trained on the features of the model as it is, before both are trained together.

A head of random weights sends random gradients into an encoder whose features are good already, which few clips do not
mend. So says "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (Kumar et al., 2022),
whose recipe this is. The probe is that of `m2dprep evaluate linear`, stopped early on the valid clips.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from m2dprep.evaluation.protocols.linear_head import Draws, HeadSettings, Part, Scaler, train_head
from m2dprep.training.fine_tuning.clips import LabelledClips
from m2dprep.training.fine_tuning.objective import FineTuning
from m2dprep.training.fine_tuning.validation import features_of

# A rate at which a head on a few hundred clips is done within 200 epochs.
SETTINGS = HeadSettings(lr=3e-3)


class Probe(NamedTuple):
    """A head's ``weight`` (C, D) and ``bias`` (C,) for features less ``mean`` (D,), divided by the root of ``variance``
    (D,); float32. ``score`` is that of the valid clips."""

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    score: float


def train_probe(
    objective: FineTuning,
    train: LabelledClips,
    valid: LabelledClips,
    *,
    seed: int,
    amp: str,
    workers: int | None,
    processes: int = 1,
) -> Probe:
    """Train a head on the features of the clips, from their beginnings and undisturbed, which are held in memory.

    The model stays as it is. Raises `UserError` if the training diverges.
    """
    found = [features_of(objective, clips, amp, workers, processes) for clips in (train, valid)]
    count, width = found[0].shape
    scaler = Scaler.fit(found[0], np.arange(count))
    learnt, judged = (
        Part(scaler(features, np.arange(len(features))), _targets(clips))
        for features, clips in zip(found, (train, valid), strict=True)
    )
    draws = Draws(seed)
    initial = draws.weights(train.classes, width)
    settings = replace(SETTINGS, batch=min(SETTINGS.batch, count))
    head = train_head(learnt, judged, initial, draws.orders(count), settings, several=objective.several)
    return Probe(
        head.weight.numpy(), head.bias.numpy(), scaler.mean.astype(np.float32),
        (scaler.scale**2).astype(np.float32), head.curve[head.best_epoch],
    )  # fmt: skip


def _targets(clips: LabelledClips) -> torch.Tensor:
    targets = clips.targets
    return torch.from_numpy(targets.astype(np.float32) if targets.ndim == 2 else targets)


def begin_with(objective: FineTuning, probe: Probe) -> None:
    """Put a probe in the place of the head's weights and statistics."""
    own = objective.model.head.state_dict()
    given = {"mlp.mlp.0.weight": probe.weight, "mlp.mlp.0.bias": probe.bias}
    given |= {"norm.running_mean": probe.mean, "norm.running_var": probe.variance}
    objective.model.head.load_state_dict(own | {name: torch.from_numpy(value) for name, value in given.items()})
