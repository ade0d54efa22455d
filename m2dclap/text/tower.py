"""A transformer of captions that is trained: tokens in, one embedding per caption out.

Captions of like length go through it together, so that short ones are not padded to the longest of the batch. Which
captions are in a batch, and the result, do not depend on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from m2dprep.artifacts.errors import UserError, first_line

POOLINGS = CLS, MEAN = "cls", "mean"
# Captions whose numbers of tokens round up to the same multiple go together, if there are enough of them.
BUCKET_TOKENS, BUCKET_ROWS = 16, 16


class TextTower(nn.Module):
    """Tokens (B, S) of B captions → (B, D), not of unit length: the last hidden state of the first token, or the
    average over tokens.

    The transformer is below ``text_encoder``, as in the authors' code.
    """

    def __init__(self, transformer: nn.Module, pooling: str = CLS) -> None:
        super().__init__()
        self.text_encoder = transformer
        self.pooling = pooling

    @property
    def dim(self) -> int:
        return int(self.text_encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """``lengths`` are the numbers of tokens of each caption, which are followed by padding."""
        parts, order = [], []
        for rows in length_buckets(lengths):
            longest = max(lengths[row] for row in rows)
            if len(rows) == len(lengths):
                parts.append(self._pooled(input_ids[:, :longest], lengths))
                return parts[0]
            index = torch.tensor(rows, device=input_ids.device)
            parts.append(self._pooled(input_ids[index, :longest], [lengths[row] for row in rows]))
            order += rows
        back = torch.tensor(order, device=input_ids.device).argsort()
        return torch.cat(parts)[back]

    def _pooled(self, input_ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        counts = torch.tensor(lengths).to(input_ids.device, non_blocking=True)
        mask = (torch.arange(input_ids.shape[1], device=input_ids.device) < counts[:, None]).long()
        hidden: torch.Tensor = self.text_encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        if self.pooling == CLS:
            return hidden[:, 0]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def length_buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Rows that go through a transformer together, the longest first; a bucket has `BUCKET_ROWS` at least, but for the
    last."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    buckets: list[list[int]] = [[]]
    top = -1
    for row in order:
        ceiling = -(-lengths[row] // BUCKET_TOKENS)
        if ceiling != top and len(buckets[-1]) >= BUCKET_ROWS:
            buckets.append([])
        top = ceiling
        buckets[-1].append(row)
    return [bucket for bucket in buckets if bucket]


class TowerFiles(NamedTuple):
    """What makes a text tower: its configuration and tokenizer, as transformers has them, and where they are from."""

    name: str
    config: Any
    tokenizer: Any

    @property
    def max_tokens(self) -> int:
        """The most tokens of a caption that the model and its tokenizer allow."""
        limit = getattr(self.config, "max_position_embeddings", None)
        limits = [limit] if isinstance(limit, int) and limit > 0 else []
        if limits and self.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            limits = [limits[0] - int(self.config.pad_token_id or 0) - 1]  # positions begin behind the padding's
        own = getattr(self.tokenizer, "model_max_length", None)
        limits += [own] if isinstance(own, int) and 0 < own < 1_000_000 else []
        return min(limits, default=512)

    @property
    def padding(self) -> int:
        """The token that fills up shorter captions; attention leaves it out."""
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(self.tokenizer, name, None)
            if isinstance(value, int):
                return value
        return 0

    def new(self, pooling: str) -> TextTower:
        """A tower of this configuration with random weights. Raises `UserError` if transformers cannot make one."""
        from transformers import AutoModel  # seconds to import

        try:
            return TextTower(AutoModel.from_config(self.config), pooling)
        except Exception as error:  # the library raises any kind of error for a foreign configuration
            raise UserError(f"{self.name} is no text encoder that can be trained: {first_line(error)}") from error

    def save(self, folder: Path) -> None:
        """Write configuration and tokenizer to ``folder``, as transformers reads them; weights are elsewhere."""
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def read_tower(folder: Path, name: str) -> TowerFiles:
    """The configuration and tokenizer in ``folder``. Raises `UserError` if one of them cannot be read."""
    from transformers import AutoConfig, AutoTokenizer  # seconds to import

    try:
        config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the library raises any kind of error for a foreign folder
        raise UserError(f"{name} is no text encoder with a tokenizer: {first_line(error)}") from error
    return TowerFiles(name, config, tokenizer)


def pretrained_weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of a text encoder in ``folder``, under the names of a tower's transformer.

    Raises `UserError` if they cannot be read, or some of its model's are missing.
    """
    from transformers import AutoModel  # seconds to import
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    except Exception as error:
        raise UserError(f"{name} cannot be loaded as a text encoder: {first_line(error)}") from error
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise UserError(f"{name} lacks {len(missing)} weights of its model ({sorted(missing)[0]} first).")
    return {key: value.float() for key, value in model.state_dict().items()}
