"""Small stores of sounds, written as `m2dprep embed-audio` writes them, and a text side that knows their kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile

from m2dprep.artifacts.embeddings.audio_writer import AudioStoreWriter, SourceRows, StoredSource
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.evaluation.search.projection import FILE, MapSettings, map_fingerprint
from m2dprep.evaluation.search.shelf import Shelf

KINDS = ("dog", "rain", "bell", "engine")
DIM, RATE = 16, 16000


def directions(kinds: Sequence[str] = KINDS) -> np.ndarray:
    """A direction for each kind (kinds, D)."""
    found = np.random.default_rng(5).normal(size=(len(kinds), DIM))
    unit: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


class Kinds:
    """A text side: words are as near to a kind as they have its name in them."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        weights = np.array([[1.0 if kind in text else 0.01 for kind in KINDS] for text in texts])
        return (weights @ directions()).astype(np.float32)


def embeddings_of(kinds: Sequence[int], seed: int = 1) -> np.ndarray:
    """Unit vectors near the directions of these kinds (N, D), float32."""
    noise = np.random.default_rng(seed).normal(scale=0.06, size=(len(kinds), DIM))
    found = directions()[list(kinds)] + noise
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def write_store(
    folder: Path,
    names: Sequence[str],
    embeddings: np.ndarray,
    *,
    windows: Sequence[Sequence[float]] | None = None,
    seconds: float = 1.0,
    window: float | None = None,
    contents: str = "clap",
    checkpoint: str = "",
    stamps: Mapping[str, str] | None = None,
    **more: object,
) -> Path:
    """A finished store: a row per name, or per start of a name in ``windows``, each ``seconds`` long.

    ``stamps`` are what some sounds were known by, their size and time; ``more`` are other settings.
    """
    sources = [StoredSource(name, (stamps or {}).get(name, "1")) for name in names]
    settings = {
        "contents": contents,
        "dtype": "float32",
        "dim": DIM,
        "feature_dim": None,
        "window": window,
        "checkpoint_digest": checkpoint,
        **more,
    }
    starts = [[0.0]] * len(names) if windows is None else windows
    with AudioStoreWriter(folder, settings, sources) as writer:
        first, rows = 0, []
        for number, own in enumerate(starts):
            part = embeddings[first : first + len(own)]
            rows.append(SourceRows(number, list(own), [seconds] * len(own), part))
            first += len(own)
        if rows:
            writer.write_shard(rows)
        writer.finish({})
    return folder


def write_map(folder: Path, kinds: Sequence[int]) -> None:
    """The map that a store of rows of these kinds would have: each kind around a corner of its own. It takes t-SNE no
    time, and a page knows where it is."""
    shelf, settings = Shelf.open([folder]), MapSettings()
    corners = np.array([[-0.7, 0.7], [0.7, 0.7], [-0.7, -0.7], [0.7, -0.7]])
    points = corners[list(kinds)] + np.random.default_rng(3).uniform(-0.25, 0.25, (len(kinds), 2))
    with (folder / FILE).open("wb") as file:
        np.savez(file, fingerprint=map_fingerprint(shelf, settings), rows=np.arange(len(kinds)), points=points)


def tone(path: Path, hertz: float, seconds: float = 1.0, rate: int = RATE, **settings: object) -> Path:
    """A tone that fades out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * hertz * times) * np.linspace(1, 0.1, len(times))
    channels = int(settings.pop("channels", 1))  # type: ignore[call-overload]
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate, **settings)
    return path


def captions_of(path: Path, clips: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> Path:
    """A captions.parquet of (clip id, captions, labels)."""
    rows = [
        (clip, caption, "made", number, None, list(labels))
        for clip, captions, labels in clips
        for number, caption in enumerate(captions)
    ]
    columns = [dict(zip(CAPTIONS_SCHEMA.names, row, strict=True)) for row in rows]
    write_captions(path, pa.Table.from_pylist(columns, schema=CAPTIONS_SCHEMA))
    return path
