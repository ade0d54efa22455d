"""The names of a classifier's classes, in the order of its scores.

They come from the checkpoint itself, if it lists them, or from a file: AudioSet's ``class_labels_indices.csv`` or
``ontology.json`` (EVAR's heads have their classes sorted by label id, so it is sorted by mid), the ``labels.csv`` of a
prepared task (the same), or a text file with a class in every line, in the order of the scores. A classifier of 527
classes that says nothing has AudioSet's, sorted by mid; their names are those of ``audioset_classes.csv`` beside this
module (Gemmeke et al., "Audio Set", 2017; by Google, under CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.artifacts.text_files import read_header
from m2dprep.captions.sources.audioset import read_label_names
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.reuse.classifier import head_size

AUDIOSET_CLASSES = 527
AS_AUDIOSET = "The classifier does not say what its 527 classes are: they are taken to be AudioSet's, sorted by mid."
AUDIOSET_LIST = Path(__file__).parent / "audioset_classes.csv"
# Beside a checkpoint, a class per line.
BESIDE = "classes.txt"
TABLES = (".csv", ".tsv", ".json")


class ClassNames(NamedTuple):
    """``ids`` are label ids such as AudioSet's mids, empty if there are none; ``labels`` are words.

    ``assumed``: the classifier does not say so; its classes are as many as AudioSet's.
    """

    labels: tuple[str, ...]
    ids: tuple[str, ...] = ()
    assumed: bool = False

    def number_of(self) -> dict[str, int]:
        """The number of the class of each id, and of each label that is not an id."""
        found = {label: number for number, label in enumerate(self.labels)}
        return {**found, **{one: number for number, one in enumerate(self.ids)}}


def class_names(checkpoint: Checkpoint, file: Path | None = None) -> ClassNames:
    """The names of a checkpoint's classes. Raises `UserError` if they are not known or not as many as its scores."""
    count = head_size(checkpoint)[1]
    names = read_class_names(file) if file is not None else own_class_names(checkpoint) or _assumed(count)
    if names is None:
        raise UserError(
            f"{checkpoint.path} does not say what its {count:,} classes are; --classes FILE does: one per line, in the "
            "order of its scores."
        )
    if len(names.labels) != count:
        raise UserError(
            f"{file or checkpoint.path} lists {len(names.labels):,} classes, but the classifier of {checkpoint.path} "
            f"has {count:,}."
        )
    return names


def _assumed(count: int) -> ClassNames | None:
    return audioset_names()._replace(assumed=True) if count == AUDIOSET_CLASSES else None


@cache
def audioset_names() -> ClassNames:
    """The 527 classes of AudioSet, sorted by mid."""
    return read_class_names(AUDIOSET_LIST)


def names_of(labels: Sequence[str]) -> dict[str, str]:
    """The words for ``labels`` that are AudioSet's mids; of none unless all of them are."""
    names = audioset_names()
    words = dict(zip(names.ids, names.labels, strict=True))
    return {label: words[label] for label in labels} if labels and words.keys() >= set(labels) else {}


def own_class_names(checkpoint: Checkpoint) -> ClassNames | None:
    """The classes that a checkpoint lists: in itself, or in a ``classes.txt`` beside it; None if it does not."""
    listed = checkpoint.args.get("classes")
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        return _with_words(_checked([str(one) for one in listed], _ids(checkpoint.args), checkpoint.path))
    beside = checkpoint.path.parent / BESIDE
    return _with_words(read_class_names(beside)) if beside.is_file() else None


def _with_words(names: ClassNames) -> ClassNames:
    """Names that are AudioSet's mids alone, as ids with their words."""
    words = {} if names.ids else names_of(names.labels)
    return ClassNames(tuple(words[one] for one in names.labels), names.labels) if words else names


def _ids(args: Mapping[str, Any]) -> list[str]:
    names = args.get("class_ids")
    return [str(one) for one in names] if isinstance(names, Sequence) and not isinstance(names, str) else []


def read_class_names(path: Path) -> ClassNames:
    """The classes in a file. Raises `UserError` if it is none, or lists a class twice."""
    require_file(path, "the names of classes")
    if path.suffix.lower() in TABLES:
        if path.suffix.lower() == ".csv" and {"label", "name"} <= set(read_header(path, "the names of classes")):
            values = read_csv_columns(path, ["label", "name"], "the names of classes")
            named = dict(zip(values["label"], values["name"], strict=True))
        else:
            named = read_label_names(path)
        ids = sorted(named)
        return _checked([named[one] for one in ids], ids, path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text file: {error}.") from error
    return _checked([line for line in lines if line], [], path)


def _checked(labels: Sequence[str], ids: Sequence[str], path: Path) -> ClassNames:
    keys = ids or labels
    if not keys:
        raise UserError(f"{path} lists no classes.")
    if ids and len(ids) != len(labels):
        raise UserError(f"{path} lists {len(labels):,} classes, but {len(ids):,} ids of them.")
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UserError(f"{path} lists the class {twice!r} twice.")
    return ClassNames(tuple(labels), tuple(ids))
