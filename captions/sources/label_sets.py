"""Reads sets that have labels in place of captions: a sentence is made of the labels of a clip."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.text_files import EXAMPLES, Tally, decode, listing, raise_malformed, read_bytes
from m2dprep.captions.sources.json_readers import Notes, Pairs

Sentences = Callable[[pa.Array], pa.Array]  # of lists of labels; null for a list without any
VGGSOUND_COLUMNS = ("youtube_id", "start", "label", "split")
STRONG_COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
ID = re.compile(r"[\w-]{11}", re.ASCII)
TIME = re.compile(r"\d+(?:\.\d*)?")
LARGEST_START = 10**6  # six digits


def read_vggsound(path: Path, sentences: Sentences) -> Pairs:
    """``vggsound.csv``: (``<id>_<start in six digits>``, a sentence of the label) of every row."""
    purpose = "VGGSound's list: YouTube id, start second, label, split, without a header"
    names, labels, bad = [], [], []
    for line, (video, start, label, _) in table_rows(path, purpose, VGGSOUND_COLUMNS, ","):
        if not ID.fullmatch(video) or not start.isdecimal() or int(start) >= LARGEST_START:
            bad.append(f"line {line}: {video[:20]!r}, {start[:20]!r}")
            continue
        names.append(f"{video}_{int(start):06d}")
        labels.append([label] if label else [])
    if bad:
        raise UserError(
            f"{path} is malformed in {len(bad):,} line{'s' * (len(bad) > 1)} ({purpose}): {listing(bad, len(bad))}: "
            "a YouTube id of eleven characters and a whole number of seconds were expected."
        )
    return _sentences(names, labels, sentences)


def read_audioset_strong(path: Path, label_names: Mapping[str, str], sentences: Sentences, notes: Notes) -> Pairs:
    """AudioSet's strong labels: (``segment_id``, a sentence of the segment's different labels) of every segment.

    The labels stand in the order in which they begin. A label without a name is left out and counted in ``notes``; a
    segment without any has an empty caption.
    """
    purpose = "AudioSet's strong labels: segment_id, start, end, label, with tabs"
    events: dict[str, list[tuple[float, str]]] = {}
    unknown: list[str] = []
    bad, count = [], 0
    for line, (segment, start, end, mid) in table_rows(path, purpose, STRONG_COLUMNS, "\t"):
        if not (segment and TIME.fullmatch(start) and TIME.fullmatch(end)):
            bad.append(f"line {line}: {segment[:30]!r}, {start[:20]!r}, {end[:20]!r}")
            continue
        of_segment = events.setdefault(segment, [])
        if mid in label_names:
            of_segment.append((float(start), label_names[mid]))
        else:
            count += 1
            unknown += [f"{mid} at {path}:{line}"] * (len(unknown) < EXAMPLES)
    if bad:
        raise UserError(
            f"{path} is malformed in {len(bad):,} line{'s' * (len(bad) > 1)} ({purpose}): {listing(bad, len(bad))}: "
            "an id and two times in seconds were expected."
        )
    if count and not any(events.values()):
        raise UserError(f"{path}: not one of its labels is in --ontology, such as {unknown[0]}; is it the right file?")
    if count:
        notes.append(("labels that --ontology does not know, left out", Tally(count, tuple(unknown))))
    ordered = [
        list(dict.fromkeys(name for _, name in sorted(of_segment, key=lambda event: event[0])))
        for of_segment in events.values()
    ]
    return _sentences(list(events), ordered, sentences)


def _sentences(names: Sequence[str], labels: Sequence[Sequence[str]], sentences: Sentences) -> Pairs:
    made = sentences(pa.array(labels, pa.list_(pa.string()))).to_pylist()
    return [(name, caption or "") for name, caption in zip(names, made, strict=True)]


def table_rows(path: Path, purpose: str, columns: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table of these columns, with their last lines; a header that names the first one is skipped.

    Raises `UserError` if the table is malformed, empty, or has another number of columns.
    """
    data = read_bytes(path, purpose)
    text = decode(path, data)
    if "\0" in text:
        raise UserError(f"{path} holds NUL ({purpose}).")
    if '"' in text:
        raise_malformed(path, data, purpose, delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = 0
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not any(cells) or (not rows and cells[0].lower() in (columns[0], "ytid")):
            continue
        if len(cells) != len(columns):
            raise_malformed(path, data, purpose, delimiter)
            raise UserError(f"{path}:{reader.line_num} has {len(cells)} columns, not {len(columns)} ({purpose}).")
        rows += 1
        yield reader.line_num, cells
    if not rows:
        raise UserError(f"{path} has no rows ({purpose}).")
