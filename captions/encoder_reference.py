"""What embeddings are held against: each text alone, float32, plain attention, no batch and no padding.

With ``pooling="model"`` the library's own `SentenceTransformer.encode` computes them, and nothing of this package.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from captions.encoder_model import load_model
from captions.encoder_own import encoded_by_model
from captions.encoder_threads import compute_threads
from captions.encoder_whole import require_known_words

if TYPE_CHECKING:
    from captions.encoder import TextEncoder

PLAIN_ATTENTION = "eager"


def reference_embeddings(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    """float32 (N, dim): for ``pooling`` mean, the plain mean of the last hidden states over a text's tokens.

    An encoder that computes in float32 lends its weights; otherwise they are loaded anew. Where the GPU has no room
    for them or for a text, the CPU computes. Raises `UserError` where the tokenizer knows hardly any of the words.
    """
    require_known_words(encoder.files.name, encoder.tokenizer.unknown_share(texts))
    compute = _with_its_weights if encoder.settings.precision == "fp32" else _with_weights_loaded_again
    with contextlib.suppress(torch.OutOfMemoryError):  # whose traceback would hold the memory
        return compute(encoder, encoder.device, texts)
    _free_memory()
    return _with_weights_loaded_again(encoder, torch.device("cpu"), texts)


def _with_its_weights(encoder: TextEncoder, device: torch.device, texts: Sequence[str]) -> np.ndarray:
    with _plain_attention(encoder.transformer.auto_model):
        return _computed(encoder, encoder.model, device, texts)


def _with_weights_loaded_again(encoder: TextEncoder, device: torch.device, texts: Sequence[str]) -> np.ndarray:
    model: Any = load_model(
        encoder.files, str(device), "fp32", trust_remote_code=encoder.remote_code, attention=PLAIN_ATTENTION
    )
    embeddings = _computed(encoder, model, device, texts)
    del model
    _free_memory()  # sentence-transformers' models refer to themselves
    return embeddings


def _computed(encoder: TextEncoder, model: Any, device: torch.device, texts: Sequence[str]) -> np.ndarray:
    if encoder.settings.pooling != "model":
        return _by_hand(encoder, model, device, texts)
    empty = [encoder.tokenizer.is_empty(text) for text in texts]  # the library cannot encode what has no token
    embeddings = np.empty((len(texts), encoder.dim), np.float32)
    if given := [row for row, nothing in enumerate(empty) if not nothing]:
        embeddings[given] = encoded_by_model(encoder, model, [texts[row] for row in given])
    if rest := [row for row, nothing in enumerate(empty) if nothing]:
        embeddings[rest] = _by_hand(encoder, model, device, [texts[row] for row in rest])
    return embeddings


def _by_hand(encoder: TextEncoder, model: Any, device: torch.device, texts: Sequence[str]) -> np.ndarray:
    features = [encoder.tokenizer.alone(text, device) for text in texts]  # a tokenizer serves one thread at a time
    with compute_threads(device) as threads:
        return np.stack(list(threads.map(lambda alone: _one(encoder, model, alone), features)))


def _free_memory() -> None:
    """Give back what nothing refers to any more; it is needed for the batches."""
    gc.collect()
    torch.cuda.empty_cache()


@contextlib.contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """Plain attention for the block, where the model can be told so."""
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    try:
        model.set_attn_implementation(PLAIN_ATTENTION)
    except (AttributeError, ValueError, NotImplementedError):  # it has one kind only
        before = None
    try:
        yield
    finally:
        if before is not None:
            model.set_attn_implementation(before)


@torch.inference_mode()
def _one(encoder: TextEncoder, model: Any, features: dict[str, Any]) -> np.ndarray:
    settings = encoder.settings
    features = model[0](features)
    if settings.pooling == "model":
        embedding = encoder.through_head(features, list(model)[1 : 1 + len(encoder.head)])[0]
    else:
        hidden = features["token_embeddings"][0]  # (T, D)
        embedding = hidden.mean(dim=0) if settings.pooling == "mean" else hidden[0]
    if settings.normalize is True:
        embedding = nn.functional.normalize(embedding, dim=0)
    return embedding.float().cpu().numpy()
