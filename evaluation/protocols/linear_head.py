"""Trains the linear head of EVAR's protocol: scaled features, one linear layer, Adam, early stopping by a score.

EVAR feeds a `DataLoader` row by row and lets autograd differentiate; here a batch is one gather and two matrix
products, with the same numbers. The features stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import Range, check
from m2dprep.evaluation.protocols.metrics import average_precision

BLOCK_ROWS = 8192
# The share of a GPU's free memory that features may take; larger ones stay in main memory.
GPU_SHARE = 0.7


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained; the defaults are EVAR's for M2D. ``batch`` is the most rows per step."""

    lr: Annotated[float, Range(0, 100, above=True)] = 3e-5
    epochs: Annotated[int, Range(1, 100_000)] = 200
    patience: Annotated[int, Range(1, 100_000)] = 20
    batch: Annotated[int, Range(1, 1_000_000)] = 200
    weight_decay: Annotated[float, Range(0, 100)] = 1e-8

    def __post_init__(self) -> None:
        check(self)


class Scaler(NamedTuple):
    """Subtracts the mean and divides by the standard deviation of each column (D,), as scikit-learn's StandardScaler:
    a column that is constant up to rounding is divided by 1."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, rows: np.ndarray) -> Scaler:
        """The scaler of some rows of features (N, D), computed in float64."""
        count = len(rows)
        mean = sum((block.sum(axis=0) for block in _wide(features, rows)), np.zeros(features.shape[1])) / count
        squares, slips = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for block in _wide(features, rows):
            block -= mean
            squares += np.einsum("nd,nd->d", block, block)
            slips += block.sum(axis=0)
        variance = (squares - slips**2 / count) / count
        eps = np.finfo(np.float64).eps
        constant = variance <= count * eps * variance + (count * mean * eps) ** 2
        return cls(mean, np.where(constant, 1.0, np.sqrt(variance)))

    def __call__(self, features: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """float32 (n, D): the scaled rows."""
        scaled = np.empty((len(rows), features.shape[1]), np.float32)
        mean, scale = self.mean.astype(np.float32), self.scale.astype(np.float32)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = scaled[start : start + BLOCK_ROWS]
            np.subtract(features[rows[start : start + BLOCK_ROWS]], mean, out=block, casting="same_kind")
            block /= scale
        return torch.from_numpy(scaled)


def _wide(features: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BLOCK_ROWS):
        yield features[rows[start : start + BLOCK_ROWS]].astype(np.float64)


class Draws:
    """Initial weights and the orders of rows, drawn in the sequence in which PyTorch draws them in EVAR's loop.

    That is: the weights and the bias of ``nn.Linear``; for each epoch the seed of the loader's workers, then that of
    the order; the seed of the validation loader; and after the training those of the two loaders of the test rows, one
    for the score and one for the predictions.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def weights(self, classes: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights (C, D) and the bias (C,) of a new layer."""
        bound = dim**-0.5
        weight = torch.empty(classes, dim).uniform_(-bound, bound, generator=self._generator)
        return weight, torch.empty(classes).uniform_(-bound, bound, generator=self._generator)

    def orders(self, rows: int) -> Iterator[torch.Tensor]:
        """An order of the training rows for each epoch, without end."""
        while True:
            self._seed()
            yield torch.randperm(rows, generator=torch.Generator().manual_seed(self._seed()))
            self._seed()

    def skip_test(self) -> None:
        """What the loaders of the test rows draw."""
        self._seed()
        self._seed()

    def _seed(self) -> int:
        return int(torch.empty((), dtype=torch.int64).random_(generator=self._generator).item())


@dataclass(frozen=True)
class Part:
    """Scaled features (N, D) and targets: int64 (N,) classes, or float32 (N, K) of several labels.

    K is the number of classes; only for EVAR's defect with two classes it is 1, and then spreads over both.
    """

    features: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> Part:
        """On a GPU if it has room for them; else where they are."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.features.nbytes > GPU_SHARE * free:
                return Part(self.features.pin_memory(), self.targets)
        return Part(self.features.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Head:
    """A trained head: weights (C, D) and bias (C,) of the best epoch, and how it went. Epochs count from 0."""

    weight: torch.Tensor
    bias: torch.Tensor
    curve: tuple[float, ...]
    best_epoch: int

    @property
    def epochs_run(self) -> int:
        return len(self.curve)

    @torch.inference_mode()
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C), on the device of the head."""
        device = self.weight.device
        blocks = [
            torch.addmm(self.bias, block.to(device, non_blocking=True), self.weight.T)
            for block in features.split(BLOCK_ROWS)
        ]
        return torch.cat(blocks) if blocks else torch.empty(0, len(self.bias), device=device)


def score_of(logits: torch.Tensor, targets: torch.Tensor, *, several: bool, squashed: bool) -> float:
    """Accuracy, or the mean average precision of ``several`` labels per row.

    EVAR scores the sigmoid of the logits (``squashed``), which makes equal what differs beyond float32's reach.
    """
    scores = logits.sigmoid() if squashed else logits
    if several:
        return float(average_precision(targets.cpu().numpy() > 0, scores.cpu().numpy()).mean())
    truth = targets if targets.ndim == 1 else targets.argmax(dim=1)
    return float((scores.argmax(dim=1) == truth.to(scores.device)).double().mean())


@torch.inference_mode()
def train_head(
    train: Part,
    valid: Part,
    initial: tuple[torch.Tensor, torch.Tensor],
    orders: Iterable[torch.Tensor],
    settings: HeadSettings,
    *,
    several: bool = False,
    squashed: bool = False,
    device: torch.device | None = None,
) -> Head:
    """Train from ``initial`` weights (C, D) and bias (C,), with one of ``orders`` of the training rows per epoch.

    The loss is EVAR's: the cross entropy divided by the number of classes too, or the mean binary cross entropy of
    ``several`` labels. An epoch whose validation score is at least the best so far is the best; the training stops
    after ``patience`` worse ones in a row, and the best epoch's weights are kept. Raises `UserError` if weights become
    infinite.
    """
    device = device or train.features.device
    weight, bias = (part.to(device, copy=True) for part in initial)
    step = _Stepper(weight, bias, settings, several)
    curve: list[float] = []
    best, best_epoch, waited = 0.0, -1, 0
    kept = weight.clone(), bias.clone()
    for epoch, order in zip(range(settings.epochs), orders, strict=False):
        for batch in order.to(train.features.device).split(settings.batch):
            step(train, batch)
        score = score_of(
            Head(weight, bias, (), 0).logits(valid.features), valid.targets, several=several, squashed=squashed
        )
        curve.append(score)
        if score >= best:
            best, best_epoch, waited = score, epoch, 0
            kept = weight.clone(), bias.clone()
        else:
            waited += 1
            if waited == settings.patience:
                break
    if best_epoch < 0 or not all(bool(part.isfinite().all()) for part in (weight, bias, *kept)):
        raise UserError(f"a head diverges with the learning rate {settings.lr:g}; lower --lr.")
    return Head(*kept, tuple(curve), best_epoch)


class _Stepper:
    """One step of Adam on a batch, with the gradient written out."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, settings: HeadSettings, several: bool) -> None:
        self._weight, self._bias, self._several = weight, bias, several
        self._optimizer = torch.optim.Adam(
            [weight, bias], lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self._rows = torch.empty(0)
        weight.grad, bias.grad = torch.empty_like(weight), torch.empty_like(bias)

    def __call__(self, part: Part, batch: torch.Tensor) -> None:
        rows = self._gathered(part.features, batch)
        logits = torch.addmm(self._bias, rows, self._weight.T)
        targets = part.targets[batch].to(logits.device, non_blocking=True)
        gradient = self._of_loss(logits, targets).div_(logits.numel())
        assert self._weight.grad is not None and self._bias.grad is not None
        torch.mm(gradient.T, rows, out=self._weight.grad)
        torch.sum(gradient, dim=0, out=self._bias.grad)
        self._optimizer.step()

    def _gathered(self, features: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        if features.device != self._weight.device:
            return features[batch].to(self._weight.device, non_blocking=True)
        if self._rows.shape[0] < len(batch) or self._rows.device != features.device:
            self._rows = features.new_empty(len(batch), features.shape[1])
        return torch.index_select(features, 0, batch, out=self._rows[: len(batch)])

    def _of_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The gradient of the loss by the logits, times their number."""
        if self._several:
            return logits.sigmoid_().sub_(targets)
        shares = logits.softmax(dim=1)
        if targets.ndim == 1:
            return shares.sub_(F.one_hot(targets, shares.shape[1]))
        spread = targets.expand_as(shares)
        return shares.mul_(spread.sum(dim=1, keepdim=True)).sub_(spread)
