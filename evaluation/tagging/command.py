"""`m2dprep tag` as a function: from a checkpoint and paths to a file of tags, or to rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import file_digest
from m2dprep.audioprep.discover import PassedOver
from m2dprep.evaluation.tagging.class_names import AS_AUDIOSET, class_names
from m2dprep.evaluation.tagging.inputs import Reading, find_items
from m2dprep.evaluation.tagging.job import TagReport, TagSettings, tag_items
from m2dprep.evaluation.tagging.picture import Picture
from m2dprep.evaluation.tagging.rows import Choice, Row, format_of
from m2dprep.evaluation.tagging.scores import Activation
from m2dprep.evaluation.tagging.sounds import Windows, windows_of
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.distributed import pick_device
from m2dprep.m2dclap.reuse.classifier import Classifier

DAY = 24 * 3600.0
# Where the rows lie if no output is wanted.
ROWS = "tags.jsonl"


@dataclass(frozen=True)
class TagRequest:
    """What to tag and how. Without ``window`` sounds are scored whole; ``hop`` is the window's length if it is None."""

    checkpoint: Path
    paths: Sequence[Path]
    classes: Path | None = None
    root: Path | None = None
    window: float | None = None
    hop: float | None = None
    columns: bool = False
    top: int = 5
    threshold: float | None = None
    activation: Activation = "sigmoid"
    plot: Path | None = None
    max_seconds: float = DAY
    ffmpeg: bool | None = None
    read_timeout: float = 0.0
    device: str = "auto"
    batch_size: int = 32
    kind: str | None = None
    overwrite: bool = False
    passed_over: PassedOver = field(default_factory=PassedOver)

    @property
    def windows(self) -> Windows | None:
        return windows_of(self.window, self.hop)


def tag(request: TagRequest, output: Path | None) -> tuple[TagReport, list[Row]]:
    """Tag what is asked for into ``output``; without one, the rows are returned.

    Raises `UserError` if the checkpoint has no classifier, its classes are unknown, or there is nothing to tag.
    """
    windows = request.windows
    kind = format_of(output, request.kind) if output is not None else "jsonl"
    checkpoint = Checkpoint.read(find_checkpoint(request.checkpoint))
    names = class_names(checkpoint, request.classes)
    reading = Reading(checkpoint.front_end, request.max_seconds, request.ffmpeg, request.read_timeout)
    items = find_items(request.paths, reading, request.root, request.passed_over)
    picture = None
    if request.plot is not None:
        picture = Picture(request.plot, names, several=len(items) > 1, scores=request.activation)
    choice = Choice(names, request.top, request.threshold)
    settings = TagSettings(choice, windows, request.columns, request.activation, request.batch_size)
    classifier = Classifier(checkpoint, pick_device(request.device), request.batch_size)
    identity: dict[str, Any] = {
        "checkpoint": file_digest(checkpoint.path),
        "front_end": asdict(reading.log_mel),
        "max_seconds": reading.max_seconds,
        "ffmpeg": reading.ffmpeg,
    }
    notes = (AS_AUDIOSET,) if names.assumed else ()
    if output is not None:
        report = tag_items(
            classifier, items, settings, output,
            kind=kind, identity=identity, picture=picture, timeout=request.read_timeout, overwrite=request.overwrite,
        )  # fmt: skip
        return replace(report, notes=notes), []
    with tempfile.TemporaryDirectory(prefix="m2dprep-") as folder:
        place = Path(folder) / ROWS
        report = tag_items(
            classifier, items, settings, place,
            kind=kind, identity=identity, picture=picture, timeout=request.read_timeout,
        )  # fmt: skip
        rows = [json.loads(line) for line in place.read_text(encoding="utf-8").split("\n") if line]
    return replace(report, notes=notes), rows


def lines_of(rows: Sequence[Row]) -> list[str]:
    """A line of text for each row: the sound, its time, and its tags with their scores."""
    found = []
    for row in rows:
        if row["status"] != "ok":
            found.append(f"{row['file_name']}  failed: {row['reason']}: {row['message']}")
            continue
        tags = "  ".join(f"{one['label']} {one['score']:.3f}" for one in row["tags"])
        found.append(f"{row['file_name']}  {row['start']:.2f}–{row['end']:.2f} s  {tags or 'nothing'}")
    return found
