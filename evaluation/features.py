"""The embeddings of a set of clips by a model: computed once, kept in an embedding store, and continued after a kill.

A store holds the rows of one split by one model with one way of reading: zero-shot and linear evaluation of a task
share the one of the test clips. Threads read the next clips while the model computes. A clip that cannot be read is a
row of NaN, and a failure with its reason. Windows of clips are fixed, so that a run that was interrupted has the same
batches, and gives the same bytes.

```
FEATURES/<checkpoint>-<digest of model and reading>/<split>-<digest of the clips>/
  embeddings.npy, index.parquet, meta.json
```
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import fingerprint, utf8_digest
from m2dprep.artifacts.embeddings.store import INDEX_SCHEMA, META, EmbeddingStore, rows_digest
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.errors import Failure
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.reading import stamp_of
from m2dprep.audioprep.decoding.sound import TRANSIENT
from m2dprep.audioprep.retries import StopIfUnreadable
from m2dprep.evaluation.encoders import ClipEncoder, split_parts
from m2dprep.evaluation.reading import Clip, ClipLoader, Crop

# Clips of one window: they are read together and divided into batches.
WINDOW = 128
# Windows that are read ahead of the model.
AHEAD = 2
MOST_THREADS = 16
SHORT = 12  # digits of a digest in a folder's name


@dataclass(frozen=True)
class Features:
    """Embeddings (N, sum of parts) of N clips; rows of clips in ``failures`` are NaN. ``longer`` counts clips that were
    cut. ``folder`` is their store's, if they are kept."""

    rows: np.ndarray
    parts: dict[str, int]
    patch_rows: int
    failures: list[dict[str, str]]
    longer: int
    folder: Path | None = None

    def part(self, name: str) -> np.ndarray:
        """The columns of a part: stacked, flat or clap."""
        return split_parts(self.rows, self.parts, name, self.patch_rows)

    @property
    def whole(self) -> np.ndarray:
        """bool (N,): the clips that could be read."""
        return np.isfinite(self.rows[:, 0]) if len(self.rows) else np.zeros(0, bool)


def features(
    encoder: ClipEncoder,
    paths: Sequence[Path],
    names: Sequence[str],
    crop: Crop,
    folder: Path | None = None,
    *,
    split: str = "clips",
    overwrite: bool = False,
    quiet: bool = False,
) -> Features:
    """The embeddings of clips, row i for ``paths[i]``; ``names[i]`` is its name in the table.

    They are kept below ``folder``, or not at all. The same call goes on where a killed one stopped, and begins anew if
    a clip could not be read because of the machine. Raises `UserError` if another run is writing there or the store is
    damaged.
    """
    settings = {
        "model": encoder.name, "weights": encoder.digest, "parts": encoder.parts, "patch_rows": patch_rows_of(encoder),
        "crop": asdict(crop), "kind": "clips", **encoder.length_settings,
    }  # fmt: skip
    index = _index(paths, names, split)
    with ExitStack() as stack:
        if folder is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="m2dprep-")))
        else:
            place = folder / f"{encoder.name}-{fingerprint(settings)[:SHORT]}"
            place = place / f"{split}-{rows_digest(index)[:SHORT]}"
        dim = sum(encoder.parts.values())
        overwrite = overwrite or _failed_for_now(place)
        with EmbeddingStoreWriter(place, index, dim, "float32", settings, overwrite=overwrite) as writer:
            if not writer.finished:
                loader = encoder.loader(crop)
                loader.remember_records(paths)
                _fill(writer, encoder, loader, paths, names, f"embeddings of {split}", quiet=quiet)
        store = EmbeddingStore.open(place)
        rows = np.array(store.embeddings) if folder is None else store.embeddings
    notes = store.meta.get("evaluation", {})
    return Features(
        rows, encoder.parts, patch_rows_of(encoder), list(notes.get("failures", [])), int(notes.get("longer", 0)),
        None if folder is None else place,
    )  # fmt: skip


def _failed_for_now(place: Path) -> bool:
    """Whether a finished store lacks a clip that can perhaps be read today."""
    notes = (read_object(place / META) or {}).get("evaluation", {})
    return any(one.get("reason") in TRANSIENT for one in notes.get("failures", []))


def patch_rows_of(encoder: ClipEncoder) -> int:
    """The rows of patches whose latents ``stacked`` holds side by side."""
    checkpoint = getattr(encoder, "checkpoint", None)
    return 1 if checkpoint is None else int(checkpoint.config.grid_size[0])


def _index(paths: Sequence[Path], names: Sequence[str], split: str) -> pa.Table:
    """A row per clip. Its digest is of name, size and time of the file, so that other sounds are another store."""
    columns: Mapping[str, Any] = {
        "clip_id": pa.array(names, pa.string()),
        "caption_index": pa.array(np.zeros(len(names), np.int32)),
        "source": pa.array([split] * len(names), pa.string()),
        "caption_digest": pa.array(
            [utf8_digest(f"{name}\0{stamp_of(path)}".encode()) for path, name in zip(paths, names, strict=True)],
            INDEX_SCHEMA.field("caption_digest").type,
        ),
    }
    return pa.table(dict(columns), schema=INDEX_SCHEMA)


def _fill(
    writer: EmbeddingStoreWriter,
    encoder: ClipEncoder,
    loader: ClipLoader,
    paths: Sequence[Path],
    names: Sequence[str],
    title: str,
    *,
    quiet: bool,
) -> None:
    starts = [start for start in range(0, len(paths), WINDOW) if not writer.done[start : start + WINDOW].all()]
    done = len(paths) - sum(len(paths[start : start + WINDOW]) for start in starts)
    failures: dict[str, list[dict[str, str]]] = writer.kept.setdefault("failures", {})
    longer: dict[str, int] = writer.kept.setdefault("longer", {})
    seen = StopIfUnreadable()
    shown: Progress | nullcontext[None] = nullcontext() if quiet else Progress(len(paths), title, initial=done)
    with shown as progress:
        for start, read in _read_ahead(loader, paths, names, starts):
            for name, one in zip(names[start:], read, strict=False):
                seen(name, *(one[1:] if isinstance(one, Failure) else (None, None)))
            rows = np.full((len(read), sum(encoder.parts.values())), np.nan, np.float32)
            good = [number for number, one in enumerate(read) if isinstance(one, Clip)]
            if good:
                rows[good] = encoder.encode([one.values for one in read if isinstance(one, Clip)])
            bad = {number: one for number, one in enumerate(read) if isinstance(one, Failure)}
            for number in good:
                if not np.isfinite(rows[number]).all():
                    bad[number] = Failure(
                        names[start + number], "nonfinite", "what the model makes of it is not all finite numbers"
                    )
            rows[list(bad)] = np.nan
            failures[str(start)] = [bad[number]._asdict() for number in sorted(bad)]
            longer[str(start)] = sum(one.longer for one in read if isinstance(one, Clip))
            writer.write_shard(np.arange(start, start + len(read)), rows, np.arange(len(read)))
            if progress is not None:
                progress.advance(len(read), failed=len(bad))
    listed = [one for start in sorted(failures, key=int) for one in failures[start]]
    writer.finish({"evaluation": {"failures": listed, "longer": sum(longer.values())}})


def _read_ahead(
    loader: ClipLoader, paths: Sequence[Path], names: Sequence[str], starts: Sequence[int]
) -> Iterator[tuple[int, list[Clip | Failure]]]:
    """The clips of each window, of which some are read ahead in threads."""
    waiting: deque[tuple[int, list[Future[Clip | Failure]]]] = deque()
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MOST_THREADS)) as pool:
        try:
            for start in starts:
                window = range(start, min(start + WINDOW, len(paths)))
                waiting.append((start, [pool.submit(loader, paths[row], names[row]) for row in window]))
                if len(waiting) > AHEAD:
                    first, futures = waiting.popleft()
                    yield first, [future.result() for future in futures]
            while waiting:
                first, futures = waiting.popleft()
                yield first, [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
