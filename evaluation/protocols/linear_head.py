"""Trains the linear head of EVAR's protocol: scaled features, one linear layer, Adam, early stopping by a score.

EVAR feeds a `DataLoader` row by row and lets autograd differentiate; here a batch is one gather and two matrix
products (`linear_steps`), with the same numbers. The features stay on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import Range, check
from m2dprep.evaluation.protocols.linear_steps import BLOCK_ROWS, Steps, one_thread
from m2dprep.evaluation.protocols.metrics import average_precision

# Rows of features that are worked on at once while they fit a processor's cache.
CACHED_ROWS = 256
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
        shift = features[rows[0]].astype(np.float64)  # near the mean, so that little is lost in the sums
        squares, sums = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for start in range(0, count, CACHED_ROWS):
            block = np.subtract(features[rows[start : start + CACHED_ROWS]], shift, dtype=np.float64)
            squares += np.einsum("nd,nd->d", block, block)
            sums += block.sum(axis=0)
        mean = shift + sums / count
        variance = np.maximum((squares - sums**2 / count) / count, 0)
        eps = np.finfo(np.float64).eps
        constant = variance <= count * eps * variance + (count * mean * eps) ** 2
        return cls(mean, np.where(constant, 1.0, np.sqrt(variance)))

    def __call__(self, features: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """float32 (n, D): the scaled rows."""
        scaled = np.empty((len(rows), features.shape[1]), np.float32)
        mean, scale = self.mean.astype(np.float32), self.scale.astype(np.float32)
        for start in range(0, len(rows), CACHED_ROWS):
            block = scaled[start : start + CACHED_ROWS]
            np.subtract(features[rows[start : start + CACHED_ROWS]], mean, out=block, casting="same_kind")
            block /= scale
        return torch.from_numpy(scaled)


class Draws:
    """Initial weights and the orders of rows, drawn in the sequence in which PyTorch draws them in EVAR's loop.

    That is: the weights and the bias of ``nn.Linear``; for each epoch the seed of the loader's workers, then that of
    the order; the seed of the validation loader; and after the training those of the two loaders of the test rows, one
    for the score and one for the predictions.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
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
    threads: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Head:
    """Train from ``initial`` weights (C, D) and bias (C,), with one of ``orders`` of the training rows per epoch.

    The loss is EVAR's: the cross entropy divided by the number of classes too, or the mean binary cross entropy of
    ``several`` labels. An epoch whose validation score is at least the best so far is the best; the training stops
    after ``patience`` worse ones in a row, and the best epoch's weights are kept. The result does not depend on the
    number of ``threads``. No epoch begins once it is ``stopped``. Raises `UserError` if weights become infinite.
    """
    device = device or train.features.device
    adam = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    curve: list[float] = []
    best, best_epoch, waited, finite = 0.0, -1, 0, True
    weight, bias = (part.to(device) for part in initial)
    with one_thread(device), Steps(weight, bias, adam, several=several, threads=threads) as steps:
        kept = steps.head()
        for _, order in zip(range(settings.epochs), orders, strict=False):
            if stopped():
                break
            steps.epoch(train, order.to(train.features.device).split(settings.batch))
            logits = steps.logits(valid.features)
            if not (finite := bool(logits.isfinite().all())):
                break
            score = score_of(logits, valid.targets, several=several, squashed=squashed)
            curve.append(score)
            if score >= best:
                best, best_epoch, waited = score, len(curve) - 1, 0
                kept = steps.head()
            else:
                waited += 1
                if waited == settings.patience:
                    break
        finite = finite and all(bool(part.isfinite().all()) for part in (*steps.head(), *kept))
    if best_epoch < 0 or not finite:
        raise UserError(f"a head diverges with the learning rate {settings.lr:g}; lower --lr.")
    return Head(*kept, tuple(curve), best_epoch)
