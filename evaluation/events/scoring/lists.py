"""Lists of events: which sound is in which file, from when to when.

Read are tables with a header (``file onset offset label score``, under their usual names) and lists without one, as
DCASE ships them: ``file onset offset label``, or a file alone, which has no events. Values are separated by tabs, or by
commas. Written is ``file onset offset label score``, with a line for every file, also for those without events.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import write_text
from m2dprep.artifacts.text_files import decode, listing, read_bytes

COLUMNS = ("file", "onset", "offset", "label", "score")
USUAL = {
    "file": ("file", "filename", "file_name", "audio_file", "path"),
    "onset": ("onset", "event_onset", "start", "start_time"),
    "offset": ("offset", "event_offset", "end", "end_time"),
    "label": ("label", "event_label", "event", "class"),
    "score": ("score", "confidence", "probability"),
}
DIGITS = 6


class Event(NamedTuple):
    """A sound from ``onset`` to ``offset`` (seconds); ``score`` says how sure it is, if it was found."""

    onset: float
    offset: float
    label: str
    score: float | None = None


Events = dict[str, list[Event]]


def read_event_list(path: Path) -> Events:
    """The events of each file, in the order of the list. Raises `UserError`, naming the line, if it is no such list."""
    text = decode(path, read_bytes(path, "a list of events"))
    delimiter = "\t" if "\t" in text or path.suffix.lower() == ".tsv" else ","
    found: Events = {}
    columns: dict[str, int] | None = None
    for number, row in _rows(path, text, delimiter):
        if columns is None:
            columns = _columns(path, row)
            if columns is not None:
                continue
            columns = {}
        name, event = _event(f"{path}, line {number}", row, columns)
        found.setdefault(name, [])
        if event is not None:
            found[name].append(event)
    if not found:
        raise UserError(f"{path} lists no files (a list of events: file, onset, offset, label).")
    return found


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            values = [value.strip() for value in row]
            if any(values):
                yield reader.line_num, values
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}.") from error


def _columns(path: Path, row: Sequence[str]) -> dict[str, int] | None:
    """The number of each column if this row is a header, else None."""
    names = [value.lower() for value in row]
    found: dict[str, int] = {}
    for column, usual in USUAL.items():
        there = [number for number, name in enumerate(names) if name in usual]
        if len(there) > 1:
            raise UserError(f"{path} has several columns for the {column}: {', '.join(row[one] for one in there)}.")
        if there:
            found[column] = there[0]
    if "onset" not in found and "offset" not in found:
        return None
    if missing := [column for column in COLUMNS[:4] if column not in found]:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(row)}.")
    return found


def _event(where: str, row: Sequence[str], columns: Mapping[str, int]) -> tuple[str, Event | None]:
    if columns:
        values = {name: row[number] if number < len(row) else "" for name, number in columns.items()}
    elif len(row) > len(COLUMNS):
        raise UserError(f"{where}: {len(row)} values; a line has a file, and perhaps onset, offset, label, score.")
    else:
        values = dict(zip(COLUMNS, row, strict=False))
    name = values["file"]
    if not name:
        raise UserError(f"{where} names no file.")
    given = [values.get(key, "") for key in ("onset", "offset", "label")]
    if not any(given):
        return name, None
    if not all(given):
        lacking = [key for key, value in zip(("onset", "offset", "label"), given, strict=True) if not value]
        raise UserError(f"{where}: the event of {name} has no {' and no '.join(lacking)}.")
    onset, offset = _seconds(where, "onset", given[0]), _seconds(where, "offset", given[1])
    if offset < onset:
        raise UserError(f"{where}: the event of {name} ends at {offset:g} s, before its onset at {onset:g} s.")
    score = values.get("score", "")
    return name, Event(onset, offset, given[2], _number(where, "score", score) if score else None)


def _number(where: str, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: the {what} {text!r} is no number.")
    return value


def _seconds(where: str, what: str, text: str) -> float:
    if (value := _number(where, what, text)) < 0:
        raise UserError(f"{where}: the {what} {text} lies before the beginning of the file.")
    return value


def write_event_list(path: Path, events: Mapping[str, Sequence[Event]]) -> None:
    """Write events to ``path``, separated by commas if it ends with .csv, else by tabs; equal events, equal bytes."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, delimiter="," if path.suffix.lower() == ".csv" else "\t", lineterminator="\n")
    lines.writerow(COLUMNS)
    for name, own in events.items():
        lines.writerows(
            [name, _text(one.onset), _text(one.offset), one.label, "" if one.score is None else _text(one.score)]
            for one in own
        )
        if not own:
            lines.writerow([name, "", "", "", ""])
    write_text(path, text.getvalue())


def _text(value: float) -> str:
    return f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


def labels_of(events: Mapping[str, Iterable[Event]]) -> list[str]:
    """All labels, sorted."""
    return sorted({one.label for own in events.values() for one in own})


def require_known(events: Mapping[str, Iterable[Event]], classes: Collection[str], where: object) -> None:
    """Raise `UserError`, naming the first, if an event has a label that is none of the ``classes``."""
    for name, own in events.items():
        for one in own:
            if one.label not in classes:
                known = listing(classes, len(classes))
                raise UserError(f"{where}: {name} has the event {one.label!r}, which is none of the classes ({known}).")
