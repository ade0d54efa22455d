"""Fine-tunes a checkpoint on labelled clips: one run, or one per fold. The same call continues one that was stopped.

```
RUN/                     as every run of training (`training.run_folder`), and
RUN/result.json          the score on the test clips by the best epoch's weights
RUN/classes.csv          index, label and name of each class
RUN/<model>-…/classes.txt                the labels, a line each, in the order of the scores
RUN/<model>-…/args.json                  what the weights beside it do not say of themselves: sizes, front end, classes
RUN/<model>-…/weights_ep<epoch>it<step>-<score>_loss<loss>.pth      the best epoch's weights, as EVAR writes them
RUN/fold-<name>/         the run of a fold; then RUN has the result of all of them alone
```
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from m2dprep.artifacts.digests import file_digest, fingerprint
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.failures.shown import first_lines
from m2dprep.artifacts.files import write_text
from m2dprep.artifacts.json_files import write_object
from m2dprep.artifacts.tables import write_csv
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.tagging.class_names import names_of
from m2dprep.m2dclap.checkpoint_file import ARGS, RESULT, read_file
from m2dprep.m2dclap.distributed import DistributedContext, join_processes, resolve_amp
from m2dprep.m2dclap.fusion.kinds import NONE, PAD
from m2dprep.m2dclap.layouts import HEAD_DIM, folder_name
from m2dprep.m2dclap.reuse.fine_tuned import FineTuned, load_encoder
from m2dprep.training.fine_tuning.clips import EpochOrder, Grid, steps_per_epoch
from m2dprep.training.fine_tuning.data import FineTuneData
from m2dprep.training.fine_tuning.labels import fold_names
from m2dprep.training.fine_tuning.objective import FineTuning, make_optimizer
from m2dprep.training.fine_tuning.outcome import FineTuneResult, over_folds, result_of
from m2dprep.training.fine_tuning.probe import Probe, begin_with, train_probe
from m2dprep.training.fine_tuning.schedule import FineTuneSchedule
from m2dprep.training.fine_tuning.settings import (
    PROBE,
    FineTuneConfig,
    FineTuneOptions,
    LabelChoice,
    recipe_text,
)
from m2dprep.training.fine_tuning.start import Start, data_of, open_start
from m2dprep.training.fine_tuning.validation import EpochScores, judge
from m2dprep.training.loader import Batches, make_loader
from m2dprep.training.loop import Job, Trainer, batch_in_memory, run_steps
from m2dprep.training.run_folder import SKIPPED, RunFolder, checkpoint_folder_name, forget_before, model_name
from m2dprep.training.signals import was_told
from m2dprep.training.state import TrainState
from m2dprep.training.train import begin_run, compile_blocks, make_meter, open_log

CLASSES = "classes.csv"
# Beside the checkpoints: a class per line, in the order of the scores.
CLASS_LIST = "classes.txt"
# The size in a checkpoint's folder by the width of its encoder.
SIZE_OF_WIDTH = {384: "small", 768: "base", 1024: "large"}


def fine_tune(choice: LabelChoice, out: Path, config: FineTuneConfig, options: FineTuneOptions) -> FineTuneResult:
    """Fine-tune a checkpoint and test it, writing to the folder ``out``; resumes from its newest checkpoint.

    Under torchrun this is one process of several, which together train what one would. Raises `UserError` if the clips
    cannot be learnt, `FingerprintConflictError` if ``out`` holds a run with other settings, `NonFiniteLossError`, and
    `StoppedError` after a stop signal.
    """
    with join_processes(options.device, was_told) as context, batch_in_memory(config):
        start = open_start(context, choice, config, options, out)
        folds = context.broadcast_from_main(lambda: fold_names(start.clips.found, config))
        if len(folds) < 2:
            return _run(context, start, choice, config, options, out, folds[0] if folds else None)
        found = []
        for fold in folds:
            own = replace(config, fold=fold)
            found.append(_run(context, start, choice, own, options, out / f"fold-{quote(fold, safe='')}", fold))
        result = over_folds([one.result for one in found], folds)
        with context.failing_together():
            if context.is_main:
                result.write(out / RESULT)
        return replace(found[-1], result=result, checkpoint=str(out), is_main=context.is_main)


def make_state(
    start: Start, data: FineTuneData, config: FineTuneConfig, device: torch.device
) -> TrainState[FineTuning]:
    """The checkpoint's encoder with a new head, which follows from the seed, and the optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = load_encoder(start.checkpoint, start.input_frames)
        model = FineTuned(encoder, start.checkpoint.norm_stats, len(data.classes), flat=config.is_flat)
    objective = FineTuning(
        model, start.clips.front_end, several=data.several, freeze_patches=config.freeze_patches,
        fixed_norm=config.head == PROBE,
    )  # fmt: skip
    objective = objective.to(device).train()
    scaler = torch.amp.GradScaler(device.type, enabled=resolve_amp(config.amp, device) == "fp16")
    return TrainState(objective, make_optimizer(objective, config), scaler)


def grid_of(objective: FineTuning, frames: int) -> Grid:
    """Rows and columns of the patches of a crop, as `FineTuning.prepare` fills it up."""
    config = objective.model.encoder.config
    rows, columns = config.grid_size
    return rows, min(columns, -(-frames // config.patch_size[1]))


def require_division(config: FineTuneConfig, processes: int) -> None:
    """Raise `UserError` if a batch cannot be divided evenly among ``processes``."""
    if config.batch_size % (pieces := processes * config.accumulate):
        raise UserError(
            f"a batch of {config.batch_size:,} cannot be divided among {processes} processes and {config.accumulate} "
            f"accumulated parts; use a --batch-size that is a multiple of {pieces}."
        )


def _run(
    context: DistributedContext,
    start: Start,
    choice: LabelChoice,
    config: FineTuneConfig,
    options: FineTuneOptions,
    out: Path,
    fold: str | None,
) -> FineTuneResult:
    """One run: train, and test the best epoch's weights."""
    with ExitStack() as stack:
        data = data_of(context, start, choice, config, fold)
        context.broadcast_from_main(lambda: require_division(config, context.size))
        skipped = start.clips.skipped
        first = first_lines(skipped, len(skipped), f"all are in {SKIPPED}")
        for line in (data.summary(), *data.splits.notes, *first):
            say(context, line)
        state = make_state(start, data, config, context.device)
        run = context.broadcast_from_main(lambda: _open_run(stack, start, data, state, choice, config, options, out))
        if (newest := context.broadcast_from_main(run.newest)) is not None:
            state.restore(newest)
            say(context, f"going on from {newest}")
        else:
            say(context, _began_with(start, state.objective))
            if config.head == PROBE:
                _begin_with_probe(context, data, state.objective, config, options)
        schedule = FineTuneSchedule(config, steps_per_epoch(len(data.splits.train), config))
        scores = _epoch_scores(data, state.objective, schedule, run, options, context.size)
        if state.step < schedule.total_steps:
            _train(stack, context, start, data, state, schedule, scores, run, options)
        result: list[Result] = []
        with context.failing_together():
            if context.is_main:
                result.append(_tested(start, data, state.objective, scores, run, schedule, options, context.size))
                forget_before(out)
        shown = result[0] if result else Result("fine-tune", data.clips.found.task.name, data.metric, None)
        weights = str(scores.best_weights()) if context.is_main else ""
        return FineTuneResult(
            shown, weights, config.epochs, schedule.total_steps, len(start.clips.skipped), context.is_main
        )


def _open_run(
    stack: ExitStack, start: Start, data: FineTuneData, state: TrainState[FineTuning], choice: LabelChoice,
    config: FineTuneConfig, options: FineTuneOptions, out: Path,
) -> RunFolder:  # fmt: skip
    model = state.objective.model.encoder.config
    settings = {
        "model": model.to_dict(),
        "train": config.to_dict(),
        "data": data.identity(),
        "init": start.digest,
        "feature": "flat" if config.is_flat else "stacked",
    }
    named = folder_name(start.checkpoint.path)
    letter = "" if named is None else named.letter
    rate = start.clips.front_end.sample_rate
    name = checkpoint_folder_name(_size(model.embed_dim), model, config, rate, fingerprint(settings), letter)
    notes = {"labels": str(choice.labels), "checkpoint": str(start.checkpoint.path)}
    recipe = recipe_text(choice, out, config, options)
    run = begin_run(
        stack, out, name, settings, notes, recipe, start.clips.skipped, overwrite=options.overwrite
    )  # fmt: skip
    names = _words(data)
    rows = [(str(index), label, names.get(label, "")) for index, label in enumerate(data.classes)]
    write_csv(out / CLASSES, ("index", "label", "name"), rows)
    write_text(run.checkpoints / CLASS_LIST, "".join(f"{label}\n" for label in data.classes))
    write_object(run.checkpoints / ARGS, _checkpoint_args(start, data, state.objective, config))
    return run


def _words(data: FineTuneData) -> Mapping[str, str]:
    """The names of classes that are ids: the task's, or AudioSet's."""
    return data.clips.found.task.caption.names or names_of(data.classes)


def _size(width: int) -> str:
    return SIZE_OF_WIDTH.get(width, "tiny")


def _began_with(start: Start, objective: FineTuning) -> str:
    checkpoint, config = start.checkpoint, objective.model.encoder.config
    old, new = checkpoint.config.grid_size, config.grid_size
    positions = "" if old == new else f"; positions of {old[0]}x{old[1]} patches fitted to {new[0]}x{new[1]}"
    dropped = "; its classifier is replaced" if checkpoint.head_weights else ""
    dropped += "; its text tower is left out" if checkpoint.text_weights else ""
    if config.fusion != NONE:
        dropped += f"; with fusion {config.fusion}, EVAR cannot read weights_*.pth"
        if config.fusion_fill != PAD or config.antialias:
            dropped += ", which does not say how channels are made either: use checkpoint-*.pth"
    if config.embed_dim != HEAD_DIM * config.num_heads:  # which loaders of weights alone take for granted
        dropped += f"; with heads of {config.embed_dim // config.num_heads} dimensions, not {HEAD_DIM}, weights_*.pth "
        dropped += "is misread without its run: use checkpoint-*.pth"
    return f"the encoder of {checkpoint.path} ({checkpoint.layout}) and a new head{positions}{dropped}"


def _begin_with_probe(
    context: DistributedContext,
    data: FineTuneData,
    objective: FineTuning,
    config: FineTuneConfig,
    options: FineTuneOptions,
) -> None:
    def trained() -> Probe:
        grid = grid_of(objective, data.frames)
        train, valid = (data.dataset(rows, config, grid) for rows in (data.splits.train, data.splits.valid))
        return train_probe(
            objective, train, valid, seed=config.seed, amp=config.amp, workers=options.loader_workers,
            processes=context.size,
        )  # fmt: skip

    probe = context.broadcast_from_main(trained)
    begin_with(objective, probe)
    split = "test" if data.splits.validates_on_test else "valid"
    say(context, f"the head begins as a linear probe: {split} {data.metric} {probe.score:.4f}")


def _epoch_scores(
    data: FineTuneData,
    objective: FineTuning,
    schedule: FineTuneSchedule,
    run: RunFolder,
    options: FineTuneOptions,
    processes: int,
) -> EpochScores:
    config = schedule.config
    clips = data.dataset(
        data.splits.valid, config, grid_of(objective, data.frames),
        drawn_crops=config.strict_evar and not data.splits.validates_on_test,
    )  # fmt: skip
    return EpochScores(
        objective, clips, run, split="test" if data.splits.validates_on_test else "valid", metric=data.metric,
        every=options.valid_every, epochs=config.epochs, steps_per_epoch=schedule.steps_per_epoch, amp=config.amp,
        workers=options.loader_workers, processes=processes, first_wins=config.strict_evar,
    )  # fmt: skip


def _train(
    stack: ExitStack,
    context: DistributedContext,
    start: Start,
    data: FineTuneData,
    state: TrainState[FineTuning],
    schedule: FineTuneSchedule,
    scores: EpochScores,
    run: RunFolder,
    options: FineTuneOptions,
) -> None:
    """Wire the parts of a run together and run its steps."""
    config, objective = schedule.config, state.objective
    dataset = data.dataset(data.splits.train, config, grid_of(objective, data.frames))
    order = make_order(data, config, context, state.step)
    loader = make_loader(dataset, order, options.loader_workers, context.device, context.size)
    if options.compile:
        compile_blocks(objective)
    job = Job(
        run=run,
        args=_checkpoint_args(start, data, objective, config),
        plan=options.save,
        log_every=options.log_every,
        files_of=lambda step: [dataset.file_name(clip) for clip in order.clips_of(step).tolist()],
        meter=make_meter(objective, config, context),
        log=open_log(stack, run, state, options) if context.is_main else None,
        validation=scores if context.is_main else None,
        overwrites=options.overwrite,
        rate_option="--lr",
    )
    with Batches(loader) as batches:
        run_steps(Trainer(state, schedule, context), batches, job)


def make_order(data: FineTuneData, config: FineTuneConfig, context: DistributedContext, first_step: int) -> EpochOrder:
    """The order of this process's clips from ``first_step`` (0, 1, …) to the end."""
    return EpochOrder(
        len(data.splits.train), config, first_step=first_step, rank=context.rank, world_size=context.size,
        weights=data.weights(config),
    )  # fmt: skip


def _tested(
    start: Start,
    data: FineTuneData,
    objective: FineTuning,
    scores: EpochScores,
    run: RunFolder,
    schedule: FineTuneSchedule,
    options: FineTuneOptions,
    processes: int,
) -> Result:
    """The result in the run's folder or, if it is not there yet, that of the best epoch's weights on the test clips."""
    place, weights = run.root / RESULT, scores.best_weights()
    if place.exists():
        return Result.read(place)
    objective.load_weights(read_file(weights))
    config = schedule.config
    clips = data.dataset(data.splits.test, config, grid_of(objective, data.frames))
    judged = judge(objective, clips, config.amp, options.loader_workers, processes)
    best = scores.best()
    assert best is not None
    result = result_of(data, judged, config, best).about(
        digests={"checkpoint": file_digest(weights), "begun_with": start.digest},
        model={"checkpoint": str(weights), "begun_with": str(start.checkpoint.path)},
    )
    result.write(place)
    return result


def _checkpoint_args(start: Start, data: FineTuneData, objective: FineTuning, config: FineTuneConfig) -> dict[str, Any]:
    """A checkpoint's description of itself: the original's names at the top, our configurations below."""
    model, front_end = objective.model.encoder.config, start.clips.front_end
    names = _words(data)
    named = any(label in names for label in data.classes)
    return {
        "model": model_name(_size(model.embed_dim)),
        "input_size": list(model.input_size),
        "patch_size": list(model.patch_size),
        "sr": f"{front_end.sample_rate // 1000}k",
        "front_end": asdict(front_end),
        "norm_stats": list(start.checkpoint.norm_stats),
        "text_model": start.checkpoint.text_model or None,
        "model_config": model.to_dict(),
        "train_config": config.to_dict(),
        "classes": [names.get(label, label) for label in data.classes],
        "class_ids": data.classes if named else [],
        "several_labels": data.several,
    }


def say(context: DistributedContext, words: str) -> None:
    if context.is_main:
        print(f"fine-tune: {words}", file=sys.stderr)
