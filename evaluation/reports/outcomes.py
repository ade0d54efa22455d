"""How each clip of a result came out: from the result's own details, or from the CSV of predictions beside it.

``details["clips"]`` of a result holds columns of equal length: ``file_name``, and of classification ``label``,
``predicted``, ``right`` (1, 0, or the share of seeds that were right) and ``margin`` (how much nearer the clip was to
its own class than to the best other one); of retrieval ``t2a`` (the ranks of its captions, a list) and ``a2t`` (the
best rank of a caption).
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
    """The outcomes in the result's details; empty if it has none."""
    columns = result.details.get("clips")
    if not isinstance(columns, Mapping) or "file_name" not in columns:
        return ()
    names: Sequence[str] = columns["file_name"]
    get = {
        key: columns.get(key) or [None] * len(names) for key in ("label", "predicted", "right", "margin", "t2a", "a2t")
    }
    if any(len(values) != len(names) for values in get.values()):
        raise UserError("the result's list of clips has columns of unequal length; it is damaged.")
    return tuple(
        Outcome(
            str(name),
            str(get["label"][row] or ""),
            str(get["predicted"][row] or ""),
            float(get["right"][row] or 0.0),
            None if get["margin"][row] is None else float(get["margin"][row]),
            tuple(get["t2a"][row] or ()),
            int(get["a2t"][row] or 0),
        )
        for row, name in enumerate(names)
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


def columns_of(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    """What ``details["clips"]`` holds, without columns that are empty."""
    columns: dict[str, list[Any]] = {
        "file_name": [one.file_name for one in outcomes],
        "label": [one.label for one in outcomes],
        "predicted": [one.predicted for one in outcomes],
        "right": [one.right for one in outcomes],
        "margin": [one.margin for one in outcomes],
        "t2a": [list(one.t2a) for one in outcomes],
        "a2t": [one.a2t for one in outcomes],
    }
    ranked = any(columns["a2t"])
    left_out = {"label", "predicted", "right", "margin"} if ranked else {"t2a", "a2t"}
    return {name: values for name, values in columns.items() if name not in left_out}
