"""The table of recordings that events are looked for in: which classes each is judged on, and what is truly in it.

```
file,class,present,onset,offset,ebr,scene,split
mixture_000.wav,babycry,yes,12.3,14.1,-6,bus,test     an event; several rows are several events
mixture_001.wav,babycry,no,,,,home,test               listened for, and not there
```

A class without a row is not judged in that file: in TUT Rare Sound Events, each class has its own 500 mixtures. In a
table without the column ``present``, such as a plain list of events (`scoring.lists`), every file is judged on all
classes.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.artifacts.layout import leads_out, require_file, require_folder
from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.artifacts.text_files import listing, read_csv_table, read_header
from m2dprep.evaluation.events.scoring.lists import USUAL, Event, Events, labels_of, read_event_list, require_known
from m2dprep.evaluation.prepared import LABELS, METADATA, NO_SPLIT, PREPARED, SPLIT_NAMES

COLUMNS = ("file", "class", "present", "onset", "offset", "ebr", "scene", "split")
PRESENT = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
PURPOSE = "a table of events"
SPLITS = ("train", "valid", "test")


@dataclass
class Recording:
    """A file: the ``classes`` that it is judged on, its events, and per class the event-to-background ratio (dB)."""

    file: str
    split: str = "test"
    scene: str = ""
    classes: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    ebr: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EventTable:
    """Recordings below ``root``, all ``classes`` in order, and the words for those that have some (``names``)."""

    place: Path
    root: Path
    recordings: list[Recording]
    classes: list[str]
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def of_splits(self, splits: Iterable[str]) -> list[Recording]:
        wanted = set(splits)
        return [one for one in self.recordings if one.split in wanted]

    @property
    def splits(self) -> list[str]:
        """The parts that there are, in their order."""
        there = {one.split for one in self.recordings}
        return [split for split in SPLITS if split in there]

    def reference(self, recordings: Sequence[Recording]) -> Events:
        return {one.file: one.events for one in recordings}


def read_event_table(place: Path, root: Path | None = None, classes: Sequence[str] = ()) -> EventTable:
    """The table of a prepared folder, a CSV of `COLUMNS`, or a plain list of events.

    ``classes`` are all classes, by default those that occur. Raises `UserError`, naming the row, if it is none of
    these, or an event is of another class.
    """
    table = require_file(place / METADATA if place.is_dir() else place, PURPOSE)
    if root is None:
        root = _root(place) if place.is_dir() else place.parent
    recordings = _recordings(table)
    if not recordings:
        raise UserError(f"{table} lists no recordings in any part (train, valid, test).")
    if leaves := next((one.file for one in recordings if leads_out(one.file)), None):
        raise UserError(f"{table}: {leaves!r} leads out of the folder of the recordings.")
    reference = {one.file: one.events for one in recordings}
    known = list(classes) or sorted({label for one in recordings for label in one.classes} | set(labels_of(reference)))
    if not known:
        raise UserError(f"{table} has no event of any class; --classes FILE lists the classes to look for.")
    require_known(reference, known, table)
    for one in recordings:
        if unknown := next((label for label in one.classes if label not in known), None):
            raise UserError(f"{table}: {one.file} is of the class {unknown!r}, which --classes does not list.")
        one.classes = one.classes or list(known)
    names = _names(place / LABELS) if place.is_dir() else {}
    return EventTable(table, require_folder(root, "the folder of the recordings"), recordings, known, names)


def _root(folder: Path) -> Path:
    if not (folder / PREPARED).exists():
        return folder
    value = read_json_object(folder / PREPARED, "the notes of a prepared set").get("root")
    if not isinstance(value, str) or not value:
        raise UserError(f"{folder / PREPARED} names no folder of the recordings (root); --root names one.")
    return folder / value


def _names(path: Path) -> dict[str, list[str]]:
    if not path.exists():
        return {}
    values = read_csv_columns(path, ["label", "name"], "the names of labels")
    found: dict[str, list[str]] = {}
    for label, name in zip(values["label"], values["name"], strict=True):
        found.setdefault(label, []).append(name)
    return found


def _recordings(table: Path) -> list[Recording]:
    header = [name.strip().lower() for name in read_header(table, PURPOSE)]
    if "present" not in header or "class" not in header:
        return [
            Recording(plain_name(name), split, events=events)
            for split, found in _plain_parts(table, header)
            for name, events in found.items()
        ]
    files = next((name for name in USUAL["file"] if name in header), None)
    if files is None:
        raise UserError(f"{table} has no column file; it has {', '.join(header)}.")
    values = read_csv_table(table, PURPOSE, [], others=True)
    rows = values.rename_columns([name.strip().lower() for name in values.column_names]).to_pylist()
    found: dict[str, Recording] = {}
    for number, row in enumerate(rows, 2):
        _add(f"{table}, row {number}", {key: value.strip() for key, value in row.items()}, files, found)
    return list(found.values())


def _plain_parts(table: Path, header: Sequence[str]) -> list[tuple[str, Events]]:
    """A list of events, in the parts that its column split names."""
    events = read_event_list(table)
    if "split" not in header or not {"onset", "offset"} & set(header):
        return [("test", events)]
    values = read_csv_columns(table, [next(name for name in USUAL["file"] if name in header), "split"], PURPOSE)
    parts: dict[str, Events] = {}
    of_file: dict[str, str] = {}
    for number, (name, given) in enumerate(zip(*values.values(), strict=True), 2):
        split = _split(f"{table}, row {number}", given)
        if of_file.setdefault(name, split) != split:
            raise UserError(f"{table}, row {number}: {name} is in the part {split}, and above in {of_file[name]}.")
        if split:
            parts.setdefault(split, {})[name] = events[name]
    return list(parts.items())


def _split(where: str, text: str) -> str:
    name = text.strip().lower()
    if name in NO_SPLIT:
        return ""
    if name not in SPLIT_NAMES:
        raise UserError(f"{where}: the split {text!r} is none of {', '.join(SPLIT_NAMES)}.")
    return SPLIT_NAMES[name]


def _add(where: str, row: Mapping[str, str], files: str, found: dict[str, Recording]) -> None:
    """Add what a row says to its recording."""
    name, label = row[files], row["class"]
    if not name or not label:
        raise UserError(f"{where}: {files if not name else 'class'} is empty.")
    present = PRESENT.get(row["present"].lower())
    if present is None:
        raise UserError(f"{where}: present is {row['present']!r}; it must be yes or no.")
    split = _split(where, row["split"]) if "split" in row else "test"
    if not split:
        return
    name = plain_name(name)
    one = found.setdefault(name, Recording(name, split, row.get("scene", "")))
    if one.split != split or (row.get("scene") and one.scene != row["scene"]):
        raise UserError(f"{where}: {name} is in {split} {row.get('scene', '')}, and above in {one.split} {one.scene}.")
    there = any(event.label == label for event in one.events)
    if label in one.classes and (not present or not there):
        raise UserError(f"{where}: {name} has the class {label} both present and not, or absent twice.")
    if label not in one.classes:
        one.classes.append(label)
    if not present:
        if row.get("onset") or row.get("offset"):
            raise UserError(f"{where}: {label} is not present in {name}, but has a time.")
        return
    onset, offset = (_number(where, key, row.get(key, "")) for key in ("onset", "offset"))
    if onset < 0 or offset < onset:
        raise UserError(f"{where}: the event of {name} lasts from {onset:g} to {offset:g} s.")
    one.events.append(Event(onset, offset, label))
    if row.get("ebr"):
        ratio = _number(where, "ebr", row["ebr"])
        if one.ebr.setdefault(label, ratio) != ratio:
            one.ebr[label] = math.nan  # events of several ratios: the file is in no group


def _number(where: str, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {what} is {text!r}, not a number.")
    return value


def plain_name(name: str) -> str:
    """A path without ``./`` and ``//``; members of archives are as they are."""
    return name if "::" in name else posixpath.normpath(name)


def missing_files(table: EventTable, recordings: Sequence[Recording]) -> str:
    """Which files of a table are not there, in words; empty if all are. Members of archives are not looked for."""
    gone = [one.file for one in recordings if "::" not in one.file and not (table.root / one.file).exists()]
    return f"{len(gone):,} of {len(recordings):,} ({listing(gone, len(gone))})" if gone else ""
