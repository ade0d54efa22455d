"""Log-mels in stretches: the same values as read whole, whatever the file's order, and damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.digests import digest_of
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels import stretches
from m2dprep.artifacts.log_mels.stretches import file_stretches

LOG_MEL = np.random.default_rng(0).standard_normal((1, 4, 103)).astype(np.float32)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 4 * 4 * 10)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("frames", [1, 9, 10, 11, 103])
def test_stretches_join_to_the_log_mel(tmp_path: Path, dtype: type, order: str, frames: int) -> None:
    values = np.array(LOG_MEL[:, :, :frames], dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", values)
    parts = list(file_stretches(tmp_path / "a.npy"))
    assert max(part.shape[1] for part in parts) <= (10 if dtype is np.float32 else 20)
    assert np.array_equal(np.concatenate(parts, axis=1), values[0])


def test_a_known_digest_is_compared_before_anything_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, LOG_MEL)
    known = np.array([int(digest_of(path.read_bytes()), 16), 0], np.uint64)
    assert len(list(file_stretches(path, known))) == 11
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.npy is damaged"):
        next(file_stretches(path, known))
    assert len(list(file_stretches(path, np.zeros(2, np.uint64)))) == 11


@pytest.mark.parametrize(("values", "message"), [(LOG_MEL[0], "shape"), (LOG_MEL.astype(np.float64), "float64")])
def test_what_is_no_log_mel(tmp_path: Path, values: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError, match=message):
        next(file_stretches(tmp_path / "a.npy"))


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, LOG_MEL)
    parts = file_stretches(path)
    next(parts)
    path.open("r+b").truncate(500)
    with pytest.raises(UserError, match="shorter"):
        list(parts)
