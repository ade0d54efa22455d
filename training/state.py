"""The state of training: everything that is saved, and how training resumes from it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from m2dprep.artifacts.digests import fingerprint
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import atomic_file
from m2dprep.m2dclap.checkpoint import read_file
from m2dprep.m2dclap.proof import add_proof
from m2dprep.m2dclap.reuse.saving import save_tensors
from m2dprep.training.objectives import Objective

# Our own key in a checkpoint; the original's loaders ignore it.
EXTRA = "m2dprep"
Stage = TypeVar("Stage", bound=Objective)


@dataclass
class TrainState(Generic[Stage]):
    """Everything that changes during training, and so everything that is saved.

    ``step`` counts the optimiser's steps, and so gives the place in the learning rate's schedule and in the order of
    clips; ``unlogged`` (n, K) are the K losses of each step since the last line of the log. Random generators are not
    part of it, since everything random follows from the seed, the epoch and the clip.
    """

    objective: Stage
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    unlogged: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.unlogged = torch.empty(0, len(self.objective.loss_names))

    @property
    def device(self) -> torch.device:
        return self.objective.device

    def is_finite(self) -> bool:
        """Whether all weights and the optimiser's moments are finite; waits for the device."""
        moments = (value for of_one in self.optimizer.state.values() for value in of_one.values())
        values = [*self.objective.weights().values(), *(value for value in moments if torch.is_tensor(value))]
        by_device: dict[torch.device, list[torch.Tensor]] = {}
        for value in values:
            by_device.setdefault(value.device, []).append(value.isfinite().all())
        return all(bool(torch.stack(flags).all()) for flags in by_device.values())

    def save(self, path: Path, epoch: int, args: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Write the state in the original's form to ``path``, whole or not at all; ``epoch`` counts whole epochs.

        ``args`` are stored as a plain dictionary, which every loader may read with ``weights_only=True``. Equal states
        give equal bytes.
        """
        value = {
            "model": self.objective.weights(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": epoch,
            "scaler": self.scaler.state_dict(),
            "args": dict(args),
            EXTRA: {"step": self.step, "unlogged": self.unlogged, "settings": dict(settings)},
        }
        with atomic_file(path) as file:
            save_tensors(rebuilt(value, {}), file)
            add_proof(file, place_of(path.name, settings))

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint that `save` wrote. Raises `UserError` if it is not one of this kind of run."""
        try:
            value = read_file(path)
        except UserError as error:
            raise UserError(
                f"{str(error).rstrip('.')}. Remove {path.name}, and the same command goes on from the checkpoint "
                "before it, or from the beginning."
            ) from error
        try:
            self.objective.load_weights(value["model"])
            self.optimizer.load_state_dict(value["optimizer"])
            self.scaler.load_state_dict(value["scaler"])
            self.step, unlogged = int(value[EXTRA]["step"]), value[EXTRA]["unlogged"]
            if unlogged.shape[1:] != self.unlogged.shape[1:]:
                raise ValueError(f"it has {list(unlogged.shape)[1:]} losses, not {self.objective.loss_names}")
            self.unlogged = unlogged
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} cannot be gone on from: {first_line(error)}. --overwrite starts anew.") from error


def write_weights(path: Path, weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> None:
    """Write weights alone to ``path``, a flat dictionary, whole or not at all; equal weights give equal bytes."""
    with atomic_file(path) as file:
        save_tensors(rebuilt(dict(weights), {}), file)
        add_proof(file, place_of(path.name, settings))


def place_of(name: str, settings: Mapping[str, Any]) -> str:
    """Where a checkpoint belongs: its name, and the settings of its run."""
    return f"{name} {fingerprint(settings)}"


def rebuilt(value: Any, texts: dict[str, str]) -> Any:
    """``value`` with containers of its own, and one object for each different text in it.

    Pickle writes a repeated object as a reference. Objects that are one in a run may be two equal ones in the same run
    resumed; after this, only their values matter.
    """
    if isinstance(value, str):
        return texts.setdefault(value, value)
    if isinstance(value, Mapping):
        copy: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
        copy.update({rebuilt(key, texts): rebuilt(item, texts) for key, item in value.items()})
        return copy
    if isinstance(value, list | tuple):
        return type(value)([rebuilt(item, texts) for item in value])
    if torch.is_tensor(value) and value.untyped_storage().nbytes() != value.nbytes:
        return value.clone()  # a view of a larger tensor, all of which would be written
    return value
