"""Rows of tags: of a segment or a column of patches the highest scores, of a sound that could not be read the reason.

A tag also has the ``id`` of its label, such as AudioSet's mid, if the classes have ids.

```
{"file_name": "a.wav", "status": "ok", "start": 0.0, "end": 10.0, "tags": [{"label": "Dog", "score": 0.91}, …]}
{"file_name": "b.wav", "status": "failed", "start": null, "end": null, "tags": [], "reason": …, "message": …}
```
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import parquet_writer, proven_file
from m2dprep.evaluation.tagging.class_names import ClassNames

Row = dict[str, Any]
OK, FAILED = "ok", "failed"
DIGITS = 6
FORMATS = ("jsonl", "csv", "parquet")
TAG = pa.struct([("label", pa.string()), ("id", pa.string()), ("score", pa.float64())])
SCHEMA = pa.schema(
    [
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("tags", pa.list_(TAG)),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
COLUMNS = ("file_name", "status", "start", "end", "rank", "label", "id", "score", "reason", "message")


@dataclass(frozen=True)
class Choice:
    """Which tags a row has: the ``top`` highest scores (0: all), of those that reach the ``threshold``."""

    names: ClassNames
    top: int = 5
    threshold: float | None = None

    def tags(self, scores: np.ndarray) -> list[dict[str, Any]]:
        """The tags of scores (C,), the highest first; of equal scores the first class."""
        order = np.argsort(-scores, kind="stable")[: self.top or None]
        shown = np.round(scores, DIGITS)
        return [
            {
                "label": self.names.labels[number],
                **({"id": self.names.ids[number]} if self.names.ids else {}),
                "score": float(shown[number]),
            }
            for number in order.tolist()
            if self.threshold is None or shown[number] >= self.threshold
        ]


def scored_row(name: str, start: float, end: float, tags: list[dict[str, Any]]) -> Row:
    return {"file_name": name, "status": OK, "start": round(start, DIGITS), "end": round(end, DIGITS), "tags": tags}


def failed_row(name: str, reason: str, message: str) -> Row:
    return {
        "file_name": name, "status": FAILED, "start": None, "end": None, "tags": [], "reason": reason,
        "message": message,
    }  # fmt: skip


def format_of(output: Path | None, given: str | None) -> str:
    """``given``, or what the suffix of the output says. Raises `UserError` if neither is a format."""
    if output is not None and (output.is_dir() or not output.name):
        raise UserError(f"{output} is a folder; --output names the file of the tags.")
    if given is not None:
        return given
    suffix = (output.suffix if output is not None else ".jsonl").lower().lstrip(".")
    found = {"json": "jsonl", "ndjson": "jsonl"}.get(suffix, suffix)
    if found not in FORMATS:
        raise UserError(f"{output}: its suffix is none of .jsonl, .csv and .parquet; --format says what to write.")
    return found


def to_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def write_rows(path: Path, kind: str, shards: Iterable[list[Row]]) -> None:
    """Write all rows to ``path``, with a digest, atomically; equal rows give equal bytes."""
    if kind == "parquet":
        with parquet_writer(path, SCHEMA, compression="zstd") as writer:
            for rows in shards:
                if rows:
                    writer.write_table(pa.Table.from_pylist([_whole(row) for row in rows], schema=SCHEMA))
        return
    with proven_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        lines = csv.writer(text, lineterminator="\n")
        quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        if kind == "csv":
            lines.writerow(COLUMNS)
        for rows in shards:
            for row in rows:
                if kind == "csv":
                    # Python up to 3.12 does not quote a carriage return, which readers take for the end of a line.
                    (quoted if "\\r" in to_line(row) else lines).writerows(_flat(row))
                else:
                    text.write(to_line(row) + "\n")
        text.flush()
        text.detach()


def _whole(row: Row) -> Row:
    return {"reason": None, "message": None, **row}


def _flat(row: Row) -> Iterator[list[Any]]:
    """A line per tag; a row without tags has one without a label, so that no sound is missing."""
    about = [row["file_name"], row["status"], *("" if row[key] is None else row[key] for key in ("start", "end"))]
    why = [row.get("reason") or "", row.get("message") or ""]
    for rank, tag in enumerate(row["tags"], 1):
        yield [*about, rank, tag["label"], tag.get("id", ""), tag["score"], *why]
    if not row["tags"]:
        yield [*about, "", "", "", "", *why]
