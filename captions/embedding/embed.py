"""Encodes a captions table into an aligned store: every different text once, in blocks that survive a kill."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.embeddings.store import META, PROGRESS, EmbeddingStore, index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_captions
from m2dprep.artifacts.text_files import require_utf8
from m2dprep.captions.embedding.batches import EncodedBlock
from m2dprep.captions.embedding.plan import (
    Block,
    EmbedPlan,
    as_stored,
    copy_reusable,
    find_reusable,
    open_replaced,
    open_reusable,
)
from m2dprep.captions.embedding.sample_check import SampleCheck

DTYPES = ("float16", "float32")
COLUMNS = ["clip_id", "caption", "source", "caption_index"]
COUNTS = {"reused_texts": 0, "reused_rows": 0, "truncated": 0, "tokens": 0, "tokens_with_padding": 0}

COMPUTED_BY = ("device", "attention")

Advance = Callable[[int], object]
# Encodes blocks and yields each with its result, in any order.
BlockRunner = Callable[[Iterator[Block], Advance], Iterator[tuple[Block, EncodedBlock]]]


class CaptionEncoder(Protocol):
    """The part of an encoder that `embed_captions` needs; `captions.embedding.encoder.TextEncoder` has it."""

    @property
    def dim(self) -> int: ...

    @property
    def block_tokens(self) -> int: ...

    @property
    def batches_for(self) -> str: ...

    def settle(self, batch_tokens: int | None) -> int: ...

    def describe(self) -> dict[str, Any]: ...

    def notes(self) -> dict[str, Any]: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...

    def encode_blocks(
        self, blocks: Iterable[Sequence[str]], progress: Advance | None = ...
    ) -> Iterator[EncodedBlock]: ...

    def reference(self, texts: Sequence[str]) -> np.ndarray: ...

    def truncated(self, texts: Sequence[str]) -> int: ...


@dataclass(frozen=True)
class Embedded:
    """A finished store. This run encoded ``done`` rows and copied ``reused``; earlier runs did ``skipped``."""

    store: EmbeddingStore
    done: int
    reused: int
    skipped: int


def embed_captions(
    captions_path: Path,
    out: Path,
    encoder: CaptionEncoder,
    *,
    dtype: str = "float16",
    overwrite: bool = False,
    reuse: Path | None = None,
    block_tokens: int | None = None,
    run_blocks: BlockRunner | None = None,
) -> Embedded:
    """Encode ``captions.parquet`` into the store ``out``: row i of its (N, D) array is row i of the table.

    An interrupted run continues where it stopped; a finished store is left as it is. ``reuse`` is another store with
    the same settings, whose rows are copied for equal texts. Without it, those of a store of other captions are that
    ``overwrite`` replaces; it stays until the new one is complete. ``run_blocks`` computes the blocks elsewhere; by
    default ``encoder`` does. At the end some rows are compared with a plain float32 computation, and ``meta.json``
    records it.

    Raises `UserError` if there are no captions, or an embedding is not finite as ``dtype``; `FingerprintConflictError`
    if ``out`` or ``reuse`` was made with other settings or captions; `CheckFailedError` if embeddings differ from the
    plain computation.
    """
    if dtype not in DTYPES:
        raise UserError(f"embeddings are stored as {' or '.join(DTYPES)}, not {dtype!r}.")
    captions = require_captions(captions_path)
    earlier = open_reusable(reuse, out, encoder.describe(), dtype) if reuse is not None else None
    check = None
    if overwrite or not (out / META).exists() or (out / PROGRESS).exists():
        check = SampleCheck(captions, encoder)
        computed_cosine = check.of_encoder(encoder)  # before anything is written, and before hours of work
    index = index_of(captions)
    if reuse is None and check is not None:
        earlier = open_replaced(out, index, encoder.describe(), dtype, overwrite=overwrite)
    with EmbeddingStoreWriter(out, index, encoder.dim, dtype, encoder.describe(), overwrite=overwrite) as writer:
        skipped, reused = writer.rows_done, 0
        if check is not None and not writer.finished:
            plan = EmbedPlan(captions["caption"], index["caption_digest"])
            given = np.zeros(len(plan), bool)
            if earlier is not None:
                found = find_reusable(earlier, index, plan)
                given = found >= 0
                reused = copy_reusable(earlier, found, plan, writer, dtype, captions, encoder.truncated)
            del index
            # A run that continues, with whatever memory, divides the texts as the first run did.
            settled = writer.kept.setdefault("batch_tokens", {})
            settled[encoder.batches_for] = encoder.settle(settled.get(encoder.batches_for))
            blocks = plan.blocks(block_tokens or encoder.block_tokens, given, writer.done[plan.first_rows])
            runner = run_blocks or (lambda blocks, advance: run_here(encoder, blocks, advance))
            _encode(writer, plan, runner, blocks, captions, dtype)
            stored_cosine = check.of_store(writer.read(check.rows))
            cosines = {"smallest_cosine": stored_cosine, "smallest_cosine_before_storing": computed_cosine}
            counts = {"texts": len(plan), **COUNTS, **writer.counts}
            divided = counts.pop("batch_halvings", 0)
            notes = {**encoder.notes(), **computed_by(writer.kept, divided)}
            writer.finish({"counts": counts, **notes, "check": {"rows": len(check.rows), **cosines}})
    return Embedded(EmbeddingStore.open(out), captions.num_rows - skipped - reused, reused, skipped)


def _encode(
    writer: EmbeddingStoreWriter,
    plan: EmbedPlan,
    runner: BlockRunner,
    blocks: Iterator[Block],
    captions: pa.Table,
    dtype: str,
) -> None:
    """Encode ``blocks`` and write each one when it is ready."""
    done = int(np.count_nonzero(writer.done[plan.first_rows]))
    with Progress(len(plan), "embedding", "texts", initial=done) as progress:
        for block, encoded in runner(blocks, progress.advance):
            counts = {
                "truncated": encoded.truncated,
                "tokens": encoded.tokens,
                "tokens_with_padding": encoded.computed,
                "batch_halvings": encoded.divided,
            }
            for name in COMPUTED_BY:
                note = getattr(encoded, name)
                writer.kept[name] = sorted({note, *writer.kept.get(name, [])} - {""})
            stored = as_stored(encoded.embeddings, dtype, captions, block.rows, block.which)
            writer.write_shard(block.rows, stored, block.which, counts)


def computed_by(kept: Mapping[str, Any], divided: int) -> dict[str, Any]:
    """Notes on what computed the blocks of a store, in this run and earlier ones; empty if no block was computed."""
    notes = {name: ", ".join(kept[name]) for name in COMPUTED_BY if kept.get(name)}
    return {**notes, "batch_halvings": divided} if notes else {}


def run_here(
    encoder: CaptionEncoder, blocks: Iterator[Block], advance: Advance
) -> Iterator[tuple[Block, EncodedBlock]]:
    """Encode ``blocks`` in this process, in order."""
    waiting: deque[Block] = deque()

    def texts() -> Iterator[list[str]]:
        for block in blocks:
            waiting.append(block)
            yield block.texts

    for encoded in encoder.encode_blocks(texts(), advance):
        yield waiting.popleft(), encoded


def require_captions(path: Path) -> pa.Table:
    """The columns of the captions in ``path`` that encoding needs.

    Raises `UserError` if the file cannot be read, has no rows, or holds text that is not UTF-8.
    """
    captions = read_captions(path, COLUMNS)
    require_utf8(captions, path)
    if captions.num_rows == 0:
        raise UserError(f"{path} holds no captions.")
    return captions
