"""Linear evaluation by EVAR's protocol: how well one linear layer tells the classes apart from frozen features.

Features are scaled to zero mean and unit variance, a layer is trained for each fold and seed (`linear_head`), and the
score is the mean over folds, then over seeds. Where EVAR is wrong, the default is right, and ``strict_evar`` does it as
EVAR:

- Without valid clips, the scaler sees the rows that are held out for early stopping. Default: it does not.
- Held-out rows are drawn until all classes are among them; after 100 tries EVAR ends. Default: they are stratified by
  class, and the clips of a recording stay together if ``groups`` says which they are.
- With two classes, all truth becomes the first class. Default: two classes are scored as any others.
- Classes of several labels are those that occur in a split, so that a missing one shifts the others. Default: there is
  one list of classes.
- Scores are of sigmoids, which become equal for large logits. Default: of logits.

Initial weights and the orders of rows follow PyTorch's random numbers as in EVAR's loop, so equal features give equal
runs wherever the held-out rows are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols.lanes import Lanes
from m2dprep.evaluation.protocols.linear_head import Draws, Head, HeadSettings, Part, Scaler, score_of, train_head
from m2dprep.evaluation.protocols.metrics import (
    average_precision,
    clip_draws,
    confusion,
    confusion_details,
    drawn_average_precisions,
)
from m2dprep.evaluation.protocols.result import Result, mean_and_interval

SEEDS = (42, 43, 44)
MAX_SEED = 2**32 - 1  # of NumPy's generator that EVAR splits with
HELD_OUT = 0.1
ATTEMPTS = 100
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class LinearSettings:
    """``seeds`` are of independent repetitions; ``device`` is what PyTorch calls it, or auto: a GPU if there is one."""

    head: HeadSettings = field(default_factory=HeadSettings)
    seeds: tuple[int, ...] = SEEDS
    strict_evar: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds {', '.join(map(str, self.seeds)) or 'of none'}: give at least one, and none twice.")
        if wrong := [seed for seed in self.seeds if not 0 <= seed <= MAX_SEED]:
            raise UserError(f"--seeds: {wrong[0]} is no seed; it must be 0 to {MAX_SEED:,}.")


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds in ``42,43,44``. Raises `UserError` for anything but whole numbers."""
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds {text!r} is not a list of whole numbers such as 42,43,44.") from error


class Fold(NamedTuple):
    """The rows of one run; ``valid`` is None if some of the training rows have to be held out."""

    name: str
    train: np.ndarray
    valid: np.ndarray | None
    test: np.ndarray


class Run(NamedTuple):
    """A trained and tested head; ``logits`` (n, C) are those of the fold's test rows."""

    score: float
    head: Head
    logits: np.ndarray
    held_out: int


def linear(
    features: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    settings: LinearSettings | None = None,
    *,
    splits: Sequence[str] = (),
    folds: Sequence[str] = (),
    groups: Sequence[str] = (),
    task: str = "",
    finished: Callable[[], object] = lambda: None,
) -> Result:
    """The result for features (N, D) with ``targets``, int (N,) or bool (N, C) for several labels per row.

    Each row has one of ``splits`` (train, valid, test; other rows take no part) or, if they are given, one of
    ``folds``: each fold is tested once with a head that is trained on the others. ``groups`` names the recording that
    each row is from. ``finished`` is called after each of the folds × seeds runs. Raises `UserError` if features are
    not finite, a split is empty, or rows cannot be held out.
    """
    settings = settings or LinearSettings()
    several = targets.ndim == 2
    parts = _folds(np.array(splits), np.array(folds))
    _require_usable(features, targets, parts, len(classes))
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
    )
    problem = _Problem(features, targets, len(classes), np.array(groups), settings, device)
    runs = _all_runs(problem, parts, finished)
    score, interval = mean_and_interval([float(np.mean([run.score for run in of_seed])) for of_seed in runs])
    held_out = any(fold.valid is None for fold in parts)
    return Result(
        "linear", task, "mAP" if several else "accuracy", score, interval,
        tuple(float(np.mean([run.score for run in of_seed])) for of_seed in runs), settings.seeds,
        tuple(tuple(run.score for run in of_seed) for of_seed in runs),
        n=_counts(parts, len(classes), features.shape[1]),
        strict_evar=settings.strict_evar,
        deviations=() if settings.strict_evar else _deviations(held_out, len(groups) > 0, several, len(classes)),
        settings={**asdict(settings.head), "held_out": HELD_OUT if held_out else 0.0, "device": device.type},
        details=_details(runs, parts, targets, classes),
    )  # fmt: skip


class _Randomness:
    """The random numbers of one seed, which all its folds share, as in EVAR."""

    def __init__(self, seed: int, strict: bool) -> None:
        self.draws = Draws(seed)
        self._strict, self._seed = strict, seed
        # EVAR splits with NumPy's global generator, of this kind.
        self._legacy = np.random.RandomState(seed)

    def hold_out(self, targets: np.ndarray, groups: np.ndarray, fold: str) -> tuple[np.ndarray, np.ndarray]:
        """Places of the rows that stay for training, and of those that are held out."""
        if self._strict:
            return self._as_evar(targets)
        rng = np.random.default_rng([self._seed, *fold.encode()])
        return stratified(targets, groups, rng)

    def _as_evar(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = -(-len(targets) // 10)
        for _ in range(ATTEMPTS):
            order = self._legacy.permutation(len(targets))
            held, kept = order[:count], order[count:]
            if _classes_in(targets[held]) == _classes_in(targets):
                return kept, held
        raise UserError(
            f"EVAR cannot score this: in {ATTEMPTS} tries, {count} held-out rows of {len(targets)} never had all "
            f"{len(_classes_in(targets))} classes. Leave out --strict-evar."
        )


def _classes_in(targets: np.ndarray) -> set[int]:
    return set((np.flatnonzero(targets.any(axis=0)) if targets.ndim == 2 else np.unique(targets)).tolist())


def stratified(targets: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The rows that stay, and those that are held out: a tenth of each class, at least one if the class has two.

    The rows of a group stay together.
    With several labels per row, groups are taken in a random order as long as they have a label that lacks some.
    """
    members: dict[Any, list[int]] = {}
    for row in range(len(targets)):
        members.setdefault(groups[row] if len(groups) else row, []).append(row)
    table = targets if targets.ndim == 2 else np.eye(int(targets.max()) + 1, dtype=bool)[targets]
    counts = table.sum(axis=0)
    wanted = np.where(counts >= 2, np.maximum(1, np.round(HELD_OUT * counts)), 0).astype(int)
    taken = np.zeros_like(counts)
    held: list[int] = []
    for key in rng.permutation(np.array(list(members), dtype=object)):
        if (taken >= wanted).all():
            break
        own = table[members[key]].sum(axis=0)
        if (own[taken < wanted] > 0).any() and (taken + own < np.maximum(counts, 1) + (own == 0)).all():
            held += members[key]
            taken = taken + own
    if not held:
        raise UserError("no rows can be held out for early stopping: every class has one row or one recording alone.")
    chosen = np.zeros(len(targets), bool)
    chosen[held] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


@dataclass(frozen=True)
class _Problem:
    """What all runs have in common."""

    features: np.ndarray
    targets: np.ndarray
    classes: int
    groups: np.ndarray
    settings: LinearSettings
    device: torch.device

    @property
    def several(self) -> bool:
        return self.targets.ndim == 2

    def scaled(self, fold: Fold, train: np.ndarray, valid: np.ndarray, seen: np.ndarray) -> list[Part]:
        """The rows to train, validate and test on, scaled as the rows ``seen`` are spread."""
        scaler = Scaler.fit(self.features, seen)
        return [
            Part(
                scaler(self.features, rows),
                _as_trained(self.targets[rows], self.classes, self.settings.strict_evar, fold.name),
            ).to(self.device)
            for rows in (train, valid, fold.test)
        ]


def _all_runs(problem: _Problem, parts: Sequence[Fold], finished: Callable[[], object]) -> list[list[Run]]:
    """The runs of each seed, one per fold. Seeds are independent; a seed's folds follow each other, as in EVAR."""
    # All seeds have the same rows where none is held out; then they share the scaled ones.
    shared = [
        None if fold.valid is None else problem.scaled(fold, fold.train, fold.valid, fold.train) for fold in parts
    ]
    own = 0 if parts[0].valid is not None else problem.features.shape[1] * 4 * len(problem.features)
    lanes = Lanes(problem.device, len(problem.settings.seeds), own)
    one_at_a_time = threading.Lock()

    def of_seed(seed: int) -> list[Run]:
        randomness, runs = _Randomness(seed, problem.settings.strict_evar), []
        for fold, scaled in zip(parts, shared, strict=True):
            runs.append(_run(problem, fold, scaled, randomness, lanes))
            with one_at_a_time:
                finished()
        return runs

    return lanes.run(of_seed, problem.settings.seeds)


def _run(problem: _Problem, fold: Fold, scaled: list[Part] | None, randomness: _Randomness, lanes: Lanes) -> Run:
    strict, targets, groups = problem.settings.strict_evar, problem.targets, problem.groups
    held_out = 0
    if scaled is None:
        rows = fold.train
        kept, held = randomness.hold_out(targets[rows], groups[rows] if len(groups) else groups, fold.name)
        scaled = problem.scaled(fold, rows[kept], rows[held], rows if strict else rows[kept])
        held_out = len(held)
    train, valid, test = scaled
    batch = min(problem.settings.head.batch, len(fold.train))
    head = train_head(
        train, valid,
        randomness.draws.weights(problem.classes, problem.features.shape[1]),
        randomness.draws.orders(len(train.features)),
        replace(problem.settings.head, batch=batch), several=problem.several, squashed=strict,
        device=problem.device, threads=lanes.threads, stopped=lanes.stopped,
    )  # fmt: skip
    randomness.draws.skip_test()
    logits = head.logits(test.features)
    score = score_of(logits, test.targets, several=problem.several, squashed=strict)
    return Run(score, head, logits.cpu().numpy(), held_out)


def _as_trained(targets: np.ndarray, classes: int, strict: bool, fold: str) -> torch.Tensor:
    """The targets as `linear_head` takes them, with EVAR's defects if that is ``strict``."""
    if targets.ndim == 1:
        if strict and classes == 2:
            return torch.from_numpy(targets.astype(np.float32))[:, None]
        return torch.from_numpy(targets)
    if strict:
        there = targets.any(axis=0)
        if not there.all():
            raise UserError(
                f"EVAR cannot score this: a split of {fold or 'the task'} has {int(there.sum())} of the {classes} "
                "classes, and EVAR takes those for all. Leave out --strict-evar."
            )
    return torch.from_numpy(targets.astype(np.float32))


def _folds(splits: np.ndarray, folds: np.ndarray) -> list[Fold]:
    if len(folds):
        names = list(dict.fromkeys(sorted(folds.tolist(), key=lambda name: (len(name), name))))
        if len(names) < 2:
            raise UserError(f"all clips are in fold {names[0]}; at least two folds are needed.")
        return [Fold(name, np.flatnonzero(folds != name), None, np.flatnonzero(folds == name)) for name in names]
    rows = {split: np.flatnonzero(splits == split) for split in SPLITS}
    for split in ("train", "test"):
        if not len(rows[split]):
            raise UserError(f"no clips of the split {split}, which linear evaluation needs.")
    return [Fold("", rows["train"], rows["valid"] if len(rows["valid"]) else None, rows["test"])]


def _require_usable(features: np.ndarray, targets: np.ndarray, parts: Sequence[Fold], classes: int) -> None:
    if len(features) != len(targets):
        raise ValueError(f"{len(features)} features, {len(targets)} targets")
    if classes < 2:
        raise UserError(f"{classes} classes; linear evaluation needs at least two.")
    used = np.unique(np.concatenate([rows for fold in parts for rows in fold[1:] if rows is not None]))
    for start in range(0, len(used), 8192):
        rows = used[start : start + 8192]
        bad = rows[~np.isfinite(features[rows]).all(axis=1)]
        if len(bad):
            raise UserError(f"features are not all finite (row {bad[0]} first); leave these clips out.")


def _counts(parts: Sequence[Fold], classes: int, dim: int) -> dict[str, int]:
    if len(parts) > 1:
        return {
            "clips": sum(len(fold.test) for fold in parts),
            "folds": len(parts),
            "classes": classes,
            "dimensions": dim,
        }
    fold = parts[0]
    valid = {} if fold.valid is None else {"valid": len(fold.valid)}
    return {"train": len(fold.train), **valid, "test": len(fold.test), "classes": classes, "dimensions": dim}


def _deviations(held_out: bool, grouped: bool, several: bool, classes: int) -> tuple[str, ...]:
    return tuple(
        sentence
        for applies, sentence in (
            (held_out, "The scaler is fitted without the rows that are held out for early stopping."),
            (held_out, "Rows are held out by class" + (", whole recordings together." if grouped else ".")),
            (not several and classes == 2, "Two classes are scored by their own labels."),
            (several, "All splits have the same list of classes."),
            (True, "Heads are compared by logits, not by sigmoids rounded to float32."),
        )
        if applies
    )


def _details(runs: list[list[Run]], parts: list[Fold], targets: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Per run how it went; per class and clip how it was right, over all folds and, but for confusions, seeds."""
    rows = np.concatenate([fold.test for fold in parts])
    logits = [np.concatenate([run.logits for run in of_seed]) for of_seed in runs]
    found: dict[str, Any] = {"classes": list(classes), "runs": list(_run_rows(runs, parts)), "test_rows": rows.tolist()}
    truth = targets[rows]
    if targets.ndim == 2:
        precision = np.mean([average_precision(truth, one) for one in logits], axis=0)
        found["per_class"] = [
            {"label": label, "n": int(count), "ap": float(ap) if count else None}
            for label, count, ap in zip(classes, truth.sum(axis=0), precision, strict=True)
        ]
        found |= clip_draws(np.mean([drawn_average_precisions(truth, one) for one in logits], axis=0))
        return found
    right = np.mean([one.argmax(axis=1) == truth for one in logits], axis=0)
    found["correct_share"] = right.tolist()
    found["predicted"] = logits[0].argmax(axis=1).tolist()
    found |= confusion_details(confusion(truth, logits[0].argmax(axis=1), len(classes)))
    found["per_class"] = [
        {"label": label, "n": int((truth == number).sum()), "accuracy": _mean(right[truth == number])}
        for number, label in enumerate(classes)
    ]
    return found


def _run_rows(runs: list[list[Run]], parts: list[Fold]) -> Iterator[dict[str, Any]]:
    for seed, of_seed in enumerate(runs):
        for fold, run in zip(parts, of_seed, strict=True):
            yield {
                "seed_number": seed, "fold": fold.name, "score": run.score, "epochs_run": run.head.epochs_run,
                "best_epoch": run.head.best_epoch, "best_valid": run.head.curve[run.head.best_epoch],
                "train": len(fold.train) - run.held_out, "test": len(fold.test),
                "valid": run.held_out if fold.valid is None else len(fold.valid),
            }  # fmt: skip


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
