"""A run's resolved settings as a YAML file that ``m2dprep train --config`` takes."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from artifacts.settings import kinds_of
from m2dclap.config import ModelConfig
from m2dclap.train_config import DataChoice, RunOptions, TrainConfig

# Set from the text embeddings, not chosen.
FOUND = {"off_emb_dim"}
MODEL_KEYS = {field.name for field in fields(ModelConfig)} - FOUND
TRAIN_KEYS = {field.name for field in fields(TrainConfig)}
SETTING_KINDS = {**kinds_of(ModelConfig), **kinds_of(TrainConfig)}


def recipe_text(choice: DataChoice, out: Path, model: ModelConfig, config: TrainConfig, options: RunOptions) -> str:
    """Every setting of a run under its key for ``--config``; paths absolute, so that it can be read anywhere."""
    save = options.save
    values: dict[str, Any] = {
        "data": choice.root,
        "out": out,
        "model": options.size,
        "files": choice.file_lists,
        "embeddings": choice.stores,
        "m2d_embeddings": choice.dictionaries,
        "valid_files": choice.held_out,
        "noise_files": choice.backgrounds,
        "init": options.init,
        **{key: value for key, value in model.to_dict().items() if key in MODEL_KEYS},
        **config.to_dict(),
        "device": options.device,
        "workers": options.workers,
        "compile": options.compile,
        "save_every": save.every_epochs,
        "save_steps": save.every_steps,
        "save_minutes": save.every_minutes,
        "keep": save.keep,
        "log_every": options.log_every,
        **asdict(options.validation),
        "wandb": options.wandb,
    }
    return yaml.safe_dump({key: _plain(value) for key, value in values.items()}, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Paths as absolute text; sequences as lists."""
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
