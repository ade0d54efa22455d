"""The exchange: a complete new conversion takes the place of an earlier one, and no good array is lost.

1. Sources may have been good before and fail now. With the same configuration their earlier arrays and records stay
   (`KEPT`); with another one they are set aside in ``_melspec/earlier-<fingerprint>/``, a log-mel folder of its own.
2. ``exchange.json`` is written. From here on the new conversion counts, and readers are refused until it is in place.
3. Arrays are moved to their places, then records and configuration. Each step may be repeated after a kill.
4. The folder of the new conversion and ``exchange.json`` are removed.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.console import DELAY_SECONDS, Progress
from m2dprep.artifacts.digests import fingerprint
from m2dprep.artifacts.errors import FailureLimit, TooManyFailuresError, UserError
from m2dprep.artifacts.files import sync_folder, write_bytes
from m2dprep.artifacts.folders import make_folder, remove_folder
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import PACKED_FOLDER, LmsLayout, inside
from m2dprep.artifacts.log_mels.array import FAILED, write_lms
from m2dprep.artifacts.log_mels.pack import META, PackedStore, read_pack_meta
from m2dprep.artifacts.log_mels.records import (
    EXCHANGE,
    KEPT,
    KEPT_FOR_NOW,
    OK,
    RECORD_SCHEMA,
    append_records,
    compact_records,
    frozen_config,
    iter_records,
    read_records,
    record_parts,
)
from m2dprep.artifacts.log_mels.unpacked import UNPACKED, note_unpacked, read_unpacked, write_unpacked
from m2dprep.audioprep.promise import Promises
from m2dprep.workflows.melspec.keeping import good_records, kept, not_taken_over, proven
from m2dprep.workflows.melspec.overwrite import beside

# Renaming on a network file system spends its time waiting.
THREADS = 16
BATCH_SIZE = 4096
EARLIER = "earlier"


@dataclass(frozen=True)
class Exchanged:
    """How many earlier arrays were kept, by the reason of the new failure, and how many were set aside in ``aside``.

    ``not_taken_over`` are sources that failed to take over a kept array, with its owner.
    """

    kept: Counter[str] = field(default_factory=Counter)
    not_taken_over: dict[str, str] = field(default_factory=dict)
    set_aside: int = 0
    aside: Path | None = None

    def say(self) -> None:
        if self.set_aside:
            print(
                f"m2dprep: {self.set_aside:,} sources that had been converted before could not be converted with the "
                f"new configuration; their earlier arrays, and what the records said of them, lie in {self.aside}.",
                file=sys.stderr,
            )


def take_place(layout: LmsLayout, inputs: int, limit: FailureLimit | None) -> Exchanged:
    """Move the finished conversion `beside` ``layout`` into its place; `close_exchange` must follow.

    Raises `TooManyFailuresError` if a new configuration would lose more arrays than ``limit`` allows of ``inputs``, and
    `UserError` if something stands in the way. The earlier conversion is then unchanged.
    """
    new = beside(layout)
    old, now = _fingerprint(layout), _fingerprint(new)
    lost = _lost_arrays(layout, new)
    rows = _earlier_records(layout, lost)
    others: list[dict[str, Any]] = []
    aside = None
    if rows and old != now:
        if limit is not None and limit.exceeded(len(rows), inputs):
            raise TooManyFailuresError(_too_many(layout, new, len(rows), inputs, limit))
        rows = _prepare_aside(layout, new, rows)
        aside = _free_name(layout, old) if rows else None
    elif rows:
        rows = _with_arrays(layout, layout, rows)
        others = [row for row in rows if row["source"] != lost[row["file_name"]]["source"]]
        failed = [not_taken_over(lost[row["file_name"]], row["source"]) for row in others]
        append_records(new, [*rows, *failed])
        compact_records(new)
    _require_way(layout, new)
    keeps_pack = old == now and _is_packed_as_now(layout, new)
    write_object(layout.melspec / EXCHANGE, {"config": now, "aside": aside, "keeps_pack": keeps_pack})
    _move_in(layout)
    if aside is None:
        kept_by_own = (row for row in rows if row not in others)
        return Exchanged(
            Counter(lost[row["file_name"]]["reason"] for row in kept_by_own),
            {lost[row["file_name"]]["source"]: row["source"] for row in others},
        )
    return Exchanged(set_aside=len(rows), aside=layout.melspec / aside)


def finish_exchange(layout: LmsLayout) -> bool:
    """Finish an interrupted exchange; `close_exchange` must follow. Returns whether there was anything to do."""
    if not (layout.melspec / EXCHANGE).exists():
        return False
    _move_in(layout)
    return True


def close_exchange(layout: LmsLayout) -> None:
    """Admit readers again, once the new conversion and its list are in place."""
    remove_folder(beside(layout).root)
    (layout.melspec / EXCHANGE).unlink(missing_ok=True)
    sync_folder(layout.melspec)


def _fingerprint(layout: LmsLayout) -> str | None:
    try:
        config = frozen_config(layout)
    except UserError:  # damaged: nobody knows how its arrays were made
        return None
    return None if config is None else str(config["fingerprint"])


def _lost_arrays(layout: LmsLayout, new: LmsLayout) -> dict[str, dict[str, Any]]:
    """The failures of sources whose output was not made by any source, and of which an earlier array may exist.

    Keys are the names of the outputs.
    """
    records = read_records(new, ["file_name", "status"])
    made = records.filter(pc.equal(records["status"], OK))["file_name"].combine_chunks()
    try:
        if not record_parts(layout) or not read_records(layout, ["source"]).num_rows:
            return {}
    except UserError:  # damaged: nothing says which arrays were good; those without a new one stay
        return {}
    lost: dict[str, dict[str, Any]] = {}
    for table in iter_records(new, RECORD_SCHEMA.names):
        failed = table.filter(pc.equal(table["status"], FAILED))
        failed = failed.filter(pc.invert(pc.is_in(failed["file_name"], value_set=made)))
        for row in failed.to_pylist():
            if row["reason"] != "name_conflict" or row["file_name"] not in lost:
                lost[row["file_name"]] = row
    return lost


def _earlier_records(layout: LmsLayout, lost: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The good record of each earlier array in ``lost``, with the reason `KEPT` if its own source failed now.

    The array of a source that has gone, which another source was to take over, keeps its record as it is.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in good_records(layout, "file_name", lost):
        found.setdefault(row["file_name"], []).append(row)
    rows: list[dict[str, Any]] = []
    for name, claimants in found.items():
        failure = lost[name]
        own = [row for row in claimants if row["source"] == failure["source"]]
        chosen = claimants if len(claimants) == 1 else proven(layout, [*own, *claimants]) or claimants[-1:]
        rows += [kept(row, failure["reason"], failure["message"]) if row in own else row for row in chosen]
    return rows


def _with_arrays(layout: LmsLayout, to: LmsLayout, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of ``rows`` whose arrays exist. Arrays that exist only in a pack are unpacked below ``to``.

    Raises `UserError` if the pack as a whole cannot be read.
    """
    gone = {row["file_name"] for row in rows if not inside(layout.root, row["file_name"]).exists()}
    opened = PackedStore.open(layout.root, None) if gone else None
    digests: dict[str, str] = {}
    if opened is not None:
        store, names = opened
        for number, name in enumerate(names.to_pylist()):
            if name in gone:
                with suppress(UserError):  # damaged there, so nothing can be kept
                    values = store.read(number)[None]
                    path = inside(to.root, name)
                    make_folder(path.parent)
                    digests[name] = write_lms(path, values, path.parent)
    note_unpacked(to, digests)
    return [row for row in rows if row["file_name"] not in gone or row["file_name"] in digests]


def _prepare_aside(layout: LmsLayout, new: LmsLayout, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the folder for the arrays to be set aside, complete but for those that lie in ``layout`` as files.

    Returns those of ``rows`` whose arrays exist.
    """
    aside = LmsLayout(new.melspec / EARLIER)
    remove_folder(aside.root)
    aside.melspec.mkdir(parents=True)
    with suppress(FileNotFoundError):
        write_bytes(aside.config, layout.config.read_bytes())
    rows = _with_arrays(layout, aside, rows)
    note_unpacked(aside, _of(read_unpacked(layout), rows))
    append_records(aside, [{**row, "reason": None, "message": None} for row in rows])
    return rows


def _of(digests: dict[str, str], rows: list[dict[str, Any]]) -> dict[str, str]:
    names = {row["file_name"] for row in rows}
    return {name: digest for name, digest in digests.items() if name in names}


def _free_name(layout: LmsLayout, old: str | None) -> str:
    name = f"{EARLIER}-{old or 'unknown'}"
    taken = {path.name for path in layout.melspec.iterdir()}
    return next(each for each in chain([name], (f"{name}-{n}" for n in count(2))) if each not in taken)


def _too_many(layout: LmsLayout, new: LmsLayout, lost: int, inputs: int, limit: FailureLimit) -> str:
    return (
        f"{lost:,} of {inputs:,} sources that {layout.root} has arrays of could not be converted with the new "
        f"configuration, --max-failures allows {limit}; it stays as it is. The new arrays, and the reasons "
        f"(records-*.parquet), are in {new.melspec}. Once the sources are mended the same command goes on; with a "
        "higher --max-failures the earlier arrays of those that fail are set aside."
    )


def _require_way(layout: LmsLayout, new: LmsLayout) -> None:
    """Make the folders for the new arrays. Raises `UserError` if something else has the name of a folder or array."""
    names = new.array_files()
    for folder in sorted({Path(name).parent for name in names}):
        try:
            make_folder(layout.root / folder)
        except OSError as error:
            raise UserError(
                f"{layout.root / folder} cannot be made: {error.strerror}. Remove what is there."
            ) from error
    for name in names:
        if (layout.root / name).is_dir():
            raise UserError(f"{layout.root / name} is a folder where an array is to be; remove it.")


def _is_packed_as_now(layout: LmsLayout, new: LmsLayout) -> bool:
    """Whether the pack holds exactly the values of the new conversion, so that it may stay."""
    try:
        meta = read_pack_meta(layout.root / PACKED_FOLDER)
        if meta is None:
            return False
        promises = Promises(new)
    except UserError:
        return False
    names = fingerprint({"names": list(promises.names)})
    return meta.get("contents") == promises.contents and meta.get("names") == names


def _move_in(layout: LmsLayout) -> None:
    """Carry out the exchange once it is decided. An interrupted run may repeat it with the same result."""
    how = read_object(layout.melspec / EXCHANGE) or {}
    new = beside(layout)
    if how["aside"] is not None:
        _set_aside(layout, new, layout.melspec / how["aside"])
    if not how["keeps_pack"]:
        _remove_pack(layout.root / PACKED_FOLDER)
    _move_arrays(layout, new)
    _move_records(layout, new)
    if new.config.exists():
        write_bytes(layout.config, new.config.read_bytes())


def _set_aside(layout: LmsLayout, new: LmsLayout, aside: Path) -> None:
    there = LmsLayout(new.melspec / EARLIER)
    if not there.root.is_dir():
        return
    for name in read_records(there, ["file_name"])["file_name"].to_pylist():
        old = inside(layout.root, name)
        if old.is_file():
            _move(old, inside(there.root, name))
    for folder in sorted({path.parent for path in map(there.root.joinpath, there.array_files())}):
        sync_folder(folder)
    there.root.rename(aside)
    sync_folder(layout.melspec)


def _remove_pack(pack: Path) -> None:
    if pack.exists():
        (pack / META).unlink(missing_ok=True)  # without it the rest counts as unfinished, however far this gets
        shutil.rmtree(pack)


def _move_arrays(layout: LmsLayout, new: LmsLayout) -> None:
    names = new.array_files()
    with ThreadPoolExecutor(THREADS) as pool, Progress(len(names), "move", delay=DELAY_SECONDS) as progress:
        for start in range(0, len(names), BATCH_SIZE):
            part = names[start : start + BATCH_SIZE]
            list(pool.map(lambda name: _move(new.root / name, layout.root / name), part))
            progress.advance(len(part))
    for folder in sorted({Path(name).parent for name in names}):
        sync_folder(layout.root / folder)


def _move(old: Path, place: Path) -> None:
    """Rename a file to ``place``. To another file system it is copied, completely or not at all."""
    with suppress(FileExistsError):
        make_folder(place.parent)
    try:
        os.replace(old, place)  # noqa: PTH105
    except OSError as error:
        if error.errno != errno.EXDEV:  # a folder that is a link to another disk
            raise
        write_bytes(place, old.read_bytes())
        old.unlink()


def _move_records(layout: LmsLayout, new: LmsLayout) -> None:
    """Replace the old records with the new ones. Digests of unpacked files stay for the arrays that were kept."""
    parts = record_parts(layout)
    if found := record_parts(new):
        (records,) = found
        number = int(parts[-1].stem.rpartition("-")[2]) + 1 if parts else 0
        records.rename(layout.melspec / f"records-{number:06d}.parquet")
        sync_folder(layout.melspec)
        parts = record_parts(layout)
    for part in parts[:-1]:
        part.unlink()
    parts[-1].rename(layout.melspec / "records-000000.parquet")
    _forget_unpacked(layout)


def _forget_unpacked(layout: LmsLayout) -> None:
    if not (layout.melspec / UNPACKED).exists():
        return
    records = read_records(layout, ["file_name", "reason"])
    kept = records.filter(pc.is_in(records["reason"], value_set=pa.array([KEPT, KEPT_FOR_NOW])))
    known: dict[str, str] = {}
    with suppress(UserError):
        known = _of(read_unpacked(layout), kept.to_pylist())
    write_unpacked(layout, known)
