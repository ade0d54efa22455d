"""What two processes of `test_text_clap` do: they compare a step of theirs with that of one, and train a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.distributed import DistributedContext, join_processes
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig
from m2dprep.training.dataset import BatchKey
from m2dprep.training.loop import Trainer
from m2dprep.training.schedule import Schedule
from m2dprep.training.second_generation.plan import TextClapPlan
from m2dprep.training.train import make_state, train

MODEL = ModelConfig(sem_mode=1)


def step(plan: TextClapPlan, data: Path, context: DistributedContext) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and what every weight's gradient is after one step on clips 0 … 7."""
    opened = plan.open(DataChoice(data))
    model = plan.model(opened)
    state = make_state(model, plan.config, opened, context.device, plan)
    assert plan.options.init is not None
    state.objective.begin_with(plan.options.init)
    trainer = Trainer(state, Schedule(plan.config, 4), context)
    state.step = 2  # the learning rate of step 0 is 0
    clips = opened.dataset(model, plan.config)
    parts = np.split(np.arange(8), plan.config.accumulate)
    mine = [clips[BatchKey(0, np.split(part, context.size)[context.rank], 2)] for part in parts]
    losses, _ = trainer.step(mine)
    named = state.objective.model.named_parameters()
    return context.mean(losses), {name: value.grad for name, value in named if value.grad is not None}


def compare(data: Path, base: Path, tower: Path, out: Path) -> None:
    options = RunOptions(init=base, log_every=1, save=SavePlan(every_steps=2), loader_workers=0)
    with join_processes("cpu", lambda: False) as context:
        assert context.size == 2
        for accumulate in (1, 2):
            config = TrainConfig(
                objective="text-clap", text_model=str(tower), epochs=2, batch_size=8, blr=0.03, warmup_epochs=1,
                accumulate=accumulate,
            )  # fmt: skip
            plan = TextClapPlan(MODEL, config, options)
            alone = step(plan, data, DistributedContext(0, 1, context.device))
            ours = step(plan, data, context)
            torch.testing.assert_close(ours[0], alone[0], rtol=1e-5, atol=0)
            assert ours[1].keys() == alone[1].keys()
            assert not [name for name in ours[1] if "pooler" in name]
            for name, gradient in alone[1].items():
                if "key.bias" in name:
                    continue  # its true gradient is zero
                torch.testing.assert_close(ours[1][name], gradient, rtol=2e-4, atol=1e-5, msg=name)
        train(DataChoice(data), out / "pair", MODEL, config, options)
