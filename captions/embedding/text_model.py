"""The model of a text encoder on its device: tokens in, embeddings out, one batch at a time.

Pooling is ours: plain masked mean, not normalised. That is how the original made its caption embeddings (GTE-base, mean
of the last hidden states over all tokens).

With ``pooling="model"`` texts are treated as the sentence-transformers model itself treats them. Besides its pooling, a
model's folder may ask for a prompt before every text, leave that prompt out of the pooling, cut embeddings to fewer
numbers, scale them, or strip and lower-case texts; all of it is done here. Other requests, such as a chat template, are
caught by `require_same_as_model`, which compares with the library's own ``encode``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from m2dprep.artifacts.embeddings.store import TOKENIZER_AND_MODULES
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.artifacts.text_files import require_text
from m2dprep.captions.embedding.batches import BLOCK_BATCHES, BatchBudget, Padded, TextTokenizer, Tokens, fitting_tokens
from m2dprep.captions.embedding.endings import ending_of
from m2dprep.captions.embedding.loading import Pooling, attention_of, max_tokens_of, own_pooling, require_vocabulary
from m2dprep.captions.embedding.model_files import ModelFiles
from m2dprep.captions.embedding.sample_check import MIN_COSINE

# Embeddings of length 1: yes, no, or before they were cut to fewer numbers, as a model's own Normalize does it.
Normalized = bool | Literal["before truncation"]
OWN_TYPE = "SentenceTransformer"


@dataclass(frozen=True)
class OwnHead:
    """The modules that follow a model's transformer, and the other settings of its folder.

    ``prompt`` is put before texts, ``prompt_pooled`` says whether its tokens count in the pooling, ``truncate_dim`` is
    the number of dimensions that are kept, ``normalizes`` says whether the last of ``modules`` scales to length 1.
    """

    modules: tuple[nn.Module, ...]
    prompt: str
    prompt_pooled: bool
    truncate_dim: int | None
    normalizes: bool

    @classmethod
    def of(cls, model: Any) -> OwnHead:
        """The head of a loaded sentence-transformers model."""
        modules = tuple(list(model)[1:])
        pooling = [module for module in modules if type(module).__name__ == "Pooling"]
        return cls(
            modules,
            model.prompts.get(model.default_prompt_name) or "" if model.default_prompt_name is not None else "",
            all(getattr(module, "include_prompt", True) for module in pooling),
            getattr(model, "truncate_dim", None),
            bool(modules) and _is_normalize(modules[-1]),
        )

    def normalized(self, asked: Normalized | None) -> Normalized:
        """How embeddings are scaled; ``asked`` None is as the model does it."""
        if asked is None:
            return ("before truncation" if self.truncate_dim else True) if self.normalizes else False
        return asked

    def without_scaling(self, normalized: Normalized | None) -> tuple[nn.Module, ...]:
        """The modules, without a final Normalize if embeddings are to keep their length."""
        return self.modules[:-1] if self.normalizes and normalized is False else self.modules

    def describe(self, prefix: str) -> dict[str, Any]:
        """The head's metadata besides the modules; empty for a model without special settings."""
        truncated = {} if self.truncate_dim is None else {"truncate_dim": self.truncate_dim}
        return truncated | ({"prompt_pooled": False} if prefix and not self.prompt_pooled else {})


def _is_normalize(module: Any) -> bool:
    output = getattr(module, "module_output_name", None) or "sentence_embedding"
    return type(module).__name__ == "Normalize" and output == "sentence_embedding"


def strips_texts(model: Any, tokenizer: Any) -> bool:
    """Whether the library strips white space around texts (as it did before release 6), if that makes a difference."""
    spaced, plain = " a ", "a"
    ids = [row["input_ids"][0] for row in (tokenizer([spaced], padding=False), tokenizer([plain], padding=False))]
    prepare = getattr(model, "preprocess", None) or model.tokenize
    prepared = prepare([spaced])["input_ids"].reshape(-1).tolist()
    return list(ids[0]) != list(ids[1]) and prepared == list(ids[1])


def lowers_texts(transformer: Any, tokenizer: Any) -> bool:
    """Whether texts are lower-cased before a tokenizer that does not do so itself (it does since release 6)."""
    if not getattr(transformer, "do_lower_case", False):
        return False
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer is None or "A" in normalizer.normalize_str("A")


def require_own_type(files: ModelFiles) -> None:
    """Raise `UserError` if a folder's configuration names another kind of model, such as SparseEncoder."""
    path = files.folder / "config_sentence_transformers.json"
    settings = read_json_object(path, "the settings of a text encoder", any_number=True) if path.is_file() else {}
    kind = settings.get("model_type")
    if kind not in (None, OWN_TYPE):
        raise UserError(f"{files.name} is a {kind}, no encoder of sentences, so --pooling model is not possible.")


@dataclass(frozen=True)
class EncoderSettings:
    """Everything besides the weights that decides an embedding. ``max_length`` includes special tokens.

    ``eos`` says whether a token that ends a text is put behind each; None leaves it to the model.
    """

    pooling: Pooling = "mean"
    normalize: Normalized | None = None
    prefix: str | None = None
    max_length: int | None = None
    eos: bool | None = None
    precision: str = "fp32"


class TextModel:
    """A text encoder on its device, batch by batch: it computes tokenized texts, and knows how large batches may be.

    ``digests`` are those of its weights and of its other files; ``batch_tokens`` None allows as many as the device
    takes.
    """

    def __init__(
        self,
        model: Any,
        files: ModelFiles,
        settings: EncoderSettings,
        digests: tuple[str, str],
        *,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.files, self.remote_code = files, trust_remote_code
        self._weights_digest, self._settings_digest = digests
        self.model, self.transformer = model, model[0]
        tokenizer: Any = getattr(self.transformer, "tokenizer", None)
        if not hasattr(self.transformer, "auto_model") or not callable(tokenizer):
            kind = type(self.transformer).__name__
            raise UserError(f"{files.name} is no transformer of texts ({kind}), so it cannot encode captions.")
        require_vocabulary(files, tokenizer, self.transformer.auto_model)
        self.own_pooling = own_pooling(model)
        if settings.pooling == "model" and self.own_pooling == "none":
            raise UserError(f"{files.name} has no pooling of its own; use --pooling mean or cls.")
        self.own = OwnHead.of(model)
        self.asked_length = settings.max_length
        self.ending = ending_of(files, tokenizer, settings.eos)
        special = tokenizer.num_special_tokens_to_add() + (self.ending is not None)
        limit = max_tokens_of(model, self.transformer, settings.max_length, special, files.name)
        self.settings = settings = self._resolved(settings, limit)
        self.head = self.own.without_scaling(settings.normalize) if settings.pooling == "model" else ()
        prefix = require_text(settings.prefix or "", "--prefix")
        strip = settings.pooling == "model" and strips_texts(model, tokenizer)
        lower = lowers_texts(self.transformer, tokenizer)
        ending = None if self.ending is None else self.ending.number
        self.tokenizer = TextTokenizer(tokenizer, prefix, limit, lower=lower, strip=strip, ending=ending)
        self.unpooled = self.tokenizer.tokens_of_prefix() if not self.own.prompt_pooled else 0
        self.device = next(self.transformer.parameters()).device
        self._may_omit_mask = False
        probe = self.tokenizer(["a", "b"])
        masked = self.forward(probe, np.arange(1))
        self.dim = masked.shape[1]
        self._may_omit_mask = self._is_same_without_mask(probe, masked)
        self.tokenizer.side = self._side_of_padding()
        self.batches_for = self.device.type
        self._asked = batch_tokens is not None
        self._divide_by(batch_tokens or fitting_tokens(self.forward, self.device, limit))

    def _resolved(self, settings: EncoderSettings, limit: int | None) -> EncoderSettings:
        """``settings`` with the choices that were left to the model."""
        if settings.pooling != "model":
            return replace(settings, normalize=bool(settings.normalize), prefix=settings.prefix or "", max_length=limit)
        prefix = self.own.prompt if settings.prefix is None else settings.prefix
        return replace(settings, normalize=self.own.normalized(settings.normalize), prefix=prefix, max_length=limit)

    def settle(self, batch_tokens: int | None, batches_for: str | None = None) -> int:
        """Take over the batch size that a run began with, or one for other devices (``cuda``) than this encoder's own.

        None, or a size given to `load_encoder`, changes nothing. Returns the tokens per batch.
        """
        self.batches_for = batches_for or self.batches_for
        if batch_tokens is not None and not self._asked:
            self._divide_by(batch_tokens)
        return self.batch_tokens

    def _divide_by(self, batch_tokens: int) -> None:
        self.batch_tokens = batch_tokens
        self.block_tokens = BLOCK_BATCHES * batch_tokens
        self.budget = BatchBudget(batch_tokens)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)

    def describe(self) -> dict[str, Any]:
        """The facts that embeddings depend on, for ``meta.json``: equal facts mean equal embeddings up to rounding."""
        return {
            "model": self.files.name,
            "revision": self.files.revision,
            "weights": self._weights_digest,
            TOKENIZER_AND_MODULES: self._settings_digest,
            "pooling": self.settings.pooling,
            "normalized": self.settings.normalize,
            "prefix": self.settings.prefix,
            "eos": self.ending.text if self.ending else None,
            "max_length": self.settings.max_length,
            "precision": self.settings.precision,
            **(self.own.describe(self.settings.prefix or "") if self.settings.pooling == "model" else {}),
            **({"remote_code": dict(self.files.code) or True} if self.remote_code else {}),
        }

    def notes(self) -> dict[str, Any]:
        """Other facts for ``meta.json``: the path of a local model, its own pooling, the device and kind of
        computation."""
        return {
            "model_path": None if self.files.revision else str(self.files.folder.resolve()),
            "model_pooling": self.own_pooling,
            "device": self.device_name,
            "attention": attention_of(self.transformer),
            "padding": self.tokenizer.side,
            "batch_tokens": self.batch_tokens,
            "batch_halvings": self.budget.halvings,
        }

    def truncated(self, texts: Sequence[str]) -> int:
        """The number of ``texts`` that are cut to ``max_length``."""
        return self.tokenizer(texts).truncated

    @torch.inference_mode()
    def forward(self, tokens: Tokens, rows: np.ndarray) -> torch.Tensor:
        """Embeddings (B, dim) of some of the tokenized texts, float32, on the encoder's device."""
        padded = self.tokenizer.pad(tokens, rows)
        features: dict[str, Any] = self._features(padded)
        mask = None if padded.mask is None else features["attention_mask"]
        features = self.transformer(features)
        if self.settings.pooling == "model":
            features.setdefault("attention_mask", torch.ones(padded.ids.shape, dtype=torch.int64, device=self.device))
            embeddings = self.through_head(features, self.head)
        else:
            embeddings = self._pooled(features["token_embeddings"], mask)
        return nn.functional.normalize(embeddings, dim=1) if self.settings.normalize is True else embeddings

    def through_head(self, features: dict[str, Any], head: Iterable[nn.Module]) -> torch.Tensor:
        """float32 (B, dim): a batch's token features passed through the model's own modules after its transformer."""
        if self.unpooled:
            features["prompt_length"] = self.unpooled
        for module in head:
            features = module(features)
        embeddings: torch.Tensor = features["sentence_embedding"][..., : self.own.truncate_dim]
        return embeddings.float()

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """float32 (B, D) from the last hidden states (B, T, D): their mean over a text's tokens, the first, or the
        last."""
        if self.settings.pooling == "last":
            if mask is None:
                return hidden[:, -1].float()
            last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
            return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
        if self.settings.pooling == "cls":
            if mask is None:
                return hidden[:, 0].float()
            return hidden[torch.arange(len(hidden), device=hidden.device), mask.argmax(dim=1)].float()
        if mask is None:
            return hidden.mean(dim=1, dtype=torch.float32)
        weights = mask.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)

    def _features(self, padded: Padded) -> dict[str, torch.Tensor]:
        features = {"input_ids": self._to_device(padded.ids)}
        if padded.type_ids is not None:
            features["token_type_ids"] = self._to_device(padded.type_ids)
        if padded.mask is not None:
            features["attention_mask"] = self._to_device(padded.mask)
        elif not self._may_omit_mask:
            features["attention_mask"] = torch.ones_like(features["input_ids"])
        return features

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _side_of_padding(self) -> str:
        """The side on which padding changes no embedding; to the right, positions are those of a text alone.

        Some kinds of attention of language models take padding on the left only. If neither side will do, it is the
        tokenizer's: the check of some rows refuses such an encoder.
        """
        probe, own = self.tokenizer(["a b c d e", "a"]), self.tokenizer.side
        alone = self.forward(probe, np.array([1]))[0]
        for side in ("right", "left"):
            self.tokenizer.side = side
            with contextlib.suppress(Exception):  # a model may raise any kind of error
                cosine = nn.functional.cosine_similarity(self.forward(probe, np.arange(2))[1], alone, dim=0)
                if cosine.item() >= MIN_COSINE[self.settings.precision]:
                    return side
        return own

    def _is_same_without_mask(self, probe: Tokens, masked: torch.Tensor) -> bool:
        """Whether the model takes texts of the same length without a mask, as its fastest attention often requires."""
        self._may_omit_mask = True
        try:  # allow for the rounding of another kind of attention
            cosine = nn.functional.cosine_similarity(self.forward(probe, np.arange(1)), masked)
            return cosine.item() >= MIN_COSINE[self.settings.precision]
        except Exception:  # a model that needs its mask may raise any kind of error
            return False
