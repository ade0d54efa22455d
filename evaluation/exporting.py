"""Writes a checkpoint in another layout, in a folder whose name tells the original's loaders what they must know."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import atomic_file
from m2dprep.evaluation.text_towers import letter_of, tower_inside, trained_with
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.checkpoint_file import read_file
from m2dprep.m2dclap.layouts import TEXT_FOLDER, folder_name
from m2dprep.m2dclap.reuse.exporting import STAGE2, laid_out
from m2dprep.m2dclap.reuse.saving import save_tensors

# The widths and depths of the original's named models.
NAMED = {(768, 12): "base", (1024, 24): "large", (384, 12): "small"}
# Of a file of ours, what another program cannot read or does not need.
KEPT_ARGS = ("model", "input_size", "patch_size", "sr", "front_end", "norm_stats", "text_model", "model_config")


@dataclass(frozen=True)
class ExportedCheckpoint:
    """``file`` was written, with so many ``tensors`` of so many ``parameters``."""

    file: Path
    layout: str
    tensors: int
    parameters: int


def export_checkpoint(run: Path, out: Path, layout: str) -> ExportedCheckpoint:
    """Write the checkpoint of ``run`` (`find_checkpoint`) to a new folder in ``out``, in a ``layout``.

    A text tower's configuration and tokenizer are written beside it, if they are known. Raises `UserError` if the
    checkpoint does not have what the layout holds, or the file is there already.
    """
    checkpoint = Checkpoint.read(find_checkpoint(run))
    weights, below_model = laid_out(checkpoint, layout)
    inside = layout == STAGE2
    folder = out / released_name(checkpoint, text_inside=inside)
    file = folder / (checkpoint.path.name if below_model else "weights.pth")
    if file.exists():
        raise UserError(f"{file} is there already; choose another folder.")
    plain = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if inside:
        _write_tokenizer(checkpoint, folder)
    with atomic_file(file) as opened:
        save_tensors(_whole(checkpoint, plain) if below_model else plain, opened)
    parameters = sum(value.numel() for value in plain.values())
    return ExportedCheckpoint(file, layout, len(plain), parameters)


def released_name(checkpoint: Checkpoint, *, text_inside: bool) -> str:
    """``<model>-<F>x<T>p<f>x<t>p<kHz>k[p<letter>[pTI]]-<what the folder's name says besides>``.

    The letter is that of the text encoder, without one GTE-base; ``pTI`` says that the file holds it.
    """
    config, named = checkpoint.config, folder_name(checkpoint.path)
    size = NAMED.get((config.embed_dim, config.depth), f"{config.embed_dim}x{config.depth}")
    rate = f"{checkpoint.front_end.sample_rate // 1000}k"
    letter = named.letter if named is not None else ""
    if not letter and (known := trained_with(checkpoint, replaced=True).get("model")):
        kind = tower_inside(checkpoint).files.config.model_type if text_inside else ""
        letter = letter_of(str(known), kind) if text_inside or letter_of(str(known), kind) != "X" else ""
    if text_inside:
        letter = f"{letter or 'B'}pTI"
    fields = checkpoint.path.resolve().parent.name.split("-", 2) if named is not None else []
    model, rest = fields[0] if fields else f"m2d_clap_vit_{size}", fields[2:]
    shape = f"{_by(config.input_size)}p{_by(config.patch_size)}p{rate}" + (f"p{letter}" if letter else "")
    return "-".join([model, shape, rest[0] if rest else checkpoint.path.stem])


def _whole(checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the original's trainers save, without the optimiser; arguments are plain, so that any loader reads them."""
    stored = read_file(checkpoint.path)
    args = {key: value for key, value in checkpoint.args.items() if key in KEPT_ARGS and _is_plain(value)}
    epoch = stored.get("epoch")
    return {"model": dict(weights), "epoch": epoch if isinstance(epoch, int) else 0, "args": args}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    unfinished, place = folder / f".{TEXT_FOLDER}.tmp", folder / TEXT_FOLDER
    shutil.rmtree(unfinished, ignore_errors=True)
    tower_inside(checkpoint).files.save(unfinished)
    shutil.rmtree(place, ignore_errors=True)
    unfinished.replace(place)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
