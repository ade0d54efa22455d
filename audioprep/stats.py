"""Normalisation statistics of a folder of log-mels, merged from its records or recomputed from the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.errors import CheckFailedError, UserError
from m2dprep.artifacts.json_files import write_object
from m2dprep.artifacts.layout import LmsLayout, is_evaluation_clip, require_lms_folder
from m2dprep.artifacts.log_mels.array import OK, read_lms
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.artifacts.log_mels.records import iter_records, read_config, read_records, record_parts, verify_records
from m2dprep.artifacts.tables import read_file_list, verify_file_list
from m2dprep.audioprep.moments import Moments
from m2dprep.audioprep.promise import Promise, Promises, fault_of

# Arrays whose moments are collected before they are merged.
ROWS_PER_BATCH = 16384
# Unreadable arrays that an error message names; it gives the number of all.
MAX_NAMED = 20
# Standard deviations divide by n, as normalisation needs them.
DDOF = 0
# Above this share of padding among all frames, a note says so: ESC-50's clips of 5 s are at 0.18, clips of 1 s at 0.84.
MUCH_PADDING = 0.5


@dataclass(frozen=True)
class NormStats:
    """Mean and population standard deviation of log-mel values, over all values and per bin.

    ``source`` is ``records`` or ``arrays``; ``excluded_files`` counts the evaluation clips left out; ``fingerprint``
    is that of the conversion's configuration, None for arrays that other programs made. ``folder`` names the folder of
    log-mels, and ``files`` the list to which they were restricted.
    """

    mean: float
    std: float
    count_values: int
    count_files: int
    bin_mean: list[float]
    bin_std: list[float]
    ddof: int
    source: str
    excluded_files: int
    fingerprint: str | None
    folder: str
    files: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def norm_stats(lms: Path, *, recompute: bool = False, files: Path | None = None) -> NormStats:
    """Statistics of the log-mels in ``lms``, without AudioSet's evaluation clips.

    They are merged from the records of the conversion, or with ``recompute`` computed from the arrays, taken from the
    pack if their files are gone; this also works for a folder without records. ``files`` restricts them to the arrays
    of ``lms`` that a ``files_<name>.csv`` lists. Raises `UserError` if there is nothing to compute from or a listed
    array has no record, and `CheckFailedError`, naming the arrays, if some cannot be read.
    """
    layout = LmsLayout(require_lms_folder(lms))
    wanted = None if files is None else _listed(layout, files)
    if recompute:
        packed = _Packed(layout)
        names = _recorded_names(layout) if record_parts(layout) else sorted({*layout.array_files(), *packed.rows})
        chosen, excluded = _chosen(names, wanted, layout, files)
        return _summary(layout, _moments_of_arrays(layout, chosen, packed), len(chosen), "arrays", excluded, files)
    verify_records(layout)
    counted = _Counted(wanted)
    moments = _moments_of_records(layout, counted)
    if counted.missing:
        raise _unrecorded(layout, files, counted.missing)
    if moments is None:
        raise _nothing(layout, counted.excluded)
    return _summary(layout, moments, counted.files, "records", counted.excluded, files)


@dataclass(frozen=True)
class Padding:
    """How many of ``sounds`` were shorter than ``min_seconds``, and the share of all frames that their padding is."""

    sounds: int
    padded: int
    min_seconds: float
    share: float

    def note(self) -> str | None:
        """A sentence if most of what was converted is padding, else None."""
        if self.share <= MUCH_PADDING:
            return None
        return (
            f"{self.padded:,} of {self.sounds:,} sounds are shorter than {self.min_seconds:g} s (--min-seconds of "
            f"melspec) and were padded with zeros: {self.share:.0%} of all frames are silence, which the statistics "
            "count and crops fall into. For short sounds, convert anew with a lower --min-seconds, and train on a "
            "shorter --input-size."
        )


def padding_of(lms: Path, *, files: Path | None = None) -> Padding | None:
    """The padding of the arrays that `norm_stats` counts; None if no records tell."""
    layout = LmsLayout(lms)
    config = read_config(layout)
    if config is None or not record_parts(layout) or "min_seconds" not in config["config"]:
        return None
    counted = _Counted(None if files is None else _listed(layout, files))
    least = float(config["config"]["min_seconds"])
    sounds, padded, heard, filled = 0, 0, 0.0, 0.0
    for records in iter_records(layout, ["file_name", "status", "padded", "seconds"]):
        good = records.filter(pc.equal(records["status"], OK))
        chosen = good.filter(pa.array([counted(name) for name in good["file_name"].to_pylist()], pa.bool_()))
        sounds += chosen.num_rows
        short = chosen.filter(pc.fill_null(chosen["padded"], False))
        padded += short.num_rows
        heard += pc.sum(chosen["seconds"]).as_py() or 0.0
        filled += least * short.num_rows - (pc.sum(short["seconds"]).as_py() or 0.0)
    return Padding(sounds, padded, least, filled / (heard + filled) if filled > 0 else 0.0)


def write_norm_stats(path: Path, stats: NormStats) -> None:
    """Write ``norm_stats.json``."""
    write_object(path, stats.to_dict())


def _listed(layout: LmsLayout, files: Path) -> set[str]:
    """The arrays of the folder that a file list names, relative to the folder.

    Raises `UserError` if the list is not as it was written.
    """
    verify_file_list(files)
    prefix = layout.folder + "/"
    listed = {name.removeprefix(prefix) for name in read_file_list(files) if name.startswith(prefix)}
    if not listed:
        raise UserError(f"{files} lists no file of {layout.root}: none of its paths begins with {prefix}")
    return listed


def _recorded_names(layout: LmsLayout) -> list[str]:
    records = read_records(layout, ["file_name", "status"])
    names: list[str] = records.filter(pc.equal(records["status"], OK))["file_name"].to_pylist()
    return names


def _chosen(
    names: Sequence[str], wanted: set[str] | None, layout: LmsLayout, files: Path | None
) -> tuple[list[str], int]:
    """The ``names`` to count, and the number of evaluation clips left out of them."""
    if wanted is not None:
        missing = wanted.difference(names)
        if missing:
            raise _unrecorded(layout, files, missing)
        names = [name for name in names if name in wanted]
    chosen = [name for name in names if not is_evaluation_clip(name)]
    if not chosen:
        raise _nothing(layout, len(names))
    return chosen, len(names) - len(chosen)


def _unrecorded(layout: LmsLayout, files: Path | None, missing: set[str]) -> UserError:
    return UserError(
        f"{files} lists {len(missing)} files that {layout.root} has no record of, the first {min(missing)!r}."
    )


def _nothing(layout: LmsLayout, excluded: int) -> UserError:
    what = "only evaluation clips" if excluded else "no converted files"
    return UserError(f"{layout.root} has {what} to compute statistics of.")


class _Counted:
    """Decides name by name which arrays count: the ``wanted`` ones (None: all), without evaluation clips."""

    def __init__(self, wanted: set[str] | None) -> None:
        self._wanted = wanted
        self.missing = set(wanted or ())
        self.files = self.excluded = 0

    def __call__(self, name: str) -> bool:
        if self._wanted is not None and name not in self._wanted:
            return False
        self.missing.discard(name)
        if is_evaluation_clip(name):
            self.excluded += 1
            return False
        self.files += 1
        return True


def _moments_of_records(layout: LmsLayout, counted: _Counted) -> Moments | None:
    """The merged moments of the good records that are ``counted``, row group by row group; None if there are none."""
    parts: list[Moments] = []
    n_mels = None
    for records in iter_records(layout, ["file_name", "status", "frames", "bin_mean", "bin_m2"]):
        good = records.filter(pc.equal(records["status"], OK))
        chosen = pa.array([counted(name) for name in good["file_name"].to_pylist()], pa.bool_())
        batch = good.filter(chosen).combine_chunks()
        if batch.num_rows == 0:
            continue
        _require_sums(layout, batch)
        frames = batch["frames"].to_numpy()
        bin_mean = batch["bin_mean"].combine_chunks().flatten().to_numpy()
        bin_m2 = batch["bin_m2"].combine_chunks().flatten().to_numpy()
        n_mels = n_mels or len(bin_mean) // len(frames)
        if not len(bin_mean) == len(bin_m2) == n_mels * len(frames):
            raise UserError(f"{layout.melspec}: the records have different numbers of mel bins; convert them anew.")
        shape = (len(frames), n_mels)
        parts.append(Moments.from_rows(frames, bin_mean.reshape(shape), bin_m2.reshape(shape)))
    return Moments.merge_all(parts) if parts else None


def _require_sums(layout: LmsLayout, batch: pa.Table) -> None:
    """Raise `UserError` if good records lack the columns for statistics, as damaged records of old versions may."""
    for name in ("frames", "bin_mean", "bin_m2"):
        if batch[name].null_count:
            raise UserError(f"{layout.melspec}: {batch[name].null_count} good records have no {name}; damaged?.")
    values = (pc.list_flatten(batch[name]) for name in ("bin_mean", "bin_m2"))
    if pc.any(pc.less(batch["frames"], 1)).as_py() or not all(np.isfinite(each.to_numpy()).all() for each in values):
        raise UserError(f"{layout.melspec}: good records have no frames or values that are not finite; damaged?.")


class _Packed:
    """The pack of a folder, if there is one; ``rows`` gives the row of each file name."""

    def __init__(self, layout: LmsLayout) -> None:
        config = read_config(layout)
        opened = PackedStore.open(layout.root, None if config is None else config["fingerprint"])
        self._store = None if opened is None else opened[0]
        self.rows = {} if opened is None else {name: row for row, name in enumerate(opened[1].to_pylist())}

    def read(self, path: Path, name: str, promise: Promise) -> np.ndarray:
        """An array (1, n_mels, T) from its file, or from the pack if the file is gone.

        Raises `UserError` if it is not what its record promises.
        """
        if self._store is None or name not in self.rows or path.exists():
            found = read_lms(path, n_mels=promise.n_mels)
            if fault := fault_of(found, promise):
                raise UserError(f"{path} {fault}.")
            return found.array
        return self._store.read(self.rows[name])[None]


def _moments_of_arrays(layout: LmsLayout, names: Sequence[str], packed: _Packed) -> Moments:
    parts: list[Moments] = []
    failures: list[str] = []
    n_mels: int | None = None
    promises = Promises(layout)
    with Progress(len(names), "stats", "arrays") as progress:
        for name in names:
            try:
                log_mel = packed.read(layout.root / name, name, promises[name])
                if n_mels is not None and log_mel.shape[1] != n_mels:
                    raise UserError(f"{layout.root / name} has shape {log_mel.shape}, not (1, {n_mels}, T).")
                moments = Moments.from_values(log_mel)
                if not np.isfinite(moments.m2):
                    raise UserError(f"{layout.root / name} holds values that are not finite.")
                n_mels = log_mel.shape[1]
                parts.append(moments)
            except UserError as error:
                failures.append(str(error))
            progress.advance(failed=int(len(failures) > progress.failed))
            if len(parts) >= ROWS_PER_BATCH:
                parts = [Moments.merge_all(parts)]
    if failures:
        named = "\n  ".join(failures[:MAX_NAMED])
        more = f"\n  and {len(failures) - MAX_NAMED} more" if len(failures) > MAX_NAMED else ""
        raise CheckFailedError(f"{len(failures)} of {len(names)} arrays cannot be read:\n  {named}{more}")
    return Moments.merge_all(parts)


def _summary(
    layout: LmsLayout, moments: Moments, count: int, source: str, excluded: int, files: Path | None
) -> NormStats:
    config = read_config(layout)
    return NormStats(
        mean=moments.mean,
        std=moments.std,
        count_values=moments.n,
        count_files=count,
        bin_mean=moments.bin_mean.tolist(),
        bin_std=moments.bin_std.tolist(),
        ddof=DDOF,
        source=source,
        excluded_files=excluded,
        fingerprint=config["fingerprint"] if config else None,
        folder=layout.folder,
        files=None if files is None else files.name,
    )
