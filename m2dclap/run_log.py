"""How a run went: JSON lines, TensorBoard events, optionally wandb; and the watch for losses that are not finite."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from artifacts.atomic import write_text
from artifacts.errors import UserError

LOSSES = ("loss", "loss_m2d", "loss_clap")
FILES_SHOWN = 8
Figures = dict[str, float | int | None]


class NonFiniteLossError(UserError):
    """Training has diverged, or an array in the batch is not finite."""

    exit_code = 1


class LossWindow:
    """The losses since the last line of the log; they stay on the device until a line or a checkpoint is due.

    ``reduce`` averages a tensor over processes, on the CPU. What was reduced before a checkpoint is part of it, so a
    resumed run writes the same lines.
    """

    def __init__(self, reduce: Callable[[torch.Tensor], torch.Tensor], unlogged: torch.Tensor) -> None:
        self._reduce, self._settled = reduce, unlogged
        self._fresh: list[torch.Tensor] = []

    def add(self, losses: torch.Tensor) -> None:
        """Remember a step's losses (3,); no transfer from the device."""
        self._fresh.append(losses)

    def settle(self) -> torch.Tensor:
        """All losses since the last line (n, 3), averaged over processes; a step that is not finite stays so."""
        if self._fresh:
            self._settled = torch.cat([self._settled, self._reduce(torch.stack(self._fresh))])
            self._fresh.clear()
        return self._settled

    def take(self) -> dict[str, float]:
        """Their means by name; the next window begins."""
        means = self.settle().double().mean(dim=0).tolist()
        self._settled = self._settled[:0]
        return dict(zip(LOSSES, means, strict=True))


def first_non_finite(losses: torch.Tensor) -> int | None:
    """The row of the first losses (n, 3) that are not finite."""
    finite = losses.isfinite().all(dim=1)
    return None if bool(finite.all()) else int((~finite).int().argmax())


class RunLog:
    """Writes lines to a run's ``log.jsonl`` and its TensorBoard events; ``also`` gets every line as well.

    Lines after ``step`` of an earlier run are dropped when the log is opened.
    """

    def __init__(self, path: Path, step: int, also: Callable[[Figures, int], None] | None = None) -> None:
        self._also = also
        _truncate(path, step)
        self._file = path.open("a")
        self._events = SummaryWriter(str(path.parent), purge_step=step + 1)

    def write(self, step: int, epoch: float, figures: Figures) -> Figures:
        """Write the line after ``step`` steps. Infinity and NaN, which are not JSON, become null."""
        line: Figures = {"step": step, "epoch": round(epoch, 6)}
        line |= {name: value if value is None or math.isfinite(value) else None for name, value in figures.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in line.items():
            if name != "step" and value is not None:
                self._events.add_scalar(name, value, step)
        if self._also is not None:
            self._also(line, step)
        return line

    def sync(self) -> None:
        """Make what was written survive a power cut, before a checkpoint that comes after it."""
        os.fsync(self._file.fileno())
        self._events.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._events.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a ``log.jsonl``, none where there is none; a last line that a kill cut off is passed over."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _truncate(path: Path, step: int) -> None:
    kept = [line for line in read_log(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
