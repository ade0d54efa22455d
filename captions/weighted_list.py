"""Writes a list of log-mels with a column ``weight``, from their labels, for ``train --weighted``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.matching import NO_CLIP, match_files
from m2dprep.artifacts.columns import one_array
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.layout import LISTED, TRAINED, require_file
from m2dprep.artifacts.locks import writing_to
from m2dprep.artifacts.tables import (
    is_as_written,
    read_captions,
    read_csv_columns,
    read_file_list,
    read_names,
    verify_file_list,
    write_proven_csv,
)
from m2dprep.artifacts.text_files import read_header
from m2dprep.captions.label_weights import ADDED, label_weights

SEPARATOR = ","


@dataclass(frozen=True)
class WeightedListCounts:
    """``files = weighted + without_labels``; ``classes`` are those that occur."""

    files: int
    weighted: int
    without_labels: int
    classes: int
    changed: bool = True


def write_weighted_list(
    files: Path, labels: Path, output: Path, *, added: float = ADDED, overwrite: bool = False
) -> WeightedListCounts:
    """Write ``output``: the files in the list ``files`` that have labels, each with its weight (`label_weights`).

    ``labels`` is a ``captions.parquet``, whose column labels is taken, or a CSV of file names (or ids) and labels,
    separated by commas. Classes are counted over the files that have labels. An equal list stays as it is. Raises
    `UserError` if no file has labels, or training would read the output beside the list, and
    `FingerprintConflictError` if it is another list and ``overwrite`` is not set.
    """
    require_file(files, "the list of log-mel files")
    if output.match(f"{LISTED}*.csv") or output.match(f"{TRAINED}*.csv"):
        raise UserError(
            f"{output}: `m2dprep train` would read a list of this name beside others; call it weighted_….csv, and give "
            "it to train as --files."
        )
    verify_file_list(files)
    names = read_file_list(files)
    clips, given = _read_labels(require_file(labels, "the labels of the clips"))
    clip = match_files(names, clips).clip
    taken = given.take(pa.array(np.where(clip == NO_CLIP, 0, clip)))
    lengths = pc.fill_null(pc.list_value_length(taken), 0).to_numpy(zero_copy_only=False)
    keep = (clip != NO_CLIP) & (lengths > 0)
    if not keep.any():
        raise UserError(f"none of the {len(names):,} files that {files} lists has labels in {labels}.")
    kept = taken.filter(pa.array(keep))
    labelled = [names[row] for row in np.flatnonzero(keep).tolist()]
    weights = label_weights(kept, names=labelled, added=added)
    listed = sorted(zip(labelled, map(repr, weights.tolist()), strict=True))
    changed = _write(output, listed, overwrite=overwrite)
    classes = pc.count_distinct(kept.flatten()).as_py()
    return WeightedListCounts(len(names), int(keep.sum()), int((~keep).sum()), classes, changed)


def _read_labels(path: Path) -> tuple[pa.Array, pa.Array]:
    """Unique clips, and their labels as lists; empty labels are left out."""
    if path.suffix.lower() == ".parquet":
        table = read_captions(path, ["clip_id", "labels"])
        table = table.filter(pc.greater(pc.fill_null(pc.list_value_length(table["labels"]), 0), 0))
        ids, lists = one_array(table["clip_id"]), one_array(table["labels"])
        first = np.sort(np.unique(ids.dictionary_encode().indices.to_numpy(), return_index=True)[1])
        return ids.take(pa.array(first)), lists.take(pa.array(first))
    names = read_names(path, "the labels of the clips")
    texts = read_csv_columns(path, [_label_column(path)], "the labels of the clips").popitem()[1]
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise UserError(f"{path}: {twice} occurs twice; every clip must have one row.")
    lists = [[one.strip() for one in text.split(SEPARATOR) if one.strip()] for text in texts]
    return pa.array(names, pa.string()), pa.array(lists, pa.list_(pa.string()))


def _label_column(path: Path) -> str:
    header = read_header(path, "the labels of the clips")
    found = next((name for name in ("labels", "label", "mids", "positive_labels") if name in header), None)
    if found is None:
        raise UserError(f"{path} has no column labels or label; it has {', '.join(header)}.")
    return found


def _write(output: Path, listed: list[tuple[str, str]], *, overwrite: bool) -> bool:
    with writing_to(output):
        if output.exists() and not overwrite:
            if is_as_written(output) is not False and read_file_list(output) == [name for name, _ in listed]:
                there = read_csv_columns(output, ["weight"], "a list with weights")["weight"]
                if there == [weight for _, weight in listed]:
                    return False
            raise FingerprintConflictError(
                f"{output} is there already, with other files or weights than these inputs give. Choose another "
                "--output, or --overwrite to replace it."
            )
        write_proven_csv(output, ["file_name", "weight"], listed)
    return True
