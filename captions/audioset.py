"""AudioSet's own tables: segment lists and label names, as published or in the same form.

Fatal (the file is not what it claims to be): a line of a segment list that is neither a comment nor
``id, start, end, "mid,mid,…"``; a label table that cannot be read; not one label known. Counted and listed with file
and line: a clip id that occurred before (the first one stays), a label id that the label table does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import UserError
from captions.columns import codes, first_occurrences, keep_in_lists
from captions.csv_table import read_csv_table
from captions.text_files import EXAMPLES, Finding, decode, listing, read_bytes, read_lines

# id, start, end, then label ids: a quoted list, or a single one without quotes.
SEGMENT = (
    r'^\s*(?P<clip_id>[^\s,"#](?:[^,"]*[^\s,"])?)\s*,\s*(?P<start>\d+(?:\.\d*)?)\s*,\s*(?P<end>\d+(?:\.\d*)?)\s*,'
    r'\s*(?:"(?P<quoted>[^"]*)"|(?P<bare>[^,"]*?))\s*$'
)
SPLITS = {
    "balanced_train_segments": "balanced_train",
    "unbalanced_train_segments": "unbalanced_train",
    "eval_segments": "eval",
}
SEGMENTS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
    ]
)


@dataclass(frozen=True)
class Segments:
    """The clips of some segment lists (`SEGMENTS_SCHEMA`), in the order of the files and their lines, ids unique."""

    table: pa.Table
    rows: int
    duplicates: Finding
    unknown_labels: Finding


def split_name(path: Path) -> str:
    """``balanced_train``, ``unbalanced_train`` or ``eval`` by AudioSet's file names, else the name without suffixes."""
    stem = path.name
    for suffix in (".gz", ".csv"):
        stem = stem.removesuffix(suffix)
    return SPLITS.get(stem, stem)


def read_segments(paths: Sequence[Path], label_names: Mapping[str, str]) -> Segments:
    """Read segment lists; ``label_names`` maps label ids (mids) to names.

    Raises `UserError` as the head of this file says, and where a list holds no clip.
    """
    if repeated := {str(path) for path in paths if list(paths).count(path) > 1}:
        raise UserError(f"{', '.join(sorted(repeated))}: given more than once as a list of segments.")
    parts = [_read_list(path) for path in paths]
    places = _Places(paths, [part.num_rows for part in parts], [part["line"].to_numpy() for part in parts])
    table = pa.concat_tables(parts).combine_chunks()
    labels, unknown = _label_lists(table["mids"].combine_chunks(), label_names, places)
    first = first_occurrences(codes(table["clip_id"]))
    repeats = np.flatnonzero(~first).tolist()
    ids = table["clip_id"].take(pa.array(repeats[:EXAMPLES], pa.int64())).to_pylist()
    duplicates = Finding(
        len(repeats), tuple(f"{identifier} at {places[row]}" for identifier, row in zip(ids, repeats, strict=False))
    )
    columns = [table["clip_id"], table["start_seconds"], table["split"], labels]
    clips = pa.Table.from_arrays(columns, schema=SEGMENTS_SCHEMA).filter(pa.array(first))
    return Segments(clips, table.num_rows, duplicates, unknown)


@dataclass(frozen=True)
class _Places:
    """Where each row of the concatenated lists was read: ``file:line``."""

    paths: Sequence[Path]
    rows: list[int]
    lines: list[np.ndarray]

    def __getitem__(self, row: int) -> str:
        for path, rows, lines in zip(self.paths, self.rows, self.lines, strict=True):
            if row < rows:
                return f"{path}:{lines[row]}"
            row -= rows
        raise IndexError(row)


def _read_list(path: Path) -> pa.Table:
    lines = read_lines(path, "a list of AudioSet segments")
    content = pc.and_(pc.match_substring_regex(lines, r"\S"), pc.invert(pc.match_substring_regex(lines, r"^\s*#")))
    numbers = np.flatnonzero(content.to_numpy(zero_copy_only=False)) + 1
    rows = lines.filter(content)
    fields = pc.extract_regex(rows, SEGMENT)
    if fields.null_count:
        _raise_malformed(path, rows, numbers, pc.is_null(fields).to_numpy(zero_copy_only=False))
    if not len(rows):
        raise UserError(f'{path} lists no segment; it should have lines like: id, 30.000, 40.000, "/m/09x0r".')
    mids = pc.binary_join_element_wise(pc.struct_field(fields, "quoted"), pc.struct_field(fields, "bare"), "")
    return pa.table(
        {
            "clip_id": pc.struct_field(fields, "clip_id"),
            "start_seconds": pc.struct_field(fields, "start").cast(pa.float64()),
            "split": pa.array([split_name(path)]).take(pa.array(np.zeros(len(rows), np.int8))),
            "mids": mids,
            "line": numbers,
        }
    )


def _raise_malformed(path: Path, rows: pa.Array, numbers: np.ndarray, malformed: np.ndarray) -> None:
    bad = np.flatnonzero(malformed)
    shown = [f"line {numbers[row]}: {rows[row].as_py().strip()[:80]!r}" for row in bad[:EXAMPLES]]
    raise UserError(
        f"{path} is malformed as a list of segments in {len(bad):,} line{'s' * (len(bad) > 1)}: "
        f'{listing(shown, len(bad))}. A line is: id, start, end, "label id,label id,…".'
    )


def _label_lists(mids: pa.Array, label_names: Mapping[str, str], places: _Places) -> tuple[pa.Array, Finding]:
    """Per row the names of its labels in CSV order; label ids that have no name are left out and counted."""
    lists = pc.split_pattern(mids, ",")
    flat = pc.utf8_trim_whitespace(pc.list_flatten(lists))
    known = pc.index_in(flat, value_set=pa.array(list(label_names), pa.string()))
    names = pa.array(list(label_names.values()), pa.string()).take(known)
    is_known = known.is_valid().to_numpy(zero_copy_only=False)
    is_there = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
    unknown = np.flatnonzero(~is_known & is_there).tolist()
    if len(unknown) and not is_known.any():
        raise UserError(
            f"{places[0]}: label {flat[unknown[0]].as_py()!r} is not in the table of labels, and neither is any other "
            "label of the segments; is it the right ontology.json or class_labels_indices.csv?"
        )
    row_of = np.repeat(np.arange(len(mids)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    examples = tuple(f"{flat[at].as_py()} at {places[row_of[at]]}" for at in unknown[:EXAMPLES])
    return keep_in_lists(lists, is_known, names), Finding(len(unknown), examples)


def read_label_names(path: Path) -> dict[str, str]:
    """{label id: name} from ``ontology.json`` or ``class_labels_indices.csv``, told apart by their content.

    Commas and parentheses belong to the names. Raises `UserError` where the file is neither.
    """
    data = read_bytes(path, "the names of the labels")
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{"):
        return _unique(path, _read_ontology(path, data))
    table = read_csv_table(path, "a table of labels (class_labels_indices.csv)", ["mid", "display_name"])
    names = pc.utf8_trim_whitespace(table["display_name"]).to_pylist()
    return _unique(path, list(zip(pc.utf8_trim_whitespace(table["mid"]).to_pylist(), names, strict=True)))


def _read_ontology(path: Path, data: bytes) -> list[tuple[str, str]]:
    try:
        entries = json.loads(decode(path, data))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
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
