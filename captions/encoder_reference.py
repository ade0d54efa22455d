"""What embeddings are held against: each text alone, float32, plain attention, no batch and no padding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from captions.encoder_model import head_of, load_model
from captions.encoder_threads import compute_threads

if TYPE_CHECKING:
    from captions.encoder import TextEncoder

PLAIN_ATTENTION = "eager"


def reference_embeddings(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    """float32 (N, dim): for ``pooling`` mean, the plain mean of the last hidden states over a text's tokens.

    An encoder that computes in float32 lends its weights; otherwise they are loaded anew, and where they do not fit
    beside it, onto the CPU.
    """
    with contextlib.ExitStack() as stack:
        if encoder.settings.precision == "fp32":
            transformer, head, device = encoder.transformer, encoder.head, encoder.device
            stack.enter_context(_plain_attention(transformer.auto_model))
        else:
            model, device = _load_again(encoder)
            transformer, head = model[0], head_of(model, encoder.settings.pooling)
        features = [encoder.tokenizer.alone(text, device) for text in texts]  # a tokenizer serves one thread at a time
        threads = stack.enter_context(compute_threads(device))
        rows = list(threads.map(lambda alone: _one(encoder, transformer, head, alone), features))
    return np.stack(rows)


def _load_again(encoder: TextEncoder) -> tuple[Any, torch.device]:
    for device in dict.fromkeys([str(encoder.device), "cpu"]):
        with contextlib.suppress(torch.OutOfMemoryError):
            model = load_model(
                encoder.files, device, "fp32", trust_remote_code=encoder.remote_code, attention=PLAIN_ATTENTION
            )
            return model, torch.device(device)
        torch.cuda.empty_cache()
    raise AssertionError("a CPU raises another error")


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
def _one(encoder: TextEncoder, transformer: Any, head: Sequence[nn.Module], features: dict[str, Any]) -> np.ndarray:
    features = transformer(features)
    if encoder.settings.pooling == "model":
        for module in head:
            features = module(features)
        embedding = features["sentence_embedding"][0]
    else:
        hidden = features["token_embeddings"][0]  # (T, D)
        embedding = hidden.mean(dim=0) if encoder.settings.pooling == "mean" else hidden[0]
    if encoder.settings.normalize:
        embedding = nn.functional.normalize(embedding, dim=0)
    return embedding.float().cpu().numpy()
