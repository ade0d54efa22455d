"""DESED, as it is unpacked: lists of events of the validation and public evaluation parts, and of synthetic
soundscapes.

```
…/metadata/validation/validation.tsv      filename, onset, offset, event_label; a file without events has empty ones
…/metadata/eval/public.tsv
…/metadata/train/synthetic…/soundscapes.tsv, or synthetic….tsv
…/audio/validation/…, audio/eval/public/…, audio/train/…
```

Every recording is judged on all ten classes. Weak labels have no times and are not read.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.events.scoring.lists import read_event_list
from m2dprep.evaluation.events.sets.collected import MALFORMED, MISSING, REPEATED, CollectedEvents, Row
from m2dprep.evaluation.preparation.download import Download

# Which lists are read: their path, the split, and what the part is called.
LISTS = (
    (re.compile(r"(?:.*/)?metadata/train/(?:.*/)?(?:synthetic[^/]*|soundscapes)\.tsv"), "train", "synthetic"),
    (re.compile(r"(?:.*/)?metadata/validation/(?:.*/)?validation\.tsv"), "valid", "validation"),
    (re.compile(r"(?:.*/)?metadata/eval/(?:.*/)?public\.tsv"), "test", "public"),
)
FOLDERS = {"train": "/audio/train/", "valid": "/audio/validation/", "test": "/audio/eval/"}


def collect_desed(download: Download, classes: Iterable[str]) -> CollectedEvents:
    """All recordings of a download that have a list with times. Raises `UserError` if there is none."""
    found, known = CollectedEvents(), list(classes)
    by_name: dict[str, list[str]] = {}
    for path in download.files:
        by_name.setdefault(posixpath.basename(path), []).append(path)
    seen: set[str] = set()
    for pattern, split, part in LISTS:
        for name in download.other:
            if pattern.fullmatch(name):
                found.sources.append(name)
                _collect(download, name, split, part, known, by_name, seen, found)
    if not found.sources:
        raise UserError(
            f"{download.root} does not look like DESED as it is unpacked: it holds none of "
            "metadata/validation/validation.tsv, metadata/eval/public.tsv and metadata/train/…/soundscapes.tsv."
        )
    return found


def _collect(
    download: Download,
    table: str,
    split: str,
    part: str,
    classes: list[str],
    by_name: dict[str, list[str]],
    seen: set[str],
    found: CollectedEvents,
) -> None:
    for name, events in read_event_list(download.root / table).items():
        if unknown := next((one.label for one in events if one.label not in classes), None):
            found.leave_out(name, table, MALFORMED, f"it has an event {unknown!r}, which is none of the ten classes")
            continue
        path = _audio(by_name, name, FOLDERS[split])
        if path is None:
            found.leave_out(name, table, MISSING, "no such file in the download, or several")
            continue
        if path in seen:
            found.leave_out(path, table, REPEATED, "an earlier list has this file")
            continue
        seen.add(path)
        rows = []
        for label in classes:
            own = [Row(path, label, event, split) for event in events if event.label == label]
            rows += own or [Row(path, label, None, split)]
        found.rows += rows
        found.count(part, rows)


def _audio(by_name: dict[str, list[str]], name: str, folder: str) -> str | None:
    """The only file of this name in the part's folder, or else in the download."""
    there = by_name.get(posixpath.basename(name), [])
    within = [path for path in there if folder in f"/{path}"]
    chosen = within or there
    return chosen[0] if len(chosen) == 1 else None
