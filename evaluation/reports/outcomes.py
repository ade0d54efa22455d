"""How each clip of a result came out: from the result's own details, or from the CSV of predictions beside it.

Details hold, per clip, ``files`` and, of classification, the class numbers ``labels`` and ``predicted``, and perhaps
``correct_share`` (over seeds) and ``margins`` (the cosine to the clip's own caption less that to the nearest one); of
retrieval, per caption, ``owner`` (the number of its clip) and ``t2a_ranks``, and per clip ``a2t_best_ranks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.artifacts.text_files import read_header
from m2dprep.evaluation.protocols.result import Result

PREDICTIONS = ".predictions.csv"
COLUMNS = ("file_name", "label", "predicted", "correct", "cosine", "cosine_of_label")


@dataclass(frozen=True)
class Outcome:
    """A clip: ``right`` is 1, 0 or a share; ``margin`` orders clips, the worst first; ranks are of retrieval."""

    file_name: str
    label: str = ""
    predicted: str = ""
    right: float = 0.0
    margin: float | None = None
    t2a: tuple[int, ...] = ()
    a2t: int = 0

    @property
    def badness(self) -> tuple[float, float, float]:
        """The larger, the worse."""
        worst_rank = max((*self.t2a, self.a2t), default=0)
        return worst_rank, 1 - self.right, -(self.margin if self.margin is not None else 0.0)


@dataclass(frozen=True)
class Reported:
    """A result with the outcomes of its clips, which may be unknown, and the file that it was read from."""

    result: Result
    outcomes: tuple[Outcome, ...] = ()
    path: Path | None = None
    name: str = ""


def read_reported(path: Path, predictions: Path | None = None) -> Reported:
    """A result and its outcomes; ``predictions`` is a CSV that a protocol wrote (by default the one beside it)."""
    result = Result.read(path)
    beside = path.with_name(path.stem + PREDICTIONS)
    if predictions is None and beside.exists():
        predictions = beside
    outcomes = outcomes_of(result) or (read_predictions(predictions) if predictions is not None else ())
    return Reported(result, outcomes, path, str(result.model.get("name") or path.stem))


def outcomes_of(result: Result) -> tuple[Outcome, ...]:
    """The outcomes in the result's details; empty if it has none. Raises `UserError` if they do not fit together."""
    details = result.details
    names = details.get("files")
    if not isinstance(names, list):
        return ()
    try:
        if "t2a_ranks" in details:
            return _ranked(names, details["owner"], details["t2a_ranks"], details["a2t_best_ranks"])
        if "predicted" in details and "labels" in details:
            return _classified(names, details)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError("the result's list of clips is damaged: its columns do not fit together.") from error
    return ()


def _ranked(
    names: Sequence[str], owner: Sequence[int], ranks: Sequence[int], best: Sequence[int]
) -> tuple[Outcome, ...]:
    of_clip: list[list[int]] = [[] for _ in names]
    for clip, rank in zip(owner, ranks, strict=True):
        of_clip[clip].append(int(rank))
    return tuple(
        Outcome(str(name), t2a=tuple(own), a2t=int(one)) for name, own, one in zip(names, of_clip, best, strict=True)
    )


def _classified(names: Sequence[str], details: Mapping[str, Any]) -> tuple[Outcome, ...]:
    classes, labels, predicted = details["classes"], details["labels"], details["predicted"]
    right = details.get("correct_share") or [float(a == b) for a, b in zip(labels, predicted, strict=True)]
    margins = details.get("margins") or [None] * len(names)
    return tuple(
        Outcome(str(name), str(classes[label]), str(classes[guess]), float(share), margin)
        for name, label, guess, share, margin in zip(names, labels, predicted, right, margins, strict=True)
    )


def read_predictions(path: Path) -> tuple[Outcome, ...]:
    """The outcomes in a CSV of predictions. Raises `UserError` if it is none."""
    header = read_header(path, "predictions")
    columns = [name for name in COLUMNS if name in header]
    if missing := [name for name in COLUMNS[:4] if name not in columns]:
        raise UserError(f"{path} has no column {', '.join(missing)}; is it a table of predictions?")
    values = read_csv_columns(path, columns, "predictions")
    found = []
    for row, name in enumerate(values["file_name"]):
        found.append(
            Outcome(
                name,
                values["label"][row],
                values["predicted"][row],
                float(values["correct"][row].strip().lower() in ("true", "1")),
                _margin(values, row),
            )
        )
    return tuple(found)


def _margin(values: Mapping[str, Sequence[str]], row: int) -> float | None:
    """The cosine to the clip's own label less that to the predicted one."""
    try:
        return float(values["cosine_of_label"][row]) - float(values["cosine"][row])
    except (KeyError, ValueError):
        return None
