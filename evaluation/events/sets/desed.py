"""DESED, as it is unpacked: lists of events of the validation and public evaluation parts, of synthetic soundscapes,
and of AudioSet's clips with times.

```
…/metadata/validation/validation.tsv                       filename, onset, offset, event_label; without events: empty
…/metadata/eval/public.tsv
…/metadata/train/synthetic….tsv, …/soundscapes.tsv         filename may end with .jams
…/metadata/validation/synthetic…/soundscapes.tsv
…/metadata/train/audioset_strong.tsv
…/audio/validation/validation/…, audio/eval/public/…       the sounds of a list lie where it lies, under audio
```

Synthetic soundscapes of all parts and versions have the same names (0.wav, 1.wav, …), so that their folder tells them
apart. Every recording is judged on all ten classes. Weak labels have no times and are not read. (The layouts are those
of the repositories turpaultn/DESED and DCASE-REPO/DESED_task.)
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.events.scoring.lists import read_event_list
from m2dprep.evaluation.events.sets.collected import MALFORMED, MISSING, REPEATED, CollectedEvents, Row
from m2dprep.evaluation.preparation.download import Download


@dataclass(frozen=True)
class Listed:
    """A kind of list: the paths that it may have, the split, what the part is called, and whether its names are those
    of recordings, which no two have, or numbers."""

    path: re.Pattern[str]
    split: str
    part: str
    by_name: bool = True


def _path(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*/)?metadata/{text}\.tsv")


LISTS = (
    Listed(_path(r"train/(?:.*/)?(?:synthetic[^/]*|soundscapes)"), "train", "synthetic", by_name=False),
    Listed(_path("train/audioset_strong"), "train", "strong"),
    Listed(_path(r"validation/(?:.*/)?soundscapes"), "valid", "synthetic validation", by_name=False),
    Listed(_path(r"validation/(?:.*/)?validation"), "valid", "validation"),
    Listed(_path(r"eval/(?:.*/)?public"), "test", "public"),
)
FOLDERS = {"train": "/audio/train/", "valid": "/audio/validation/", "test": "/audio/eval/"}
# Folders of sounds that are not called as their list is; one name is misspelt in a release.
OTHER_NAMES = {"train/audioset_strong": "train/strong_label_real", "synhtetic": "synthetic"}
# The baselines put copies at their rate beside a folder.
RESAMPLED = "_16k"


def collect_desed(download: Download, classes: Iterable[str]) -> CollectedEvents:
    """All recordings of a download that have a list with times. Raises `UserError` if there is none."""
    found, known = CollectedEvents(), list(classes)
    by_name: dict[str, list[str]] = {}
    for path in download.files:
        by_name.setdefault(posixpath.basename(path), []).append(path)
    seen: set[str] = set()
    for listed in LISTS:
        for table in download.other:
            if listed.path.fullmatch(table):
                found.sources.append(table)
                _collect(download, table, listed, known, by_name, seen, found)
    if not found.sources:
        raise UserError(
            f"{download.root} does not look like DESED as it is unpacked: it holds none of "
            "metadata/validation/validation.tsv, metadata/eval/public.tsv and metadata/train/…/soundscapes.tsv."
        )
    return found


def _collect(
    download: Download,
    table: str,
    listed: Listed,
    classes: list[str],
    by_name: dict[str, list[str]],
    seen: set[str],
    found: CollectedEvents,
) -> None:
    for name, events in read_event_list(download.root / table).items():
        if unknown := next((one.label for one in events if one.label not in classes), None):
            found.leave_out(name, table, MALFORMED, f"it has an event {unknown!r}, which is none of the ten classes")
            continue
        path = _audio(download, table, listed, by_name, name)
        if path is None:
            found.leave_out(name, table, MISSING, "no such file in the download, or several")
            continue
        if path in seen:
            found.leave_out(path, table, REPEATED, "an earlier list has this file")
            continue
        seen.add(path)
        rows = []
        for label in classes:
            own = [Row(path, label, event, listed.split) for event in events if event.label == label]
            rows += own or [Row(path, label, None, listed.split)]
        found.rows += rows
        found.count(listed.part, rows)


def _audio(download: Download, table: str, listed: Listed, by_name: dict[str, list[str]], name: str) -> str | None:
    """The file of this name in a folder of the list's, or, of a recording, the only one in the part or the download."""
    name = re.sub(r"\.jams$", ".wav", name)
    for folder in _folders(table):
        if (there := download.audio(posixpath.join(folder, name))) is not None:
            return there[0]
    if not listed.by_name:
        return None
    found = by_name.get(posixpath.basename(name), [])
    chosen = [path for path in found if FOLDERS[listed.split] in f"/{path}"] or found
    return chosen[0] if len(chosen) == 1 else None


def _folders(table: str) -> Iterator[str]:
    """Where the sounds of a list may lie: ``…/metadata/eval/public.tsv`` → ``…/audio/eval/public``, above, a copy."""
    before, _, within = f"/{table}".rpartition("/metadata/")
    own = within.removesuffix(".tsv")
    for listed, called in OTHER_NAMES.items():
        own = own.replace(listed, called)
    for folder in (own, posixpath.dirname(own), own + RESAMPLED):
        yield f"{before}/audio/{folder}".lstrip("/")
