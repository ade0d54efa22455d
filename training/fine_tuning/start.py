"""What a fine-tuning begins with: a checkpoint, the clips that can be read, and how these are cut or fused for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.distributed import DistributedContext
from m2dprep.m2dclap.fusion.channels import ChannelRule
from m2dprep.m2dclap.fusion.kinds import NONE
from m2dprep.training.fine_tuning.data import Clips, FineTuneData, frames_of, open_clips, without_skipped
from m2dprep.training.fine_tuning.labels import Splits, read_labels, split_rows
from m2dprep.training.fine_tuning.settings import LOG_MELS, WAVEFORMS, FineTuneConfig, FineTuneOptions, LabelChoice
from m2dprep.training.sampling.draws import require_draws

DEFAULT_FRAMES = 1001


@dataclass(frozen=True)
class Start:
    """A checkpoint to begin with, and the clips to fine-tune it on."""

    checkpoint: Checkpoint
    digest: str
    clips: Clips
    frames: int
    asked_for: bool = False
    """Whether the settings name the frames; else they follow from the task."""

    @property
    def input_frames(self) -> int | None:
        """The width of the model: None is the checkpoint's, which suffices for the clips of a task.

        A model that fuses is as wide as the crops: what is longer is fused.
        """
        config = self.checkpoint.config
        fits = self.frames <= config.input_size[1] and config.fusion == NONE
        return None if fits and not self.asked_for else self.frames

    @property
    def fused(self) -> ChannelRule | None:
        """How the channels of clips are made; None if the model does not fuse."""
        config = self.checkpoint.config
        return None if config.fusion == NONE else ChannelRule(self.frames, config.fusion_fill, config.antialias)


def open_start(
    context: DistributedContext, choice: LabelChoice, config: FineTuneConfig, options: FineTuneOptions, out: Path
) -> Start:
    """The checkpoint in every process, and the clips that the first one finds."""
    path = context.broadcast_from_main(lambda: find_checkpoint(options.checkpoint))
    checkpoint: Checkpoint | None = None
    with context.failing_together():
        checkpoint = Checkpoint.read(path)
    assert checkpoint is not None
    front_end = checkpoint.front_end

    def opened() -> Clips:
        found = read_labels(choice, config, packed=choice.root is not None)
        return open_clips(found, inputs_for(checkpoint.config, config), front_end, out)

    clips = context.broadcast_from_main(opened)
    frames = frames_of(config, clips.found, front_end, DEFAULT_FRAMES)
    return Start(checkpoint, file_digest(path), clips, frames, config.frames is not None)


def inputs_for(model: ModelConfig, config: FineTuneConfig) -> FineTuneConfig:
    """``config`` with log-mels as inputs if the model fuses: channels are made of whole log-mels.

    Raises `UserError` if waveforms are asked for.
    """
    if model.fusion == NONE:
        return config
    if config.inputs == WAVEFORMS:
        raise UserError(
            f"inputs is {WAVEFORMS}, but the checkpoint has fusion {model.fusion}, whose channels are made of whole "
            f"log-mels; choose --inputs {LOG_MELS} or leave it out."
        )
    return replace(config, inputs=LOG_MELS)


def data_of(
    context: DistributedContext, start: Start, choice: LabelChoice, config: FineTuneConfig, fold: str | None
) -> FineTuneData:
    """The clips of one run. Raises `UserError` if a split would be empty, or there are too few clips to draw."""

    def splits() -> Splits:
        found = without_skipped(split_rows(start.clips.found, config, choice, fold), start.clips)
        weights = FineTuneData(start.clips, found, start.frames, fold).weights(config)
        require_draws(len(found.train), weights, config.draws, distinct=True)
        return found

    return FineTuneData(start.clips, context.broadcast_from_main(splits), start.frames, fold, start.fused)
