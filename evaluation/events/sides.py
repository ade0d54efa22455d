"""The two sides that are scored: lists of events, tables of a data set, or the folder that `m2dprep events` wrote."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.artifacts.text_files import listing, read_header
from m2dprep.evaluation.events.scoring.lists import Events, read_event_list
from m2dprep.evaluation.events.sets.table import EventTable, read_event_table
from m2dprep.evaluation.prepared import METADATA

RESULT = "result.json"
PURPOSE = "a list or table of events"
TABLES_HAVE = {"present", "split"}


@dataclass(frozen=True)
class Side:
    """Events by file. A table also has its ``classes``, those that each file is ``judged`` on, and the files of its
    other ``parts``."""

    place: Path
    events: Events
    classes: Sequence[str] = ()
    judged: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_sides(reference: Path, found: Path, part: str | None = None, classes: Sequence[str] = ()) -> tuple[Side, Side]:
    """Both sides, whose files have the same names; of tables the ``part``, by default the last that the reference has.

    Raises `UserError` if one is none of what can be read, or found files are not those of the reference.
    """
    ours = _read(reference, part, classes)
    theirs = _read(found, part, classes)
    unknown = [name for name in theirs.events if name not in ours.events]
    if elsewhere := [name for name in unknown if name in ours.parts]:
        other = ours.parts[elsewhere[0]]
        raise UserError(
            f"{len(elsewhere):,} files of {theirs.place} are not in the part of {ours.place} that is scored "
            f"({listing(elsewhere, len(elsewhere))}); --part {other} scores that of the first."
        )
    if unknown and len(unknown) == len(theirs.events):
        return ours, _by_base_names(ours, theirs)
    return ours, theirs


def _read(place: Path, part: str | None, classes: Sequence[str]) -> Side:
    if place.is_dir() and not (place / METADATA).exists():
        return _of_results(place)
    if not place.is_dir() and not TABLES_HAVE & {name.strip().lower() for name in read_header(place, PURPOSE)}:
        if part is not None:
            raise UserError(f"{place} has no parts: --part is for tables with a column split.")
        return Side(place, read_event_list(place))
    table = read_event_table(place, place if place.is_dir() else place.parent, classes)
    chosen = part or table.splits[-1]
    if chosen not in table.splits:
        raise UserError(f"{table.place} has no part {chosen}; it has {', '.join(table.splits)}.")
    return _of_table(place, table, chosen)


def _of_table(place: Path, table: EventTable, part: str) -> Side:
    own = table.of_splits([part])
    note = f"{place}: the part {part}, {len(own):,} of {len(table.recordings):,} recordings"
    return Side(
        place, table.reference(own), table.classes, {one.file: one.classes for one in own},
        {one.file: one.split for one in table.recordings if one.split != part},
        (note,) if len(table.splits) > 1 else (),
    )  # fmt: skip


def _of_results(folder: Path) -> Side:
    """The list of the route that a folder of `m2dprep events` has its score of."""
    if not (folder / RESULT).exists():
        raise UserError(
            f"{folder} is neither a prepared set of events (with {METADATA}) nor a folder of `m2dprep events` (with "
            f"{RESULT}); a list of events is a file."
        )
    details = read_json_object(folder / RESULT, "a result").get("details")
    route = details.get("route") if isinstance(details, dict) else None
    if not isinstance(route, str) or not (folder / f"events_{route}.tsv").exists():
        raise UserError(f"{folder / RESULT} is of no events; the folder of `m2dprep events` has a list beside it.")
    place = folder / f"events_{route}.tsv"
    return Side(place, read_event_list(place), notes=(f"{place} is scored",))


def _by_base_names(ours: Side, theirs: Side) -> Side:
    """Found files under the reference's names if only their folders differ, as in lists that hold none."""
    full = _base_names(ours.events)
    own = _base_names(theirs.events)
    if full is None or own is None or not own.keys() <= full.keys():
        return theirs  # which scoring refuses
    events = {full[base]: theirs.events[name] for base, name in own.items()}
    note = f"files of {theirs.place} and {ours.place} are matched by their names without folders"
    return Side(theirs.place, events, theirs.classes, {}, {}, (*theirs.notes, note))


def _base_names(events: Events) -> dict[str, str] | None:
    """The full name of each name without folders; None if two files have one."""
    found = {posixpath.basename(name.replace("\\", "/")): name for name in events}
    return found if len(found) == len(events) else None
