"""Writes the table of events of a data set as downloaded, and compares what was found with what there should be."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import FailureLimit, UserError, top_reasons
from m2dprep.artifacts.files import replace_together, write_json
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.tables import write_csv
from m2dprep.evaluation.events.sets.collected import MISSING, WITHDRAWN, CollectedEvents
from m2dprep.evaluation.events.sets.declared import DESED, EventSet
from m2dprep.evaluation.events.sets.desed import collect_desed
from m2dprep.evaluation.events.sets.names import names_of
from m2dprep.evaluation.events.sets.table import COLUMNS
from m2dprep.evaluation.events.sets.tut_rare import collect_tut_rare
from m2dprep.evaluation.preparation.download import Download
from m2dprep.evaluation.prepared import LABELS, METADATA, PREPARED
from m2dprep.evaluation.reports.figures import aligned

LEFT_OUT, EXTRA = "left_out.csv", "extra.csv"
FORMAT = 1


@dataclass(frozen=True)
class PreparedEvents:
    """What became of a download."""

    about: EventSet
    folder: Path
    root: Path
    collected: CollectedEvents
    extra: list[str]

    def require(self, limit: FailureLimit) -> None:
        """Raise `TooManyFailuresError` if more was left out than the limit allows."""
        allowed = {WITHDRAWN, *([MISSING] if self.about.missing_allowed else [])}
        failed = sum(row.failure.reason not in allowed for row in self.collected.left_out)
        total = self.collected.parts.total() + len(self.collected.left_out)
        limit.require(failed, total, str(self.folder / LEFT_OUT))

    def to_dict(self) -> dict[str, Any]:
        """What ``prepared.json`` holds: found and expected, by part."""
        found = self.collected
        return {
            "format": FORMAT,
            "task": self.about.name,
            "root": Path(os.path.relpath(self.root.resolve(), self.folder.resolve())).as_posix(),
            "found": dict(found.parts),
            "expected": dict(self.about.counts),
            "positives": {"found": dict(found.positives), "expected": dict(self.about.positives)},
            "loudness": {
                "found": {part: dict(own) for part, own in found.loudness.items()},
                "expected": {part: dict(own) for part, own in self.about.loudness.items()},
            },
            "left_out": dict(sorted(Counter(row.failure.reason for row in found.left_out).items())),
            "extra_files": len(self.extra),
            "sources": {name: file_digest(self.root / name) for name in found.sources},
            "differences": self.differences(),
        }

    def differences(self) -> list[str]:
        """Where the counts are not those of the data set, in words; parts that are not there at all are none."""
        found, said = self.collected, []
        for part, expected in self.about.counts.items():
            if part in found.parts and found.parts[part] != expected:
                said.append(f"{part}: {found.parts[part]:,} recordings, not {expected:,}")
        for part, expected in self.about.positives.items():
            if part in found.parts and found.positives[part] != expected:
                said.append(f"{part}: {found.positives[part]:,} recordings with an event, not {expected:,}")
        for part, ratios in self.about.loudness.items():
            own = found.loudness.get(part, Counter())
            if part in found.parts and own and dict(own) != dict(ratios):
                there = ", ".join(f"{own[ratio]} of {ratio} dB (not {n})" for ratio, n in ratios.items())
                said.append(f"{part}: {there}")
        return said


def prepare_events(about: EventSet, download: Path, folder: Path, *, overwrite: bool = False) -> PreparedEvents:
    """Write metadata.csv, labels.csv, left_out.csv, extra.csv and prepared.json; the recordings stay where they are.

    Raises `UserError` if the download is another data set, holds no recording, or the folder holds another table.
    """
    scanned = Download.scan(download)
    found = collect_desed(scanned, about.classes) if about is DESED else collect_tut_rare(scanned)
    if not found.rows:
        reasons = top_reasons(Counter(row.failure.reason for row in found.left_out))
        raise UserError(f"{download} has no recording of {about.title} ({reasons or 'its lists are empty'}).")
    used = {row.file for row in found.rows}
    extra = [name for name in scanned.files if name not in used]
    prepared = PreparedEvents(about, folder, scanned.root, found, [*extra, *scanned.unnamed])
    _require_free(prepared, overwrite)
    classes = sorted({row.label for row in found.rows})

    def write(place: Path) -> None:
        write_csv(place / METADATA, COLUMNS, [row.cells() for row in found.rows])
        names = names_of(classes, {})
        write_csv(place / LABELS, ["label", "name"], [[label, name] for label in classes for name in names[label]])
        left = [[row.failure.file_name, row.where, row.failure.reason, row.failure.message] for row in found.left_out]
        write_csv(place / LEFT_OUT, ["file_name", "where", "reason", "message"], left)
        write_csv(place / EXTRA, ["file_name"], [[name] for name in prepared.extra])
        write_json(place / PREPARED, prepared.to_dict())

    make_folder(folder)
    with exclusive(folder):
        replace_together(folder, (METADATA, LABELS, LEFT_OUT, EXTRA, PREPARED), write)
    return prepared


def _require_free(prepared: PreparedEvents, overwrite: bool) -> None:
    """Refuse to replace a table that is another one, or nobody's of ours."""
    folder = prepared.folder
    if overwrite or not (folder / METADATA).exists():
        return
    if not (folder / PREPARED).exists():
        raise UserError(
            f"{folder / METADATA} was not made by this command; name another folder, or replace it with --overwrite."
        )
    before, now = read_json_object(folder / PREPARED, "the notes of a prepared set"), prepared.to_dict()
    if other := [name for name in ("task", "root") if before.get(name) != now[name]]:
        raise UserError(
            f"{folder} holds another {'task' if other[0] == 'task' else 'download'} ({before.get(other[0])}); "
            "name another folder, or replace it with --overwrite."
        )


def render(prepared: PreparedEvents) -> str:
    """Counts found and expected, and what did not fit, for people."""
    about, found = prepared.about, prepared.collected
    rows = [["", "found", "expected", "with an event"]]
    for part in dict.fromkeys([*about.counts, *found.parts]):
        expected = about.counts.get(part)
        rows.append(
            [part, f"{found.parts[part]:,}", "?" if expected is None else f"{expected:,}", f"{found.positives[part]:,}"]
        )
    lines = [f"{about.title}: {prepared.folder / METADATA}, recordings in {prepared.root}", aligned(rows)]
    lines += [f"otherwise than in the data set: {one}" for one in prepared.differences()]
    if found.left_out:
        reasons = top_reasons(Counter(row.failure.reason for row in found.left_out))
        lines.append(f"{len(found.left_out):,} rows to look at ({reasons}): {prepared.folder / LEFT_OUT}")
    if prepared.extra:
        lines.append(f"{len(prepared.extra):,} audio files belong to no row: {prepared.folder / EXTRA}")
    return "\n".join(lines)
