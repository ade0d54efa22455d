"""`m2dprep tag` as a function: from a checkpoint and paths to a file of tags, or to rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from m2dprep.artifacts.console import one_line
from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.discover import PassedOver
from m2dprep.evaluation.clip_set import DEFAULT_TEMPLATE
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.tagging.class_names import AS_AUDIOSET, ClassNames, class_names
from m2dprep.evaluation.tagging.inputs import Reading, find_items
from m2dprep.evaluation.tagging.job import TagReport, TagSettings, tag_items
from m2dprep.evaluation.tagging.labels import Labelled, labels_of
from m2dprep.evaluation.tagging.picture import Picture
from m2dprep.evaluation.tagging.rows import Choice, Row, format_of
from m2dprep.evaluation.tagging.scores import COSINE, OF_LABELS, Activation
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
    activation: Activation | None = None
    labels: Sequence[str] = ()
    template: str = DEFAULT_TEMPLATE
    text_model: str | None = None
    trust_remote_code: bool = False
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

    Raises `UserError` if the checkpoint has no classifier, or none of captions for labels, its classes are unknown, or
    there is nothing to tag.
    """
    windows = request.windows
    kind = format_of(output, request.kind) if output is not None else "jsonl"
    checkpoint = Checkpoint.read(find_checkpoint(request.checkpoint))
    activation = activation_of(request)
    names = labels_of(request.labels) if request.labels else _classes(request, checkpoint)
    reading = Reading(checkpoint.front_end, request.max_seconds, request.ffmpeg, request.read_timeout)
    items = find_items(request.paths, reading, request.root, request.passed_over)
    picture = None
    if request.plot is not None:
        picture = Picture(request.plot, names, several=len(items) > 1, scores=activation)
    choice = Choice(names, request.top, request.threshold)
    settings = TagSettings(choice, windows, request.columns, activation, request.batch_size)
    model, about = model_of(request, checkpoint, names, activation)
    identity: dict[str, Any] = {
        "checkpoint": file_digest(checkpoint.path),
        "front_end": asdict(reading.log_mel),
        "max_seconds": reading.max_seconds,
        "ffmpeg": reading.ffmpeg,
        **about,
    }
    notes = (AS_AUDIOSET,) if names.assumed else ()
    if output is not None:
        report = tag_items(
            model, items, settings, output,
            kind=kind, identity=identity, picture=picture, timeout=request.read_timeout, overwrite=request.overwrite,
        )  # fmt: skip
        return replace(report, notes=notes), []
    with tempfile.TemporaryDirectory(prefix="m2dprep-") as folder:
        place = Path(folder) / ROWS
        report = tag_items(
            model, items, settings, place,
            kind=kind, identity=identity, picture=picture, timeout=request.read_timeout,
        )  # fmt: skip
        rows = [json.loads(line) for line in place.read_text(encoding="utf-8").split("\n") if line]
    return replace(report, notes=notes), rows


def _classes(request: TagRequest, checkpoint: Checkpoint) -> ClassNames:
    try:
        return class_names(checkpoint, request.classes)
    except UserError as error:
        if checkpoint.head_weights or not checkpoint.has_clap_head:
            raise
        raise UserError(f"{error} It has learned captions, so that --labels can score words of yours.") from error


def activation_of(request: TagRequest) -> Activation:
    """How scores are given. Raises `UserError` for what labels, or a classifier, do not have."""
    if not request.labels:
        if request.activation == COSINE:
            raise UserError("--scores cosine is of --labels; a classifier has sigmoid, softmax and logits.")
        return request.activation or "sigmoid"
    for option, is_given in (("--classes", request.classes is not None), ("--frames", request.columns)):
        if is_given:
            raise UserError(f"{option} is of a classifier, and --labels takes none; --window gives scores over time.")
    if request.plot is not None and request.window is None:
        raise UserError("--plot with --labels draws scores of windows; --window gives their length.")
    activation = request.activation or COSINE
    if activation not in OF_LABELS:
        raise UserError(f"--scores {activation} is of a classifier; --labels have {' and '.join(OF_LABELS)}.")
    return activation


def model_of(
    request: TagRequest, checkpoint: Checkpoint, names: ClassNames, activation: Activation
) -> tuple[Classifier | Labelled, dict[str, Any]]:
    """What scores: the checkpoint's classifier, or its head for captions; and what decides the numbers beside it."""
    if not request.labels:
        return Classifier(checkpoint, pick_device(request.device), request.batch_size), {}
    encoder = CheckpointEncoder(
        checkpoint, device=request.device, batch_size=request.batch_size, text_model=request.text_model,
        trust_remote_code=request.trust_remote_code,
    )  # fmt: skip
    found = Labelled(encoder, names.labels, request.template, activation)
    return found, {"captions": found.captions, "text_model": encoder.text_digest()}


def lines_of(rows: Sequence[Row]) -> list[str]:
    """A line of text for each row: the sound, its time, and its tags with their scores."""
    found = []
    for row in rows:
        if row["status"] != "ok":
            found.append(one_line(f"{row['file_name']}  failed: {row['reason']}: {row['message']}"))
            continue
        tags = "  ".join(f"{one['label']} {one['score']:.3f}" for one in row["tags"])
        found.append(one_line(f"{row['file_name']}  {row['start']:.2f}–{row['end']:.2f} s  {tags or 'nothing'}"))
    return found
