"""The store of embeddings of sounds: shards in any order, interrupted runs, sounds that change, damage.

Tests of many stores are left to the whole suite.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2dprep.artifacts import files as files_module
from m2dprep.artifacts.embeddings import audio_writer as writer_module
from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.embeddings.audio_writer import AudioStoreWriter, SourceRows, StoredSource
from m2dprep.artifacts.errors import FingerprintConflictError, UserError

DIM, FEATURE_DIM = 6, 4
SETTINGS = {
    "checkpoint": "a.pth", "checkpoint_digest": "d", "contents": "both", "dtype": "float16",
    "dim": DIM, "feature_dim": FEATURE_DIM, "window": 1.0, "hop": 0.5,
}  # fmt: skip
SOUNDS = [StoredSource(f"folder/{name}.wav", f"{place} 1") for place, name in enumerate("abcdefghij")]
SHARD = 3
FAILS = "folder/c.wav"


def rows_of(sounds: Sequence[StoredSource], number: int, reason: str = "not_audio") -> SourceRows:
    """What a sound gives: as many rows as its name says, with values that follow from name and stamp."""
    source = sounds[number]
    if source.name == FAILS:
        return SourceRows(number, failure=(reason, "no sound"))
    count = 1 + ord(Path(source.name).stem[0]) % 3
    seed = sum(f"{source.name}{source.stamp}".encode())
    values = np.random.default_rng(seed).normal(size=(count, DIM + FEATURE_DIM)).astype(np.float32)
    return SourceRows(number, np.arange(count) * 0.5, np.ones(count), values[:, :DIM], values[:, DIM:])


def fill(
    folder: Path,
    sounds: Sequence[StoredSource] = SOUNDS,
    *,
    only: int | None = None,
    order: Callable[[list[Any]], list[Any]] = list,
    made: list[str] | None = None,
    reason: str = "not_audio",
    settings: dict[str, Any] = SETTINGS,
    **options: Any,
) -> AudioStore | None:
    """Make a store, or ``only`` so many of its shards; ``made`` takes up the sounds that were made."""
    with AudioStoreWriter(folder, settings, sounds, **options) as writer:
        shards = [writer.missing[start : start + SHARD] for start in range(0, len(writer.missing), SHARD)]
        shards = [shard for shard in shards if not writer.written(shard)]
        for shard in order(shards)[:only]:
            writer.write_shard([rows_of(sounds, number, reason) for number in shard])
            if made is not None:
                made += [sounds[number].name for number in shard]
        if only is not None:
            return None
        if not writer.finished:
            writer.finish({"note": 1})
    return AudioStore.open(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "lock"}


def test_rows_lie_in_the_order_of_the_sounds(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", order=lambda shards: shards[::-1])
    assert store is not None
    expected = [rows_of(SOUNDS, number) for number in range(len(SOUNDS)) if SOUNDS[number].name != FAILS]
    np.testing.assert_array_equal(
        store.embeddings, np.concatenate([one.embeddings for one in expected]).astype(np.float16)
    )
    assert store.features is not None
    np.testing.assert_array_equal(store.features, np.concatenate([one.features for one in expected]).astype(np.float16))
    assert store.index["file"].to_pylist() == [SOUNDS[one.number].name for one in expected for _ in one.starts]
    assert store.index["start"].to_pylist() == [start for one in expected for start in one.starts]
    assert set(store.index["clip_id"].to_pylist()) == set("abdefghij")
    assert store.failures.to_pylist() == [{"file": FAILS, "reason": "not_audio", "message": "no sound"}]
    assert (len(store), store.dim, store.has_clap, store.checkpoint) == (len(store.embeddings), DIM, True, "d")
    assert store.meta["note"] == 1
    store.require_whole()


@pytest.mark.parametrize("group", [2, 65_536])
def test_the_index_of_some_rows(tmp_path: Path, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "ROWS_PER_GROUP", group)
    store = fill(tmp_path / "store")
    assert store is not None
    whole = store.index.to_pylist()
    for rows in ([], [3], [5, 0, 5, len(store) - 1]):
        assert store.entries(rows) == [whole[row] for row in rows]
    (tmp_path / "store/index.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"index\.parquet"):
        store.entries([0])


@pytest.mark.parametrize("interrupted", [0, 1, 2, 3])
def test_an_interrupted_run_continues_and_gives_the_same_bytes(tmp_path: Path, interrupted: int) -> None:
    fill(tmp_path / "whole")
    fill(tmp_path / "store", only=interrupted, order=lambda shards: shards[::-1])
    with pytest.raises(UserError, match="unfinished"):
        AudioStore.open(tmp_path / "store")
    made: list[str] = []
    fill(tmp_path / "store", made=made)
    assert files(tmp_path / "store") == files(tmp_path / "whole")
    assert len(made) == len(SOUNDS) - len(SOUNDS[SHARD * (4 - interrupted) :])
    assert not (tmp_path / "store/_partial").exists()


def test_a_finished_store_is_left_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    before = files(tmp_path / "store")
    made: list[str] = []
    fill(tmp_path / "store", made=made)
    assert (files(tmp_path / "store"), made) == (before, [])


def changed(sounds: list[StoredSource]) -> list[StoredSource]:
    return [one._replace(stamp="new") if one.name == "folder/e.wav" else one for one in sounds]


CHANGES: dict[str, tuple[Callable[[list[StoredSource]], list[StoredSource]], list[str]]] = {
    "a sound is new": (lambda sounds: [StoredSource("folder/aa.wav", "9 9"), *sounds], ["folder/aa.wav"]),
    "a sound is gone": (lambda sounds: sounds[1:], []),
    "a sound has changed": (changed, ["folder/e.wav"]),
    "another order": (lambda sounds: sounds[::-1], []),
    "all of it": (lambda sounds: changed(sounds[2:])[::-1], ["folder/e.wav"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_only_sounds_that_are_new_or_changed_are_made_again(tmp_path: Path, what: str, finished: bool) -> None:
    change, expected = CHANGES[what]
    fill(tmp_path / "store", only=None if finished else 4)  # all shards, or all of them without being put in order
    sounds, made = change(list(SOUNDS)), list[str]()
    fill(tmp_path / "store", sounds, made=made)
    fill(tmp_path / "whole", sounds)
    assert made == expected
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_an_interrupted_update_keeps_what_both_runs_made(tmp_path: Path) -> None:
    fill(tmp_path / "store", SOUNDS[:5])
    fill(tmp_path / "store", SOUNDS, only=1)
    assert len(AudioStore.open(tmp_path / "store").sources) == 5, "the earlier store stays until the new one is whole"
    made: list[str] = []
    fill(tmp_path / "store", SOUNDS, made=made)
    assert made == [one.name for one in SOUNDS[5 + SHARD :]]
    fill(tmp_path / "whole", SOUNDS)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("renames", range(11))
def test_a_run_that_is_killed_while_it_replaces_a_store(
    tmp_path: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many renames of the exchange nothing more happens, not even tidying up."""
    without = {**SETTINGS, "contents": "clap", "feature_dim": None}
    earlier, sounds = (SETTINGS, SOUNDS[:5]) if renames % 2 else (without, SOUNDS)
    fill(tmp_path / "store", sounds, settings=earlier)
    rename, done = Path.rename, [0]

    def killed(self: Path, target: Path) -> Path:
        if done[0] == renames:
            raise SystemExit
        done[0] += 1
        return rename(self, target)

    again = {"settings": SETTINGS, "overwrite": earlier is without}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        patch.setattr(files_module.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(SystemExit))
        with contextlib.suppress(SystemExit):
            fill(tmp_path / "store", **again)
    fill(tmp_path / "store", **again)
    fill(tmp_path / "whole")
    assert files(tmp_path / "store") == files(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "store").iterdir() if path.is_dir()) == []


def test_failures_of_the_machine_are_tried_again(tmp_path: Path) -> None:
    fill(tmp_path / "store", reason="transient", retried=["transient"])
    made: list[str] = []
    store = fill(tmp_path / "store", made=made, retried=["transient"])
    assert made == [FAILS]
    assert store is not None
    assert store.failures["reason"].to_pylist() == ["not_audio"]
    fill(tmp_path / "store", made=made, retried=["transient"])
    assert made == [FAILS], "a fault of the sound itself is not tried again"


def test_overwrite_takes_nothing_from_the_earlier_store(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    fill(tmp_path / "store", only=1, overwrite=True)
    made: list[str] = []
    fill(tmp_path / "store", made=made, overwrite=True)
    assert made == [one.name for one in SOUNDS[SHARD:]], "the interrupted replacement goes on"
    fill(tmp_path / "store", made=made, overwrite=True)
    assert len(made) == 2 * len(SOUNDS) - SHARD


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("name", "value"), [("dtype", "float32"), ("window", 2.0), ("checkpoint_digest", "e"), ("contents", "clap")]
)
def test_other_settings_are_refused_by_name(tmp_path: Path, name: str, value: Any, finished: bool) -> None:
    fill(tmp_path / "store", only=None if finished else 1)
    with pytest.raises(FingerprintConflictError, match=name):
        fill(tmp_path / "store", settings={**SETTINGS, name: value})
    store = fill(tmp_path / "store", settings={**SETTINGS, name: value}, overwrite=True)
    assert store is not None
    assert store.meta[name] == value
    assert (tmp_path / "store/features.npy").exists() == (store.meta["contents"] == "both")


@pytest.mark.parametrize("sounds", [[], SOUNDS[2:3]])
def test_a_store_may_have_no_rows(tmp_path: Path, sounds: list[StoredSource]) -> None:
    store = fill(tmp_path / "store", sounds)
    assert store is not None
    assert (store.embeddings.shape, store.index.num_rows, len(store.failures)) == ((0, DIM), 0, len(sounds))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["embeddings.npy", "features.npy", "index.parquet", "sources.parquet", "meta.json"])
def test_damage_is_found(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    fill(tmp_path / "store")
    damage(tmp_path / "store" / name)
    with pytest.raises(UserError, match=name):
        AudioStore.open(tmp_path / "store").require_whole()


def test_an_index_of_another_store_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    fill(tmp_path / "other", [one._replace(name=one.name.upper()) for one in SOUNDS if one.name != FAILS])
    shutil.copy(tmp_path / "other/index.parquet", tmp_path / "store/index.parquet")
    with pytest.raises(UserError, match=r"index\.parquet is not the table"):
        assert AudioStore.open(tmp_path / "store").index


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_shard_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    fill(tmp_path / "store", only=2)
    damage(min((tmp_path / "store/_partial").glob("*.parquet")))
    fill(tmp_path / "store")
    fill(tmp_path / "whole")
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_two_sounds_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder/a\.wav is given twice"):
        fill(tmp_path / "store", [*SOUNDS, SOUNDS[0]])


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        AudioStoreWriter(tmp_path / "store", SETTINGS, SOUNDS),
        pytest.raises(UserError, match="being written to"),
    ):
        fill(tmp_path / "store")


def test_other_folders_are_no_stores(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions/meta.json").write_text('{"rows_digest": "x"}')
    for name, said in [("file", "file"), ("gone", "gone"), ("empty", "embed-audio"), ("captions", "caption")]:
        with pytest.raises(UserError, match=said):
            AudioStore.open(tmp_path / name)
