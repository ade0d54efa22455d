"""Runs blocks of texts through an encoder: tokenizing, computing and copying back at the same time.

On a CPU every batch is computed by one thread, and as many batches at a time as torch has threads, since torch's
operations stay within the thread that called them. So nothing waits for the slowest thread of every operation, and the
result does not depend on their number.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding.batches import EncodedBlock, Tokens, batches
from m2dprep.captions.embedding.loading import attention_of
from m2dprep.captions.embedding.text_model import TextModel


@contextlib.contextmanager
def threads(count: int, initializer: Callable[[], object] | None = None) -> Iterator[Executor]:
    """``count`` threads; no work is left to them if the block is left early."""
    pool = ThreadPoolExecutor(count, initializer=initializer)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def compute_threads(device: torch.device) -> Iterator[Executor]:
    """As many threads as torch would use on a CPU, each computing alone; one thread if a GPU does the work."""
    count = torch.get_num_threads() if device.type == "cpu" else 1
    with threads(count, lambda: torch.set_num_threads(1)) as pool:
        yield pool


TOKENIZED_AHEAD = 2  # blocks


def encode_ahead(
    encoder: TextModel, blocks: Iterable[Sequence[str]], progress: Callable[[int], object] | None
) -> Iterator[EncodedBlock]:
    """Each block's embeddings, in order; while one is waited for, the next one is computed and more are tokenized."""
    launch = _launch_on_gpu if encoder.device.type == "cuda" else _launch_on_cpu
    with contextlib.ExitStack() as stack:
        ahead = stack.enter_context(threads(1))
        workers = stack.enter_context(compute_threads(encoder.device))
        waiting: deque[Callable[[], EncodedBlock]] = deque()
        for tokens in _tokenized(encoder, blocks, ahead):
            waiting.append(launch(encoder, tokens, workers, progress))
            if len(waiting) > 1:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()


def _tokenized(encoder: TextModel, blocks: Iterable[Sequence[str]], ahead: Executor) -> Iterator[Tokens]:
    pending: deque[Future[Tokens]] = deque()
    for texts in blocks:
        pending.append(ahead.submit(encoder.tokenizer, texts))
        if len(pending) > TOKENIZED_AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _launch_on_cpu(
    encoder: TextModel, tokens: Tokens, workers: Executor, progress: Callable[[int], object] | None
) -> Callable[[], EncodedBlock]:
    """Start a block's batches; the function returned waits for them."""
    parts = [(rows, workers.submit(embed_batch, encoder, tokens, rows)) for rows in _batches(encoder, tokens)]

    def result() -> EncodedBlock:
        embeddings = np.empty((len(tokens.lengths), encoder.dim), np.float32)
        for rows, future in parts:
            embeddings[rows] = future.result().numpy()
            if progress is not None:
                progress(len(rows))
        return _encoded(encoder, tokens, [rows for rows, _ in parts], embeddings)

    return result


def _launch_on_gpu(
    encoder: TextModel, tokens: Tokens, _: Executor, progress: Callable[[int], object] | None
) -> Callable[[], EncodedBlock]:
    """Queue a block's batches and the copy of their embeddings; the function returned waits for both."""
    divided = _batches(encoder, tokens)
    with torch.cuda.device(encoder.device):
        copied = torch.empty((len(tokens.lengths), encoder.dim), dtype=torch.float32, pin_memory=True)
        start = 0
        for rows in divided:  # one at a time: a block's embeddings need not be on the GPU all at once
            copied[start : start + len(rows)].copy_(embed_batch(encoder, tokens, rows), non_blocking=True)
            start += len(rows)
        arrived = torch.cuda.Event()
        arrived.record()

    def result() -> EncodedBlock:
        arrived.synchronize()
        embeddings = np.empty(copied.shape, np.float32)
        embeddings[np.concatenate(divided)] = copied.numpy()
        if progress is not None:
            progress(len(embeddings))
        return _encoded(encoder, tokens, divided, embeddings)

    return result


def _batches(encoder: TextModel, tokens: Tokens) -> list[np.ndarray]:
    return list(batches(tokens.lengths, encoder.batch_tokens))


def _encoded(encoder: TextModel, tokens: Tokens, divided: Sequence[np.ndarray], embeddings: np.ndarray) -> EncodedBlock:
    computed = sum(len(rows) * int(tokens.lengths[rows].max()) for rows in divided)
    return EncodedBlock(
        embeddings,
        tokens.truncated,
        int(tokens.starts[-1]),
        computed,
        encoder.device_name,
        attention_of(encoder.transformer),
        encoder.budget.take_divisions(),
    )


def embed_batch(encoder: TextModel, tokens: Tokens, rows: np.ndarray) -> torch.Tensor:
    """Embeddings (B, dim) of a batch, computed in halves if the GPU's memory does not suffice.

    Raises `UserError` if a single text does not fit.
    """
    size = len(rows) * int(tokens.lengths[rows].max())
    if len(rows) == 1 or size <= encoder.budget.tokens:
        with contextlib.suppress(torch.OutOfMemoryError):  # the error's traceback would hold the memory
            return encoder.forward(tokens, rows)
        torch.cuda.empty_cache()
        encoder.budget.shrink_below(size)
    if len(rows) == 1:
        raise UserError(
            f"a text of {size:,} tokens does not fit in the memory of {encoder.device}; cut it with --max-length."
        )
    encoder.budget.note_division()
    middle = len(rows) // 2
    return torch.cat([embed_batch(encoder, tokens, half) for half in (rows[:middle], rows[middle:])])
