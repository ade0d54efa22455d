"""The captions of a table as they are written, and their tokens: what a text tower learns from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_captions
from m2dprep.m2dclap.text.tower import TowerFiles
from m2dprep.training.pairing import RowsByClip

COLUMNS = ["clip_id", "caption"]


class Tokens(NamedTuple):
    """``input_ids`` int64 (B, S) of B captions, the longest of which has S tokens; ``lengths`` int64 (B,)."""

    input_ids: torch.Tensor
    lengths: torch.Tensor


class Tokenizer:
    """Captions → tokens, cut to ``max_tokens`` and filled up to the longest."""

    def __init__(self, tower: TowerFiles, max_tokens: int) -> None:
        self._tokenizer, self._padding, self._max_tokens = tower.tokenizer, tower.padding, max_tokens

    def __call__(self, captions: Sequence[str]) -> Tokens:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive in forked processes
        found = self._tokenizer(
            list(captions), truncation=True, max_length=self._max_tokens, padding=False, return_attention_mask=False
        )["input_ids"]
        found = [row or [self._padding] for row in found]
        lengths = [len(row) for row in found]
        input_ids = np.full((len(found), max(lengths)), self._padding, np.int64)
        for row, tokens in zip(input_ids, found, strict=True):
            row[: len(tokens)] = tokens
        return Tokens(torch.from_numpy(input_ids), torch.tensor(lengths))


class RawCaptions(RowsByClip):
    """Every caption of a table, grouped by clip. ``blank`` ones, which hold no text, were left out."""

    kind = "captions"

    def __init__(self, table: pa.Table, name: str, digest: str, tokenizer: Tokenizer, blank: int = 0) -> None:
        self.blank = blank
        self._texts = table["caption"].combine_chunks()
        self._tokenizer = tokenizer
        super().__init__(table["clip_id"].chunks, [name], [digest])

    @classmethod
    def read(cls, path: Path, tokenizer: Tokenizer) -> RawCaptions:
        """The captions of a ``captions.parquet`` that hold text. Raises `UserError` if there are none."""
        table = read_captions(path, COLUMNS)
        said = table.filter(pc.not_equal(pc.utf8_trim_whitespace(table["caption"]), ""))
        if not said.num_rows:
            raise UserError(f"{path} holds no captions{' with text' if table.num_rows else ''}.")
        return cls(said, path.name, file_digest(path)[:16], tokenizer, table.num_rows - said.num_rows)

    def __len__(self) -> int:
        return len(self._texts)

    def texts(self, rows: np.ndarray) -> list[str]:
        found: list[str] = pc.take(self._texts, pa.array(rows)).to_pylist()
        return found

    def tokens(self, rows: np.ndarray) -> Tokens:
        """The tokens of some captions, in their order."""
        return self._tokenizer(self.texts(rows))
