"""The objective of stages 2 and 2.1: clips and captions that belong together are alike, others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import clap_loss
from m2dprep.m2dclap.text.model import Embeddings, TextClap
from m2dprep.training.loader import normalised
from m2dprep.training.objectives import Objective
from m2dprep.training.schedule import Schedule
from m2dprep.training.second_generation.clips import CaptionedBatch
from m2dprep.training.speed import block_flops, patch_flops

# A caption's tokens in estimates of what a step takes.
USUAL_TOKENS = 24


class TextInput(NamedTuple):
    """``log_mel`` (B, 1, F, T) normalised, ``visible`` (B, V), ``input_ids`` (B, S), on the device; ``lengths`` and
    ``seed`` are plain numbers, so that nothing waits for it. If ``longer`` (B,) says which clips are to be fused,
    log-mels are channels (B, 4, F, T)."""

    log_mel: torch.Tensor
    visible: torch.Tensor | None
    input_ids: torch.Tensor
    lengths: tuple[int, ...]
    seed: int
    longer: torch.Tensor | None = None


class TextClapObjective(Objective):
    """A text tower, an audio head and a temperature learn against a frozen audio encoder.

    Everything random in the tower (dropout) follows from the batch's seed. ``pads_raw``: short clips are filled up with
    0 before they are normalised, as by the original. ``load`` takes the weights to begin with.
    """

    loss_names = ("loss",)
    leaves_unused = True

    def __init__(
        self,
        model: TextClap,
        stats: Normalization,
        load: Callable[[TextClap, Path], str],
        *,
        pads_raw: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self._stats, self._load, self._pads_raw = stats, load, pads_raw

    def prepare(self, batch: CaptionedBatch) -> TextInput:
        device = self.device
        short = not self._pads_raw and bool((batch.frames < batch.log_mel.shape[-1]).any())  # on the CPU: no waiting
        raw = batch.log_mel.to(device, non_blocking=True).contiguous().float()
        frames = batch.frames.to(device, non_blocking=True) if short else None
        visible, longer = (
            None if one is None else one.to(device, non_blocking=True) for one in (batch.visible, batch.longer)
        )
        return TextInput(
            normalised(raw, frames, self._stats),
            visible,
            batch.input_ids.to(device, non_blocking=True),
            tuple(batch.lengths.tolist()),
            int(batch.seed),
            longer,
        )

    def losses(self, inputs: TextInput, *, gather: bool = False) -> dict[str, torch.Tensor]:
        found = self.embed(inputs)
        with torch.autocast(found.audio.device.type, enabled=False):
            return {"loss": clap_loss(found.audio, found.text, self.model.logit_scale, gather=gather)}

    def embed(self, inputs: TextInput) -> Embeddings:
        """The embeddings of clips and captions."""
        with seeded(inputs.seed, inputs.log_mel.device):
            found: Embeddings = self.model(
                inputs.log_mel, inputs.input_ids, inputs.lengths, inputs.visible, inputs.longer
            )
        return found

    def after_step(self, step: int, schedule: Schedule) -> dict[str, float | torch.Tensor]:
        """Keep the temperature within its bounds."""
        self.model.clamp_logit_scale()
        return {"logit_scale": self.model.logit_scale.detach().exp()}

    def begin_with(self, path: Path) -> str:
        return self._load(self.model, path)

    def weights(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.model.load_state_dict(weights)

    def blocks(self) -> Iterable[nn.Module]:
        return self.model.backbone.blocks

    def flops_per_clip(self) -> int:
        config = self.model.config
        patch = patch_flops(config)
        encoder = config.depth * block_flops(1 + config.num_patches, config.embed_dim)
        looked_up = {id(one.weight) for one in self.model.modules() if isinstance(one, nn.Embedding)}
        products = (value for value in self.model.parameters() if value.requires_grad and value.ndim > 1)
        learned = sum(value.numel() for value in products if id(value) not in looked_up)
        return patch + encoder + 6 * USUAL_TOKENS * learned

    def kept_per_clip(self, model: ModelConfig) -> int:
        tower = self.model.text_encoder.text_encoder.config
        layers = int(getattr(tower, "num_hidden_layers", 12))
        return model.num_patches * model.embed_dim + layers * USUAL_TOKENS * self.model.text_encoder.dim


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Everything random in the block follows from ``seed``; generators are afterwards as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
