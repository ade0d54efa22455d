"""An index of FAISS beside a store, for stores whose rows are too many to compare all of them: quick, but approximate.

The index (inverted lists of rows in float16) names candidates, and their scores are then computed from the store's rows
as exact search does it. It belongs to the embeddings by their digests, which are in its name: an index of other
embeddings is never used.

```
faiss-<digest>.index    in the folder of the store
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.embeddings.store import EMBEDDINGS
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import sync_file, temporary_path
from m2dprep.evaluation.search.top import Found, best_of, exact_scores, require_width, unit

# Rows per list that are looked at, and the share of all lists that a query looks at.
ROWS_PER_LIST, LISTS_LOOKED_AT = 1000, 1 / 16
FEWEST_LISTS, MOST_LISTS = 1, 65_536
# Rows of every list that the centres of the lists are learned from.
TRAINING_ROWS_PER_LIST = 64
BLOCK_ROWS = 65_536
# Candidates per row that is wanted.
CANDIDATES = 4
SEED = 0
DIGITS = 12


def top_by_index(stores: Sequence[AudioStore], query: np.ndarray, top: int = 10) -> Found:
    """`top_rows` among the candidates of the stores' indexes, which are made where there are none.

    Raises `UserError` if FAISS is not installed, an index cannot be read, or as `top_rows`.
    """
    direction = unit(query)
    require_width(stores, direction)
    found = Found(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    for number, store in enumerate(stores):
        if not len(store) or top < 1:
            continue
        index = open_index(store)
        _, rows = index.search(direction.astype(np.float32)[None], min(len(store), CANDIDATES * top))
        candidates = np.unique(rows[0][rows[0] >= 0])
        own = Found(np.full(len(candidates), number), candidates, exact_scores(store.rows(), candidates, direction))
        found = best_of(found, own, top)
    return found


def index_path(store: AudioStore) -> Path:
    """Where the index of a store is."""
    digest = hashlib.sha256(str(store.meta["digests"][EMBEDDINGS]).encode()).hexdigest()[:DIGITS]
    return store.folder / f"faiss-{digest}.index"


def open_index(store: AudioStore) -> Any:
    """The index of a store, which is made if there is none."""
    faiss = _library()
    path = index_path(store)
    if not path.exists():
        build_index(store)
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}. Remove it, and it is made again.") from error
    if (index.ntotal, index.d) != (len(store), store.dim):
        raise UserError(f"{path} is not of this store; remove it, and it is made again.")
    lists = int(index.nlist)
    index.nprobe = max(1, round(lists * LISTS_LOOKED_AT)) if lists > 1 / LISTS_LOOKED_AT else lists
    return index


def build_index(store: AudioStore) -> Path:
    """Make the index of a store; earlier ones of other embeddings are removed. Raises `UserError` without FAISS."""
    faiss = _library()
    path = index_path(store)
    lists = max(FEWEST_LISTS, min(MOST_LISTS, len(store) // ROWS_PER_LIST))
    centres = faiss.IndexFlatIP(store.dim)
    index = faiss.IndexIVFScalarQuantizer(
        centres, store.dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = SEED
    index.train(_sample(store, lists * TRAINING_ROWS_PER_LIST))
    with Progress(len(store), "index", "rows") as progress:
        for _, block in store.blocks(BLOCK_ROWS):
            index.add(block.astype(np.float32))
            progress.advance(len(block))
    temporary = temporary_path(store.folder)
    try:
        faiss.write_index(index, str(temporary))
        sync_file(temporary)
        temporary.replace(path)
    except RuntimeError as error:  # of a full disk, for instance
        raise UserError(f"{path} cannot be written: {first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
    for other in store.folder.glob("faiss-*.index"):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def _sample(store: AudioStore, count: int) -> np.ndarray:
    """float32 (n, D): up to ``count`` rows, evenly spread over the store."""
    rows = np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).astype(np.int64))
    return store.rows().take(rows).astype(np.float32)


def _library() -> Any:
    try:
        import faiss  # an extra
    except ImportError as error:
        raise UserError("--index needs FAISS, which is not installed: pip install 'm2dprep[faiss]'.") from error
    return faiss
