"""How a run went: JSON lines, TensorBoard events, and the watch for losses that are not finite."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from artifacts.atomic import write_text
from artifacts.errors import UserError
from m2dclap.model import Output

LOSSES = ("loss", "loss_m2d", "loss_clap")
FILES_SHOWN = 8


class NonFiniteLossError(UserError):
    """Training has diverged, or an array in the batch is not finite."""

    exit_code = 1


class RunLog:
    """Collects losses on the device and writes a line every ``every`` steps, so that a step never waits for the host.

    A line holds ``step`` (data iterations so far), ``epoch`` (a fraction), the mean losses since the last line, and
    what the loop adds. Lines after ``step`` of an earlier run are dropped when the log is opened.
    """

    def __init__(self, path: Path, every: int, step: int, name_of: Callable[[int], str]) -> None:
        self._path, self._every, self._name_of = path, every, name_of
        self._losses: list[torch.Tensor] = []
        self._indices: list[torch.Tensor] = []
        _truncate(path, step)
        self._file = path.open("a")
        self._events = SummaryWriter(str(path.parent), purge_step=step + 1)
        self._clock = time.monotonic()

    def add(self, output: Output, indices: torch.Tensor) -> None:
        """Remember a step's losses and which clips it saw; no transfer from the device."""
        self._losses.append(torch.stack([getattr(output, name).detach().float() for name in LOSSES]))
        self._indices.append(indices)

    def is_due(self, step: int) -> bool:
        return step % self._every == 0

    def write(self, step: int, epoch: float, **figures: float | torch.Tensor) -> dict[str, Any]:
        """Write the line after ``step`` steps. Raises `NonFiniteLossError`, naming the first such batch's files."""
        losses = torch.stack(self._losses).cpu()
        finite = losses.isfinite().all(dim=1)
        if not finite.all():
            offset = int((~finite).int().argmax())
            self._stop(step - len(losses) + offset + 1, self._indices[offset])
        samples = sum(len(indices) for indices in self._indices)
        now = time.monotonic()
        line: dict[str, Any] = {"step": step, "epoch": round(epoch, 6)}
        line |= dict(zip(LOSSES, losses.double().mean(dim=0).tolist(), strict=True))
        line |= {name: _finite(value) for name, value in figures.items()}
        line["samples_per_second"] = round(samples / max(now - self._clock, 1e-9), 3)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in line.items():
            if name != "step" and value is not None:
                self._events.add_scalar(name, value, step)
        self._losses.clear()
        self._indices.clear()
        self._clock = now
        return line

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._events.close()

    def _stop(self, step: int, indices: torch.Tensor) -> None:
        names = [self._name_of(int(index)) for index in indices.tolist()]
        shown = ", ".join(names[:FILES_SHOWN]) + (
            f" and {len(names) - FILES_SHOWN} more" if names[FILES_SHOWN:] else ""
        )
        raise NonFiniteLossError(
            f"the loss of step {step} is not finite. Its batch: {shown}. Look for NaN in these with `m2dprep check`; "
            "otherwise start anew (--overwrite) with a lower --blr. Checkpoints of this run are from before this step."
        )


def _finite(value: float | torch.Tensor) -> float | None:
    """None for infinity and NaN, which are not JSON; a gradient's norm is infinite where fp16 overflowed."""
    number = float(value)
    return number if math.isfinite(number) else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a ``log.jsonl``, none where there is none; a last line that a kill cut off is passed over."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _truncate(path: Path, step: int) -> None:
    kept = [line for line in read_log(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
