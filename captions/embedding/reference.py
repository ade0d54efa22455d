"""Computes reference embeddings: each text alone, float32, plain attention, no batch and no padding.

With ``pooling="model"`` the library's own `SentenceTransformer.encode` computes them, and no code of this package.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.captions.embedding.loading import load_model, require_known_words
from m2dprep.captions.embedding.pipeline import compute_threads
from m2dprep.captions.embedding.text_model import TextModel

PLAIN_ATTENTION = "eager"
# Several kinds of endings, capitals, surrounding spaces, and a length that most models cut.
SAMPLES = ("A dog barks, then a car passes by.", "  Rain  ", "wind", "Birds and water can be heard. " * 80)


def reference_embeddings(encoder: TextModel, texts: Sequence[str]) -> np.ndarray:
    """Reference embeddings, float32 (N, dim): with ``pooling`` mean, that of a text's last hidden states.

    If the encoder computes in float32, its own weights are used; otherwise they are loaded again. If the GPU has no
    room for them or for a text, the CPU computes. Raises `UserError` if the tokenizer knows hardly any of the words.
    """
    require_known_words(encoder.files.name, encoder.tokenizer.unknown_share(texts))
    compute = _with_its_weights if encoder.settings.precision == "fp32" else _with_weights_loaded_again
    with contextlib.suppress(torch.OutOfMemoryError):  # the error's traceback would hold the memory
        return compute(encoder, encoder.device, texts)
    _free_memory()
    return _with_weights_loaded_again(encoder, torch.device("cpu"), texts)


def _with_its_weights(encoder: TextModel, device: torch.device, texts: Sequence[str]) -> np.ndarray:
    with _plain_attention(encoder.transformer.auto_model):
        return _computed(encoder, encoder.model, device, texts)


def _with_weights_loaded_again(encoder: TextModel, device: torch.device, texts: Sequence[str]) -> np.ndarray:
    model: Any = load_model(
        encoder.files, str(device), "fp32", trust_remote_code=encoder.remote_code, attention=PLAIN_ATTENTION
    )
    embeddings = _computed(encoder, model, device, texts)
    del model
    _free_memory()  # sentence-transformers' models have reference cycles
    return embeddings


def _computed(encoder: TextModel, model: Any, device: torch.device, texts: Sequence[str]) -> np.ndarray:
    if encoder.settings.pooling != "model":
        return _by_hand(encoder, model, device, texts)
    ours = [not _library_encodes(encoder, text) for text in texts]
    embeddings = np.empty((len(texts), encoder.dim), np.float32)
    if given := [row for row, by_hand in enumerate(ours) if not by_hand]:
        embeddings[given] = encoded_by_model(encoder, model, [texts[row] for row in given])
    if rest := [row for row, by_hand in enumerate(ours) if by_hand]:
        embeddings[rest] = _by_hand(encoder, model, device, [texts[row] for row in rest])
    return embeddings


def _library_encodes(encoder: TextModel, text: str) -> bool:
    """Whether the library can make the encoder's tokens of a text: it has some, and its end is not cut off."""
    return not encoder.tokenizer.is_empty(text) and not (encoder.ending and encoder.tokenizer([text]).truncated)


def _by_hand(encoder: TextModel, model: Any, device: torch.device, texts: Sequence[str]) -> np.ndarray:
    features = [encoder.tokenizer.alone(text, device) for text in texts]  # a tokenizer serves one thread at a time
    with compute_threads(device) as threads:
        return np.stack(list(threads.map(lambda alone: _one(encoder, model, alone), features)))


def _free_memory() -> None:
    """Free memory that nothing refers to any more; the batches need it."""
    gc.collect()
    torch.cuda.empty_cache()


@contextlib.contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """In this block, use plain attention if the model allows the choice."""
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    try:
        model.set_attn_implementation(PLAIN_ATTENTION)
    except (AttributeError, ValueError, NotImplementedError):  # it has only one kind
        before = None
    try:
        yield
    finally:
        if before is not None:
            model.set_attn_implementation(before)


@torch.inference_mode()
def _one(encoder: TextModel, model: Any, features: dict[str, Any]) -> np.ndarray:
    settings = encoder.settings
    features = model[0](features)
    if settings.pooling == "model":
        embedding = encoder.through_head(features, list(model)[1 : 1 + len(encoder.head)])[0]
    else:
        hidden = features["token_embeddings"][0]  # (T, D)
        embedding = (
            hidden.mean(dim=0) if settings.pooling == "mean" else hidden[-1 if settings.pooling == "last" else 0]
        )
    if settings.normalize is True:
        embedding = nn.functional.normalize(embedding, dim=0)
    return embedding.float().cpu().numpy()


def encoded_by_model(encoder: TextModel, model: Any, texts: Sequence[str]) -> np.ndarray:
    """float32 (N, dim) by the library's own ``encode``, each text alone, with defaults for unset options."""
    given: dict[str, Any] = {} if encoder.settings.prefix == encoder.own.prompt else {"prompt": encoder.settings.prefix}
    with _length(model, encoder.asked_length, encoder.settings.max_length):
        embeddings = model.encode(
            [text + (encoder.ending.text if encoder.ending else "") for text in texts],
            batch_size=1,
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=encoder.settings.normalize is True,
            **given,
        )
    return embeddings.float().cpu().numpy()


def require_same_as_model(encoder: TextModel, model: Any, min_cosine: float) -> None:
    """Raise `UserError` if the model's own ``encode`` embeds some samples differently from ``encoder``."""
    samples = [text for text in SAMPLES if _library_encodes(encoder, text)]
    try:
        theirs = encoded_by_model(encoder, model, samples)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model that cannot do this makes the libraries raise any kind of error
        raise UserError(
            f"{encoder.files.name} cannot encode texts by itself ({first_line(error)}); use --pooling mean or cls."
        ) from error
    if theirs.shape[1] != encoder.dim:
        raise UserError(_other(encoder, f"{theirs.shape[1]} numbers, not {encoder.dim}"))
    tokens = encoder.tokenizer(samples)
    for row, text in enumerate(samples):
        ours = encoder.forward(tokens, np.array([row])).float().cpu().numpy()[0]
        cosine = _cosine(ours, theirs[row])
        if not cosine >= min_cosine:
            raise UserError(_other(encoder, f"a cosine of {cosine:.6f} for {text[:40]!r}"))


def _other(encoder: TextModel, what: str) -> str:
    return (
        f"{encoder.files.name}: SentenceTransformer.encode makes other embeddings of it than --pooling model does "
        f"({what}): its folder asks for something that is not known here, such as a chat template or settings of its "
        "tokenizer. Use --pooling mean or cls."
    )


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    left, right = left.astype(np.float64), right.astype(np.float64)
    norm = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / norm if norm else 1.0 if not left.any() and not right.any() else 0.0


@contextlib.contextmanager
def _length(model: Any, asked: int | None, limit: int | None) -> Iterator[None]:
    """In this block, cut texts to ``limit`` tokens if asked to, or if the model's own limit is too high for it."""
    own = getattr(model, "max_seq_length", None)
    change = limit is not None and (asked is not None or own is None or own > limit)
    if change:
        model.max_seq_length = limit
    try:
        yield
    finally:
        if change:
            model.max_seq_length = own
