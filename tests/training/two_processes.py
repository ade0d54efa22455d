"""The script that `test_distributed` starts twice under torchrun.

It compares the gradients of two processes with those of one, without fusion and with it, and then trains a whole run
with fusion, and another one that goes on from the first checkpoint of that.

Arguments: the data directory, the folder of the run. The first process prints ``equal`` if all is well.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from m2dprep.m2dclap.checkpoint_file import checkpoints_in, find_checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.distributed import DistributedContext, join_processes
from m2dprep.m2dclap.fusion.patches import FusedPatchEmbed
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig, ValidationOptions
from m2dprep.training.data_dir import open_training_data
from m2dprep.training.dataset import BatchKey
from m2dprep.training.loop import Trainer
from m2dprep.training.schedule import Schedule
from m2dprep.training.train import make_state, train
from tests.tiny import TINY

TRAIN = TrainConfig(epochs=2, batch_size=6, blr=0.05, warmup_epochs=1, ema_decay_init=0.9, ema_decay_end=0.99)
FUSED = replace(TINY, fusion="aff")
OPTIONS = RunOptions("tiny", log_every=1, save=SavePlan(every_steps=3), validation=ValidationOptions(features_every=1))


def gradients(
    data: Path, context: DistributedContext, accumulate: int, model: ModelConfig
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Losses, gradients after clipping, and weights after a step on clips 0 … 7 by the processes of ``context``."""
    config = replace(TRAIN, batch_size=8, accumulate=accumulate)
    opened = open_training_data(DataChoice(data), 80)
    state = make_state(model, config, opened, context.device)
    if isinstance(embedding := state.objective.model.patch_embed, FusedPatchEmbed) and embedding.gate is not None:
        torch.nn.init.constant_(embedding.gate, 0.5)
    trainer = Trainer(state, Schedule(config, 3), context)
    state.step = 2  # the learning rate of step 0 is 0
    clips = opened.dataset(state.objective.model.config, config)
    parts = [np.split(part, context.size)[context.rank] for part in np.split(np.arange(8), accumulate)]
    losses, _ = trainer.step([clips[BatchKey(0, part)] for part in parts])
    found = [value.grad for value in state.objective.model.parameters() if value.grad is not None]
    return context.mean(losses), found, [value.detach() for value in state.objective.model.parameters()]


def relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm().clamp_min(1e-12))


def compare(data: Path, context: DistributedContext) -> None:
    for accumulate, model in ((1, TINY), (2, TINY), (1, FUSED), (2, FUSED)):
        alone = gradients(data, DistributedContext(0, 1, context.device), accumulate, model)
        ours = gradients(data, context, accumulate, model)
        assert relative(ours[0], alone[0]) < 1e-5, (ours[0], alone[0])
        every = relative(torch.cat([g.flatten() for g in ours[1]]), torch.cat([g.flatten() for g in alone[1]]))
        assert every < 1e-5, every
        for one, other in zip(ours[1], alone[1], strict=True):
            assert relative(one, other) < 1e-5 or float((one - other).abs().max()) < 1e-7
        assert len(ours[2]) == len(alone[2])


def begin_again(out: Path, again: Path) -> None:
    """A copy of a run as it was after its first checkpoint."""
    shutil.copytree(out, again)
    first, *later = checkpoints_in(find_checkpoint(again).parent)
    assert later, f"{first} is not the only one"
    for path in later:
        path.unlink()


def require_same(out: Path, again: Path) -> None:
    one, other = (torch.load(find_checkpoint(run), weights_only=True)["model"] for run in (out, again))
    assert bool(one["patch_embed.gate"].any())
    assert all(value.equal(other[key]) for key, value in one.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    with join_processes("cpu", lambda: False) as context:
        assert context.size == 2
        compare(data, context)
        again = out.with_name("again")
        train(DataChoice(data), out, FUSED, TRAIN, replace(OPTIONS, loader_workers=1))
        context.broadcast_from_main(lambda: begin_again(out, again))
        train(DataChoice(data), again, FUSED, TRAIN, OPTIONS)
        if context.is_main:
            require_same(out, again)
            print("equal")
