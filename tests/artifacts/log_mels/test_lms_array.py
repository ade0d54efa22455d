"""A log-mel file is opened, or there is an error that names it, whatever its bytes are."""

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.embeddings.store import map_array
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels.array import HEADER_BYTES, open_lms
from m2dprep.artifacts.npy_files import RowFile, parse_header

VALUES = np.arange(80 * 5, dtype=np.float32).reshape(1, 80, 5)


def damaged(path: Path, find: bytes, replace: bytes) -> Path:
    np.save(path, VALUES)
    data = path.read_bytes()
    assert find in data
    path.write_bytes(data.replace(find, replace, 1))
    return path


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        (b"(1, 80, 5)", b"(1, 80, 5 "),
        (b"(1, 80, 5)", b"(1, 80, ')"),
        (b"(1, 80, 5)", b"(1, 8\x00, 5)"),
        (b"(1, 80, 5), }" + 8 * b" ", b"(1, 80, 999999999999)"),
        (b"(1, 80, 5), }" + 14 * b" ", b"(1, 80, 999999999999999999)"),
        (b"'descr'", b"'des\xffr'"),
        (b"{'descr", b"(((((((("),
        (b"<f4", b"<q9"),
        (b"\x93NUMPY", b"PK\x03\x04__"),
    ],
)
def test_damaged_headers(tmp_path: Path, find: bytes, replace: bytes) -> None:
    with pytest.raises(UserError, match=r"x\.npy"):
        open_lms(damaged(tmp_path / "x.npy", find, replace))


READERS: dict[str, Callable[[Path], object]] = {
    "a log-mel": open_lms,
    "rows": lambda path: RowFile(path).take(np.array([0])),
    "a store's map": map_array,
}
OBJECTS = {
    "a log-mel's shape": np.full((1, 80, 5), None),
    "a matrix": np.full((3, 4), None),
    "a dictionary": np.array({"a": np.ones(3)}, dtype=object),
    "a structure with objects": np.zeros((1, 80), [("a", "f4"), ("b", "O")]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("objects", OBJECTS)
def test_python_objects_are_refused_in_our_own_words(tmp_path: Path, reader: str, objects: str) -> None:
    """numpy would advise to allow pickles; and bytes taken for the addresses of objects end the process."""
    np.save(tmp_path / "x.npy", OBJECTS[objects], allow_pickle=True)
    with (tmp_path / "x.npy").open("ab") as file:
        file.write(bytes(8192))  # as long as an array of addresses would be
    with pytest.raises(UserError, match=r"x\.npy.* holds Python objects, which are never loaded") as raised:
        READERS[reader](tmp_path / "x.npy")
    assert "pickle" not in str(raised.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("length", [9_000, 10_001, 12_000, 20_000, 65_535])
def test_headers_of_any_length(tmp_path: Path, reader: str, length: int) -> None:
    """numpy would advise to trust the file."""
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 80, 5), }".ljust(length - 1) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\0" + length.to_bytes(2, "little") + text + VALUES.tobytes())
    if length <= 10_000:
        with suppress(UserError):  # three dimensions are no rows
            READERS[reader](tmp_path / "x.npy")
        return
    with pytest.raises(UserError, match=rf"x\.npy.*header has {length:,} bytes") as raised:
        READERS[reader](tmp_path / "x.npy")
    assert "pickle" not in str(raised.value)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.integers(0, HEADER_BYTES - 1), st.integers(0, 255), min_size=1, max_size=4))
def test_any_bytes_in_the_header(changes: dict[int, int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npy"
    np.save(path, VALUES)
    data = bytearray(path.read_bytes())
    for position, byte in changes.items():
        data[position] = byte
    path.write_bytes(data)
    try:
        assert open_lms(path).shape[0] == 1
    except UserError as error:
        assert "any.npy" in str(error)


def test_several_arrays_in_one_file_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=VALUES)
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(UserError, match="several of them"):
        open_lms(tmp_path / "x.npy")


def test_threads_that_parse_headers_at_once(tmp_path: Path) -> None:
    """Python run by the garbage collector lets threads interleave while headers become syntax trees."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((1, 80, 60), np.float32))

    def pause(phase: str, info: dict[str, int]) -> None:
        for _ in range(50):
            pass

    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(pause)
    gc.set_threshold(100, 2, 2)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            arrays = list(threads.map(lambda _: open_lms(path), range(1000)))
    finally:
        gc.callbacks.remove(pause)
        gc.set_threshold(*before)
        sys.setswitchinterval(interval)
    assert {array.shape for array in arrays} == {(1, 80, 60)}


def test_a_failure_that_stays_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    np.save(tmp_path / "a.npy", np.zeros((1, 80, 61), np.float32))
    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", fail)
    parse_header.cache_clear()
    with pytest.raises(UserError, match="recursion depth"):
        open_lms(tmp_path / "a.npy")
