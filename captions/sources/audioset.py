"""Reads AudioSet's own tables: segment lists and label names, as published or in the same form.

Fatal (the file is not what it claims to be): a line of a segment list that is neither a comment before the first
segment nor ``id, start, end, "mid,mid,…"``; a label table that cannot be read; no known label at all. Counted and
listed with file and line: a repeated clip id (the first one stays), a label id that the label table does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from m2dprep.artifacts.clips.readings import only_id_bytes
from m2dprep.artifacts.columns import chunks, holds_byte, keep_in_lists, one_array, repeats, text_bytes
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import parse_json
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.text_files import (
    BLOCK_BYTES,
    EXAMPLES,
    Tally,
    decode,
    listing,
    misplaced_quotes,
    read_bytes,
    read_csv_table,
    read_lines,
)

PURPOSE = "a list of AudioSet segments"
PUBLISHED = pa.schema(
    [("clip_id", pa.string()), ("start_seconds", pa.float64()), ("end_seconds", pa.float64()), ("mids", pa.string())]
)
# id, start, end, then label ids: a quoted list, or a single one without quotes
SEGMENT = (
    r'^\s*(?P<clip_id>[^\s,"#](?:[^,"]*[^\s,"])?)\s*,\s*(?P<start>\d+(?:\.\d*)?)\s*,\s*(?P<end>\d+(?:\.\d*)?)\s*,'
    r'\s*(?:"(?P<quoted>[^"]*)"|(?P<bare>[^,"]*?))\s*$'
)
EVALUATION_SPLIT = "eval"
SPLITS = {
    "balanced_train_segments": "balanced_train",
    "unbalanced_train_segments": "unbalanced_train",
    "eval_segments": EVALUATION_SPLIT,
}
NAME = pa.dictionary(pa.int32(), pa.string())  # few names, millions of times
SEGMENTS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("split", NAME, nullable=False),
        pa.field("labels", pa.list_(NAME), nullable=False),
    ]
)


@dataclass(frozen=True)
class Segments:
    """The clips of some segment lists (`SEGMENTS_SCHEMA`), in the order of files and lines, with unique ids."""

    table: pa.Table
    rows: int
    duplicates: Tally
    unknown_labels: Tally


def split_name(path: Path) -> str:
    """``balanced_train``, ``unbalanced_train`` or ``eval`` for AudioSet's files, else the name without suffixes."""
    stem = path.name
    for suffix in (".gz", ".csv"):
        stem = stem.removesuffix(suffix)
    return SPLITS.get(stem, stem)


def read_segments(paths: Sequence[Path], label_names: Mapping[str, str]) -> Segments:
    """Read segment lists; ``label_names`` maps label ids (mids) to names.

    Raises `UserError` as described at the top of this file, and if a list holds no clip.
    """
    if repeated := {str(path) for path in paths if list(paths).count(path) > 1}:
        raise UserError(f"{', '.join(sorted(repeated))}: given more than once as a list of segments.")
    parts = [_read_list(path) for path in paths]
    places = _Places(paths, [part.lines for part in parts])
    mids = [chunk for part in parts for chunk in chunks(part.rows["mids"])]
    labels, unknown = _label_lists(mids, label_names, places)
    splits = pa.array([split_name(path) for path in paths])
    split_of_row = np.repeat(np.arange(len(paths), dtype=np.int32), [part.rows.num_rows for part in parts])
    split = pa.DictionaryArray.from_arrays(pa.array(split_of_row), splits)
    read = pa.concat_tables([part.rows for part in parts])
    ids = one_array(read["clip_id"])
    again = repeats(ids)
    shown = ids.take(pa.array(again[:EXAMPLES])).to_pylist()
    duplicates = Tally(
        len(again),
        tuple(f"{identifier} at {places[row]}" for identifier, row in zip(shown, again.tolist(), strict=False)),
    )
    columns = [pa.chunked_array([ids]), read["start_seconds"], pa.chunked_array([split]), labels]
    clips = pa.Table.from_arrays(columns, schema=SEGMENTS_SCHEMA)
    if len(again):
        keep = np.ones(len(ids), bool)
        keep[again] = False
        clips = clips.filter(pa.array(keep))
    return Segments(clips, read.num_rows, duplicates, unknown)


class _List(NamedTuple):
    """One file: columns clip_id, start_seconds and mids (``mid,mid,…``), and the line number of each row."""

    rows: pa.Table
    lines: Sequence[int] | np.ndarray


@dataclass(frozen=True)
class _Places:
    """The place from which each row of the concatenated lists was read: ``file:line``."""

    paths: Sequence[Path]
    lines: Sequence[Sequence[int] | np.ndarray]

    def __getitem__(self, row: int) -> str:
        for path, lines in zip(self.paths, self.lines, strict=True):
            if row < len(lines):
                return f"{path}:{lines[row]}"
            row -= len(lines)
        raise IndexError(row)


def _read_list(path: Path) -> _List:
    """Read a file in the published form at full speed; any other line by line, explaining malformed lines."""
    require_file(path, PURPOSE)
    return read_published(path) or _read_any(path)


def read_published(path: Path) -> _List | None:
    """A list in exactly the form in which AudioSet is published; None if anything in it has another form."""
    data, comments, start = read_bytes(path, PURPOSE), 0, 0
    while data[start : start + 1] == b"#":
        comments, start = comments + 1, data.find(b"\n", start) + 1 or len(data)
    data = data.replace(b', "', b',"')  # so that quotes open fields, as in CSV
    if misplaced_quotes(data):
        return None
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            read_options=pyarrow.csv.ReadOptions(
                column_names=list(PUBLISHED.names), block_size=BLOCK_BYTES, skip_rows=comments
            ),
            parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=PUBLISHED, strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    if not table.num_rows or not _is_published(table):
        return None
    return _List(table.drop_columns(["end_seconds"]), range(comments + 1, comments + 1 + table.num_rows))


def _is_published(table: pa.Table) -> bool:
    """Whether ids consist of the characters of YouTube's, times are times, and label ids have no quotes."""
    ids = [text_bytes(chunk) for chunk in chunks(table["clip_id"])]
    times = [table[name].to_numpy() for name in ("start_seconds", "end_seconds")]
    return (
        all(only_id_bytes(content) and (np.diff(offsets) > 0).all() for content, offsets in ids)
        and all((np.isfinite(seconds) & (seconds >= 0)).all() for seconds in times)
        and not any(holds_byte(chunk, b'"') or holds_byte(chunk, b"\n") for chunk in chunks(table["mids"]))
    )


def _read_any(path: Path) -> _List:
    lines = read_lines(path, PURPOSE)
    content = pc.match_substring_regex(lines, r"\S").to_numpy(zero_copy_only=False)
    no_comment = pc.invert(pc.match_substring_regex(lines, r"^\s*#")).to_numpy(zero_copy_only=False)
    first = int(np.argmax(content & no_comment)) if (content & no_comment).any() else len(lines)
    content[:first] = False  # comments come before the first segment; a # after it is damage
    numbers = np.flatnonzero(content) + 1
    rows = lines.filter(pa.array(content))
    fields = pc.extract_regex(rows, SEGMENT)
    if fields.null_count:
        _raise_malformed(path, rows, numbers, pc.is_null(fields).to_numpy(zero_copy_only=False))
    if not len(rows):
        raise UserError(f'{path} lists no segment; it should have lines like: id, 30.000, 40.000, "/m/09x0r".')
    mids = pc.binary_join_element_wise(pc.struct_field(fields, "quoted"), pc.struct_field(fields, "bare"), "")
    columns = {
        "clip_id": pc.struct_field(fields, "clip_id"),
        "start_seconds": pc.struct_field(fields, "start").cast(pa.float64()),
        "mids": mids,
    }
    return _List(pa.table(columns), numbers)


def _raise_malformed(path: Path, rows: pa.Array, numbers: np.ndarray, malformed: np.ndarray) -> None:
    bad = np.flatnonzero(malformed)
    shown = [f"line {numbers[row]}: {rows[row].as_py().strip()[:80]!r}" for row in bad[:EXAMPLES]]
    raise UserError(
        f"{path} is malformed as a list of segments in {len(bad):,} line{'s' * (len(bad) > 1)}: "
        f'{listing(shown, len(bad))}. A line is: id, start, end, "label id,label id,…".'
    )


def _label_lists(
    mids: Sequence[pa.Array], label_names: Mapping[str, str], places: _Places
) -> tuple[pa.ChunkedArray, Tally]:
    """The names of each row's labels in CSV order; label ids without a name are left out and counted."""
    table, names = pa.array(list(label_names), pa.string()), pa.array(list(label_names.values()), pa.string())
    lists: list[pa.Array] = []
    examples: list[tuple[str, str]] = []
    count, row, any_known = 0, 0, False
    for chunk in mids:
        split = pc.split_pattern(chunk, ",")
        flat = split.flatten()
        if (text_bytes(flat)[0] == ord(" ")).any():
            flat = pc.utf8_trim_whitespace(flat)
        known = pc.index_in(flat, value_set=table)
        is_known = known.is_valid().to_numpy(zero_copy_only=False)
        any_known |= bool(is_known.any())
        if not is_known.all():
            is_there = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
            unknown = np.flatnonzero(~is_known & is_there)
            count += len(unknown)
            row_of = np.repeat(np.arange(len(chunk)), pc.list_value_length(split).to_numpy(zero_copy_only=False))
            some = unknown[: EXAMPLES - len(examples)]
            examples += [(flat[at].as_py(), places[row + int(row_of[at])]) for at in some.tolist()]
        lists.append(keep_in_lists(split, is_known, pa.DictionaryArray.from_arrays(known, names)))
        row += len(chunk)
    if count and not any_known:
        raise UserError(
            f"{examples[0][1]}: label {examples[0][0]!r} is not in the table of labels, and neither is any other "
            "label of the segments; is it the right ontology.json or class_labels_indices.csv?"
        )
    shown = tuple(f"{label} at {place}" for label, place in examples)
    return pa.chunked_array(lists, pa.list_(NAME)), Tally(count, shown)


def read_label_names(path: Path) -> dict[str, str]:
    """{label id: name} from ``ontology.json``, ``class_labels_indices.csv`` or ``mid_to_display_name.tsv``.

    They are told apart by their content; the last is of the strong labels: an id, a tab, a name, without a header.

    Commas and parentheses belong to the names. Raises `UserError` if the file is neither.
    """
    data = read_bytes(path, "the names of the labels")
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{"):
        return _unique(path, _read_ontology(path, data))
    if b"\t" in data.partition(b"\n")[0]:
        rows = [line.rstrip("\r").partition("\t") for line in decode(path, data).split("\n") if line.strip()]
        return _unique(path, [(mid.strip(), name.strip()) for mid, _, name in rows])
    table = read_csv_table(path, "a table of labels (class_labels_indices.csv)", ["mid", "display_name"])
    names = pc.utf8_trim_whitespace(table["display_name"]).to_pylist()
    return _unique(path, list(zip(pc.utf8_trim_whitespace(table["mid"]).to_pylist(), names, strict=True)))


def _read_ontology(path: Path, data: bytes) -> list[tuple[str, str]]:
    entries = parse_json(decode(path, data), path, "the names of the labels")
    if not isinstance(entries, list):
        raise UserError(f"{path} is not AudioSet's ontology.json: a list of objects with id and name was expected.")
    pairs = []
    for position, entry in enumerate(entries, 1):
        pair = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(pair[0], str) and isinstance(pair[1], str)):
            raise UserError(f"{path}: entry {position} has no id and name as texts; is it AudioSet's ontology.json?")
        pairs.append((pair[0].strip(), pair[1].strip()))
    return pairs


def _unique(path: Path, pairs: list[tuple[str, str]]) -> dict[str, str]:
    names: dict[str, str] = {}
    for mid, name in pairs:
        if not mid or not name:
            raise UserError(f"{path}: label {mid or name!r} has no {'name' if mid else 'id'}.")
        if names.setdefault(mid, name) != name:
            raise UserError(f"{path} gives label {mid} two names, {names[mid]!r} and {name!r}.")
    if not names:
        raise UserError(f"{path} names no label.")
    return names
