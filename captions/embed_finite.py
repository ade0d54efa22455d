"""Embeddings in the type that is stored, where they fit it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from artifacts.errors import UserError


def as_stored(
    embeddings: np.ndarray, dtype: str, captions: pa.Table, rows: np.ndarray, which: np.ndarray
) -> np.ndarray:
    """The embeddings (texts, D) as ``dtype``; ``rows[i]`` of the captions has ``embeddings[which[i]]``.

    Raises `UserError` naming a caption where a value is not finite in it.
    """
    with np.errstate(over="ignore"):
        stored = embeddings.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if not len(bad):
        return stored
    row = int(rows[np.flatnonzero(which == bad[0])[0]])
    caption = captions.slice(row, 1).to_pylist()[0]
    where = f"row {row} (clip {caption['clip_id']!r}, caption {caption['caption'][:80]!r})"
    if np.isfinite(embeddings[bad[0]]).all():
        raise UserError(
            f"the embedding of {where} goes beyond {dtype}: its largest value is {np.abs(embeddings[bad[0]]).max():g}. "
            "Use --dtype float32 --overwrite."
        )
    raise UserError(f"the embedding of {where} holds NaN or infinity; {len(bad)} of {len(stored)} in its block do.")
