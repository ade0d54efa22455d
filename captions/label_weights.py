"""Weights of clips from their labels, so that rare classes are drawn about as often as frequent ones.

A class has the weight 1000 / (count + 0.01), where its clips are counted over those that are trained on; a clip has
(the sum over its classes) ^ (1 / 1.5). This is what EVAR's fine-tuning on AudioSet draws by (200,000 clips per epoch).
The lists with which M2D-AS was pre-trained add 100 to a count instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.matching import Column
from m2dprep.artifacts.columns import one_array
from m2dprep.artifacts.errors import UserError

SCALE, ADDED, EXPONENT = 1000.0, 0.01, 1 / 1.5


def label_weights(
    labels: Sequence[Sequence[str]] | Column,
    *,
    names: Sequence[str] | None = None,
    added: float = ADDED,
    exponent: float = EXPONENT,
) -> np.ndarray:
    """The weights (N,), float64, of clips with these ``labels``: the names of the classes of each, in any order.

    All N clips count, so they must be those that are trained on. A label that a clip has twice counts once. ``names``
    are those of the clips, for errors. Raises `UserError` if there is no clip, or one has no label or an empty one.
    """
    if added < 0 or not np.isfinite([added, exponent]).all():
        raise UserError(f"counts cannot have {added} added, or sums be raised to {exponent}.")
    lists = _lists(labels)
    if not len(lists):
        raise UserError("there are no clips whose labels could be weighed.")
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    _require_labels(lists, lengths, names)
    encoded = lists.flatten().dictionary_encode()
    classes = len(encoded.dictionary)
    clips = np.repeat(np.arange(len(lists)), lengths)
    pairs = clips * classes + encoded.indices.to_numpy()
    pairs.sort()  # much faster than numpy's unique, which hashes
    clips, label = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], classes)
    of_class = SCALE / (np.bincount(label, minlength=classes) + added)
    weights: np.ndarray = np.bincount(clips, weights=of_class[label], minlength=len(lists)) ** exponent
    return weights


def _lists(labels: Sequence[Sequence[str]] | Column) -> pa.Array:
    if isinstance(labels, pa.Array | pa.ChunkedArray):
        lists = one_array(labels)
        return lists.cast(pa.list_(pa.string()))
    if text := next((own for own in labels if isinstance(own, str)), None):
        raise UserError(f"the labels of a clip are the text {text!r}, not a list of names.")
    return pa.array(labels, pa.list_(pa.string()))


def _require_labels(lists: pa.Array, lengths: np.ndarray, names: Sequence[str] | None) -> None:
    flat = lists.flatten()
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(flat), ""), True).to_numpy(zero_copy_only=False)
    bad = lengths == 0
    bad[np.repeat(np.arange(len(lists)), lengths)[blank]] = True
    if bad.any():
        first = int(np.argmax(bad))
        what = f"number {first + 1}" if names is None else repr(names[first])
        raise UserError(
            f"{bad.sum():,} of {len(lists):,} clips have no label, or an empty one ({what} first); leave them out, or "
            "give them labels."
        )
