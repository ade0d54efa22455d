"""Measures a model between epochs without changing the run: validation loss, rank of features, and probes.

Effective rank and cumulative explained variance show whether the features use the space that they have.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding.encoder import TextEncoder
from m2dprep.evaluation.clip_set import ClipSet, check_template
from m2dprep.evaluation.probe import ZERO_SHOT, TaskProbe
from m2dprep.evaluation.text_towers import load_text_encoder
from m2dprep.evaluation.zeroshot import evaluation_set
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.distributed import autocast
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.training.config import TrainConfig, ValidationOptions
from m2dprep.training.data_dir import TrainingData
from m2dprep.training.dataset import FEATURE_STREAM, BatchKey, Clips
from m2dprep.training.log import Metrics
from m2dprep.training.objectives import Objective

# Keeps the logarithm of a singular value's share finite, as in the paper.
SHARE_EPS = 1e-7
# Captions are contrasted within a batch, so its size is part of the meaning of the validation loss: it stays the same
# whatever the batch or the number of processes in training.
VALIDATION_BATCH = 64
# The maximum number of clips for features; their rank needs more clips than they have dimensions.
FEATURE_CLIPS = 2048
FEATURE_BATCH = 32


def rank_me(features: torch.Tensor) -> float:
    """RankMe of features (N, D): the exponential of the entropy of their singular values' shares, 1 … min(N, D).

    Source: Garrido et al., "RankMe" (ICML 2023), equation 1. N well above D makes it a property of the model.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(SHARE_EPS) + SHARE_EPS
    return float(torch.exp(-(shares * shares.log()).sum()))


def explained_variance_area(features: torch.Tensor) -> float:
    """Area under the cumulative explained variance of features (N, D), 0.5 … 1.

    The curve goes over the share of principal components, the largest first. The area is 0.5 if all directions carry
    equal variance, and close to 1 if few directions carry all of it, that is, if the features have collapsed. Source:
    Li, Efros and Pathak, "Understanding collapse in non-contrastive siamese representation learning" (ECCV 2022),
    section 3.
    """
    centred = features.double() - features.double().mean(dim=0)
    variances = torch.linalg.svdvals(centred) ** 2
    total = variances.sum()
    if total == 0:
        return 1.0
    curve = torch.cat([torch.zeros(1, dtype=torch.float64), (variances / total).cumsum(dim=0)])
    return float(torch.trapezoid(curve, dx=1 / len(variances)))


class Validation:
    """Measures the losses of an objective and the model that it trains; in the first process only."""

    def __init__(
        self,
        options: ValidationOptions,
        data: TrainingData,
        config: TrainConfig,
        objective: Objective,
        model: ModelConfig,
    ) -> None:
        self._options, self._data, self._config = options, data, config
        self._objective, measured = objective, objective.measured()
        self._held_out = data.held_out_dataset(model, config)
        self._feature_clips = self._held_out or data.dataset(model, config)
        self._probes: list[TaskProbe] = []
        if options.probe_clips is not None or options.probe is not None:
            if measured is None:
                option = "--probe-clips" if options.probe is None else "--probe"
                raise UserError(f"the objective {config.objective} trains no model that {option} could measure.")
            self._probes = _probes(options, data, measured)

    def due(self, epoch: int) -> bool:
        """Whether anything is to be measured after ``epoch`` epochs."""
        options = self._options
        valid = self._held_out is not None and _is_due(epoch, options.valid_every)
        probe = bool(self._probes) and _is_due(epoch, options.probe_every)
        features = self._objective.measured() is not None and _is_due(epoch, options.features_every)
        return valid or probe or features

    def metrics(self, epoch: int) -> Metrics:
        """The measurements that are due after ``epoch`` epochs, by their names in the log."""
        options, model, metrics = self._options, self._objective.measured(), Metrics()
        with evaluating(self._objective):
            if self._held_out is not None and _is_due(epoch, options.valid_every):
                metrics |= validation_losses(self._objective, self._held_out, self._config.amp)
            if model is not None and _is_due(epoch, options.features_every):
                metrics |= feature_metrics(model, self._feature_clips, self._data, self._config.seed)
            if model is not None and _is_due(epoch, options.probe_every):
                for probe in self._probes:
                    metrics |= probe.metrics(model, self._data.stats)
        return metrics


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients, for the block."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def validation_losses(objective: Objective, clips: Clips, amp: str) -> Metrics:
    """The losses over held-out clips, as means over clips: ``valid_loss`` and any others of the objective.

    Crops, captions and masks are those of epoch 0, so that epochs differ by the model alone. Batches have
    `VALIDATION_BATCH` clips or, if that does not divide the number of clips, evenly fewer.
    """
    parts = np.array_split(np.arange(len(clips)), -(-len(clips) // VALIDATION_BATCH))
    names = objective.loss_names
    total = torch.zeros(len(names), dtype=torch.float64)
    for part in parts:
        inputs = objective.prepare(clips[BatchKey(0, part)])
        with autocast(objective.device, amp):
            losses = objective.losses(inputs)
        total += torch.stack([losses[name].double() for name in names]).cpu() * len(part)
    return {f"valid_{name}": value for name, value in zip(names, (total / len(clips)).tolist(), strict=True)}


def feature_metrics(model: M2DCLAP, clips: Clips, data: TrainingData, seed: int) -> Metrics:
    """``rank_me`` and ``explained_variance_area`` of the averaged patches of a fixed choice of whole clips."""
    rng = np.random.default_rng((FEATURE_STREAM, seed))
    chosen = rng.permutation(len(clips))[:FEATURE_CLIPS]
    encoder = AudioEncoder(model, data.stats, FEATURE_BATCH)
    pooled = []
    for start in range(0, len(chosen), 8 * FEATURE_BATCH):
        part = chosen[start : start + 8 * FEATURE_BATCH].tolist()
        pooled.append(encoder.pool([clips.log_mel(index)[None].copy() for index in part]).cpu())
    features = torch.cat(pooled)
    if not bool(features.isfinite().all()):
        return {"rank_me": None, "explained_variance_area": None}
    return {"rank_me": rank_me(features), "explained_variance_area": explained_variance_area(features)}


def _probes(options: ValidationOptions, data: TrainingData, model: M2DCLAP) -> list[TaskProbe]:
    """The probes that the options ask for, with one text encoder, which is loaded once their clips are found."""

    @functools.cache
    def encoder() -> TextEncoder:
        device = model.cls_token.device.type
        dim = model.config.off_emb_dim
        return load_text_encoder(data.text_model or {}, dim, options.probe_text_model, "the data", device)

    found: list[TaskProbe] = []
    if options.probe_clips is not None:
        found.append(_zero_shot_probe(options, data, encoder))
    if options.probe is not None:
        found.append(TaskProbe.of_folder(options.probe, data.front_end, lambda texts: encoder().encode(texts)))
    return found


def _zero_shot_probe(options: ValidationOptions, data: TrainingData, encoder: Callable[[], TextEncoder]) -> TaskProbe:
    """Zero-shot classification of a fixed table of clips: ``zero_shot_accuracy`` and the count ``zero_shot_failed``."""
    assert options.probe_clips is not None
    clips = ClipSet.read(options.probe_clips, options.probe_root, root_option="--probe-root")
    clip_set = evaluation_set(clips, check_template(options.probe_template))
    return TaskProbe(clip_set, ZERO_SHOT, data.front_end, lambda texts: encoder().encode(texts), "zero_shot")


def _is_due(epoch: int, every: int) -> bool:
    return every > 0 and epoch % every == 0
