"""The steps of a linear head's training: Adam on batches of rows, with the gradient written out.

The columns of the features are divided among workers. A worker owns a slice of the weights with its Adam, and one call
does all that it can do alone: the gradient of its weights, Adam, the rows of the next batch, and its share of their
logits. So threads meet once per step; each computes by itself, since PyTorch's own threads would wait for each other,
busily, at each of ten operations per step. The slices follow from the number of columns, so that the result does not
depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F

MOST_SLICES = 4
COLUMNS_OF_A_SLICE = 512
BLOCK_ROWS = 8192


class Rows(Protocol):
    """Scaled features (N, D) and their targets (`linear_head.Part`)."""

    @property
    def features(self) -> torch.Tensor: ...

    @property
    def targets(self) -> torch.Tensor: ...


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, PyTorch's operations of this thread, and of threads that begin meanwhile, are not divided."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def alone() -> None:
    """What a thread that computes does first: it does not divide PyTorch's operations."""
    torch.set_num_threads(1)


class Steps:
    """The weights of a head while they are trained, on the device of ``weight`` (C, D) and ``bias`` (C,)."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, adam: dict[str, Any], *, several: bool, threads: int = 1
    ) -> None:
        """``adam`` are PyTorch's arguments; ``several`` labels per row have the binary cross entropy as their loss."""
        on_cpu = weight.device.type == "cpu"
        wanted = min(MOST_SLICES, weight.shape[1] // COLUMNS_OF_A_SLICE) if on_cpu else 1
        slices = [part.clone() for part in weight.tensor_split(max(1, wanted), dim=1)]
        count = max(1, min(threads, len(slices)))
        starts = torch.tensor([0, *(part.shape[1] for part in slices)]).cumsum(0).tolist()
        owned = [
            [(part, slice(start, start + part.shape[1])) for part, start in zip(slices, starts, strict=False)][k::count]
            for k in range(count)
        ]
        self._bias, self._slices, self._several = bias.clone(), slices, several
        self._order = [number for k in range(count) for number in range(len(slices))[k::count]]
        self._workers = [_Worker(own, self._bias if not k else None, adam) for k, own in enumerate(owned)]
        self._pool = ThreadPoolExecutor(count - 1, initializer=alone) if count > 1 else None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the weights (C, D) and the bias (C,) as they are now."""
        return torch.cat(self._slices, dim=1), self._bias.clone()

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C) of rows (N, D) that are not trained on."""
        blocks = [
            self._sum(self._all([lambda w=w, b=block: w.shares(b) for w in self._workers]))  # type: ignore[misc]
            for block in features.split(BLOCK_ROWS)
        ]
        return torch.cat(blocks, dim=1).T

    def epoch(self, part: Rows, batches: Sequence[torch.Tensor]) -> None:
        """A step with each batch of row numbers, in turn."""
        gradient: torch.Tensor | None = None
        for batch in batches:
            logits = self._sum(self._step(part.features, gradient, batch))
            targets = part.targets[batch].to(logits.device, non_blocking=True)
            gradient = self._gradient(logits, targets)
        self._step(part.features, gradient, None)

    def _step(
        self, features: torch.Tensor, gradient: torch.Tensor | None, batch: torch.Tensor | None
    ) -> list[list[torch.Tensor]]:
        return self._all([lambda w=w: w.step(features, gradient, batch) for w in self._workers])  # type: ignore[misc]

    def _all(self, calls: Sequence[Callable[[], list[torch.Tensor]]]) -> list[list[torch.Tensor]]:
        """What the calls return, one per worker; the first is made by this thread."""
        if self._pool is None:
            return [call() for call in calls]
        others = [self._pool.submit(call) for call in calls[1:]]
        return [calls[0](), *(other.result() for other in others)]

    def _sum(self, shares: Sequence[list[torch.Tensor]]) -> torch.Tensor:
        """The logits (C, N): the slices' shares, added in the order of the columns."""
        flat = [one for own in shares for one in own]
        ordered = [one for _, one in sorted(zip(self._order, flat, strict=True), key=lambda pair: pair[0])]
        total = ordered[0] + self._bias[:, None]
        for one in ordered[1:]:
            total += one
        return total

    def _gradient(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The gradient (C, n) of the loss by the logits (C, n); the targets are (n,) classes or (n, K) labels."""
        count = logits.numel()
        if self._several:
            return logits.sigmoid_().sub_(targets.T).div_(count)
        shares = logits.softmax(dim=0)
        if targets.ndim == 1:
            return shares.sub_(F.one_hot(targets, shares.shape[0]).T).div_(count)
        spread = targets.T.expand_as(shares)
        return shares.mul_(spread.sum(dim=0, keepdim=True)).sub_(spread).div_(count)


class _Worker:
    """Some slices of the columns, each with its weights (C, d); the first worker has the bias too."""

    def __init__(
        self, slices: Sequence[tuple[torch.Tensor, slice]], bias: torch.Tensor | None, adam: dict[str, Any]
    ) -> None:
        self._slices, self._bias = slices, bias
        trained = [weight for weight, _ in slices] + ([] if bias is None else [bias])
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        self._optimizer = torch.optim.Adam(trained, fused=True, **adam)
        self._buffers = [torch.empty(0, device=weight.device) for weight, _ in slices]
        self._rows: list[torch.Tensor] = []

    @torch.inference_mode()
    def step(
        self, features: torch.Tensor, gradient: torch.Tensor | None, batch: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Step by the ``gradient`` (C, n) of the batch before; the slices' shares (C, n) of the logits of the next."""
        if gradient is not None:
            for (weight, _), rows in zip(self._slices, self._rows, strict=True):
                torch.mm(gradient, rows, out=weight.grad)
            if self._bias is not None:
                torch.sum(gradient, dim=1, out=self._bias.grad)
            self._optimizer.step()
        if batch is None:
            return []
        self._rows = [self._gathered(number, features, batch) for number in range(len(self._slices))]
        return [weight @ rows.T for (weight, _), rows in zip(self._slices, self._rows, strict=True)]

    @torch.inference_mode()
    def shares(self, features: torch.Tensor) -> list[torch.Tensor]:
        """The slices' shares (C, N) of the logits of rows (N, D)."""
        return [
            weight @ features[:, columns].to(weight.device, non_blocking=True).T for weight, columns in self._slices
        ]

    def _gathered(self, number: int, features: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        weight, columns = self._slices[number]
        if features.device != weight.device:
            return features[batch].to(weight.device, non_blocking=True)
        buffer = self._buffers[number]
        if buffer.shape[0] < len(batch):
            buffer = self._buffers[number] = features.new_empty(len(batch), weight.shape[1])
        return torch.index_select(features[:, columns], 0, batch, out=buffer[: len(batch)])
