"""Files of text encoders are read, not mapped; files that the system fails to read are named, or read again."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding.encoder import TextEncoder, load_encoder
from m2dprep.captions.embedding.loading import TOKENIZER_FILES, ReadTensors

pytestmark = pytest.mark.slow

TEXTS = ["A dog barks.", "Rain falls on a tin roof, and then a car passes."]


def as_it_is(folder: Path) -> None:
    """safetensors."""


def as_pytorch_saves_it(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_half_precision(folder: Path) -> None:
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("save", [as_it_is, as_pytorch_saves_it, in_half_precision])
def test_weights_are_not_mapped(
    little: Path, little_encoder: TextEncoder, tmp_path: Path, save: Callable[[Path], None]
) -> None:
    """A process that maps them ends with SIGBUS if a page cannot be read, as here when the file is shortened."""
    folder = Path(shutil.copytree(little, tmp_path / "model"))
    save(folder)
    read = load_encoder(str(folder), "cpu")
    assert str(folder) not in Path("/proc/self/maps").read_text()
    before = read.encode(TEXTS)
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        os.truncate(path, 4096)
    np.testing.assert_array_equal(read.encode(TEXTS), before)
    np.testing.assert_allclose(before, little_encoder.encode(TEXTS), atol=2e-3)


def test_what_is_read_is_what_safetensors_gives(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.ones(5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3, dtype=torch.int64),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    with safe_open(path, framework="pt") as theirs, ReadTensors(path, framework="pt", backend="mmap") as ours:
        assert ours.metadata() == theirs.metadata()
        assert set(ours.keys()) == set(theirs.keys())
        assert ours.offset_keys() == theirs.offset_keys()
        assert ours.get_tensors().keys() == tensors.keys()
        for name, tensor in tensors.items():
            mine, other = ours.get_slice(name), theirs.get_slice(name)
            assert (mine.get_shape(), mine.get_dtype()) == (list(other.get_shape()), other.get_dtype())
            assert torch.equal(ours.get_tensor(name), tensor)
            assert torch.equal(mine[...], tensor)
        assert torch.equal(ours.get_slice("b")[:, 1:], theirs.get_slice("b")[:, 1:])


SMALL = ("config.json", "modules.json", "tokenizer_config.json", "sentence_bert_config.json", "1_Pooling/config.json")


def failing_opens(monkeypatch: pytest.MonkeyPatch, path: Path, error: int, fails: Callable[[int], bool]) -> list[int]:
    """Let Python's n-th opening of ``path`` fail if ``fails(n)``; returns the list of those that failed."""
    plain, count, failed = builtins.open, 0, []

    def opening(file: Any, *given: Any, **named: Any) -> Any:
        nonlocal count
        if not isinstance(file, int) and Path(file) == path:
            count += 1
            if fails(count):
                failed.append(count)
                raise OSError(error, os.strerror(error), str(path))
        return plain(file, *given, **named)

    monkeypatch.setattr("m2dprep.artifacts.reading.WAITS_SECONDS", (0.0,))
    monkeypatch.setattr(builtins, "open", opening)
    monkeypatch.setattr(io, "open", opening)
    return failed


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("first", [1, 3])
def test_a_file_that_cannot_be_read_is_named(
    little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: int
) -> None:
    """From the beginning on, and from the library's opening on."""
    folder = Path(shutil.copytree(little, tmp_path / "model"))
    failed = failing_opens(monkeypatch, folder / name, errno.ESTALE, lambda count: count >= first)
    with pytest.raises((UserError, OSError), match=r"(?i)stale file handle") as caught:
        load_encoder(str(folder), "cpu")
    assert failed
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("number", [2, 3])
def test_a_moments_error_changes_nothing(
    little: Path, little_encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    folder = Path(shutil.copytree(little, tmp_path / "model"))
    failing_opens(monkeypatch, folder / name, errno.EIO, lambda count: count == number)
    disturbed = load_encoder(str(folder), "cpu")
    monkeypatch.undo()
    assert disturbed.describe() == little_encoder.describe()
    np.testing.assert_array_equal(disturbed.encode(TEXTS), little_encoder.encode(TEXTS))


def test_weights_that_cannot_be_read_are_named(little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(little, tmp_path / "model"))
    for first in (1, 2):
        failing_opens(monkeypatch, folder / "model.safetensors", errno.EIO, lambda count, first=first: count >= first)
        with pytest.raises((UserError, OSError), match=r"Input/output error.*model\.safetensors"):
            load_encoder(str(folder), "cpu")
        monkeypatch.undo()


def test_what_is_wrong_with_the_content_is_still_told(little: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(little, tmp_path / "model"))
    for pattern in TOKENIZER_FILES:
        for path in folder.glob(pattern):
            path.unlink()
    with pytest.raises(UserError, match="it holds no tokenizer"):
        load_encoder(str(folder), "cpu")
