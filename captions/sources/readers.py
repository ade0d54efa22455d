"""Reads captions in the forms in which others publish them into one form: one row a caption.

`read_kind` reads the files of a source by its entry in `artifacts.clips.caption_sets`. Rows keep the file's order,
and several captions in one row keep their column order. Ids are read by the forms of their source
(`captions.sources.id_forms`) and interpreted when they are matched with clips (`artifacts.clips`): by the shape of the
whole id, never by a first letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.caption_sets import KINDS, Kind
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.text_files import Tally
from m2dprep.captions.sources.archives import read_webdataset
from m2dprep.captions.sources.audioset import read_label_names
from m2dprep.captions.sources.beside import read_text_beside
from m2dprep.captions.sources.caption_rows import CAPTION_ROWS
from m2dprep.captions.sources.csv_readers import caption_rows, read_caption_csv, read_clotho
from m2dprep.captions.sources.id_forms import by_forms
from m2dprep.captions.sources.json_readers import (
    Notes,
    Pairs,
    pairs_table,
    read_acavcaps,
    read_af_audioset,
    read_fusionaudio,
    read_jsonl,
    read_laion,
    read_wavcaps,
)
from m2dprep.captions.sources.label_sets import Sentences, read_audioset_strong, read_vggsound
from m2dprep.captions.sources.looks import hint, require_not_another
from m2dprep.captions.sources.parquet_reader import read_parquet_shards

# Texts that say that there is no caption, as programs write them into tables.
NO_CAPTION = r"^\s*(?:nan|NaN|NAN|None|NONE|null|NULL|<NA>|N/A|#N/A)\s*$"


@dataclass(frozen=True)
class ReadOptions:
    """The settings that tables without a form of their own leave open, and rules for ids and labels.

    ``id_pattern`` is a regular expression that is searched for in every id; its first group (or the whole match, if it
    has none) becomes the id. Ids without a match count as missing. ``id_form`` is the form of the ids, one of
    `artifacts.clips.caption_sets.ID_FORMS`, in place of those of the kind. ``id_prefix`` is put before every id.
    ``by_archive`` puts an archive's path before the ids in it. ``labels`` has the names of labels, of which
    ``sentences`` makes captions (`captions.template`).
    """

    id_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    id_pattern: str | None = None
    id_form: str | None = None
    id_prefix: str = ""
    by_archive: bool = False
    labels: Path | None = None
    sentences: Sentences | None = None


class Read(NamedTuple):
    """A source's rows (`CAPTION_ROWS`), and what was odd about them, each with the beginning of a line."""

    rows: pa.Table
    notes: list[tuple[str, Tally]]

    def lines(self) -> list[str]:
        """A line about everything that was odd."""
        return [f"{text}: {finding}." for text, finding in self.notes]


def read_source(kind: str, paths: Sequence[Path], options: ReadOptions | None = None) -> pa.Table:
    """The rows that `read_kind` reads."""
    return read_kind(kind, paths, options).rows


def read_kind(name: str, paths: Sequence[Path], options: ReadOptions | None = None) -> Read:
    """Read files of one kind (its ``name`` in `artifacts.clips.caption_sets.KINDS`), one after another.

    Raises `UserError` if a file cannot be read, is one of another kind, or an option does not suit the kind or a file.
    """
    kind, options = KINDS[name], options or ReadOptions()
    _require_suitable(kind, options)
    if repeated := {str(path) for path in paths if list(paths).count(path) > 1}:
        raise UserError(f"{', '.join(sorted(repeated))}: given more than once.")
    notes: Notes = []
    if name in OF_SHARDS:
        rows = _read_shards(kind, paths, options, notes)
    else:
        rows = pa.concat_tables([_read_file(kind, path, options, notes) for path in paths])
    if options.id_pattern is not None:
        rows = _by_pattern(rows, options.id_pattern)
    forms = kind.forms if options.id_form is None else (options.id_form,)
    if forms:
        ids, odd = by_forms(rows["id"], forms, kind.title)
        rows = rows.set_column(0, CAPTION_ROWS.field(0), ids)
        notes += odd
    if options.id_prefix:
        rows = rows.set_column(0, CAPTION_ROWS.field(0), _prefixed(rows["id"], options.id_prefix))
    return Read(_without_placeholders(rows), notes)


def _require_suitable(kind: Kind, options: ReadOptions) -> None:
    if (options.id_column and not kind.takes_id_column) or (options.caption_columns and not kind.takes_caption_columns):
        raise UserError(f"{kind.name} has columns of its own: --id-column and --caption-column do not go with it.")
    if options.by_archive and kind.name != "webdataset":
        raise UserError(f"--layout-from archive is for archives, and {kind.option} reads {kind.title}.")
    if kind.needs_label_names and options.labels is None:
        raise UserError(f"{kind.option} needs --ontology, which has the names of the labels.")
    if options.labels is not None and not kind.needs_label_names:
        raise UserError(f"--ontology has the names of labels, and {kind.title} needs none.")


def _read_file(kind: Kind, path: Path, options: ReadOptions, notes: Notes) -> pa.Table:
    require_not_another(path, kind)
    try:
        if kind.is_plain:
            return caption_rows(path, f"the captions of {kind.title}", kind.id_column, kind.caption_columns)
        read = READERS[kind.name](path, options, notes)
        return read if isinstance(read, pa.Table) else pairs_table(read, CAPTION_ROWS)
    except UserError as error:
        if said := hint(path, kind):
            raise UserError(f"{error} {said}") from error
        raise


def _read_shards(kind: Kind, paths: Sequence[Path], options: ReadOptions, notes: Notes) -> pa.Table:
    try:
        return OF_SHARDS[kind.name](paths, options, notes)
    except UserError as error:
        if said := next((said for path in paths if (said := hint(path, kind))), ""):
            raise UserError(f"{error} {said}") from error
        raise


def _without_placeholders(rows: pa.Table) -> pa.Table:
    """The rows with empty texts for those that only say that there is none, such as ``NaN``."""
    none = pc.match_substring_regex(rows["caption"], NO_CAPTION)
    if not pc.any(none).as_py():
        return rows
    return rows.set_column(1, CAPTION_ROWS.field(1), pc.if_else(none, "", rows["caption"]))


def _prefixed(ids: pa.ChunkedArray, prefix: str) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(ids, ""), "", pc.binary_join_element_wise(prefix, ids, ""))


def _by_pattern(rows: pa.Table, pattern: str) -> pa.Table:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"--id-pattern {pattern!r} is no regular expression: {error}") from error
    expression = f"^.*?(?P<id>{pattern}).*$" if not groups else None
    try:
        if expression:
            found = pc.struct_field(pc.extract_regex(rows["id"], expression), "id")
        else:
            found = pc.replace_substring_regex(rows["id"], f"^.*?(?:{pattern}).*$", r"\1")
            found = pc.if_else(pc.match_substring_regex(rows["id"], pattern), found, "")
    except pa.ArrowInvalid as error:
        raise UserError(f"--id-pattern {pattern!r} is none that RE2 knows: {first_line(error)}") from error
    return rows.set_column(0, rows.schema.field(0), pc.fill_null(found, ""))


def _read_strong(path: Path, options: ReadOptions, notes: Notes) -> Pairs:
    assert options.labels is not None  # `_require_suitable`
    return read_audioset_strong(path, read_label_names(options.labels), _sentences(options), notes)


def _sentences(options: ReadOptions) -> Sentences:
    if options.sentences is None:
        raise ValueError("labels need ReadOptions.sentences, such as captions.template.label_captions")
    return options.sentences


def _read_jsonl(path: Path, options: ReadOptions, _: Notes) -> Iterable[tuple[str, str]]:
    if not options.id_column or not options.caption_columns:
        raise UserError(f"{path}: name its keys with --id-column and --caption-column.")
    return read_jsonl(path, options.id_column, options.caption_columns)


# Kinds that are no plain tables: those of single files, and those of many shards.
READERS: dict[str, Callable[[Path, ReadOptions, Notes], pa.Table | Iterable[tuple[str, str]]]] = {
    "acavcaps": lambda path, options, _: read_acavcaps(path, options.caption_columns),
    "af_audioset": lambda path, *_: read_af_audioset(path),
    "audioset_strong": _read_strong,
    "clotho": lambda path, *_: read_clotho(path),
    "fusionaudio": lambda path, _, notes: read_fusionaudio(path, notes),
    "laion": lambda path, options, _: read_laion(path, options.caption_columns),
    "txt": lambda path, _, notes: read_text_beside(path, notes),
    "vggsound": lambda path, options, _: read_vggsound(path, _sentences(options)),
    "wavcaps": lambda path, *_: read_wavcaps(path),
    "csv": lambda path, options, _: read_caption_csv(path, options.id_column, options.caption_columns),
    "jsonl": _read_jsonl,
}
OF_SHARDS: dict[str, Callable[[Sequence[Path], ReadOptions, Notes], pa.Table]] = {
    "webdataset": lambda paths, options, notes: pairs_table(
        read_webdataset(paths, options.caption_columns, by_archive=options.by_archive, notes=notes), CAPTION_ROWS
    ),
    "parquet": lambda paths, options, _: read_parquet_shards(paths, options.id_column, options.caption_columns),
}
