"""Packs hold every array exactly, name what they could not take, go on after a kill, and notice when they are stale."""

from __future__ import annotations

import functools
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from m2dprep.artifacts.errors import FailureLimit, FingerprintConflictError, TooManyFailuresError, UserError
from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import PACKED_FOLDER, LmsLayout
from m2dprep.artifacts.log_mels import pack as packed_store
from m2dprep.artifacts.log_mels.array import read_lms
from m2dprep.artifacts.log_mels.pack import INDEX, META, PACK_SCHEMA, PackedStore
from m2dprep.artifacts.log_mels.records import append_records, write_config
from m2dprep.artifacts.tables import read_parquet, write_parquet
from m2dprep.audioprep import pack as pack_module
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.pack import pack, unpack
from m2dprep.audioprep.stats import norm_stats

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
    result = pack(lms, dtype=dtype, clips_per_shard=2)
    assert (result.clips, result.failed, result.shards) == (5, 0, 3)
    assert result.summary().startswith("5 clips = 5 packed + 0 packed before + 0 failed")
    opened = PackedStore.open(lms, None)
    assert opened is not None
    store, names = opened
    assert names.to_pylist() == [f"deep/{number}.npy" for number in range(5)]
    for row, name in enumerate(names.to_pylist()):
        original = np.load(lms / name)[0]
        assert np.array_equal(store.array(row), original.astype(dtype))
        part = min(2, original.shape[1] - 1)
        assert np.array_equal(store.array(row, 1, part), original.astype(dtype)[:, 1 : 1 + part])
        assert store.array(row, 1, part).T.flags.c_contiguous, "some frames of a clip lie in one piece"


def test_shards_are_plain_arrays_of_frames(lms: Path) -> None:
    pack(lms, clips_per_shard=2)
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
    pack(lms, clips_per_shard=1, threads=1)
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
        pack(lms, clips_per_shard=1, threads=1)
    monkeypatch.undo()
    assert PackedStore.open(lms, None) is None
    (lms / PACKED_FOLDER / ".m2dprep-host-1-abc.tmp").touch()
    assert pack(lms, clips_per_shard=1, threads=1).packed_before >= 2
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
    pack(lms, clips_per_shard=2)
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


def damage(path: Path, place: int = 300) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def converted(tmp_path: Path) -> Path:
    """A folder with records, whose digests prove its arrays."""
    rng = np.random.default_rng(0)
    (tmp_path / "wavs").mkdir()
    for number in range(4):
        soundfile.write(tmp_path / f"wavs/{number}.wav", 0.1 * rng.standard_normal(16000), 16000)
    config = ConvertConfig(PRESETS["16k"], min_seconds=0.5)
    lms = tmp_path / "data/some_lms"
    lms.mkdir(parents=True)
    rows = convert_shard(discover(tmp_path / "wavs"), tmp_path / "wavs", lms, config)
    write_config(LmsLayout(lms), config.to_dict(), {})
    append_records(LmsLayout(lms), rows)
    return lms


def test_a_damaged_array_is_a_failure_by_its_digest(tmp_path: Path) -> None:
    lms = converted(tmp_path)
    damage(lms / "2.npy")
    assert pack(lms).failed == 1
    rows = read_parquet(lms / PACKED_FOLDER / INDEX, PACK_SCHEMA, "index").to_pylist()
    assert [(row["file_name"], row["reason"]) for row in rows if row["reason"]] == [("2.npy", "damaged")]
    assert [row["message"] for row in rows if row["reason"] and "values have changed since" in row["message"]]


@pytest.mark.parametrize("how", ["bit", "cut", "gone behind a folder", "nonfinite"])
def test_a_good_pack_is_never_replaced_by_a_poorer_one(tmp_path: Path, how: str) -> None:
    lms = converted(tmp_path)
    pack(lms)
    before = content(lms)
    array = lms / "1.npy"
    match how:
        case "bit":
            damage(array)
        case "cut":
            array.write_bytes(array.read_bytes()[:-9])
        case "nonfinite":
            np.save(array, np.load(array) * np.nan)
        case _:
            array.write_bytes(b"")
    with pytest.raises(UserError, match=r"stays as it is: it has 1 clips whole .* 1\.npy .*unpack"):
        pack(lms, overwrite=True)
    assert content(lms) == before
    array.unlink()  # the advice
    unpack(lms)
    assert pack(lms, dtype="float32", overwrite=True).failed == 0
    assert sorted(name for name in content(lms) if "shard" in name) == ["g2-shard-00000.npy"]


@pytest.mark.parametrize("killed_at", ["write_shard", "finish_pack"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_pack_is_there_until_the_new_one_is_whole(
    lms: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str, error: BaseException
) -> None:
    pack(lms)
    before = content(lms)
    original, calls = getattr(packed_store, killed_at), iter(range(100))

    def interrupted(*arguments: object) -> object:
        if killed_at == "finish_pack" or next(calls) == 2:
            raise error
        return original(*arguments)

    monkeypatch.setattr(pack_module, killed_at, interrupted)
    with pytest.raises(type(error)):
        pack(lms, dtype="float32", clips_per_shard=1, threads=1, overwrite=True)
    monkeypatch.undo()
    assert before.items() <= content(lms).items()
    opened = PackedStore.open(lms, None)
    assert opened is not None
    assert opened[0].dtype == "float16"
    again = pack(lms, dtype="float32", clips_per_shard=1, threads=1)  # goes on without being told to replace again
    assert again.packed_before >= 2
    opened = PackedStore.open(lms, None)
    assert opened is not None
    assert opened[0].dtype == "float32"
    assert not [name for name in content(lms) if name in before and name != META], "nothing is left of the old one"


def test_what_was_begun_goes_where_the_finished_pack_is_asked_for(lms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(lms)
    before = content(lms)
    monkeypatch.setattr(pack_module, "finish_pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack(lms, dtype="float32", overwrite=True)
    monkeypatch.undo()
    pack(lms)
    assert content(lms) == before


def test_an_array_that_the_machine_cannot_read_stops_the_run(lms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, **_: object) -> object:
        if path.name == "3.npy":
            raise OSError(5, "Input/output error", str(path))
        return read_lms(path)

    monkeypatch.setattr(packed_store, "read_lms", fail)
    with pytest.raises(OSError, match=r"deep/3\.npy"):
        pack(lms, clips_per_shard=1, threads=1)
    monkeypatch.undo()
    result = pack(lms, clips_per_shard=1, threads=1)
    assert result.failed == 0
    assert result.packed_before >= 3


def test_failures_of_a_run_that_was_stopped_are_tried_again(lms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (lms / "deep/0.npy").read_bytes()
    (lms / "deep/0.npy").write_bytes(b"")
    monkeypatch.setattr(pack_module, "finish_pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack(lms, clips_per_shard=1)
    monkeypatch.undo()
    (lms / "deep/0.npy").write_bytes(whole)
    assert pack(lms, clips_per_shard=1).failed == 0


def test_readers_never_mix_two_packs(lms: Path) -> None:
    pack(lms, clips_per_shard=2)
    opened = PackedStore.open(lms, None)
    assert opened is not None
    store = opened[0]
    first = store.array(0).copy()
    for number, frames in enumerate(reversed(FRAMES)):
        write_array(lms / "deep" / f"{number}.npy", np.ones((1, 80, frames), np.float32))
    pack(lms, clips_per_shard=2, overwrite=True)
    assert np.array_equal(store.array(0), first)  # mapped before
    with pytest.raises(UserError, match=r"shard-00001\.npy"):
        store.array(2)
    with pytest.raises(UserError, match=r"shard-00000\.npy"):
        pickle.loads(pickle.dumps(store)).array(0)


def test_another_shard_in_the_place_of_one_is_refused(lms: Path) -> None:
    pack(lms, clips_per_shard=1)
    opened = PackedStore.open(lms, None)
    assert opened is not None
    shard = lms / PACKED_FOLDER / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes())
    os.utime(shard, ns=(0, 0))
    for read in (opened[0].array, opened[0].read):
        with pytest.raises(UserError, match=r"has been replaced (since the pack was opened|while it was in use)"):
            read(0)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": None},
        {"frames": 0},
        {"frames": 10**6},
        {"start": None},
        {"start": -1},
        {"start": 10**9},
        {"shard": None},
        {"shard": 7},
        {"shard": -1},
    ],
    ids=str,
)
def test_an_index_of_old_that_makes_no_sense_is_told(lms: Path, change: dict[str, int | None]) -> None:
    pack(lms)
    folder = lms / PACKED_FOLDER
    meta = read_object(folder / META) or {}
    rows = read_parquet(folder / INDEX, PACK_SCHEMA, "index").to_pylist()
    rows[2] |= change
    write_parquet(folder / INDEX, pa.Table.from_pylist(rows, schema=PACK_SCHEMA))
    write_object(folder / META, {key: meta[key] for key in meta if key != "index_digest"})
    with pytest.raises(UserError, match=r"index\.parquet"):
        PackedStore.open(lms, None)
    with pytest.raises(UserError, match=r"index\.parquet"):
        unpack(lms, lms.parent / "out")


@pytest.mark.parametrize(
    "make",
    [
        lambda data: (data / "files_x.csv").write_text("file_name\n"),
        lambda data: (data / "captions.parquet").touch(),
        lambda data: (data / "norm_stats.json").touch(),
        lambda data: (data / "capemb_x").mkdir(),
        lambda data: (data / "x_lms/_melspec").mkdir(parents=True),
        lambda data: (data / "x_lms").mkdir(),
    ],
)
def test_a_data_directory_is_no_folder_of_log_mels(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path)
    write_array(tmp_path / "x.npy", np.zeros((1, 80, 4), np.float32))
    for call in (pack, unpack, norm_stats, functools.partial(norm_stats, recompute=True)):
        with pytest.raises(UserError, match=r"is a data directory .* give one of those in it, such as .*_lms"):
            call(tmp_path)
    assert not (tmp_path / PACKED_FOLDER).exists()
