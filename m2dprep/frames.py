"""The tables of a data directory as pandas DataFrames, for notebooks. Everything else here works with Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels import records
from m2dprep.artifacts.tables import read_captions as read_captions_table
from m2dprep.captions.lint import RULES, find

if TYPE_CHECKING:
    import pandas as pd


def read_captions(path: Path | str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A ``captions.parquet``, or only the named ``columns``, in its own order. Raises `UserError` if it is damaged."""
    return read_captions_table(Path(path), columns).to_pandas()


def read_records(folder: Path | str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """How the conversion of every source file of ``data/<name>_lms`` went, sorted by ``source``; failures are rows.

    Name a few ``columns`` of millions of records. Raises `UserError` if there are none.
    """
    return records.read_records(LmsLayout(Path(folder)), columns).to_pandas()


def read_index(folder: Path | str) -> pd.DataFrame:
    """Whose caption each row of a store's embeddings is: row i of the index is that of ``EmbeddingStore.embeddings[i]``.

    Raises `UserError` if the index is not the one that the embeddings were made with.
    """
    return EmbeddingStore.open(Path(folder)).index().to_pandas()


def find_faults(path: Path | str, rules: Sequence[str] = RULES) -> pd.DataFrame:
    """The captions of ``captions.parquet`` that a model should not learn from, a row per finding (`captions check`)."""
    return find(read_captions_table(Path(path)), rules).to_pandas()
