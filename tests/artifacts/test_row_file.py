"""Rows of a file are read, not mapped: what a disk cannot read, or was replaced, is an error that names the file."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2dprep.artifacts import reading as steady
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.npy_files import ROWS_AT_ONCE, FilledRowFile, RowFile

VALUES = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", VALUES)
    return tmp_path / "rows.npy"


def test_rows_are_those_of_the_array(path: Path) -> None:
    rows = RowFile(path)
    assert (len(rows), rows.shape, rows.dtype) == (200, (200, 7), np.float16)
    wanted = np.array([0, 199, 3, 3])
    for one in (rows, pickle.loads(pickle.dumps(rows))):
        assert np.array_equal(one.take(wanted), VALUES[wanted])
        part = np.empty((5, 7), np.float16)
        one.read(195, part)
        assert np.array_equal(part, VALUES[195:])


def test_threads_share_a_file(path: Path) -> None:
    rows = RowFile(path)
    wrong: list[int] = []

    def read(seed: int) -> None:
        drawn = np.random.default_rng(seed).integers(0, 200, 300)
        wrong.extend(row for row in drawn.tolist() if not np.array_equal(rows.take(np.array([row]))[0], VALUES[row]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_page_that_cannot_be_read_is_an_error_with_the_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory map would end the process here."""
    rows = RowFile(path)
    monkeypatch.setattr(steady, "WAITS_SECONDS", (0.0,))

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output error") as found:
        rows.take(np.array([5]))
    assert found.value.filename == str(path)


def test_a_file_that_changes(path: Path) -> None:
    rows = RowFile(path)
    sent = pickle.dumps(rows)
    np.save(path.with_name("other.npy"), -VALUES)
    path.with_name("other.npy").replace(path)
    assert np.array_equal(rows.take(np.array([9]))[0], VALUES[9]), "the one that was opened"
    with pytest.raises(UserError, match=r"rows.npy has been replaced while it was in use"):
        pickle.loads(sent)
    rows = RowFile(path)
    os.truncate(path, 500)
    with pytest.raises(UserError, match=r"rows.npy has become shorter"):
        rows.take(np.array([199]))


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 2, 2)), np.asfortranarray(np.zeros((4, 3)))])
def test_what_holds_no_rows(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=r"x.npy holds float64 .*, not rows of numbers"):
        RowFile(tmp_path / "x.npy")


@pytest.mark.parametrize("count", [0, 1, 7, 200, 3 * ROWS_AT_ONCE])
@pytest.mark.parametrize("order", ["rising", "falling", "mixed", "every other one"])
@pytest.mark.parametrize("piece", [None, 5])
def test_rows_are_written_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, order: str, piece: int | None
) -> None:
    """Whatever the system takes at a time."""
    if piece is not None:
        plain = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda file, data, at: plain(file, data[:piece], at))
    np.save(tmp_path / "rows.npy", np.zeros((max(1, 2 * count), 3), np.float16))
    rng = np.random.default_rng(count)
    rows = {
        "rising": np.arange(count),
        "falling": np.arange(count)[::-1],
        "mixed": rng.permutation(2 * count)[:count],
        "every other one": np.arange(count) * 2,
    }[order]
    which, values = rng.integers(0, 4, count), rng.normal(size=(4, 3)).astype(np.float16)
    file = FilledRowFile(tmp_path / "rows.npy")
    file.write(rows, values, which)
    file.sync()
    expected = np.zeros((max(1, 2 * count), 3), np.float16)
    expected[rows] = values[which]
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)
    np.testing.assert_array_equal(np.concatenate([block for _, block in file.blocks(100)]), expected)


def test_a_write_that_passes_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, failures = os.pwrite, iter([errno.EIO, errno.EAGAIN, 0, 0])

    def now_and_then(*given: Any) -> int:
        if error := next(failures):
            raise OSError(error, os.strerror(error))
        return plain(*given)

    monkeypatch.setattr(os, "pwrite", now_and_then)
    file = FilledRowFile(path)
    file.write(np.array([3]), -VALUES[:1], np.array([0]))
    assert np.array_equal(file.take(np.array([3]))[0], -VALUES[0])
