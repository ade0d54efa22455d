"""Inspects a store: norms, equal embeddings, dead dimensions, and the captions nearest to a text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.columns import one_array
from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.embeddings.store import TOKENIZER_AND_MODULES, EmbeddingStore
from m2dprep.artifacts.errors import CheckFailedError, UserError
from m2dprep.artifacts.tables import read_captions
from m2dprep.artifacts.text_files import require_utf8
from m2dprep.captions.embedding.embed import COLUMNS
from m2dprep.captions.embedding.encoder import EncoderRequest
from m2dprep.captions.embedding.sample_check import SampleCheck

if TYPE_CHECKING:
    from m2dprep.captions.embedding.encoder import TextEncoder


BLOCK_ROWS = 16384
NAMED = 20  # the number of dead dimensions that are listed
DEAD_SHARE = 1e-3  # of the mean standard deviation of all dimensions


@dataclass(frozen=True)
class StoreReport:
    """The findings of `inspect_store`.

    ``repeated_texts`` counts rows whose text an earlier row has; ``equal_embeddings`` counts different texts whose
    embedding is that of another text, bit for bit. ``dead_dimensions`` hardly vary, so they do not tell captions apart.
    """

    rows: int
    dim: int
    dtype: str
    model: str | None
    norm: dict[str, float]
    zero_rows: int
    not_finite_rows: int
    repeated_texts: int
    equal_embeddings: int
    dead_dimensions: list[int]
    mean_cosine: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        dead = ", ".join(map(str, self.dead_dimensions[:NAMED])) + (", …" if len(self.dead_dimensions) > NAMED else "")
        return [
            f"{self.rows:,} x {self.dim} {self.dtype}, {self.model or 'unknown encoder'}",
            f"norms: {self.norm['min']:.4g} to {self.norm['max']:.4g}, mean {self.norm['mean']:.4g}",
            f"all zeros: {self.zero_rows:,}; not finite: {self.not_finite_rows:,}",
            f"rows with the text of an earlier one: {self.repeated_texts:,}; "
            f"other texts with an equal embedding: {self.equal_embeddings:,}",
            f"dead dimensions: {len(self.dead_dimensions)}{f' ({dead})' if dead else ''}",
            f"mean cosine between two rows: {self.mean_cosine:.4f}",
        ]


@dataclass(frozen=True)
class Neighbour:
    """A caption near to a text: its ``row``, its clip, the cosine, and ``caption`` if the table is at hand."""

    row: int
    clip_id: str
    caption_index: int
    cosine: float
    caption: str | None


def inspect_store(store: EmbeddingStore) -> StoreReport:
    """Compare all rows with their digests and examine them, one block in memory at a time."""
    store.require_whole()
    index = store.index()
    rows, dim = store.embeddings.shape
    total, squares, directions = (np.zeros(dim) for _ in range(3))
    norms = np.empty(rows)
    digests = []
    with Progress(rows, "inspecting", "rows") as progress:
        for start, block in _blocks(store):
            norms[start : start + len(block)] = np.linalg.norm(block, axis=1)
            digests += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in block]
            sound = block[np.isfinite(norms[start : start + len(block)])].astype(np.float64)
            total += sound.sum(axis=0)
            squares += (sound**2).sum(axis=0)
            lengths = np.linalg.norm(sound, axis=1, keepdims=True)
            directions += (sound / np.where(lengths > 0, lengths, 1)).sum(axis=0)
            progress.advance(len(block))
    finite = np.isfinite(norms)
    count = max(1, int(finite.sum()))
    std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    texts = index["caption_digest"] if store.has_captions else pa.chunked_array([pa.array(range(rows))])
    different = len(pc.unique(texts))
    pairs = pa.table({"text": texts, "embedding": pa.array(digests, pa.binary(16))}).group_by(["text", "embedding"])
    kinds = pairs.aggregate([])
    return StoreReport(
        rows,
        dim,
        str(store.embeddings.dtype),
        store.meta.get("model"),
        {name: float(getattr(norms[finite], name)()) if finite.any() else 0.0 for name in ("min", "mean", "max")},
        int((norms == 0).sum()),
        int((~finite).sum()),
        rows - different if store.has_captions else 0,
        kinds.num_rows - len(pc.unique(kinds["embedding"])),
        np.flatnonzero(std <= DEAD_SHARE * std.mean()).tolist(),
        float((directions @ directions - count) / max(1, count * (count - 1))),
    )


def nearest(store: EmbeddingStore, embedding: np.ndarray, count: int, captions: pa.Table | None) -> list[Neighbour]:
    """The ``count`` rows of different texts with the largest cosine to ``embedding`` (D,), the nearest first."""
    direction = embedding / max(float(np.linalg.norm(embedding)), 1e-30)
    cosines = np.empty(len(store.embeddings), np.float32)
    for start, block in _blocks(store):
        norms = np.linalg.norm(block, axis=1)
        cosines[start : start + len(block)] = block @ direction / np.where(norms > 0, norms, 1)
    index = store.index()
    order = np.argsort(-cosines, kind="stable")
    found: list[Neighbour] = []
    for row in (_different(index, order, count) if store.has_captions else order[:count]).tolist():
        entry = index.slice(row, 1).to_pylist()[0]
        text = captions["caption"][row].as_py() if captions is not None else None
        found.append(Neighbour(row, entry["clip_id"], entry["caption_index"], float(cosines[row]), text))
    return found


def _different(index: pa.Table, order: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` rows in ``order`` with different texts."""
    digests = one_array(index["caption_digest"])
    width = digests.type.byte_width
    texts = np.frombuffer(digests.buffers()[1], f"S{width}")[digests.offset : digests.offset + len(digests)]
    found = np.zeros(0, order.dtype)
    for start in range(0, len(order), BLOCK_ROWS):
        among = np.concatenate([found, order[start : start + BLOCK_ROWS]])
        firsts = np.sort(np.unique(texts[among], return_index=True)[1])
        found = among[firsts[:count]]
        if len(found) == count:
            break
    return found


def encoder_request(store: EmbeddingStore, device: str, trust_remote_code: bool, model: str | None) -> EncoderRequest:
    """The encoder that made a store, or ``model`` with the same settings.

    Raises `UserError` if the store does not name its encoder.
    """
    meta = store.meta
    name = model or meta.get("model_path") or meta.get("model")
    if not name:
        raise UserError(f"{store.folder} does not say which encoder made it; give --text-model.")
    return EncoderRequest(
        name,
        device,
        meta.get("normalized") or False,
        meta.get("pooling") or "mean",
        meta.get("prefix") or "",
        meta.get("max_length"),
        None if model else meta.get("revision"),
        precision="fp32",
        trust_remote_code=trust_remote_code,
        eos=bool(meta.get("eos")),
    )


def captions_of(store: EmbeddingStore, path: Path | None) -> pa.Table | None:
    """The captions that the rows belong to: those in ``path``, else those beside the store if they are its own.

    Raises `UserError` if those in ``path`` are others.
    """
    beside = store.folder.resolve().parent / "captions.parquet"
    if path is None and not (store.has_captions and beside.exists()):
        return None
    captions = read_captions(path or beside, COLUMNS)
    try:
        require_utf8(captions, path or beside)
        store.verify(captions)
    except UserError:
        if path is not None:
            raise
        return None
    return captions


def check_store(store: EmbeddingStore, captions: pa.Table, request: EncoderRequest, rows: int, seed: int) -> float:
    """Encode ``rows`` random rows again, plainly, each alone in float32; returns the smallest cosine to those stored.

    Raises `CheckFailedError` if they differ too much, belong to other captions, or the encoder is another one.
    """
    try:
        store.verify(captions)
    except UserError as error:
        raise CheckFailedError(str(error)) from error
    encoder = request.load()
    require_maker(store, encoder)
    check = SampleCheck(captions, encoder, rows, seed, precision=store.meta.get("precision", "fp32"))
    return check.of_store(store.rows().take(check.rows))


def require_maker(store: EmbeddingStore, encoder: TextEncoder) -> None:
    """Raise `CheckFailedError` if a store was made by another model than ``encoder``'s."""
    described = encoder.describe()
    for key, what in (("weights", "weights"), (TOKENIZER_AND_MODULES, "tokenizer and modules")):
        if store.meta.get(key) not in (None, described[key]):
            raise CheckFailedError(
                f"{store.folder} was made with the {what} {store.meta[key]}; those of {encoder.files.folder} are "
                f"{described[key]}."
            )
    dim = store.embeddings.shape[1]
    if encoder.dim != dim:
        raise CheckFailedError(f"{store.folder} has {dim} numbers a row, {encoder.files.name} makes {encoder.dim}.")


def _blocks(store: EmbeddingStore) -> Iterator[tuple[int, np.ndarray]]:
    """``(first row, float32 (n, D))`` of all rows."""
    for start, block in store.blocks(BLOCK_ROWS):
        yield start, block.astype(np.float32)
