"""The caption embeddings for training: which are used, whether they fit together, and which log-mels they match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.digests import differing_keys, file_digest
from m2dprep.artifacts.embeddings.m2d_dictionary import read_items
from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import DataLayout
from m2dprep.artifacts.npy_files import RowFile
from m2dprep.artifacts.reading import FileIdentity
from m2dprep.artifacts.tables import read_captions, verify_export

# The metadata of a store that says how a text becomes a vector; stores that differ in it are not mixed.
TEXT_SETTINGS = ("weights", "pooling", "normalized", "prefix", "max_length", "eos")
# Metadata that only names the encoder; a local copy may have another name.
TEXT_NAMES = ("model", "revision", "model_path")
# The number of clips of a dictionary that are read before they are joined.
CLIPS_AT_ONCE = 8192
# Two rows hold the same caption if they agree in clip and text.
CAPTION_KEYS = ["clip_id", "caption_digest"]


@dataclass(frozen=True)
class CaptionSource:
    """Caption embeddings from one place: row i of ``embeddings`` (N, D) belongs to the clip ``clip_ids[i]``.

    ``text_model`` is None if the place does not name its encoder. ``identity`` is that of the file from which
    ``embeddings`` are mapped.
    """

    name: str
    embeddings: np.ndarray
    clip_ids: pa.Array | pa.ChunkedArray
    text_model: dict[str, Any] | None
    fingerprint: str
    identity: FileIdentity | None = None

    @classmethod
    def from_store(cls, folder: Path) -> CaptionSource:
        """A finished store of `m2dprep embed-captions`. Raises `UserError` if it is not one."""
        store = EmbeddingStore.open(folder)
        text_model = {key: store.meta.get(key) for key in (*TEXT_NAMES, *TEXT_SETTINGS)}
        fingerprint = str(store.meta.get("fingerprint"))
        return cls(folder.name, store.embeddings, store.index()["clip_id"], text_model, fingerprint, store.identity)

    @classmethod
    def from_dictionary(cls, path: Path) -> CaptionSource:
        """The original's pickled ``capemb_*.npy``, read by an unpickler that allows only plain arrays."""
        verify_export(path)
        lengths: dict[str, int] = {}
        parts: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        for clip, value in read_items(path):
            waiting.append(np.atleast_2d(value))
            if waiting[-1].shape[1] != (parts or waiting)[0].shape[1]:
                raise UserError(f"{path} holds embeddings of several lengths; that of {clip!r} is another.")
            if clip in lengths:
                raise UserError(f"{path}: {clip!r} is there twice.")
            lengths[clip] = len(waiting[-1])
            if len(waiting) >= CLIPS_AT_ONCE:
                parts.append(np.concatenate(waiting))  # a copy, so that the memory of the file is freed
                waiting = []
        if waiting:
            parts.append(np.concatenate(waiting))
        if not parts:
            raise UserError(f"{path} is empty.")
        clip_ids = pa.array([clip for clip, rows in lengths.items() for _ in range(rows)], pa.string())
        return cls(path.name, _joined(parts), clip_ids, None, file_digest(path)[:16])


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Join all ``parts`` (n, D), freeing them on the way: both together would take twice the memory."""
    joined = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.result_type(*parts))
    start = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        joined[start : start + len(part)] = part
        start += len(part)
    return joined


def common_text_model(sources: Sequence[CaptionSource]) -> dict[str, Any] | None:
    """The one text encoder of all sources; None if none of them names it.

    Raises `UserError` if two sources name different ones, or hold vectors of different lengths.
    """
    first = sources[0]
    for source in sources[1:]:
        if source.embeddings.shape[1] != first.embeddings.shape[1]:
            raise UserError(
                f"{first.name} holds embeddings of {first.embeddings.shape[1]} numbers, {source.name} of "
                f"{source.embeddings.shape[1]}; choose stores of one text model with --embeddings."
            )
    named = [source for source in sources if source.text_model is not None]
    for source in named[1:]:
        if lines := differing_keys(_settings(named[0]), _settings(source)):
            raise UserError(
                f"{named[0].name} and {source.name} were made with different text models ({'; '.join(lines)}); "
                "choose stores of one with --embeddings."
            )
    return named[0].text_model if named else None


def _settings(source: CaptionSource) -> dict[str, Any]:
    return {key: (source.text_model or {}).get(key) for key in TEXT_SETTINGS}


class RowsByClip:
    """The rows of a table grouped by clip: ``clip_ids`` are the different ids, in the order of their first rows.

    ``names`` and ``fingerprints`` are those of the tables, of the ``kind`` of captions that they hold. The copy that is
    sent to workers has no ``clip_ids``, which are large and no longer needed by then.
    """

    kind: ClassVar[str]

    def __init__(self, ids: Sequence[pa.Array], names: Sequence[str], fingerprints: Sequence[str]) -> None:
        self.names, self.fingerprints = list(names), list(fingerprints)
        encoded = pa.chunked_array(ids, pa.string()).combine_chunks().dictionary_encode()
        numbers = encoded.indices.to_numpy()
        self._rows = np.argsort(numbers, kind="stable")
        self._starts = np.searchsorted(numbers[self._rows], np.arange(len(encoded.dictionary) + 1))
        self.clip_ids: list[str] = encoded.dictionary.to_pylist()

    def of_clip(self, clip: int) -> np.ndarray:
        """Row numbers of a clip's captions."""
        return self._rows[self._starts[clip] : self._starts[clip + 1]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "clip_ids": []}


class CaptionRows(RowsByClip):
    """The rows of all sources under one numbering, grouped by clip. Stores stay on disk, also for worker processes."""

    kind = "embeddings"

    def __init__(self, sources: Sequence[CaptionSource]) -> None:
        self._arrays = [_on_disk(source) for source in sources]
        self._ends = np.cumsum([len(array) for array in self._arrays])
        ids = [chunk for source in sources for chunk in _chunks(source.clip_ids)]
        super().__init__(ids, [source.name for source in sources], [source.fingerprint for source in sources])

    @property
    def dim(self) -> int:
        return int(self._arrays[0].shape[1])

    def __getitem__(self, row: int) -> np.ndarray:
        """One caption's embedding (D,), float32."""
        array = int(np.searchsorted(self._ends, row, side="right"))
        first = self._ends[array - 1] if array else 0
        return _rows(self._arrays[array], np.array([row - first]))[0].astype(np.float32)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings of some captions (n, D), float32."""
        if len(self._arrays) == 1:
            return _rows(self._arrays[0], rows).astype(np.float32)
        sources = np.searchsorted(self._ends, rows, side="right")
        embeddings = np.empty((len(rows), self.dim), np.float32)
        for number in np.unique(sources):
            places = np.flatnonzero(sources == number)
            embeddings[places] = _rows(self._arrays[number], rows[places] - (self._ends[number - 1] if number else 0))
        return embeddings


def _on_disk(source: CaptionSource) -> np.ndarray | RowFile:
    """A store's file, to be read row by row, or an array that is already in memory.

    If the file has been replaced meanwhile, its rows would belong to other captions; `RowFile` then refuses to read it.
    """
    if not isinstance(source.embeddings, np.memmap):
        return source.embeddings
    return RowFile(Path(str(source.embeddings.filename)), source.identity)


def _rows(array: np.ndarray | RowFile, rows: np.ndarray) -> np.ndarray:
    taken: np.ndarray = array.take(rows) if isinstance(array, RowFile) else array[rows]
    return taken


def derange_captions(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each clip's captions to another clip, by one random cycle through all of ``clips`` (n,); none keeps its own.

    Files of the same clip stay together. This is the control for alignment: nothing can be learnt from such captions.
    """
    unique, inverse = np.unique(clips, return_inverse=True)
    order = rng.permutation(len(unique))
    receiver = np.empty_like(order)
    receiver[order] = np.roll(order, 1)
    return unique[receiver][inverse]


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def caption_sources(
    layout: DataLayout, stores: Sequence[Path], dictionaries: Sequence[Path]
) -> tuple[list[CaptionSource], dict[str, Any] | None, list[str]]:
    """The sources named, or all stores of the data directory if none is named.

    Also returns their text encoder (None: unknown), and lines about what is used and what looks odd. Raises `UserError`
    if there is no source, one is empty, their encoders differ, or two stores that nobody named hold the same captions:
    training would see these twice as often as others.
    """
    named = bool(stores or dictionaries)
    stores = list(stores) if named else layout.embedding_stores()
    if not stores and not dictionaries:
        raise UserError(f"{layout.root} has no capemb_<model>/ folder; `m2dprep embed-captions` makes one.")
    sources = [CaptionSource.from_store(store) for store in stores]
    sources += [CaptionSource.from_dictionary(path) for path in dictionaries]
    if empty := [source.name for source in sources if not len(source.embeddings)]:
        raise UserError(f"{', '.join(empty)} holds no embeddings.")
    text_model = common_text_model(sources)
    shared = _shared_captions(stores)
    if shared and not named:
        raise UserError(f"{shared[0]}; say which to train on with --embeddings (given twice: on both).")
    used = ", ".join(f"{source.name} ({len(source.embeddings):,} rows)" for source in sources)
    return sources, text_model, [f"captions of {used}", *shared, *_not_of_the_captions(layout, stores)]


def _shared_captions(stores: Sequence[Path]) -> list[str]:
    """A line for every two stores that hold the same captions of the same clips."""
    opened = [EmbeddingStore.open(folder) for folder in (stores if len(stores) > 1 else ())]
    known = [(store.folder, store.index().select(CAPTION_KEYS)) for store in opened if store.has_captions]
    lines = []
    for (first, ours), (second, theirs) in combinations(known, 2):
        both = theirs.join(ours, keys=CAPTION_KEYS, join_type="left semi")
        if both.num_rows:
            lines.append(
                f"{first.name} and {second.name} hold {both.num_rows:,} captions both, one of clip {both['clip_id'][0]}"
            )
    return lines


def _not_of_the_captions(layout: DataLayout, stores: Sequence[Path]) -> list[str]:
    """A line for every store in the data directory whose rows are not those of its ``captions.parquet``."""
    here = [store for store in stores if store.resolve().parent == layout.root.resolve()]
    if not here or not layout.captions.exists():
        return []
    lines = []
    try:
        captions = read_captions(layout.captions)
    except UserError as error:
        return [f"the embeddings cannot be compared with the captions: {error}"]
    for folder in here:
        store = EmbeddingStore.open(folder)
        try:
            if store.has_captions:
                store.verify(captions)
        except UserError as error:
            lines.append(
                f"{folder.name} is not of {layout.captions.name} as it is now, and is trained on as it is: {error} "
                "`m2dprep embed-captions --overwrite` encodes what is new, --embeddings chooses a store."
            )
    return lines
