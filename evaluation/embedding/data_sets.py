"""What lies on disk as PyTorch data sets: embeddings of sounds or captions, and log-mels, with what is known of each.

Items are dictionaries. Arrays stay on disk until an item is asked for, and workers of a `DataLoader` open them anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from m2dprep.artifacts.clips.clip_id import clip_id
from m2dprep.artifacts.embeddings.audio_store import AudioStore, is_audio_store
from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout, require_folder
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.artifacts.log_mels.records import read_config
from m2dprep.artifacts.log_mels.store import find_log_mels
from m2dprep.artifacts.tables import read_captions
from m2dprep.evaluation.described import Described, DescribedRows

if TYPE_CHECKING:
    import pandas as pd

Item = dict[str, Any]


def open_embeddings(
    folder: str | Path, captions: str | Path | None = None, labels: str | Path | None = None
) -> EmbeddingSet | CaptionSet:
    """A store as a data set: of sounds (`m2dprep embed-audio`), or of captions (`m2dprep embed-captions`).

    ``captions`` is a captions.parquet or its data directory, ``labels`` a CSV of files and labels. An item of a store
    of sounds has embedding (D,), file, clip_id, start and seconds, features (D2,) if the store has them, and captions
    and labels if these are given; an item of a store of captions has embedding (D,), clip_id, caption_index, source,
    and with ``captions`` the caption. Raises `UserError` if there is no store, or ``captions`` are not those of it.
    """
    place = require_folder(Path(folder), "a store of embeddings")
    described = (_path(captions), _path(labels))
    if is_audio_store(place):
        return EmbeddingSet(place, *described)
    if described[1] is not None:
        raise UserError(f"{place} is a store of captions, which have no table of labels.")
    return CaptionSet(place, described[0])


def open_log_mels(
    folder: str | Path, captions: str | Path | None = None, labels: str | Path | None = None
) -> LogMelSet:
    """The log-mels of a folder that `m2dprep melspec` made, from files or a pack, as a data set, sorted by name.

    An item has log_mel (1, n_mels, frames) in float32, file, clip_id, and captions and labels if these are given.
    Raises `UserError` if the folder holds no log-mels.
    """
    return LogMelSet(require_folder(Path(folder), "a folder of log-mels"), _path(captions), _path(labels))


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


class EmbeddingSet(Dataset[Item]):
    """The rows of a store of embeddings of sounds. ``store`` is the store itself."""

    def __init__(self, folder: Path, captions: Path | None = None, labels: Path | None = None) -> None:
        self._opened = (folder, captions, labels)
        self.store = AudioStore.open(folder)
        self._described = _described(captions, labels, self.store.index)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> Item:
        row = _checked(row, len(self))
        item: Item = {"embedding": _tensor(self.store.embeddings[row])}
        if self.store.features is not None:
            item["features"] = _tensor(self.store.features[row])
        item |= self.store.index.slice(row, 1).to_pylist()[0]
        return item | _known(self._described, row)

    @property
    def table(self) -> pd.DataFrame:
        """The index of the store: file, clip_id, start, seconds."""
        return self.store.index.to_pandas()

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingSet, self._opened


class CaptionSet(Dataset[Item]):
    """The rows of a store of embeddings of captions. ``store`` is the store itself."""

    def __init__(self, folder: Path, captions: Path | None = None) -> None:
        self._opened = (folder, captions)
        self.store = EmbeddingStore.open(folder)
        self._index = self.store.index()
        self._captions: pa.Table | None = None
        if captions is not None:
            place = captions / "captions.parquet" if captions.is_dir() else captions
            self._captions = read_captions(place, ["clip_id", "caption", "source", "caption_index"])
            self.store.verify(self._captions)

    def __len__(self) -> int:
        return len(self.store.embeddings)

    def __getitem__(self, row: int) -> Item:
        row = _checked(row, len(self))
        known = self._index.select(["clip_id", "caption_index", "source"]).slice(row, 1).to_pylist()[0]
        caption = {} if self._captions is None else {"caption": self._captions["caption"][row].as_py()}
        return {"embedding": _tensor(self.store.embeddings[row]), **known, **caption}

    @property
    def table(self) -> pd.DataFrame:
        """Whose caption each row is: clip_id, caption_index, source, and the digest of the caption."""
        return self._index.to_pandas()

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionSet, self._opened


class LogMelSet(Dataset[Item]):
    """The log-mels of a folder. ``files`` are their names there, in order."""

    def __init__(self, folder: Path, captions: Path | None = None, labels: Path | None = None) -> None:
        self._opened = (folder, captions, labels)
        layout = LmsLayout(folder)
        config = read_config(layout)
        packed = PackedStore.open(layout.root, None if config is None else config["fingerprint"])
        self.files = sorted({*layout.array_files(), *(packed[1].to_pylist() if packed is not None else ())})
        if not self.files:
            raise UserError(f"{folder} holds no log-mels (.npy files or a pack).")
        root = layout.root.absolute()
        self._log_mels = find_log_mels(root.parent, [f"{root.name}/{name}" for name in self.files])
        self._described = _described(captions, labels, pa.table({"file": pa.array(self.files, pa.string())}))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Item:
        row = _checked(row, len(self))
        log_mel = torch.from_numpy(np.array(self._log_mels[row], np.float32)[None])
        name = self.files[row]
        return {"log_mel": log_mel, "file": name, "clip_id": clip_id(name), **_known(self._described, row)}

    @property
    def table(self) -> pd.DataFrame:
        """The names of the log-mels and their clip ids."""
        return pa.table({"file": self.files, "clip_id": [clip_id(name) for name in self.files]}).to_pandas()

    def __reduce__(self) -> tuple[Any, ...]:
        return LogMelSet, self._opened


def _described(captions: Path | None, labels: Path | None, index: pa.Table) -> DescribedRows | None:
    return None if captions is None and labels is None else Described(captions, labels).of_store(index)


def _known(described: DescribedRows | None, row: int) -> Item:
    return {} if described is None else {"captions": described.captions(row), "labels": described.labels(row)}


def _tensor(row: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(row, np.float32))


def _checked(row: int, rows: int) -> int:
    """The number of a row, which may be counted from the end. Raises `IndexError` beyond the last one."""
    if not -rows <= row < rows:
        raise IndexError(f"row {row} of {rows:,}")
    return int(row) % rows
