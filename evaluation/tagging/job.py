"""Tags sounds with a checkpoint's classifier: decode ahead, batch across sounds, write shard by shard, and continue.

Shards are fixed by the names and sizes of the sounds, and batches do not reach across them; so a run that was killed
gives the same bytes as one that was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.errors import top_reasons
from m2dprep.audioprep.decoding.sound import TRANSIENT, DecodeError
from m2dprep.evaluation.protocols.result import plain
from m2dprep.evaluation.tagging.inputs import Item, sources_digest
from m2dprep.evaluation.tagging.journal import SOUNDS, Journal, begun, finish, finished
from m2dprep.evaluation.tagging.labels import LabelBatcher, Labelled
from m2dprep.evaluation.tagging.opening import Open, open_item, opened_ahead, reading_threads, shards_of
from m2dprep.evaluation.tagging.picture import Picture
from m2dprep.evaluation.tagging.rows import FAILED, Choice, Row, failed_row, scored_row, write_rows
from m2dprep.evaluation.tagging.scores import Activation, Batcher, Scored, activated
from m2dprep.evaluation.tagging.sounds import Segment, Windows
from m2dprep.m2dclap.reuse.classifier import Classifier


@dataclass(frozen=True)
class TagSettings:
    """What is scored: whole sounds, or ``windows``; with ``columns`` every column of patches has a row of its own."""

    choice: Choice
    windows: Windows | None = None
    columns: bool = False
    activation: Activation = "sigmoid"
    batch_size: int = 32

    def to_dict(self) -> dict[str, Any]:
        value = asdict(self)
        del value["choice"]
        names = [self.choice.names.labels, self.choice.names.ids]
        return {**value, "top": self.choice.top, "threshold": self.choice.threshold, "classes": names}


@dataclass
class TagReport:
    """``inputs = done + skipped + failed``; what was tagged by an earlier run is skipped."""

    output: str
    inputs: int
    done: int
    skipped: int
    failed: int
    rows: int
    reasons: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        line = f"{self.inputs:,} inputs = {self.done:,} done + {self.skipped:,} skipped + {self.failed:,} failed"
        line += f" ({top_reasons(self.reasons)}; their rows are in the output)" if self.failed else ""
        return "\n".join([*(f"note: {sentence}" for sentence in self.notes), line])


def tag_items(
    model: Classifier | Labelled,
    items: Sequence[Item],
    settings: TagSettings,
    output: Path,
    *,
    kind: str,
    identity: dict[str, Any],
    picture: Picture | None = None,
    timeout: float = 0.0,
    overwrite: bool = False,
    quiet: bool = False,
) -> TagReport:
    """Tag ``items`` and write ``output`` in the format ``kind``; the same call goes on where a killed one stopped.

    ``identity`` is of model and reading: what an output that is continued must share, beside the settings. Raises
    `FingerprintConflictError` if the output is another one, and `UserError` if another run writes it.
    """
    wanted = plain({**identity, **settings.to_dict(), "format": kind, SOUNDS: sources_digest(items)})
    if (known := finished(output, wanted, overwrite=overwrite)) is not None and picture is None:
        counts = known["counts"]
        done = counts["inputs"] - counts["failed"]
        return TagReport(str(output), counts["inputs"], 0, done, counts["failed"], counts["rows"], known["reasons"])
    with begun(output, wanted, overwrite=overwrite) as journal:
        shards = shards_of(items)
        there = {first: rows for first, _ in shards if (rows := journal.done(first)) is not None}
        pending = [(first, own) for first, own in shards if first not in there]
        failures = sum(row["status"] == FAILED for rows in there.values() for row in rows)
        skipped = len(items) - sum(len(own) for _, own in pending) - failures
        del there
        _tag_shards(journal, pending, len(items), Worker(model, settings, picture, timeout), quiet=quiet)
        counted = _Counts()
        write_rows(output, kind, (counted.seen(journal.read(first)) for first, _ in shards))
        reasons, failed = dict(counted.reasons), counted.reasons.total()
        if not set(reasons) & set(TRANSIENT):  # the same command tries those again
            counts = {"inputs": len(items), "failed": failed, "rows": counted.rows}
            finish(output, wanted, {"counts": counts, "reasons": reasons})
    return TagReport(str(output), len(items), len(items) - failed - skipped, skipped, failed, counted.rows, reasons)


class _Counts:
    """Counts rows and failures as they pass."""

    def __init__(self) -> None:
        self.rows, self.reasons = 0, Counter[str]()

    def seen(self, rows: list[Row]) -> list[Row]:
        self.rows += len(rows)
        self.reasons.update(row["reason"] for row in rows if row["status"] == FAILED)
        return rows


def _tag_shards(
    journal: Journal, shards: Sequence[tuple[int, Sequence[Item]]], inputs: int, worker: Worker, *, quiet: bool
) -> None:
    left = sum(len(own) for _, own in shards)
    shown: Progress | nullcontext[None] = nullcontext() if quiet else Progress(inputs, "tag", initial=inputs - left)
    threads = reading_threads()
    with ThreadPoolExecutor(threads) as pool, shown as progress:
        opened = opened_ahead([item for _, own in shards for item in own], pool, worker.opened, 2 * threads)
        try:
            for first, own in shards:
                rows = worker.tag(own, opened)
                journal.write(first, rows)
                if progress is not None:
                    progress.advance(len(own), failed=sum(row["status"] == FAILED for row in rows))
        finally:
            opened.close()


class Worker:
    """Opens sounds, and makes rows of them. Reading one may give nothing for ``timeout`` seconds; 0 is no limit."""

    def __init__(
        self, model: Classifier | Labelled, settings: TagSettings, picture: Picture | None, timeout: float = 0.0
    ) -> None:
        self._settings, self._picture, self._timeout = settings, picture, timeout
        self._seconds_per_frame = model.seconds_per_frame
        self._batcher: Batcher | LabelBatcher
        if isinstance(model, Labelled):
            self._batcher = LabelBatcher(model, settings.batch_size)
        else:
            self._batcher = Batcher(model, settings.batch_size)

    def opened(self, item: Item) -> Open:
        """A sound, opened; runs in a thread."""
        return open_item(item, self._settings.windows, self._batcher.most_frames, self._timeout)

    def tag(self, items: Sequence[Item], opened: Iterator[Open]) -> list[Row]:
        """The rows of a shard, in the order of its sounds."""
        results = [_Result(item.name) for item in items]
        for result in results:
            sound = next(opened)
            try:
                self._add(result, sound)
                if self._picture is not None:
                    self._take(self._batcher.flush())
                    if result.failure is None and sound.sound is not None:
                        self._picture.draw(result.name, sound.sound, result.points)
                    result.points = []
            finally:
                sound.close()
        self._take(self._batcher.flush())
        return [
            row
            for result in results
            for row in (result.rows if result.failure is None else [failed_row(result.name, *result.failure)])
        ]

    def _add(self, result: _Result, sound: Open) -> None:
        """Send the pieces of a sound through the model, together with those that wait."""
        result.failure = sound.failure
        if sound.failure is not None:
            return
        assert sound.sound is not None
        whole = self._picture is not None and self._settings.windows is None
        try:
            for number, segment in enumerate(sound.segments):
                frames = sound.sound.frames(segment)
                scored = Scored(result, segment, frames, self._settings.columns or whole)
                for piece in sound.pieces(number, self._batcher.most_frames):
                    self._take(self._batcher.add(scored, piece))
        except DecodeError as error:
            result.failure = (error.reason, error.message)

    def _take(self, complete: Sequence[Scored]) -> None:
        """Make rows of segments that are complete."""
        for scored in complete:
            result = scored.owner
            if result.failure is not None:
                continue
            logits = scored.logits[None] if not scored.keep_columns else scored.column_logits
            if not (np.isfinite(logits).all() and np.isfinite(scored.logits).all()):
                result.failure = ("nonfinite", "what the model makes of it is not all finite numbers")
                continue
            places = self._column_places(scored) if scored.keep_columns else [_place(scored.segment)]
            scores = activated(logits, self._settings.activation)
            if self._picture is not None:
                result.points += zip(places, scores.astype(np.float32), strict=True)
            if not self._settings.columns:
                places, scores = [_place(scored.segment)], activated(scored.logits[None], self._settings.activation)
            result.rows += [
                scored_row(result.name, *place, self._settings.choice.tags(own))
                for place, own in zip(places, scores, strict=True)
            ]

    def _column_places(self, scored: Scored) -> list[tuple[float, float]]:
        """The seconds in which the columns of a segment begin and end."""
        per_frame, patch = self._seconds_per_frame, self._batcher.patch_frames
        first, end = scored.segment.start_seconds, scored.segment.end_seconds
        starts = first + self._batcher.column_frames(scored.frames) * per_frame
        return [(start, max(start, min(start + patch * per_frame, end))) for start in starts.tolist()]


@dataclass
class _Result:
    """What a sound has come to: rows, or a failure; ``points`` are places in seconds and scores, for a picture."""

    name: str
    rows: list[Row] = field(default_factory=list)
    failure: tuple[str, str] | None = None
    points: list[Any] = field(default_factory=list)


def _place(segment: Segment) -> tuple[float, float]:
    return segment.start_seconds, segment.end_seconds
