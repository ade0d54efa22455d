"""Log-mels by number: the same arrays from .npy files, from packs, and where some are in either."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.log_mels.store import find_log_mels
from m2dprep.audioprep.pack import pack

FRAMES = (7, 33, 1, 20, 8, 1001)
NAMES = [f"{folder}_lms/deep/{number}.npy" for folder in ("one", "two") for number in range(len(FRAMES))]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        frames = FRAMES[int(Path(name).stem)]
        write_array(tmp_path / name, rng.normal(-7, 4, (1, 80, frames)).astype(np.float32))
    return tmp_path


def arrays(data: Path) -> list[np.ndarray]:
    return [np.load(data / name)[0] for name in NAMES]


@pytest.mark.slow
@pytest.mark.parametrize("packed", [(), ("one",), ("one", "two")])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_layout_gives_the_same_arrays(data: Path, packed: tuple[str, ...], dtype: str) -> None:
    expected = arrays(data)
    for folder in packed:
        pack(data / f"{folder}_lms", dtype=dtype, clips_per_shard=4)
        for path in (data / f"{folder}_lms" / "deep").iterdir():
            path.unlink()
    store = find_log_mels(data, NAMES)
    assert (len(store), store.packed) == (len(NAMES), len(packed) * len(FRAMES))
    order = np.random.default_rng(1).permutation(len(NAMES))
    for chosen, rows in ((store, np.arange(len(NAMES))), (store.take(order), order)):
        for reader in (chosen, pickle.loads(pickle.dumps(chosen))):
            for number, row in enumerate(rows.tolist()):
                assert reader.name(number) == NAMES[row]
                in_pack = NAMES[row].partition("_")[0] in packed
                assert reader.packed_bins[number] == (80 if in_pack else 0)
                whole = expected[row].astype(dtype) if in_pack else expected[row]
                assert reader[number].dtype == whole.dtype
                assert np.array_equal(reader[number], whole)


def test_a_crop_of_a_pack_is_one_piece(data: Path) -> None:
    pack(data / "one_lms")
    crop = find_log_mels(data, NAMES)[5][:, 100:708]
    assert crop.shape == (80, 608)
    assert crop.T.flags.c_contiguous


def test_a_file_that_has_changed_is_named(data: Path) -> None:
    store = find_log_mels(data, NAMES)
    store[1]
    cut = data / NAMES[3]
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"deep/3\.npy"):
        store[3]
    (data / NAMES[4]).unlink()
    with pytest.raises(UserError, match=r"deep/4\.npy"):
        store[4]


def test_paths_stay_inside(data: Path) -> None:
    with pytest.raises(UserError, match="leads out of"):
        find_log_mels(data, ["../elsewhere.npy"])[0]


@pytest.mark.parametrize("layout", ["as written", "another order", "with more bytes"])
def test_arrays_are_read_and_not_mapped(data: Path, layout: str) -> None:
    """Whoever maps one ends with SIGBUS where a page of it cannot be read."""
    expected = arrays(data)
    for name in NAMES:
        if layout == "another order":
            np.save(data / name, np.asfortranarray(np.load(data / name)))
        elif layout == "with more bytes":
            (data / name).write_bytes((data / name).read_bytes() + bytes(100))
    store = find_log_mels(data, NAMES)
    found = [np.asarray(store[number]) for number in range(len(NAMES))]
    assert str(data) not in Path("/proc/self/maps").read_text()
    del found
    for number, values in enumerate(expected):
        np.testing.assert_array_equal(store[number], values)
