"""Tags of sounds as a table: scores of a fine-tuned model's classes, or of words by a model that knows captions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.discover import PassedOver
from m2dprep.evaluation.clip_set import DEFAULT_TEMPLATE, LABEL_FIELD
from m2dprep.evaluation.embedding.arrays import waveform_of
from m2dprep.evaluation.embedding.rows import RowMaker, RowSettings, make_here, require_captions_head
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.tagging.class_names import ClassNames, class_names
from m2dprep.evaluation.tagging.inputs import Item, Reading, find_items
from m2dprep.evaluation.tagging.job import TagSettings, tag_items
from m2dprep.evaluation.tagging.rows import FAILED, Choice, Row, failed_row, scored_row
from m2dprep.evaluation.tagging.scores import ACTIVATIONS, Activation
from m2dprep.evaluation.tagging.sounds import Waveform, Windows, windows_of
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.reuse.classifier import Classifier

if TYPE_CHECKING:
    import pandas as pd


MAX_SECONDS = 24 * 3600.0

NUMBERS = ("start", "end", "score")


def tag_sounds(
    encoder: CheckpointEncoder,
    sounds: Sequence[Any],
    sample_rate: int | None = None,
    *,
    labels: str | Sequence[str] | None = None,
    top: int = 5,
    threshold: float | None = None,
    window: float | None = None,
    hop: float | None = None,
    classes: Path | str | None = None,
    activation: Activation = "sigmoid",
) -> pd.DataFrame:
    """The table that `Model.tag` returns."""
    if activation not in ACTIVATIONS:
        raise UserError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}.")
    if top < 0:
        raise UserError(f"top {top} is below 0; 0 keeps all tags.")
    if labels is not None and classes is not None:
        raise UserError("labels are words that are scored in the place of classes; give one of them.")
    windows = windows_of(window, hop)
    reading = Reading(encoder.checkpoint.front_end, MAX_SECONDS)
    items = [_item(sound, place, sample_rate, reading) for place, sound in enumerate(sounds)]
    if labels is not None:
        words = [labels] if isinstance(labels, str) else list(labels)
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise UserError(f"labels {words!r} are not all words.")
        choice = Choice(ClassNames(tuple(words)), top, threshold)
        rows = _by_words(encoder, items, choice, windows)
    else:
        names = _class_names(encoder.checkpoint, classes)
        choice = Choice(names, top, threshold)
        settings = TagSettings(choice, windows, activation=activation, batch_size=encoder.batch_size)
        rows = _by_classes(encoder, items, settings)
    if failed := next((row for row in rows if row["status"] == FAILED), None):
        raise UserError(f"{failed['file_name']}: {failed['message']} ({failed['reason']}).")
    return _table(rows)


def _item(sound: Any, place: int, sample_rate: int | None, reading: Reading) -> Item:
    if isinstance(sound, str | Path):
        found = find_items([Path(sound)], reading, None, PassedOver())
        if len(found) != 1:
            raise UserError(f"{sound} holds {len(found):,} sounds; `m2dprep tag` takes folders and archives.")
        return found[0]
    name = f"sound {place}"
    waveform = waveform_of(sound, sample_rate, reading.config, name)
    return Item(name, "", waveform.nbytes, lambda: Waveform.of_samples(waveform, reading.log_mel))


def _class_names(checkpoint: Checkpoint, classes: Path | str | None) -> ClassNames:
    if not checkpoint.head_weights:
        raise UserError(
            f"{checkpoint.path} holds no classifier; a model that was trained on captions scores words, which are "
            'given as labels=["a dog", "rain"].'
        )
    return class_names(checkpoint, None if classes is None else Path(classes))


def _by_classes(encoder: CheckpointEncoder, items: Sequence[Item], settings: TagSettings) -> list[Row]:
    classifier = Classifier(encoder.checkpoint, encoder.device, settings.batch_size)
    with tempfile.TemporaryDirectory(prefix="m2dprep-") as folder:
        output = Path(folder) / "tags.jsonl"
        tag_items(classifier, items, settings, output, kind="jsonl", identity={}, quiet=True)
        return [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n") if line]


def _by_words(encoder: CheckpointEncoder, items: Sequence[Item], choice: Choice, windows: Windows | None) -> list[Row]:
    """Rows whose scores are cosines with "<label> can be heard"."""
    require_captions_head(encoder.checkpoint)
    if not choice.names.labels:
        raise UserError("labels lists no words.")
    words = encoder.encode_texts([DEFAULT_TEMPLATE.replace(LABEL_FIELD, label) for label in choice.names.labels])
    maker = RowMaker(encoder, RowSettings(windows=windows, dtype="float32"))
    found: list[Row] = []
    shard = list(enumerate(items))
    for one in next(make_here(maker, [shard]), []):
        name = items[one.number].name
        if one.failure is not None:
            found.append(failed_row(name, *one.failure))
            continue
        assert one.embeddings is not None
        cosines = np.asarray(one.embeddings, np.float64) @ np.asarray(words, np.float64).T
        found += [
            scored_row(name, start, start + seconds, choice.tags(scores))
            for start, seconds, scores in zip(one.starts, one.seconds, cosines, strict=True)
        ]
    return found


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    """A row per tag."""
    places = ("file_name", "start", "end")
    tags = [{**{key: row[key] for key in places}, **tag} for row in rows for tag in row["tags"]]
    columns = [*places, "label", "score", *(["id"] if any("id" in tag for tag in tags) else [])]
    schema = pa.schema([(name, pa.float64() if name in NUMBERS else pa.string()) for name in columns])
    return pa.Table.from_pylist(tags, schema).to_pandas()
