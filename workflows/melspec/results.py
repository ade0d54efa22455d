"""The tables that a conversion writes: records, in parts every few seconds, and the list of arrays that training reads.

The list is ``files_<name>.csv``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import temporary_path
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import LmsLayout, is_evaluation_clip
from m2dprep.artifacts.locks import writing_to
from m2dprep.artifacts.log_mels.records import OK, append_records, frozen_config, read_records
from m2dprep.artifacts.tables import read_file_list, write_file_list
from m2dprep.audioprep.source import Source

PART_ROWS = 8192
PART_SECONDS = 20.0


class RecordBuffer:
    """Collects rows and writes them as a new part every few seconds, and whenever the block ends, even by an error.

    ``given_up`` counts the good records that could only be written as failures.
    """

    def __init__(self, layout: LmsLayout) -> None:
        self._layout = layout
        self._rows: list[Mapping[str, Any]] = []
        self._written = time.monotonic()
        self.given_up = 0

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._written > PART_SECONDS:
            self._flush()

    def _flush(self) -> None:
        self.given_up += len(append_records(self._layout, self._rows))
        self._rows, self._written = [], time.monotonic()

    def __enter__(self) -> RecordBuffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()


# The digests of the lists as they were written, by name. A different digest means that somebody has changed the list.
WRITTEN = "lists.json"
# The key, in that file, of the fingerprint of the configuration beside it.
CONFIG = "config"


def list_path(layout: LmsLayout, name: str | None) -> Path:
    """The path of the list. Raises `UserError` if ``name`` cannot stand in ``files_<name>.csv``."""
    if name is not None and (not name or "/" in name or name in (".", "..")):
        raise UserError(f"--name {name}: a name for files_<name>.csv, neither empty nor a path.")
    return layout.data / f"files_{name}.csv" if name else layout.files_csv


def require_place(path: Path) -> None:
    """Raise `UserError` now if the list could not be written at the end, hours later."""
    probe = temporary_path(path.parent)
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path} could not be written: {path.parent}: {error.strerror}.") from error


def require_own(layout: LmsLayout, path: Path) -> None:
    """Raise `UserError` if the list names arrays of another folder of the data directory, which it would lose."""
    if not path.exists() or (path.name in (written := _written(layout)) and file_digest(path) == written[path.name]):
        return
    try:
        names = pa.array(read_file_list(path, unchecked=True), pa.string())
    except UserError:  # the list is about to be written again
        return
    others = names.filter(pc.invert(pc.starts_with(names, f"{layout.folder}/")))
    for folder in pc.unique(pc.list_element(pc.split_pattern(others, "/", max_splits=1), 0)).to_pylist():
        if (layout.data / folder).is_dir():
            raise UserError(
                f"{path} lists arrays of {folder}; the list of {layout.folder} would replace it. Choose another --name."
            )


def write_list(layout: LmsLayout, path: Path, pending: Sequence[Source]) -> int:
    """Write every array made so far, relative to the data directory, without evaluation clips. Returns their number.

    Reports on stderr the arrays that come back after something (`captions training-list`) had taken them out of the
    list; ``pending`` arrays were not in it before. Raises `UserError` if another folder has written the list meanwhile.
    """
    require_own(layout, path)
    records = read_records(layout, ["file_name", "status"])
    made = records.filter(pc.equal(records["status"], OK))["file_name"].to_pylist()
    listed = [f"{layout.folder}/{file_name}" for file_name in made if not is_evaluation_clip(file_name)]
    with writing_to(path):  # `captions training-list` may be changing it
        written = _written(layout)
        if path.exists() and path.name in written and file_digest(path) != written[path.name]:
            _report_relisted(path, listed, [f"{layout.folder}/{source.output}" for source in pending])
        write_file_list(path, listed)
        bound = {CONFIG: (frozen_config(layout) or {}).get("fingerprint")}
        write_object(layout.melspec / WRITTEN, {**bound, **written, path.name: file_digest(path), **bound})
    return len(listed)


def _written(layout: LmsLayout) -> dict[str, Any]:
    try:
        return read_object(layout.melspec / WRITTEN) or {}
    except UserError:  # it is about to be written again
        return {}


def _report_relisted(path: Path, listed: Sequence[str], new: Sequence[str]) -> None:
    try:
        known = pa.array([*read_file_list(path), *new], pa.string())
    except UserError:  # it is about to be written again
        return
    back = pa.array(listed, pa.string())
    back = back.filter(pc.invert(pc.is_in(back, value_set=known)))
    if len(back):
        print(
            f"m2dprep: {path} lists {len(back):,} clips again that had been taken out of it, such as {back[0]}; "
            "run `m2dprep captions training-list` again, with what it is to --exclude, before training.",
            file=sys.stderr,
        )
