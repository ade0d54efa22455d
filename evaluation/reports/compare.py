"""Runs side by side: differences with paired bootstrap intervals over the clips that they share.

Clips are drawn with replacement, the same ones for both runs, and the score is computed anew from each draw; the
interval is from the 2.5th to the 97.5th percentile of the differences. All captions of a clip are drawn with it. A
macro average precision is no mean over clips: its results hold its value in each of a fixed sequence of draws, which
are compared if both are of the same clips. It has another interval over classes, which tells whether another choice of
classes would show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.events.scoring.drawn import Paired
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reports.event_compare import EVENTS, compare_events
from m2dprep.evaluation.reports.figures import shown, signed
from m2dprep.evaluation.reports.outcomes import Outcome, Reported

DRAWS = 5000
BLOCK_VALUES = 4_000_000
LEVEL = (2.5, 97.5)
WITHIN = 10
SCENES = "scenes"


@dataclass(frozen=True)
class Difference:
    """The same score of two runs on what they share: ``second`` less ``first`` and its 95 % interval."""

    metric: str
    over: str
    n: int
    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def verdict(self) -> str:
        """Whether the interval tells the runs apart."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "not told apart"


@dataclass(frozen=True)
class Comparison:
    """A run compared with the first one; ``notes`` say in which conditions they differ."""

    first: Reported
    second: Reported
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "first": self.first.name,
            "second": self.second.name,
            "task": self.first.result.task,
            "protocol": self.first.result.protocol,
            "differences": [
                {
                    "metric": one.metric, "over": one.over, "n": one.n, "first": one.first, "second": one.second,
                    "difference": one.difference, "interval": [one.low, one.high], "verdict": one.verdict,
                }
                for one in self.differences
            ],
            "notes": list(self.notes),
        }  # fmt: skip


def compare(first: Reported, second: Reported, *, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare two runs of one task and protocol.

    Raises `UserError` if they are of different ones, share no clips, or tell nothing about single clips or classes.
    """
    a, b = first.result, second.result
    for what, one, other in (
        ("protocol", a.protocol, b.protocol),
        ("metric", a.metric, b.metric),
        ("task", a.task, b.task),
    ):
        if one != other:
            raise UserError(
                f"{first.name} is of the {what} {one!r} and {second.name} of {other!r}; these cannot be compared."
            )
    notes = list(_conditions(a, b))
    if a.protocol == EVENTS:
        n, paired = compare_events(first, second, notes, draws, seed)
        return Comparison(first, second, tuple(_of_recordings(n, one) for one in paired), tuple(notes))
    if a.metric == "mAP":
        differences = (*_over_clips(first, second, notes), _over_classes(first, second, draws, seed))
        return Comparison(first, second, differences, tuple(notes))
    ours, theirs = _shared(first, second, notes)
    metrics = _metrics(a.protocol, a.metric)
    sums = [(value(ours), value(theirs)) for _, value in metrics]
    over = "recordings" if a.protocol == SCENES else "clips"
    compared = _bootstrap([metric for metric, _ in metrics], sums, over, draws, seed)
    return Comparison(first, second, tuple(compared), tuple(notes))


def _of_recordings(n: int, one: Paired) -> Difference:
    return Difference(one.metric, "recordings", n, one.first, one.second, one.low, one.high)


Sums = tuple[np.ndarray, np.ndarray]


def _metrics(protocol: str, metric: str) -> list[tuple[str, Callable[[Sequence[Outcome]], Sums]]]:
    """Of each metric, a function from outcomes to per-clip sums and counts, whose ratio of totals is the metric."""
    if protocol != "retrieval":
        return [(metric, _right)]
    recalls = [(f"{side}_R@{k}", _recall(side, k)) for side in ("t2a", "a2t") for k in (1, 5, 10)]
    return [*recalls, (f"t2a_mAP@{WITHIN}", _reciprocal)]


def _right(outcomes: Sequence[Outcome]) -> Sums:
    values = np.array([one.right for one in outcomes], np.float64)
    return values, np.ones(len(values))


def _recall(side: str, k: int) -> Callable[[Sequence[Outcome]], Sums]:
    def sums(outcomes: Sequence[Outcome]) -> Sums:
        ranks = [one.t2a if side == "t2a" else (one.a2t,) for one in outcomes]
        hits = np.array([sum(rank <= k for rank in of) for of in ranks], np.float64)
        return hits, np.array([len(of) for of in ranks], np.float64)

    return sums


def _reciprocal(outcomes: Sequence[Outcome]) -> Sums:
    sums = np.array([sum(1 / rank for rank in one.t2a if rank <= WITHIN) for one in outcomes], np.float64)
    return sums, np.array([len(one.t2a) for one in outcomes], np.float64)


def _bootstrap(
    metrics: Sequence[str], sums: Sequence[tuple[Sums, Sums]], over: str, draws: int, seed: int
) -> list[Difference]:
    """A difference per metric; all are from the same draws."""
    table = np.stack([column for pair in sums for one in pair for column in one], axis=1)  # (n, 4 per metric)
    n, rng = len(table), np.random.default_rng(seed)
    totals = np.empty((draws, table.shape[1]))
    step = max(1, BLOCK_VALUES // n)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        totals[start : start + rows] = np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n) @ table
    found = []
    for number, metric in enumerate(metrics):
        drawn_scores, whole = (
            _ratios(values[..., 4 * number : 4 * number + 4]) for values in (totals, table.sum(axis=0))
        )
        low, high = np.percentile(drawn_scores[1] - drawn_scores[0], LEVEL)
        found.append(Difference(metric, over, n, float(whole[0]), float(whole[1]), float(low), float(high)))
    return found


def _ratios(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the first and of the second run → both scores."""
    return values[..., 0] / np.maximum(values[..., 1], 1), values[..., 2] / np.maximum(values[..., 3], 1)


def _over_clips(first: Reported, second: Reported, notes: list[str]) -> list[Difference]:
    """The difference of average precisions with its interval over clips, if both results have the same draws."""
    details = [one.result.details for one in (first, second)]
    files = [one.get("files") for one in details]
    drawn: list[Mapping[str, Any]] = [found for one in details if isinstance(found := one.get("drawn_clips"), Mapping)]
    if len(drawn) < 2 or not files[0]:
        notes.append("no interval over clips: not both results hold their scores in draws of clips.")
        return []
    if files[0] != files[1] or any(drawn[0].get(key) != drawn[1].get(key) for key in ("draws", "seed")):
        notes.append("no interval over clips: the runs are not of the same clips, in one order.")
        return []
    try:
        values = [np.array(one["mAP"], np.float64) for one in drawn]
        ours, theirs = map(_mean_precision, details)
        low, high = np.nanpercentile(values[1] - values[0], LEVEL)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the draws of clips of {first.name} or {second.name} are damaged.") from error
    return [Difference("mAP", "clips", len(files[0]), ours, theirs, float(low), float(high))]


def _mean_precision(details: Mapping[str, Any]) -> float:
    """The mean over the classes with positives."""
    return float(np.mean([row["ap"] for row in details["per_class"] if row["ap"] is not None]))


def _over_classes(first: Reported, second: Reported, draws: int, seed: int) -> Difference:
    tables = [
        {str(row["label"]): row.get("ap") for row in one.result.details.get("per_class") or []}
        for one in (first, second)
    ]
    shared = [label for label, ap in tables[0].items() if ap is not None and tables[1].get(label) is not None]
    if not shared:
        raise UserError(f"{first.name} and {second.name} share no classes with an average precision.")
    values = [np.array([table[label] for label in shared], np.float64) for table in tables]
    ones = np.ones(len(shared))
    return _bootstrap(["mAP"], [((values[0], ones), (values[1], ones))], "classes", draws, seed)[0]


def _shared(first: Reported, second: Reported, notes: list[str]) -> tuple[list[Outcome], list[Outcome]]:
    """The outcomes of the clips that both runs have, in one order."""
    for one in (first, second):
        if not one.outcomes:
            raise UserError(
                f"{one.path or one.name} does not say how its clips came out, nor a table of predictions beside it; "
                "run the protocol again with --predictions."
            )
    ours = {one.file_name: one for one in first.outcomes}
    theirs = {one.file_name: one for one in second.outcomes}
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise UserError(f"{first.name} and {second.name} share no clips.")
    if other := [name for name in shared if ours[name].label != theirs[name].label]:
        raise UserError(
            f"{len(other):,} clips have another label in {second.name} than in {first.name} ({other[0]} first)."
        )
    if len(shared) < max(len(ours), len(theirs)):
        notes.append(
            f"{len(shared):,} clips are in both; {len(ours) - len(shared):,} are in the first run alone and "
            f"{len(theirs) - len(shared):,} in the second."
        )
    return [ours[name] for name in shared], [theirs[name] for name in shared]


def _conditions(first: Result, second: Result) -> list[str]:
    """Sentences about what differs besides the model."""
    notes = []
    if first.strict_evar != second.strict_evar:
        notes.append(f"EVAR's defects are reproduced in the {'first' if first.strict_evar else 'second'} run alone.")
    for what in ("settings", "versions", "digests"):
        ours, theirs = getattr(first, what), getattr(second, what)
        keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if what == "digests":
            keys = [key for key in keys if key in ("split", "metadata")]
        if keys:
            notes.append(f"other {what}: {', '.join(keys)}.")
    return notes


def render(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as text."""
    parts = []
    for one in comparisons:
        result = one.first.result
        lines = [f"{result.task or 'task'}, {result.protocol}: {one.first.name} → {one.second.name}"]
        width = max((10, *(len(row.metric) for row in one.differences)))
        for row in one.differences:
            change, low, high = (signed(value, row.metric) for value in (row.difference, row.low, row.high))
            lines.append(
                f"  {row.metric:<{width}} {shown(row.first, row.metric):>7} → {shown(row.second, row.metric):>7}  "
                f"{change} [{low}, {high}] over {row.n:,} {row.over}: {row.verdict}"
            )
        lines += [f"  note: {note}" for note in one.notes]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
