"""A checkpoint's classifier: scores of classes for whole clips, and for every column of patches.

A fine-tuned checkpoint in EVAR's layout holds a head under ``module.head.``. Its width says what it is applied to: as
many numbers as a patch has latents, and it takes the average over all patches (``flat``); as many as a column of
patches has, and it takes columns (``stacked``, the lowest frequency first). For a clip these are averaged over all
columns; for a column they are its own. The head is linear in evaluation, so that the average of the columns' logits is
the clip's. Of a model that fuses, a longer clip has its scores from fused channels, as in its training, and its columns
have those of chunks, as fused ones have no places in time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.fusion.channels import ChannelRule
from m2dprep.m2dclap.fusion.kinds import NONE
from m2dprep.m2dclap.heads import ClassifierHead

FLAT, STACKED = "flat", "stacked"
WEIGHT, BIAS = "mlp.mlp.0.weight", "mlp.mlp.0.bias"


def head_size(checkpoint: Checkpoint) -> tuple[int, int]:
    """The width and the number of classes of a checkpoint's classifier. Raises `UserError` if it has none."""
    weight = checkpoint.head_weights.get(WEIGHT)
    if weight is None or weight.ndim != 2 or 0 in weight.shape:
        what = f"its head has no weights {WEIGHT}" if checkpoint.head_weights else "it has no weights module.head.*"
        raise UserError(
            f"{checkpoint.path} holds no classifier ({what}; it is {checkpoint.layout or 'a model alone'}). Tagging "
            "needs a checkpoint that was fine-tuned on labels, as `m2dprep fine-tune` and EVAR write it."
        )
    return weight.shape[1], weight.shape[0]


def feature_of(checkpoint: Checkpoint) -> str:
    """What the classifier is applied to: ``flat`` or ``stacked`` features. Raises `UserError` if it fits neither."""
    width, _ = head_size(checkpoint)
    config = checkpoint.config
    if width == config.embed_dim:
        return FLAT
    if width == config.embed_dim * config.grid_size[0]:
        return STACKED
    raise UserError(
        f"{checkpoint.path}: its classifier takes {width:,} numbers, but the model gives {config.embed_dim:,} (the "
        f"average of patches) or {config.embed_dim * config.grid_size[0]:,} (columns of {config.grid_size[0]} patches)."
    )


def load_head(checkpoint: Checkpoint, device: torch.device) -> ClassifierHead:
    """The classifier in evaluation mode. Raises `UserError` if it is missing, is another kind of head, or has weights
    that are misshapen or not finite."""
    width, classes = head_size(checkpoint)
    head = ClassifierHead(width, classes)
    own, found = head.state_dict(), checkpoint.head_weights
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    if other := sorted({*needed} ^ {*found} - {"norm.num_batches_tracked"}):
        kind = "lacks" if other[0] not in found else "also has"
        raise UserError(
            f"{checkpoint.path}: its classifier {kind} {', '.join(other[:5])}; what is read is a BatchNorm without "
            f"scales and one linear layer ({', '.join(needed)})."
        )
    for name in needed:
        if found[name].shape != own[name].shape:
            shape, wanted = list(found[name].shape), list(own[name].shape)
            raise UserError(f"{checkpoint.path}: {name} of its classifier is {shape}, not {wanted}.")
        if not bool(found[name].isfinite().all()):
            raise UserError(f"{checkpoint.path}: {name} of its classifier is not finite; its training has diverged.")
    head.load_state_dict({name: found.get(name, own[name]) for name in own})
    return head.to(device).eval()


class Classifier:
    """Classifies log-mels with a checkpoint that has a classifier."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, batch_size: int = 32) -> None:
        """Load encoder and head. Raises `UserError` if there is no head, or weights are not whole."""
        self.feature = feature_of(checkpoint)
        self._head = load_head(checkpoint, device)
        self.classes = head_size(checkpoint)[1]
        self.config = checkpoint.config
        front_end = checkpoint.front_end
        self.seconds_per_frame = front_end.hop_length / front_end.sample_rate
        model = checkpoint.load_audio_model(device)
        self._encoder = AudioEncoder(model, checkpoint.norm_stats, batch_size)

    @property
    def fused(self) -> ChannelRule | None:
        """How the channels of longer clips are made; None if the model does not fuse."""
        config = self.config
        if config.fusion == NONE:
            return None
        return ChannelRule(config.input_size[1], config.fusion_fill, config.antialias)

    @torch.inference_mode()
    def of_channels(self, channels: Sequence[np.ndarray]) -> torch.Tensor:
        """The features (N, W) of longer clips by their channels (4, F, T), not normalised."""
        rows = self._encoder.rows_of_channels(channels)
        return rows.mean(dim=1) if self.feature == FLAT else rows.flatten(1)

    @torch.inference_mode()
    def columns(self, log_mels: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The features (T, W) of all columns of patches of log-mels (1, F, T) of any length, not normalised.

        A clip's feature is their average.
        """
        latents = self._encoder.latents(log_mels)  # each (F, T, D)
        if self.feature == FLAT:
            return [own.mean(dim=0) for own in latents]
        return [own.transpose(0, 1).flatten(1) for own in latents]

    @torch.inference_mode()
    def logits(self, features: torch.Tensor) -> np.ndarray:
        """Features (N, W) → scores before a sigmoid or softmax (N, C), float32."""
        scores: np.ndarray = self._head(features).float().cpu().numpy()
        return scores


def column_frames(frames: int, chunk: int, patch: int) -> np.ndarray:
    """The first frame (T,) of each column of patches of a log-mel of ``frames``, which is encoded in chunks."""
    starts = []
    for start in range(0, frames, chunk):
        length = min(chunk, frames - start)
        columns = length // patch if length == chunk else min(-(-length // patch), chunk // patch)
        starts.append(start + patch * np.arange(max(columns, 0)))
    return np.concatenate(starts) if starts else np.zeros(0, np.int64)
