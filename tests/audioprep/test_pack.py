"""Packs hold every array exactly, name what they could not take, go on after a kill, and notice when they are stale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from artifacts import packed_store
from artifacts.atomic import write_array
from artifacts.errors import FingerprintConflictError, TooManyFailuresError, UserError
from artifacts.failures import FailureLimit
from artifacts.json_file import write_object
from artifacts.layout import PACKED_FOLDER, LmsLayout
from artifacts.packed_store import INDEX, META, PACK_SCHEMA, PackedStore
from artifacts.records import write_config
from artifacts.tables import read_parquet
from audioprep import pack as pack_module
from audioprep.config import PRESETS, ConvertConfig
from audioprep.pack import pack

FRAMES = (7, 33, 1, 20, 8)


@pytest.fixture
def lms(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "some_lms"
    (folder / "deep").mkdir(parents=True)
    for number, frames in enumerate(FRAMES):
        write_array(folder / "deep" / f"{number}.npy", rng.normal(-7, 4, (1, 80, frames)).astype(np.float32))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / PACKED_FOLDER).iterdir()) if path.name != "lock"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_array_comes_back(lms: Path, dtype: str) -> None:
    result = pack(lms, dtype=dtype, clips_a_shard=2)
    assert (result.clips, result.failed, result.shards) == (5, 0, 3)
    assert result.summary().startswith("5 clips = 5 packed + 0 packed before + 0 failed")
    opened = PackedStore.open(lms, None)
    assert opened is not None
    store, names = opened
    assert names.to_pylist() == [f"deep/{number}.npy" for number in range(5)]
    for row, name in enumerate(names.to_pylist()):
        original = np.load(lms / name)[0]
        assert np.array_equal(store.array(row), original.astype(dtype))
        assert not store.array(row).flags.writeable
        assert store.array(row)[:, 1:3].T.flags.c_contiguous, "some frames of a clip lie in one piece"


def test_shards_are_plain_arrays_of_frames(lms: Path) -> None:
    pack(lms, clips_a_shard=2)
    shards = [np.load(lms / PACKED_FOLDER / f"shard-{number:05d}.npy") for number in range(3)]
    assert [(shard.shape, shard.dtype) for shard in shards] == [((n, 80), np.float16) for n in (40, 21, 8)]
    rows = read_parquet(lms / PACKED_FOLDER / INDEX, PACK_SCHEMA, "index").to_pylist()
    for row in rows:
        frames = shards[row["shard"]][row["start"] : row["start"] + row["frames"]]
        assert np.array_equal(frames.T, np.load(lms / row["file_name"])[0].astype(np.float16))


def test_the_same_call_again_changes_nothing_and_other_settings_conflict(lms: Path) -> None:
    pack(lms, dtype="float32")
    before = content(lms)
    assert "0 packed + 5 packed before" in pack(lms, dtype="float32").summary()
    assert content(lms) == before
    with pytest.raises(FingerprintConflictError, match="dtype: 'float32' → 'float16'"):
        pack(lms, dtype="float16")
    assert pack(lms, dtype="float16", overwrite=True).bytes < sum(map(len, before.values()))
    write_array(lms / "new.npy", np.zeros((1, 80, 4), np.float32))
    with pytest.raises(FingerprintConflictError, match="clips: 5 → 6"):
        pack(lms, dtype="float16")


@pytest.mark.parametrize("killed_at", ["write_shard", "finish_pack"])
def test_an_interrupted_pack_goes_on(lms: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str) -> None:
    pack(lms, clips_a_shard=1, threads=1)
    undisturbed = content(lms)
    for path in (lms / PACKED_FOLDER).iterdir():
        path.unlink()
    original, calls = getattr(packed_store, killed_at), iter(range(100))

    def interrupted(*arguments: object) -> object:
        if killed_at == "finish_pack" or next(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(pack_module, killed_at, interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(lms, clips_a_shard=1, threads=1)
    monkeypatch.undo()
    assert PackedStore.open(lms, None) is None
    (lms / PACKED_FOLDER / ".m2dprep-host-1-abc.tmp").touch()
    assert pack(lms, clips_a_shard=1, threads=1).packed_before >= 2
    assert content(lms) == undisturbed


def test_failures_are_rows(lms: Path) -> None:
    (lms / "deep/1.npy").write_bytes(b"no array")
    write_array(lms / "deep/3.npy", np.full((1, 80, 5), np.inf, np.float32))
    result = pack(lms)
    assert result.failed == 2
    result.require(FailureLimit.parse("2"))
    with pytest.raises(TooManyFailuresError, match=r"2 of 5 failed.*once their files are mended, .*--overwrite"):
        result.require(FailureLimit.parse("1%"))
    rows = read_parquet(lms / PACKED_FOLDER / INDEX, PACK_SCHEMA, "index").to_pylist()
    assert {row["file_name"]: row["reason"] for row in rows if row["reason"]} == {
        "deep/1.npy": "unreadable",
        "deep/3.npy": "nonfinite",
    }
    opened = PackedStore.open(lms, None)
    assert opened is not None
    assert len(opened[1]) == 3


@pytest.mark.parametrize("finished", [True, False])
def test_a_pack_that_alone_holds_clips_is_never_removed(lms: Path, finished: bool) -> None:
    pack(lms, clips_a_shard=2)
    if not finished:  # as a kill before the end leaves it, but for the index that the markers become
        (lms / PACKED_FOLDER / META).unlink()
        (lms / PACKED_FOLDER / INDEX).rename(lms / PACKED_FOLDER / "shard-00000.parquet")
    (lms / "deep/3.npy").unlink()
    before = content(lms)
    with pytest.raises(UserError, match=r"alone holds 1 of its clips, such as deep/3\.npy; `m2dprep unpack`"):
        pack(lms, dtype="float32", overwrite=True)
    assert content(lms) == before


@pytest.mark.filterwarnings("error")
def test_what_float16_cannot_hold_is_a_failure(lms: Path) -> None:
    write_array(lms / "deep/3.npy", np.full((1, 80, 5), 1e6, np.float32))
    assert pack(lms).failed == 1
    assert pack(lms, dtype="float32", overwrite=True).failed == 0


def test_stale_and_broken_packs_are_refused(lms: Path) -> None:
    write_config_of(lms, "16k")
    pack(lms)
    fingerprint_then = packed_store.read_pack_meta(lms / PACKED_FOLDER)
    assert fingerprint_then is not None
    assert PackedStore.open(lms, fingerprint_then["config"]) is not None
    with pytest.raises(UserError, match=r"another configuration.*pack --overwrite"):
        PackedStore.open(lms, "0123456789abcdef")
    shard = lms / PACKED_FOLDER / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="has not the"):
        PackedStore.open(lms, None)
    pack(lms, overwrite=True)
    meta = (lms / PACKED_FOLDER / META).read_text()
    write_object(lms / PACKED_FOLDER / META, {**json.loads(meta), "layout": "mel-major"})
    with pytest.raises(UserError, match="another version of m2dprep"):
        PackedStore.open(lms, None)
    (lms / PACKED_FOLDER / META).write_text(meta)
    shard = lms / PACKED_FOLDER / "g2-shard-00000.npy"
    header = shard.read_bytes()[:128]
    shard.write_bytes(header.replace(b"<f2", b"<f8") + shard.read_bytes()[128:])
    opened = PackedStore.open(lms, None)
    assert opened is not None
    with pytest.raises(UserError, match=r"g2-shard-00000\.npy (holds|is not a whole)"):
        opened[0].array(0)
    (lms / PACKED_FOLDER / META).write_text("{}")
    with pytest.raises(UserError, match=META):
        PackedStore.open(lms, None)


def write_config_of(lms: Path, rate: str) -> None:
    (lms / "_melspec").mkdir()
    write_config(LmsLayout(lms), ConvertConfig(PRESETS[rate]).to_dict(), {})


def test_nothing_to_pack(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        pack(tmp_path / "nowhere")
    (tmp_path / "empty_lms").mkdir()
    with pytest.raises(UserError, match="holds no log-mel arrays"):
        pack(tmp_path / "empty_lms")
    (tmp_path / "empty_lms/x.npy").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 1 arrays"):
        pack(tmp_path / "empty_lms")
