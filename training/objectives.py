"""The stages of training, one class each: the losses of a batch, what learns from them, and what is saved.

The loop, its state, the log and the validation know only an `Objective` and no model, so they need no change for a
stage that trains something else. A `Plan` opens its data and makes it. `training.config.OBJECTIVES` names the stages
that the settings can choose.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.reuse.initialise import initialise
from m2dprep.training.config import OBJECTIVES, DataChoice, RunOptions, TrainConfig
from m2dprep.training.data_dir import TrainingData, open_training_data
from m2dprep.training.dataset import Batch
from m2dprep.training.loader import ModelInput, to_model_input
from m2dprep.training.pairing import CaptionRows
from m2dprep.training.schedule import Schedule
from m2dprep.training.speed import train_flops_per_clip


class Objective(nn.Module, ABC):
    """A stage of training, which is also the module of everything that takes part in it.

    Its parameters are trained, except those with ``requires_grad`` off, which are frozen. A stage that keeps frozen
    parts in evaluation mode overrides `train`. ``loss_names`` are its losses in the order of the log: ``loss``, which
    is minimised, and any parts of it, ``loss_<part>``.
    """

    loss_names: ClassVar[tuple[str, ...]]
    leaves_unused: ClassVar[bool] = False
    """Whether some of what is trained takes no part in the losses, such as the last layer of a foreign model."""

    def __init_subclass__(cls) -> None:
        names = cls.loss_names
        if names[:1] != ("loss",) or not all(name.startswith("loss_") for name in names[1:]):
            raise TypeError(f"{cls.__name__}.loss_names is {names}; it must be loss, and loss_<part> for each part.")

    @abstractmethod
    def prepare(self, batch: Any) -> Any:
        """Turn a batch from the loader into the input of `losses`, on the device. Nothing may wait for the device."""

    @abstractmethod
    def losses(self, inputs: Any, *, gather: bool = False) -> dict[str, torch.Tensor]:
        """Each of ``loss_names`` as a scalar, averaged over the batch.

        With ``gather``, the batch is that of one of several processes, and a loss that compares clips with each other
        uses those of all processes (`m2dclap.distributed.gather_rows`).
        """

    def forward(self, inputs: Any, *, gather: bool = False) -> dict[str, torch.Tensor]:
        """Call `losses` in the way that `DistributedDataParallel` sees."""
        return self.losses(inputs, gather=gather)

    def before_step(self, step: int, schedule: Any) -> None:
        """Work that precedes a ``step`` (0, 1, …), such as what changes with the epoch; ``schedule`` is the run's."""

    def after_step(self, step: int, schedule: Any) -> dict[str, float | torch.Tensor]:
        """Work that follows the optimiser's ``step`` (0, 1, …); ``schedule`` is the run's. Returns metrics for the
        log, without waiting."""
        return {}

    @abstractmethod
    def begin_with(self, path: Path) -> str:
        """Take the weights of a checkpoint (a file, or a run folder) before the first step; returns a line on what
        fitted.

        Raises `UserError` if it does not fit.
        """

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that a checkpoint holds under ``model``."""
        return self.state_dict()

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Continue with what `weights` returned. Raises `RuntimeError` if the names or shapes differ."""
        self.load_state_dict(weights)

    def measured(self) -> M2DCLAP | None:
        """The model whose features and zero-shot accuracy are measured between epochs, if the stage trains one."""
        return None

    def blocks(self) -> Iterable[nn.Module]:
        """The modules that ``--compile`` compiles, each by itself."""
        return ()

    @abstractmethod
    def flops_per_clip(self) -> int:
        """Floating-point operations per clip of a step, forward and backward."""

    def kept_per_clip(self, model: ModelConfig) -> int:
        """Numbers per clip that enter the blocks whose backward pass needs them, for estimates of memory."""
        visible, total = 1 + model.num_visible, 1 + model.num_patches
        return model.depth * visible * model.embed_dim + model.decoder_depth * total * model.decoder_embed_dim

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class Plan:
    """How a run opens its data and makes its objective. This is the way of stages that learn from stored embeddings."""

    def __init__(self, model: ModelConfig, config: TrainConfig, options: RunOptions) -> None:
        self.config, self.options = config, options
        self._asked = model

    def open(self, choice: DataChoice) -> TrainingData:
        """The data to train on; called in the first process only. Raises `UserError` if they cannot be trained on."""
        if choice.captions is not None:
            raise UserError("--captions is for the objective text-clap; this one trains on --embeddings of captions.")
        return open_training_data(choice, self._asked.input_size[0])

    def model(self, data: TrainingData) -> ModelConfig:
        """The model, with the length of the text embeddings found."""
        assert isinstance(data.captions, CaptionRows)
        return replace(self._asked, off_emb_dim=data.captions.dim)

    def size(self) -> str:
        """The size in the model's name."""
        return self.options.size

    def letter(self) -> str:
        """What the folder of checkpoints says of a text encoder, as the original's loaders read it."""
        return ""

    def make(self, model: ModelConfig, data: TrainingData) -> Objective:
        """The objective, with new weights from torch's seed."""
        made: Objective = pkgutil.resolve_name(OBJECTIVES[self.config.objective])(model, self.config, data.stats)
        return made

    def write_beside(self, folder: Path) -> None:
        """Write to the ``folder`` of checkpoints what belongs to all of them."""


def plan_of(model: ModelConfig, config: TrainConfig, options: RunOptions) -> Plan:
    """The plan of the stage that ``config`` chooses."""
    named = pkgutil.resolve_name(OBJECTIVES[config.objective])
    own = isinstance(named, type) and issubclass(named, Plan)
    made: Plan = named(model, config, options) if own else Plan(model, config, options)
    return made


def make_objective(plan: Plan, model: ModelConfig, data: TrainingData) -> Objective:
    """The objective of a plan; its new weights follow from the seed and are the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.config.seed)
        return plan.make(model, data)


class MaskedClap(Objective):
    """M2D-CLAP of 2024: it predicts masked patches, and tells clips apart by their captions.

    Log-mels are normalised with ``stats``; ``noise_ratio`` is the background's share of mel power, if a batch has a
    background. A checkpoint holds the model under the names of the authors' code, and nothing else.
    """

    loss_names = ("loss", "loss_m2d", "loss_clap")

    def __init__(self, model: M2DCLAP, stats: Normalization, noise_ratio: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self._stats, self._noise_ratio = stats, noise_ratio

    @classmethod
    def make(cls, model: ModelConfig, config: TrainConfig, stats: Normalization) -> MaskedClap:
        """One with new weights, which follow from torch's seed."""
        made = M2DCLAP(model)
        made.norm_stats.copy_(torch.tensor(stats))
        return cls(made, stats, config.noise_ratio)

    def prepare(self, batch: Batch) -> ModelInput:
        return to_model_input(batch, self._stats, self._noise_ratio, self.device)

    def losses(self, inputs: ModelInput, *, gather: bool = False) -> dict[str, torch.Tensor]:
        log_mel, clean, text, noise, hint, longer = inputs
        output = self.model(log_mel, text, noise, clean, longer=longer, hint=hint, gather=gather)
        return {name: getattr(output, name) for name in self.loss_names}

    def before_step(self, step: int, schedule: Schedule) -> None:
        """Weigh the losses as this epoch does."""
        epoch = step // schedule.steps_per_epoch
        self.model.loss_weights = self.model.config.epoch_weights(epoch, schedule.config.epochs)

    def after_step(self, step: int, schedule: Schedule) -> dict[str, float | torch.Tensor]:
        """Let the target follow the encoder, and keep the temperature within its bounds."""
        decay = schedule.target_decay(step)
        self.model.update_target(decay)
        self.model.clamp_logit_scale()
        metrics: dict[str, float | torch.Tensor] = {
            "target_decay": decay,
            "logit_scale": self.model.logit_scale.detach().exp(),
        }
        config = self.model.config
        if config.loss_m2d_end is None and config.loss_clap_end is None:
            return metrics
        weights = dict(zip(("weight_m2d", "weight_clap"), self.model.loss_weights, strict=True))
        return {**metrics, **weights}

    def begin_with(self, path: Path) -> str:
        return initialise(self.model, path)

    def weights(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.model.load_state_dict(weights)

    def measured(self) -> M2DCLAP:
        return self.model

    def blocks(self) -> Iterable[nn.Module]:
        return (*self.model.blocks, *self.model.target_blocks, *self.model.decoder_blocks)

    def flops_per_clip(self) -> int:
        return train_flops_per_clip(self.model.config)
