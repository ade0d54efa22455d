"""A model that is broken is loaded once; one that may have failed for a moment is loaded again."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding.loading import MissingWeightsError, surely

HEADER = b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
WHOLE = {"config.json": b"{}", "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)}
# What is in the folder instead, the error of loading, and how often it is loaded.
FAILURES = {
    "whole": ({}, UserError("x"), 2),
    "no JSON": ({"config.json": b"{"}, OSError("not a valid JSON"), 1),
    "cut weights": ({"model.safetensors": WHOLE["model.safetensors"][:-3]}, UserError("x"), 1),
    "a cut header": ({"model.safetensors": WHOLE["model.safetensors"][:20]}, UserError("x"), 1),
    "no weights": ({"model.safetensors": b""}, ValueError("x"), 1),
    "some weights": ({}, MissingWeightsError("x"), 1),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_loaded_once_or_twice(tmp_path: Path, failure: str) -> None:
    files, error, times = FAILURES[failure]
    for name, content in {**WHOLE, **files}.items():
        (tmp_path / name).write_bytes(content)
    loaded = []

    def load() -> None:
        loaded.append(1)
        raise error

    with pytest.raises(type(error)):
        surely(load, tmp_path)
    assert len(loaded) == times
