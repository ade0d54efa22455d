"""Runs a protocol on a set of clips with a model: features, captions, scores, and what the result says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import write_csv
from m2dprep.evaluation.encoders import CLAP, FLAT, STACKED, ClipEncoder
from m2dprep.evaluation.features import Features, features
from m2dprep.evaluation.prepared import EvaluationSet
from m2dprep.evaluation.protocols.label_free import label_free
from m2dprep.evaluation.protocols.linear import LinearSettings, linear
from m2dprep.evaluation.protocols.result import Result, software_versions
from m2dprep.evaluation.protocols.retrieval import retrieval
from m2dprep.evaluation.protocols.zero_shot import (
    PREDICTION_COLUMNS,
    first_equal,
    prediction_rows,
    similarities,
    zero_shot,
)
from m2dprep.evaluation.reading import Crop


@dataclass(frozen=True)
class RunOptions:
    """``features`` is the folder in which embeddings are kept, or None; ``overwrite`` computes them anew.

    ``may_be_empty``: zero-shot classification of clips that all failed is a result without a score, and no error.
    """

    features: Path | None = None
    overwrite: bool = False
    quiet: bool = False
    may_be_empty: bool = False


def run_zero_shot(
    encoder: ClipEncoder, clips: EvaluationSet, options: RunOptions | None = None, predictions: Path | None = None
) -> Result:
    """Zero-shot classification of the test clips, or of all if they have folds.

    ``predictions`` is a CSV to write, a row per clip. Raises `UserError` if the model knows no captions, two classes
    have the same caption, or no clip can be read.
    """
    options = options or RunOptions()
    class_captions(clips)
    classes, targets = clips.classes, clips.targets()
    text = class_texts(encoder, clips)
    rows = np.arange(len(clips.files)) if clips.folds else clips.rows("test")
    if not len(rows):
        raise UserError(f"{clips.place} has no clips of the split test.")
    crop = Crop(clips.task.unit_seconds)
    found = _features(encoder, clips, rows, crop, "all" if clips.folds else "test", options)
    kept = rows[found.whole]
    if not options.may_be_empty:
        _require_some(kept, found, clips)
    cosines = similarities(found.part(CLAP)[found.whole], text)
    folds = [clips.folds[row] for row in kept] if clips.folds else []
    result = zero_shot(cosines, targets[kept], classes, folds=folds, task=clips.task.name)
    names = [clips.files[row] for row in kept]
    if predictions is not None:
        write_csv(predictions, PREDICTION_COLUMNS, prediction_rows(names, cosines, targets[kept], classes))
    details: dict[str, Any] = {"files": names}
    if targets.ndim == 1:
        details |= {"labels": targets[kept].tolist(), "predicted": cosines.argmax(axis=1).tolist()}
    templates = clips.task.caption.templates
    several = (f"Class captions are averaged over {len(templates)} templates.",) if len(templates) > 1 else ()
    return _about(
        result.about(details=details, deviations=several), encoder, clips, [found], ("test",),
        {"templates": list(templates), "unit_seconds": clips.task.unit_seconds},
    )  # fmt: skip


def class_captions(clips: EvaluationSet) -> list[list[str]]:
    """The captions of each class, one per template. Raises `UserError` if two classes have the same."""
    captions = [clips.task.caption.captions(label) for label in clips.classes]
    seen: dict[tuple[str, ...], str] = {}
    for label, said in zip(clips.classes, captions, strict=True):
        key = tuple(" ".join(caption.split()) for caption in said)
        if key in seen:
            raise UserError(
                f"the classes {seen[key]!r} and {label!r} have one caption, {said[0]!r}, so that every clip of one "
                "would count as wrong. Give them one label, or names of their own."
            )
        seen[key] = label
    return captions


def class_texts(encoder: ClipEncoder, clips: EvaluationSet) -> np.ndarray:
    """The embeddings (P, C, D) of the captions of all classes, by each of the task's P templates.

    Raises `UserError` if two classes have the same caption, or captions that the encoder does not tell apart.
    """
    captions = class_captions(clips)
    flat = [said[number] for number in range(len(clips.task.caption.templates)) for said in captions]
    text = encoder.encode_texts(flat).reshape(len(clips.task.caption.templates), len(captions), -1)
    finite = np.isfinite(text).all(axis=(0, 2))
    if not finite.all():
        first = clips.classes[int(finite.argmin())]
        raise UserError(
            f"the text encoder makes embeddings that are not finite of {int((~finite).sum())} classes ({first} first)."
        )
    if same := first_equal(text.transpose(1, 0, 2).reshape(len(captions), -1)):
        one, other = (clips.classes[row] for row in same)
        raise UserError(
            f"the classes {one!r} and {other!r} have captions that the text encoder does not tell apart "
            f"({captions[same[0]][0]!r}, {captions[same[1]][0]!r}), so that every clip of one would count as wrong. "
            "Give them one label, or names of their own."
        )
    return text


def run_linear(
    encoder: ClipEncoder,
    clips: EvaluationSet,
    settings: LinearSettings | None = None,
    options: RunOptions | None = None,
    part: str | None = None,
    cut_at_start: bool = False,
) -> Result:
    """Linear evaluation on a ``part`` of the embeddings: stacked as in EVAR (of models that have it), flat, or clap.

    Longer training clips are cut at random as in EVAR, unless they are ``cut_at_start`` as those of the test.
    Raises `UserError` if the table has neither folds nor a training split, or the model has no such
    part.
    """
    settings, options = settings or LinearSettings(), options or RunOptions()
    part = part or next(iter(encoder.parts))
    classes, targets = clips.classes, clips.targets()
    used = ["all"] if clips.folds else [split for split in ("train", "valid", "test") if len(clips.rows(split))]
    if not clips.folds and "train" not in used:
        raise UserError(
            f"{clips.place} has no training clips, which linear evaluation needs: a column split (train, valid, test) "
            "or fold."
        )
    rows, parts, made = [], [], []
    for split in used:
        own = np.arange(len(clips.files)) if split == "all" else clips.rows(split)
        at_random = split in ("train", "valid") and not cut_at_start and clips.task.unit_seconds is not None
        crop = Crop(
            clips.task.unit_seconds, "random" if at_random else "start", sixteen_bit=settings.strict_evar,
        )  # fmt: skip
        found = _features(encoder, clips, own, crop, split, options)
        rows.append(own[found.whole])
        parts.append(found.part(part)[found.whole])
        made.append(found)
    kept = np.concatenate(rows)
    _require_some(kept, made[0], clips)
    runs = len(settings.seeds) * (len(clips.fold_names) or 1)
    progress = None if options.quiet else Progress(runs, "linear", "heads", delay=1.0)
    with progress or _Nothing():
        result = linear(
            np.concatenate(parts), targets[kept], classes, settings, task=clips.task.name,
            splits=[] if clips.folds else [clips.splits[row] for row in kept],
            folds=[clips.folds[row] for row in kept] if clips.folds else [],
            groups=[clips.groups[row] for row in kept] if clips.groups else [],
            finished=(lambda: None) if progress is None else progress.advance,
        )  # fmt: skip
    tested = [clips.files[kept[row]] for row in result.details["test_rows"]]
    details = {"files": tested}
    if targets.ndim == 1:
        details["labels"] = [int(targets[kept[row]]) for row in result.details["test_rows"]]
    kinds = {"features": part, "unit_seconds": clips.task.unit_seconds, "cut_at_start": cut_at_start}
    return _about(
        result.about(details=details, deviations=_reading_deviations(clips, made, settings, cut_at_start, part)),
        encoder, clips, made, ("train", "valid", "test"), kinds,
    )  # fmt: skip


def _reading_deviations(
    clips: EvaluationSet, made: Sequence[Features], settings: LinearSettings, cut_at_start: bool, part: str
) -> tuple[str, ...]:
    longer = sum(one.longer for one in made)
    at_random = not clips.folds and not cut_at_start
    stored = any(name.endswith(".npy") for name in clips.files)
    return tuple(
        sentence
        for applies, sentence in (
            (part != STACKED, f"Features are {part}; EVAR's of M2D are {STACKED}."),
            (not settings.strict_evar and not stored, "Sounds are not passed through 16-bit files."),
            (stored, "Clips are log-mel files, which are cut and padded in frames."),
            (
                longer and at_random,
                f"{longer:,} longer clips are cut, of training at a place that follows from seed and name; EVAR draws "
                "it in the order of its loader.",
            ),
            (
                longer and not at_random,
                f"{longer:,} longer clips are cut at their start; EVAR cuts training clips at random.",
            ),
        )
        if applies
    )


def run_retrieval(encoder: ClipEncoder, clips: EvaluationSet, options: RunOptions | None = None) -> Result:
    """Retrieval between the test clips, whole unless the task says otherwise, and their captions."""
    options = options or RunOptions()
    rows = clips.rows("test")
    if not len(rows):
        raise UserError(f"{clips.place} has no clips of the split test.")
    found = _features(encoder, clips, rows, Crop(clips.task.unit_seconds), "test", options)
    kept = rows[found.whole]
    _require_some(kept, found, clips)
    captions = [caption for row in kept for caption in clips.captions[row]]
    owner = np.repeat(np.arange(len(kept)), [len(clips.captions[row]) for row in kept])
    places: dict[str, int] = {}  # a text that several clips have is encoded once
    each = [places.setdefault(caption, len(places)) for caption in captions]
    text = encoder.encode_texts(list(places))[each]
    result = retrieval(found.part(CLAP)[found.whole], text, owner, task=clips.task.name)
    counts = np.bincount(owner)
    other = () if (counts == 5).all() else ("Not all clips have five captions, as EVAR needs it.",)
    details = {"files": [clips.files[row] for row in kept], "owner": owner.tolist()}
    settings = {"unit_seconds": clips.task.unit_seconds}
    result = result.about(details=details, deviations=other)
    return _about(result, encoder, clips, [found], ("test",), settings)


def run_label_free(folder: Path, part: str | None = None) -> Result:
    """What the embeddings of a store tell without labels: of captions, or of clips, of which one ``part`` is taken."""
    store = EmbeddingStore.open(folder)
    store.require_whole()
    rows: Any = store.embeddings
    parts = store.meta.get("parts")
    if isinstance(parts, dict):
        part = part or next(iter(parts))
        patch_rows = int(store.meta.get("patch_rows", 1))
        rows = Features(rows, {str(k): int(v) for k, v in parts.items()}, patch_rows, [], 0).part(part)
    elif part is not None:
        raise UserError(f"{folder} holds embeddings of captions, which have no part {part}.")
    result = label_free(rows, task=folder.name)
    identity = {"store": str(store.meta.get("fingerprint")), "weights": str(store.meta.get("weights"))}
    settings = {} if part is None else {"features": part}
    model = {"model": store.meta.get("model"), "store": str(folder)}
    return result.about(digests=identity, settings=settings, model=model, versions=software_versions())


def run_any(
    protocol: str, encoder: ClipEncoder, clips: EvaluationSet, features: Path, settings: LinearSettings
) -> Result:
    """The result of the protocol of this name; embeddings are kept below ``features``, which tasks may share."""
    options = RunOptions(features)
    if protocol == "linear":
        return run_linear(encoder, clips, settings, options)
    return (run_retrieval if protocol == "retrieval" else run_zero_shot)(encoder, clips, options)


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _features(
    encoder: ClipEncoder, clips: EvaluationSet, rows: np.ndarray, crop: Crop, split: str, options: RunOptions
) -> Features:
    return features(
        encoder, clips.paths(rows.tolist()), [clips.files[row] for row in rows], crop, options.features, split=split,
        overwrite=options.overwrite, quiet=options.quiet,
    )  # fmt: skip


def _require_some(kept: np.ndarray, found: Features, clips: EvaluationSet) -> None:
    if not len(kept):
        first = found.failures[0] if found.failures else {"file_name": "", "message": ""}
        raise UserError(
            f"none of the clips of {clips.place} could be read ({first['file_name']}: {first['message']}, first)."
        )


def _about(
    result: Result, encoder: ClipEncoder, clips: EvaluationSet, made: Sequence[Features], splits: Sequence[str],
    settings: dict[str, Any],
) -> Result:  # fmt: skip
    """The result with what identifies its model and clips, and the failures."""
    digests = {"checkpoint": encoder.digest, **clips.digests(splits)}
    if (text := encoder.text_digest()) is not None:
        digests["text_model"] = text
    failures = tuple(failure for one in made for failure in one.failures)
    length = encoder.length_settings.get("length")
    other = () if length is None else (f"Longer clips are encoded {length}; EVAR averages their chunks.",)
    return replace(result, failures=failures).about(
        digests=digests,
        settings=settings,
        model=encoder.describe(),
        versions=software_versions(),
        deviations=other,
        n={"failed": len(failures), "without_split": clips.ignored},
    )


__all__ = [
    "CLAP",
    "FLAT",
    "STACKED",
    "RunOptions",
    "run_any",
    "run_label_free",
    "run_linear",
    "run_retrieval",
    "run_zero_shot",
]
