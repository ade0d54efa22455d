"""Text encoders: sentence-transformers loads and tokenizes, pooling is ours: plain masked mean, not normalised.

That is how the original made its caption embeddings (GTE-base, mean of the last hidden states over all tokens). A
model's own Normalize module is left out unless asked for, its own pooling is used only as ``pooling="model"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from artifacts.errors import UserError
from artifacts.tables import first_line
from captions.model_files import ModelFiles, find_model

DEFAULT_MODEL = "thenlper/gte-base"
DEFAULT_BATCH_SIZE = 128
UNLIMITED = 1_000_000  # tokenizers say "no limit" with a number beyond any text

Pooling = Literal["mean", "cls", "model"]


@dataclass(frozen=True)
class EncoderSettings:
    """Everything besides the weights that decides an embedding. ``max_length`` counts tokens, special ones included."""

    pooling: Pooling = "mean"
    normalize: bool = False
    prefix: str = ""
    max_length: int | None = None


def load_encoder(
    name_or_path: str = DEFAULT_MODEL,
    device: str = "auto",
    normalize: bool = False,
    *,
    pooling: Pooling = "mean",
    prefix: str = "",
    max_length: int | None = None,
    revision: str | None = None,
) -> TextEncoder:
    """Load a text encoder by its hub name or from a local folder, in float32.

    ``pooling``: ``mean`` of the last hidden states over a text's tokens; ``cls``, the first token's; ``model``, what
    the model itself does, its Dense modules included. ``normalize`` scales each embedding to length 1. ``prefix`` is
    put before every text. ``max_length`` None is the model's own limit. Models that need code of their own are refused.

    Raises `UserError` where the model is unknown, cannot be loaded or reached, the device is not there, or a text of
    ``max_length`` tokens would not fit.
    """
    target = _device(device)
    files = find_model(name_or_path, revision)
    model = _load(files, target)
    return TextEncoder(model, files, EncoderSettings(pooling, normalize, prefix, max_length))


class TextEncoder:
    """Encodes texts to float32 embeddings. ``truncated`` counts the texts that were cut to ``max_length`` so far."""

    def __init__(self, model: nn.Sequential, files: ModelFiles, settings: EncoderSettings) -> None:
        self._files, self._weights_digest = files, files.weights_digest()
        self._transformer: Any = model[0]
        self._head = _head(model, settings.pooling)
        self._tokenizer: Any = getattr(self._transformer, "tokenizer", None)
        if not hasattr(self._transformer, "auto_model") or not callable(self._tokenizer):
            raise UserError(f"{files.name} is no transformer of texts, so it cannot encode captions.")
        self.own_pooling = _own_pooling(model)
        if settings.pooling == "model" and self.own_pooling == "none":
            raise UserError(f"{files.name} has no pooling of its own; use --pooling mean or cls.")
        self.settings = EncoderSettings(**{**asdict(settings), "max_length": self._max_length(model, settings)})
        self.truncated = 0
        self.device = next(self._transformer.parameters()).device
        self.dim = self._forward([self._tokenize(["a"])[0]]).shape[1]

    def describe(self) -> dict[str, Any]:
        """What embeddings depend on, for ``meta.json``: equal descriptions mean equal embeddings up to rounding."""
        return {
            "model": self._files.name,
            "revision": self._files.revision,
            "weights": self._weights_digest,
            "pooling": self.settings.pooling,
            "normalized": self.settings.normalize,
            "prefix": self.settings.prefix,
            "max_length": self.settings.max_length,
        }

    def notes(self) -> dict[str, Any]:
        """What ``meta.json`` says besides: where a local model lay, how it pools itself, where it computed."""
        path = None if self._files.revision else str(self._files.folder.resolve())
        return {"model_path": path, "model_pooling": self.own_pooling, "device": str(self.device)}

    def encode(
        self,
        texts: Sequence[str],
        batch_size: int = DEFAULT_BATCH_SIZE,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """float32 (N, dim), row i for text i. Batches hold texts of similar length, whatever the order of ``texts``.

        ``progress`` is called with the number of texts after each batch. Raises `UserError` where a batch does not
        fit in the GPU's memory.
        """
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        tokens = self._tokenize(texts)
        order = sorted(range(len(texts)), key=lambda row: (len(tokens[row]["input_ids"]), texts[row]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            try:
                embeddings[rows] = self._forward([tokens[row] for row in rows]).cpu().numpy()
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{len(rows)} texts of up to {len(tokens[rows[-1]]['input_ids'])} tokens do not fit in the memory "
                    f"of {self.device}; use a smaller --batch-size than {batch_size}."
                ) from error
            if progress is not None:
                progress(len(rows))
        return embeddings

    def _tokenize(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """Token ids and masks of every text, unpadded."""
        if not len(texts):
            return []
        prefixed = [self.settings.prefix + text for text in texts]
        if getattr(self._transformer, "do_lower_case", False):
            prefixed = [text.lower() for text in prefixed]
        limit = self.settings.max_length
        encoded = self._tokenizer(
            prefixed, padding=False, truncation=limit is not None, max_length=limit, return_attention_mask=True
        )
        rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        at_limit = [text for text, row in zip(prefixed, rows, strict=True) if len(row["input_ids"]) == limit]
        if at_limit and limit is not None:
            whole = self._tokenizer(at_limit, padding=False, truncation=False, verbose=False)["input_ids"]
            self.truncated += sum(len(ids) > limit for ids in whole)
        return rows

    @torch.inference_mode()
    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> torch.Tensor:
        """Embeddings (B, dim) of tokenized texts, float32."""
        features: dict[str, Any] = self._transformer(self._pad(rows))
        if self.settings.pooling == "model":
            for module in self._head:
                features = module(features)
            embeddings = features["sentence_embedding"].float()
        else:
            hidden = features["token_embeddings"].float()  # (B, T, D)
            mask = features["attention_mask"]  # (B, T)
            if self.settings.pooling == "mean":
                weights = mask.unsqueeze(-1).float()
                embeddings = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
            else:
                first = mask.int().argmax(dim=1)
                embeddings = hidden[torch.arange(len(hidden), device=hidden.device), first]
        return nn.functional.normalize(embeddings, dim=1) if self.settings.normalize else embeddings

    def _pad(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Tensors (B, T) on the model's device, padded on the tokenizer's side to the longest text."""
        fills = {"input_ids": self._tokenizer.pad_token_id or 0, "token_type_ids": self._tokenizer.pad_token_type_id}
        width = max(1, *(len(row["input_ids"]) for row in rows))
        left = self._tokenizer.padding_side == "left"
        padded = {}
        for name in rows[0]:
            array = np.full((len(rows), width), fills.get(name, 0), dtype=np.int64)
            for line, row in zip(array, rows, strict=True):
                at = width - len(row[name]) if left else 0
                line[at : at + len(row[name])] = row[name]
            padded[name] = torch.from_numpy(array).to(self.device)
        return padded

    def _max_length(self, model: nn.Sequential, settings: EncoderSettings) -> int | None:
        """Tokens a text is cut to: what was asked for, else the model's own limit; None where it has none."""
        own = getattr(model, "max_seq_length", None)
        own = own if own is not None and own < UNLIMITED else None
        possible = _positions(self._transformer.auto_model)
        if settings.max_length is None:
            return min((limit for limit in (own, possible) if limit is not None), default=None)
        least = self._tokenizer.num_special_tokens_to_add() + 1
        if settings.max_length < least or (possible is not None and settings.max_length > possible):
            raise UserError(
                f"--max-length {settings.max_length}: {self._files.name} takes texts of {least} to "
                f"{possible or 'any number of'} tokens."
            )
        return settings.max_length


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: this machine has no CUDA GPU that torch can use; try --device cpu.")
    return device


def _load(files: ModelFiles, device: str) -> nn.Sequential:
    """The sentence-transformers model in float32, whatever type its weights are stored in."""
    # Imported here since it takes seconds, which a wrong model name should not cost.
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model: nn.Sequential = SentenceTransformer(str(files.folder), device=device, local_files_only=True)
    except Exception as error:  # whatever a broken or foreign folder makes the libraries raise
        raise UserError(f"{files.folder} cannot be loaded as a text encoder: {first_line(error)}") from error
    finally:
        if had_bar:
            transformers_logging.enable_progress_bar()
    return model.float().eval()


def _head(model: nn.Sequential, pooling: Pooling) -> list[nn.Module]:
    """What follows the transformer, without Normalize; nothing where the pooling is ours."""
    return [module for module in list(model)[1:] if type(module).__name__ != "Normalize"] if pooling == "model" else []


def _own_pooling(model: nn.Sequential) -> str:
    """How the model itself pools, and what it does after that: ``mean``, ``cls``, ``mean+Dense``, …"""
    names = []
    modules: list[Any] = list(model)[1:]
    for module in modules:
        name = type(module).__name__
        if name == "Pooling":
            mode = getattr(module, "pooling_mode", None) or module.get_pooling_mode_str()  # before release 6
            name = mode if isinstance(mode, str) else "+".join(mode)
        names.append(name)
    return "+".join(name for name in names if name != "Normalize") or "none"


def _positions(transformer: nn.Module) -> int | None:
    """The most tokens that a transformer's position table or configuration allows; None where it does not say."""
    table = getattr(getattr(transformer, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    limit = getattr(getattr(transformer, "config", None), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
