"""The objective of fine-tuning: the labels of clips from masked, mixed and resized log-mels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from m2dprep.audioprep.config import LogMelConfig
from m2dprep.m2dclap.distributed import gather_rows
from m2dprep.m2dclap.reuse.fine_tuned import FineTuned, evar_weights, load_evar_weights
from m2dprep.m2dclap.reuse.spectrogram import spectrogram_tables
from m2dprep.training.fine_tuning.augment import crop_and_resize, mask_stripes
from m2dprep.training.fine_tuning.clips import LabelledBatch
from m2dprep.training.fine_tuning.settings import FineTuneConfig
from m2dprep.training.objectives import Objective
from m2dprep.training.speed import block_flops, patch_flops


def label_loss(scores: torch.Tensor, targets: torch.Tensor, *, several: bool) -> torch.Tensor:
    """EVAR's loss of scores (B, C) by targets (B, C), which may be mixed: the mean over both dimensions.

    With ``several`` labels per clip it is binary cross entropy, else cross entropy, here divided by C as well.
    """
    if several:
        return F.binary_cross_entropy_with_logits(scores, targets)
    return -(targets * scores.log_softmax(dim=1)).mean()


class LabelInput(NamedTuple):
    """``log_mel`` (B, 1, F, T), normalised, masked and cropped; ``target`` (B, C); ``visible`` (B, V) or None. If
    ``longer`` (B,) says which clips are to be fused, log-mels are channels (B, 4, F, T)."""

    log_mel: torch.Tensor
    target: torch.Tensor
    visible: torch.Tensor | None
    longer: torch.Tensor | None = None


class FineTuning(Objective):
    """A classifier on an encoder, both of which learn; positions and statistics do not.

    The head's normalisation is over the whole batch, also if it is spread over processes, or with ``fixed_norm`` by the
    statistics that the head has. A checkpoint holds the model under the names of EVAR's files.
    """

    loss_names = ("loss",)

    def __init__(
        self,
        model: FineTuned,
        front_end: LogMelConfig,
        *,
        several: bool,
        freeze_patches: bool = False,
        fixed_norm: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.several, self._fixed_norm = model, several, fixed_norm
        self._tables = spectrogram_tables(front_end)
        model.encoder.patch_embed.requires_grad_(not freeze_patches)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self._fixed_norm:
            self.model.head.norm.eval()
        return self

    def prepare(self, batch: LabelledBatch) -> LabelInput:
        stats = self.model.stats
        log_mel = (batch.log_mel.to(self.device, non_blocking=True) - stats.mean) / stats.std
        if batch.stripes is not None:
            log_mel = mask_stripes(log_mel, tuple(batch.stripes))
        if batch.boxes is not None:
            log_mel = crop_and_resize(log_mel, batch.boxes)
        visible, longer = (
            None if one is None else one.to(self.device, non_blocking=True) for one in (batch.visible, batch.longer)
        )
        target = batch.target.to(self.device, non_blocking=True)
        return LabelInput(self._whole_patches(log_mel), target, visible, longer)

    def _whole_patches(self, log_mel: torch.Tensor) -> torch.Tensor:
        """With zeros, the mean, up to whole patches, but not beyond the model's input."""
        config, frames = self.model.encoder.config, log_mel.shape[-1]
        patch, width = config.patch_size[1], config.input_size[1]
        return F.pad(log_mel, (0, max(0, min(-(-frames // patch) * patch, width) - frames)))

    def losses(self, inputs: LabelInput, *, gather: bool = False) -> dict[str, torch.Tensor]:
        scores = self.scores(inputs, gather=gather)
        return {"loss": label_loss(scores.float(), inputs.target, several=self.several)}

    def scores(self, inputs: LabelInput, *, gather: bool = False) -> torch.Tensor:
        """The scores (B, C) before a sigmoid or softmax."""
        features = self.model.features(inputs.log_mel, inputs.visible, inputs.longer)
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if not gather or self._fixed_norm:
                scores: torch.Tensor = self.model.head(features)
                return scores
            first = dist.get_rank() * len(features)
            scores = self.model.head(gather_rows(features))
            return scores[first : first + len(features)]

    def begin_with(self, path: Path) -> str:
        """Refused: the encoder's size follows from its checkpoint, so it is read before there is an objective."""
        raise NotImplementedError(path)

    def weights(self) -> dict[str, torch.Tensor]:
        return evar_weights(self.model, self._tables)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        load_evar_weights(self.model, weights)

    def blocks(self) -> Iterable[nn.Module]:
        return tuple(self.model.encoder.blocks)

    def flops_per_clip(self) -> int:
        """Three times the forward pass over all patches, twice for their embedding."""
        config = self.model.encoder.config
        return 2 * patch_flops(config) + 3 * config.depth * block_flops(1 + config.num_patches, config.embed_dim)


def make_optimizer(objective: FineTuning, config: FineTuneConfig) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; the learning rate is set at every step."""
    trained = [value for value in objective.parameters() if value.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        trained, lr=config.lr, betas=config.betas, eps=1e-8, weight_decay=config.weight_decay, fused=True
    )
