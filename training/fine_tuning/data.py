"""Finds the clips to fine-tune on, as log-mels or as sounds, and leaves out with a reason those that cannot be read.

Log-mels lie in a data directory, packed or not, or are made once of sounds and kept in the run:

```
RUN/log_mels-<digest>/0000000.npy, …   a log-mel for each clip
RUN/sounds-<digest>.json               which sounds cannot be read, so that they are looked at only once
```
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.clips.matching import NO_CLIP, match_files
from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import fingerprint
from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import DataLayout, inside
from m2dprep.artifacts.log_mels.store import LogMels, find_log_mels
from m2dprep.artifacts.reading import stamp_of
from m2dprep.artifacts.tables import read_file_list
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.audioprep.decoding.sound import TRANSIENT
from m2dprep.captions.label_weights import label_weights
from m2dprep.evaluation.front_ends import require_front_end
from m2dprep.evaluation.prepared import EvaluationSet
from m2dprep.evaluation.reading import ClipLoader, Crop
from m2dprep.m2dclap.fusion.channels import ChannelRule
from m2dprep.training.data_dir import unreadable_log_mels
from m2dprep.training.fine_tuning.clips import (
    Cropped,
    FusedLogMels,
    Grid,
    LabelledClips,
    Sounds,
    Source,
    StoredLogMels,
)
from m2dprep.training.fine_tuning.labels import Splits, describe
from m2dprep.training.fine_tuning.settings import LOG_MELS, WAVEFORMS, FineTuneConfig

ARRAY = ".npy"
SHORT = 12
MOST_THREADS = 16


@dataclass(frozen=True)
class Clips:
    """The clips of a set that can be read.

    ``there`` bool (N,) says which; ``source_of`` makes their source; ``kind`` is `WAVEFORMS` or `LOG_MELS`, and
    ``identity`` tells them from other clips.
    """

    found: EvaluationSet
    kind: str
    front_end: LogMelConfig
    there: np.ndarray
    skipped: list[Failure]
    identity: str
    log_mels: LogMels | None

    @cached_property
    def targets(self) -> np.ndarray:
        """int64 (N,), or bool (N, C) for several labels; of all AudioSet this is a gigabyte."""
        return self.found.targets()

    def source(self, frames: int, filling: float, fused: ChannelRule | None = None) -> Source:
        """Their crops of ``frames``, filled up with ``filling``; channels if they are to be ``fused``."""
        if self.log_mels is not None:
            if fused is not None:
                return FusedLogMels(self.log_mels, fused, filling)
            return StoredLogMels(self.log_mels, frames, filling)
        return Sounds(self.found.paths(range(len(self.found.files))), self.found.files, self.front_end, frames)


@dataclass(frozen=True)
class FineTuneData:
    """Everything that one run of fine-tuning takes from its clips: those that can be read, and their splits."""

    clips: Clips
    splits: Splits
    frames: int
    fold: str | None
    fused: ChannelRule | None = None

    @property
    def classes(self) -> list[str]:
        return self.clips.found.classes

    @property
    def several(self) -> bool:
        """Whether a clip may have several labels."""
        return self.clips.found.task.multi_label

    @property
    def metric(self) -> str:
        return self.clips.found.task.metric

    def dataset(
        self, rows: np.ndarray, config: FineTuneConfig, grid: Grid, *, drawn_crops: bool = False
    ) -> LabelledClips:
        """The clips at ``rows``, by their number among these."""
        silence = float(np.log(self.clips.front_end.eps))
        source = self.clips.source(self.frames, 0.0 if config.strict_evar else silence, self.fused)
        files, targets = self.clips.found.files, self.clips.targets
        return LabelledClips(
            _Chosen(source, rows), [files[row] for row in rows.tolist()], targets[rows], len(self.classes), config,
            grid, drawn_crops,
        )  # fmt: skip

    def weights(self, config: FineTuneConfig) -> np.ndarray | None:
        """The weights of the training clips, or None if each comes once."""
        if not config.weighted:
            return None
        found = self.clips.found
        rows = self.splits.train.tolist()
        return label_weights([found.labels_of(row) for row in rows], names=[found.files[row] for row in rows])

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share."""
        found, splits = self.clips.found, self.splits
        return {
            "task": found.task.name,
            "labels": fingerprint({"files": found.files, "labels": found.labels, "several": self.several}),
            "classes": fingerprint({"classes": self.classes}),
            "train": fingerprint({"rows": splits.train.tolist()}),
            "valid": fingerprint({"rows": splits.valid.tolist()}),
            "test": fingerprint({"rows": splits.test.tolist()}),
            "clips": self.clips.identity,
            "inputs": self.clips.kind,
            "frames": self.frames,
            "fold": self.fold,
        }

    def summary(self) -> str:
        """``input = used + skipped`` in one line."""
        splits, found = self.splits, self.clips.found
        reasons = Counter(one.reason for one in self.clips.skipped)
        left = "".join(f" + {count:,} {reason}" for reason, count in sorted(reasons.items()))
        valid = 0 if splits.validates_on_test else len(splits.valid)
        return (
            f"{len(found.files):,} clips = {len(splits.train):,} to train on + {valid:,} to validate on "
            f"+ {len(splits.test):,} to test on{left}; {describe(found)}; {self.clips.kind} of {self.frames:,} frames"
            + ("" if self.fused is None else ", longer ones fused")
            + ("" if self.fold is None else f"; fold {self.fold}")
        )


class _Chosen(Source):
    """Some of the clips of a source, by new numbers."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows

    @property
    def reading(self) -> str | None:  # type: ignore[override]
        return self._source.reading

    def announce(self, clips: np.ndarray) -> None:
        self._source.announce(self._rows[clips])

    def expect(self, clips: np.ndarray) -> None:
        self._source.expect(self._rows[clips])

    @property
    def channels(self) -> int:  # type: ignore[override]
        return self._source.channels

    def crop(self, clip: int, shares: np.ndarray) -> Cropped:
        return self._source.crop(int(self._rows[clip]), shares)

    def log_mels(self, crops: np.ndarray) -> np.ndarray:
        return self._source.log_mels(crops)


def without_skipped(splits: Splits, clips: Clips) -> Splits:
    """The splits without clips that cannot be read. Raises `UserError` if none is left of one."""
    given = {"train": splits.train, "valid": splits.valid, "test": splits.test}
    kept = {name: rows[clips.there[rows]] for name, rows in given.items()}
    for name, rows in kept.items():
        if not len(rows):
            first = clips.skipped[0]
            raise UserError(
                f"none of the clips to {name} on can be read ({first.file_name}: {first.message}, for example)."
            )
    return Splits(kept["train"], kept["valid"], kept["test"], splits.notes, splits.validates_on_test)


def frames_of(config: FineTuneConfig, found: EvaluationSet, front_end: LogMelConfig, default: int) -> int:
    """The length of crops: what is asked for, or the task's, or a ``default``."""
    if config.frames is not None:
        return config.frames
    seconds = found.task.unit_seconds
    return default if seconds is None else front_end.frames(int(front_end.sample_rate * seconds))


def open_clips(found: EvaluationSet, config: FineTuneConfig, front_end: LogMelConfig, run: Path) -> Clips:
    """The clips that can be read; those that are made of sounds are kept in ``run``.

    Raises `UserError` if none can be read, or they do not fit the ``front_end``, which is the checkpoint's.
    """
    arrays = [name.lower().endswith(ARRAY) for name in found.files]
    if not all(arrays) and (listed := _listed_log_mels(found)) and not _any_is_there(found):
        return _matched(found, listed, config, front_end)
    if any(arrays) and not all(arrays):
        one, other = found.files[arrays.index(True)], found.files[arrays.index(False)]
        raise UserError(f"{found.place} has log-mels ({one}) and sounds ({other}); they cannot be mixed.")
    if all(arrays):
        return _stored(found, config, front_end)
    return _sounds(found, config, front_end, run)


def _any_is_there(found: EvaluationSet) -> bool:
    return any(path.exists() for path in found.paths(range(len(found.files))))


def _listed_log_mels(found: EvaluationSet) -> list[str]:
    """The log-mels in the file lists of a data directory."""
    lists = DataLayout(found.root).file_lists()
    return list(dict.fromkeys(name for path in lists for name in read_file_list(path)))


def _matched(found: EvaluationSet, listed: list[str], config: FineTuneConfig, front_end: LogMelConfig) -> Clips:
    """Clips that are named otherwise than the log-mels of a data directory, such as by their ids or sounds."""
    ids = [name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name for name in found.files]
    if len(set(ids)) < len(ids):
        name = next(one for one, count in Counter(ids).items() if count > 1)
        raise UserError(f"{found.place} has several clips that are named {name!r} but for their ends.")
    pairs = match_files(listed, ids)
    names = list(found.files)
    skipped = []
    of_clip = {int(clip): listed[row] for row, clip in enumerate(pairs.clip.tolist()) if clip != NO_CLIP}
    shared = {int(clip) for clip in pairs.wanted.tolist() if clip != NO_CLIP}
    for row, name in enumerate(found.files):
        if row in of_clip:
            names[row] = of_clip[row]
        elif row in shared:
            skipped.append(Failure(name, "shared_name", "several log-mels may be this clip"))
        else:
            skipped.append(Failure(name, "no_log_mel", "none of the listed log-mels is this clip"))
    if not of_clip:
        raise UserError(
            f"none of the {len(names):,} clips of {found.place} is among the {len(listed):,} log-mels that "
            f"{found.root} lists; for example {names[0]!r}, against {listed[0]!r}."
        )
    there = np.array([row in of_clip for row in range(len(names))])
    return _stored(found, config, front_end, names, there, skipped)


def _stored(
    found: EvaluationSet,
    config: FineTuneConfig,
    front_end: LogMelConfig,
    names: Sequence[str] = (),
    there: np.ndarray | None = None,
    skipped: Sequence[Failure] = (),
) -> Clips:
    """Log-mels that are there already, under ``names`` if they are others than the table's."""
    if config.inputs == WAVEFORMS:
        raise UserError(f"{found.place} lists log-mels; waveforms cannot be made of them (--inputs log-mels).")
    names = list(names or found.files)
    there = np.ones(len(names), bool) if there is None else there
    log_mels = find_log_mels(found.root, names)
    rows = np.flatnonzero(there)
    problems = unreadable_log_mels(log_mels.take(rows), front_end.n_mels)
    bad = [row for row in rows.tolist() if names[row] in problems]
    there[bad] = False
    require_front_end({found.root / folder for folder in {names[row].rpartition("/")[0] for row in rows}}, front_end)
    left_out = [Failure(found.files[row], "unreadable", problems[names[row]]) for row in bad]
    return Clips(found, LOG_MELS, front_end, there, [*skipped, *left_out], fingerprint({"names": names}), log_mels)


def _sounds(found: EvaluationSet, config: FineTuneConfig, front_end: LogMelConfig, run: Path) -> Clips:
    """Sounds, each of which is read once to see whether it can be, and to make its log-mel if that is asked for."""
    paths = found.paths(range(len(found.files)))
    kind = WAVEFORMS if config.inputs == "auto" else config.inputs
    identity = fingerprint(
        {"files": [f"{name}\0{stamp_of(path)}" for name, path in zip(found.files, paths, strict=True)],
         "front_end": asdict(front_end)}
    )  # fmt: skip
    short = identity[:SHORT]
    notes, arrays = run / f"sounds-{kind}-{short}.json", run / f"log_mels-{short}"
    known = read_object(notes)
    if known is None:
        problems = _read_all(found, paths, front_end, arrays if kind == LOG_MELS else None)
        run.mkdir(parents=True, exist_ok=True)
        write_object(notes, {"unreadable": {str(row): list(why) for row, why in problems.items()}})
    else:
        problems = {int(row): (str(why[0]), str(why[1])) for row, why in known["unreadable"].items()}
    there = np.ones(len(paths), bool)
    there[list(problems)] = False
    skipped = [Failure(found.files[row], *why) for row, why in sorted(problems.items())]
    if not there.any():
        raise UserError(f"none of the {len(paths):,} sounds can be read: {skipped[0].file_name}: {skipped[0].message}.")
    log_mels = None
    if kind == LOG_MELS:
        log_mels = find_log_mels(run, [f"{arrays.name}/{_array_name(row)}" for row in range(len(paths))])
    return Clips(found, kind, front_end, there, skipped, identity, log_mels)


def _array_name(row: int) -> str:
    return f"{row:07d}{ARRAY}"


def _read_all(
    found: EvaluationSet, paths: Sequence[Path], front_end: LogMelConfig, arrays: Path | None
) -> dict[int, tuple[str, str]]:
    """Read every sound, and write its log-mel to the folder ``arrays`` if there is one. Returns reasons and messages of
    those that cannot be read."""
    loader = ClipLoader(front_end, Crop(), waveforms=arrays is None)
    if arrays is not None:
        arrays.mkdir(parents=True, exist_ok=True)

    def read(row: int) -> Failure | None:
        place = None if arrays is None else inside(arrays, _array_name(row))
        if place is not None and place.exists():
            return None
        clip = loader(paths[row], found.files[row])
        if isinstance(clip, Failure):
            if clip.reason == TRANSIENT[0]:  # which clips a run has must not depend on a moment's trouble
                raise UserError(f"{paths[row]} cannot be read: {clip.message}.")
            return clip
        if place is not None:
            write_array(place, clip.values, durable=False)
        return None

    problems = {}
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    what = "looking at sounds" if arrays is None else "making log-mels"
    with Progress(len(paths), what) as progress, ThreadPoolExecutor(threads) as pool:
        for row, problem in enumerate(pool.map(read, range(len(paths)))):
            if problem is not None:
                problems[row] = (problem.reason, problem.message)
            progress.advance(failed=int(problem is not None))
    return problems
