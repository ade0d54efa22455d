"""Text encoders: captions in, aligned float32 embeddings out. `load_encoder` makes one.

An `EncoderRequest` holds the arguments of `load_encoder` as plain values, which can be sent to a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.captions.embedding.batches import EncodedBlock, block_ends
from m2dprep.captions.embedding.loading import Pooling, load_model, resolve_device, resolve_precision, surely
from m2dprep.captions.embedding.model_files import ModelFiles, find_model, require_no_code, with_code
from m2dprep.captions.embedding.pipeline import encode_ahead
from m2dprep.captions.embedding.reference import reference_embeddings, require_same_as_model
from m2dprep.captions.embedding.sample_check import MIN_COSINE
from m2dprep.captions.embedding.text_model import EncoderSettings, Normalized, TextModel, require_own_type


@dataclass(frozen=True)
class EncoderRequest:
    """The arguments of `load_encoder`, which describes them; only the default of ``precision`` differs: ``auto``."""

    name_or_path: str
    device: str = "auto"
    normalize: Normalized | None = None
    pooling: Pooling = "mean"
    prefix: str | None = None
    max_length: int | None = None
    revision: str | None = None
    precision: str = "auto"
    batch_tokens: int | None = None
    trust_remote_code: bool = False
    eos: bool | None = None

    def known_settings(self) -> dict[str, Any]:
        """The settings of a store that are known before the encoder is loaded: those not left to the model."""
        asked = {"prefix": self.prefix, "normalized": self.normalize, "max_length": self.max_length}
        return {"pooling": self.pooling} | {key: value for key, value in asked.items() if value is not None}

    def load(self) -> TextEncoder:
        """Load the encoder; imports torch. Raises the errors of `load_encoder`."""

        return load_encoder(**asdict(self))


DEFAULT_MODEL = "thenlper/gte-base"


def load_encoder(
    name_or_path: str = DEFAULT_MODEL,
    device: str = "auto",
    normalize: Normalized | None = None,
    *,
    pooling: Pooling = "mean",
    prefix: str | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    precision: str = "fp32",
    batch_tokens: int | None = None,
    trust_remote_code: bool = False,
    eos: bool | None = None,
) -> TextEncoder:
    """Load a text encoder by its hub name or from a local folder.

    ``pooling``: ``mean`` of the last hidden states over a text's tokens; ``cls``, that of the first token; ``last``,
    that of the last one; ``model``, the result of `SentenceTransformer.encode`. ``normalize`` scales each embedding to
    length 1. ``prefix`` is put before every text. If these two are None, the model decides with ``pooling="model"``
    (its Normalize module, its default prompt), and they are off otherwise. ``eos`` puts the token that ends a text
    behind each, if the tokenizer does not; None does so if the model's authors do (`captions.embedding.endings`).
    ``max_length`` None is the model's own limit. ``precision`` of the computation: ``fp32``, ``bf16``, ``fp16``, or
    ``auto``, one that the device computes fast; pooling is in float32 unless it is the model's. ``batch_tokens`` None
    chooses for the device. Models with code of their own are refused unless ``trust_remote_code``.

    Raises `UserError` if the model is unknown, unreachable, incomplete or cannot be loaded; if the device is missing or
    too small; or if a text of ``max_length`` tokens would not fit.
    """
    target = resolve_device(device)
    settings = EncoderSettings(pooling, normalize, prefix, max_length, eos, resolve_precision(precision, target))
    files = find_model(name_or_path, revision)
    files = with_code(files) if trust_remote_code else require_no_code(files)
    if pooling == "model":
        require_own_type(files)
    # report unreadable files before libraries stumble over them
    digests = files.weights_digest(), files.settings_digest()

    def load() -> TextEncoder:
        model = load_model(files, target, settings.precision, trust_remote_code=trust_remote_code)
        return TextEncoder(
            model, files, settings, digests, batch_tokens=batch_tokens, trust_remote_code=trust_remote_code
        )

    try:
        return surely(load, files.folder)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{files.name} does not fit in the memory of {target} ({first_line(error)}); free some of it, or choose "
            "--precision bf16 or --device cpu."
        ) from error


class TextEncoder(TextModel):
    """Encodes texts to float32 embeddings, block by block (`encode_blocks`) or all at once (`encode`).

    The division into batches depends on the texts and ``batch_tokens``, and changes an embedding by rounding alone.
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
        super().__init__(
            model, files, settings, digests, batch_tokens=batch_tokens, trust_remote_code=trust_remote_code
        )
        if settings.pooling == "model":
            require_same_as_model(self, model, MIN_COSINE[self.settings.precision])

    def encode(self, texts: Sequence[str], progress: Callable[[int], object] | None = None) -> np.ndarray:
        """float32 (N, dim), row i for text i. ``progress`` is called with the number of texts just finished.

        Raises `UserError` if a single text does not fit in the GPU's memory.
        """
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        lengths = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], np.int64)
        order = np.argsort(-lengths, kind="stable")
        blocks = np.split(order, block_ends(lengths[order], self.block_tokens)[:-1])
        encoded = self.encode_blocks(([texts[row] for row in rows] for rows in blocks if len(rows)), progress)
        for rows, block in zip(blocks, encoded, strict=False):
            embeddings[rows] = block.embeddings
        return embeddings

    def encode_blocks(
        self, blocks: Iterable[Sequence[str]], progress: Callable[[int], object] | None = None
    ) -> Iterator[EncodedBlock]:
        """Each block's embeddings in order; the next block is tokenized meanwhile."""
        return encode_ahead(self, blocks, progress)

    def reference(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, dim), computed plainly: each text alone, in float32 (`captions.embedding.reference`)."""
        return reference_embeddings(self, texts)
