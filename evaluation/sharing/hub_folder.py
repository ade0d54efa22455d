"""Writes a checkpoint as a folder for the Hugging Face hub: safetensors, configuration, model card, and what it needs.

```
model.safetensors    the encoder with its heads, its classifier and its text tower, if it has them
config.json          sizes, front end, statistics, text encoder, classes; and the digest of the weights
README.md            the model card
classes.txt          the classes of a classifier, in the order of its scores
text_encoder/        configuration and tokenizer of a text tower
```

Nothing that only training needs is in it: no predictor, no target, no optimiser.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from m2dprep.artifacts.files import write_text
from m2dprep.artifacts.folders import new_folder, require_new_folder
from m2dprep.evaluation.sharing.card import CardRequest, model_card
from m2dprep.evaluation.sharing.facts import facts_of
from m2dprep.evaluation.tagging.class_names import BESIDE, ClassNames, own_class_names
from m2dprep.evaluation.text_towers import tower_inside, trained_with
from m2dprep.m2dclap.checkpoint import TEXT_MODEL_KINDS, Checkpoint, find_checkpoint
from m2dprep.m2dclap.layouts import HEAD_PREFIX, TEXT_FOLDER, TEXT_PREFIX
from m2dprep.m2dclap.reuse.exporting import encoder_weights
from m2dprep.m2dclap.safetensors_file import write_safetensors

CARD = "README.md"


@dataclass(frozen=True)
class HubFolder:
    """What was written, with so many ``parameters`` and ``scores``; ``untold`` is what its card cannot say."""

    folder: Path
    parameters: int
    scores: int
    untold: tuple[str, ...]


def export_to_hub_folder(run: Path, folder: Path, request: CardRequest, results: Iterable[Path] = ()) -> HubFolder:
    """Write the checkpoint of ``run`` (`find_checkpoint`) to the new folder ``folder``, whole or not at all.

    Raises `UserError` if the folder holds something already, or a result is of another checkpoint.
    """
    require_new_folder(folder)
    checkpoint = Checkpoint.read(find_checkpoint(run))
    facts = facts_of(checkpoint, run, results)
    names = own_class_names(checkpoint) if checkpoint.head_weights else None
    weights = hub_weights(checkpoint)
    card = model_card(checkpoint, facts, request, names.labels if names is not None else ())
    with new_folder(folder) as filling:
        if checkpoint.text_weights:
            tower_inside(checkpoint).files.save(filling / TEXT_FOLDER)
        if names is not None:
            write_text(filling / BESIDE, "".join(f"{label}\n" for label in names.labels))
        write_text(filling / CARD, card)
        write_safetensors(filling, weights, hub_args(checkpoint, names))
    parameters = sum(value.numel() for value in weights.values())
    return HubFolder(folder, parameters, len(facts.results), tuple(facts.untold))


def hub_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All weights that encoding, classifying and text need, by the names of our checkpoints."""
    weights = encoder_weights(checkpoint)
    if checkpoint.scale is not None:
        weights["logit_scale"] = checkpoint.logit_scale
    weights |= {f"{HEAD_PREFIX}{key}": value for key, value in checkpoint.head_weights.items()}
    return weights | {f"{TEXT_PREFIX}{key}": value for key, value in checkpoint.text_weights.items()}


def _in_a_package(path: str) -> str | None:
    """A path from the folder of installed packages on, which other machines have too; None for one of this machine."""
    parts = Path(path).parts
    start = next((at for at, part in enumerate(parts) if part in ("site-packages", "dist-packages")), None)
    return None if start is None else Path(*parts[start:]).as_posix()


def hub_args(checkpoint: Checkpoint, names: ClassNames | None) -> dict[str, Any]:
    """What a reader must know beside the weights, so that nothing depends on the name of the folder."""
    text = {key: value for key, value in trained_with(checkpoint, replaced=True).items() if key in TEXT_MODEL_KINDS}
    if (path := text.pop("model_path", None)) is not None and (packaged := _in_a_package(str(path))):
        text["model_path"] = packaged
    args: dict[str, Any] = {
        "model_config": checkpoint.config.to_dict(),
        "front_end": asdict(checkpoint.front_end),
        "norm_stats": list(checkpoint.norm_stats),
    }
    if text:
        args["text_model"] = text
    if names is not None:
        args["classes"] = list(names.labels)
        if names.ids:
            args["class_ids"] = list(names.ids)
    return args
