"""Weights in a folder as the Hugging Face hub has them: ``model.safetensors``, and beside it what they are of.

``config.json`` holds what a checkpoint of ours has under ``args``, and the digest of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from m2dprep.artifacts.digests import plain_digest
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import atomic_file
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.m2dclap.proof import DamagedError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SUFFIX = ".safetensors"
MODEL_TYPE, FORMAT = "m2d-clap", 1
# Keys of ``config.json``.
OURS, DIGEST = "m2dprep", "weights_digest"


def write_safetensors(folder: Path, weights: Mapping[str, torch.Tensor], args: Mapping[str, Any]) -> None:
    """Write ``weights`` and what they are of to ``folder``; the configuration, which is the marker, last."""
    from safetensors.torch import save

    own = {key: value.detach().cpu().clone().contiguous() for key, value in weights.items()}
    with atomic_file(folder / WEIGHTS) as file:
        file.write(save(own, metadata={"format": "pt"}))
    about = {"format": FORMAT, DIGEST: plain_digest(folder / WEIGHTS), "args": dict(args)}
    write_object(folder / CONFIG, {"model_type": MODEL_TYPE, "library_name": "m2dprep", OURS: about})


def read_safetensors(path: Path) -> dict[str, Any]:
    """What a checkpoint holds: ``model``, its tensors on the CPU, and ``args``, which are empty for a file of others.

    Raises `DamagedError` if the weights are not those that the configuration beside them is of, and `UserError` if the
    file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_object(path.with_name(CONFIG)) if path.name == WEIGHTS else None
    about = config.get(OURS) if config is not None else None
    about = about if isinstance(about, Mapping) else {}
    if about.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} is of another form of m2dprep ({about['format']}); a newer version reads it.")
    if DIGEST in about and plain_digest(path) != about[DIGEST]:
        raise DamagedError(f"{path} is damaged, or is not of the {CONFIG} beside it: its digest is another.")
    try:
        weights = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no safetensors file that can be read: {first_line(error)}") from error
    args = about.get("args")
    return {"model": weights, "args": dict(args) if isinstance(args, Mapping) else {}}
