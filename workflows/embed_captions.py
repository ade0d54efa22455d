"""The embed-captions job: in this process, or blocks of captions through workers, of which each has the encoder."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding.batches import GPU_BATCH_TOKENS, EncodedBlock
from m2dprep.captions.embedding.embed import Advance, BlockRunner, Embedded, embed_captions, require_captions
from m2dprep.captions.embedding.encoder import EncoderRequest, TextEncoder
from m2dprep.captions.embedding.plan import Block
from m2dprep.workflows.engine.engine import run_shards
from m2dprep.workflows.engine.on_worker import ENCODER_LIBRARIES
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.engine.workers import Shared

# A task of some blocks: while one is computed, the worker tokenizes the next.
BLOCKS_A_SHARD = 4

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
    """`captions.embedding.embed.embed_captions`, whose blocks the workers of ``pool`` encode as ``request`` says.

    This process alone writes the store, and checks it with an encoder of its own. How many workers there are, and which
    finishes first, changes no byte. Also returns the encoder. Raises as `embed_captions` does, and where workers make
    embeddings of another encoder than this process.
    """
    require_captions(captions)  # before the seconds that an encoder takes
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
    """The encoder of this process: on the CPU where GPUs are the workers' alone, whose batches then are large ones.

    It only checks some rows then, in bf16 unless a precision was asked for: the workers' follows it. Raises
    `UserError` as `EncoderRequest.load` does.
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
    """Encodes blocks with the workers of ``pool``, yielding each as it comes."""
    found = encoder.files
    name = found.name if found.revision else str(found.folder.resolve())
    shared = Shared((found.folder.resolve(),) if found.revision is None else (), libraries=ENCODER_LIBRARIES)

    def run(blocks: Iterator[Block], advance: Advance) -> Iterator[tuple[Block, EncodedBlock]]:
        waiting: dict[int, Block] = {}
        # Every worker computes in the precision and the batches of this process, whatever its device would choose.
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
            while part := list(itertools.islice(numbered, BLOCKS_A_SHARD)):
                waiting.update(part)
                yield [(number, block.texts) for number, block in part]

        for rows in run_shards(function, shards(), pool, _poisoned, shared):
            for number, encoded in rows:
                block = waiting.pop(number)
                advance(len(block.texts))
                yield block, encoded

    return run


def encode_shard(
    shard: Sequence[Numbered], request: EncoderRequest, expected: dict[str, object]
) -> list[tuple[int, EncodedBlock]]:
    """The embeddings of numbered blocks of texts, with the encoder that this process keeps.

    Raises `UserError` where it is another encoder than ``expected``: its files differ from those of the client.
    """
    encoder = _encoder(request)
    if encoder.describe() != expected:
        raise UserError(f"a worker has another encoder: {encoder.describe()}, expected {expected}.")
    encoded = encoder.encode_blocks(texts for _, texts in shard)
    return [(number, block) for (number, _), block in zip(shard, encoded, strict=True)]


@functools.lru_cache(maxsize=1)
def _encoder(request: EncoderRequest) -> TextEncoder:
    return request.load()


def _poisoned(block: Numbered) -> tuple[int, EncodedBlock]:
    raise UserError(
        f"workers died while encoding a block of {len(block[1]):,} texts that starts with {block[1][0][:80]!r}, more "
        "than once; is there memory enough for the model? The same command goes on."
    )


def choose_pool(pool: WorkerPool | None, device: str) -> WorkerPool:
    """``pool``, with a GPU for each worker where they compute on GPUs; None is what suits this machine.

    That is one local worker a GPU where there are several, and otherwise this process.
    """
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if pool is None:
        return WorkerPool(local=gpus, gpu_each=True) if gpus > 1 else WorkerPool(local=0)
    if pool.here:
        return pool
    if pool.elsewhere:
        return pool.with_gpus() if device == "cuda" else pool
    if gpus and pool.local > gpus:
        raise UserError(f"--workers {pool.local}: this machine has {gpus} GPUs, and each worker takes one.")
    return pool.with_gpus() if gpus else pool
