"""The embed-captions job: encodes captions in this process, or in blocks with workers that each load the encoder."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from m2dprep.artifacts.embeddings.store import META, index_of
from m2dprep.artifacts.embeddings.writer import require_captions_of
from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding.batches import GPU_BATCH_TOKENS, EncodedBlock
from m2dprep.captions.embedding.embed import Advance, BlockRunner, Embedded, embed_captions, require_captions
from m2dprep.captions.embedding.encoder import EncoderRequest, TextEncoder
from m2dprep.captions.embedding.plan import Block
from m2dprep.workflows.engine.engine import run_shards
from m2dprep.workflows.engine.on_worker import ENCODER_LIBRARIES
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.engine.workers import Shared

# A task has several blocks, so that the worker tokenizes one while it computes another.
BLOCKS_PER_SHARD = 4

Numbered = tuple[int, list[str]]


def embed_with_workers(
    captions: Path,
    out: Path,
    request: EncoderRequest,
    pool: WorkerPool | int = 0,
    *,
    dtype: str = "float16",
    overwrite: bool = False,
    reuse: Path | None = None,
) -> tuple[Embedded, TextEncoder]:
    """Run `captions.embedding.embed.embed_captions`, with the workers of ``pool`` encoding its blocks.

    Only this process writes the store, and it checks the store with its own encoder. The number of workers and the
    order in which they finish change no byte. Also returns the encoder. Raises what `embed_captions` raises, and
    `UserError` if a worker's encoder differs from this process's.
    """
    table = require_captions(captions)  # before the seconds that an encoder takes
    if not overwrite and reuse is None and (out / META).exists():
        require_captions_of(out, index_of(table), request.known_settings() | {"dtype": dtype})
    del table
    pool = WorkerPool.of(pool)
    encoder = load_for_client(request, pool)
    runner = None if pool.here else run_on(encoder, request, pool)
    result = embed_captions(
        captions,
        out,
        encoder,
        dtype=dtype,
        overwrite=overwrite,
        reuse=reuse,
        run_blocks=runner,
    )
    return result, encoder


def load_for_client(request: EncoderRequest, pool: WorkerPool) -> TextEncoder:
    """The encoder of this process. If only the workers have GPUs, it runs on the CPU and merely checks some rows.

    Its precision is then bf16 unless ``request`` names one, and its batches are those for GPUs. Workers follow both.
    Raises `UserError` as `EncoderRequest.load` does.
    """
    if not (pool.elsewhere and request.device.startswith("cuda")) or torch.cuda.is_available():
        return request.load()
    precision = "bf16" if request.precision == "auto" else request.precision
    print(
        f"m2dprep: no GPU here: the check is computed on the CPU, the rest by the workers in {precision}.",
        file=sys.stderr,
        flush=True,
    )
    encoder = replace(request, device="cpu", precision=precision).load()
    encoder.settle(GPU_BATCH_TOKENS, "cuda")
    return encoder


def run_on(encoder: TextEncoder, request: EncoderRequest, pool: WorkerPool) -> BlockRunner:
    """A runner that encodes blocks with the workers of ``pool`` and yields each block as it finishes."""
    found = encoder.files
    name = found.name if found.revision else str(found.folder.resolve())
    shared = Shared((found.folder.resolve(),) if found.revision is None else (), libraries=ENCODER_LIBRARIES)

    def run(blocks: Iterator[Block], advance: Advance) -> Iterator[tuple[Block, EncodedBlock]]:
        waiting: dict[int, Block] = {}
        # Every worker uses the precision and the batch size of this process, whatever its device would choose.
        same = replace(
            request,
            name_or_path=name,
            revision=found.revision,
            precision=encoder.settings.precision,
            batch_tokens=encoder.batch_tokens,
        )
        function = functools.partial(encode_shard, request=same, expected=encoder.describe())

        def shards() -> Iterator[list[Numbered]]:
            numbered = enumerate(blocks)
            while part := list(itertools.islice(numbered, BLOCKS_PER_SHARD)):
                waiting.update(part)
                yield [(number, block.texts) for number, block in part]

        for rows in run_shards(function, shards(), pool, _on_worker_death, shared):
            for number, encoded in rows:
                block = waiting.pop(number)
                advance(len(block.texts))
                yield block, encoded

    return run


def encode_shard(
    shard: Sequence[Numbered], request: EncoderRequest, expected: dict[str, object]
) -> list[tuple[int, EncodedBlock]]:
    """Encode numbered blocks of texts with the encoder that this process keeps.

    Raises `UserError` if that encoder is not the ``expected`` one: its files differ from those of the client.
    """
    encoder = _encoder(request)
    if encoder.describe() != expected:
        raise UserError(f"a worker has another encoder: {encoder.describe()}, expected {expected}.")
    encoded = encoder.encode_blocks(texts for _, texts in shard)
    return [(number, block) for (number, _), block in zip(shard, encoded, strict=True)]


@functools.lru_cache(maxsize=1)
def _encoder(request: EncoderRequest) -> TextEncoder:
    return request.load()


def _on_worker_death(block: Numbered) -> tuple[int, EncodedBlock]:
    raise UserError(
        f"workers died while encoding a block of {len(block[1]):,} texts that starts with {block[1][0][:80]!r}, more "
        "than once; is there memory enough for the model? The same command goes on."
    )


def choose_pool(pool: WorkerPool | None, device: str) -> WorkerPool:
    """``pool``, with one GPU per worker if ``device`` is a GPU.

    None chooses for this machine: one local worker per GPU if there are several GPUs, otherwise this process.
    """
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if pool is None:
        return WorkerPool(local=gpus, gpu_per_worker=True) if gpus > 1 else WorkerPool(local=0)
    if pool.here:
        return pool
    if pool.elsewhere:
        return pool.with_gpus() if device == "cuda" else pool
    if gpus and pool.local > gpus:
        raise UserError(f"--workers {pool.local}: this machine has {gpus} GPUs, and each worker takes one.")
    return pool.with_gpus() if gpus else pool
