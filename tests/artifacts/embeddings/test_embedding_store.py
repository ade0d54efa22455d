"""The aligned store: whole or unfinished, resumable with the same bytes, and provably of its captions."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.embeddings.store import EmbeddingStore, index_of, map_array
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.json_files import write_object
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA

SETTINGS = {"model": "m", "pooling": "mean"}
DIM = 4


@pytest.fixture(autouse=True)
def _sync_every_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2dprep.artifacts.embeddings.writer.SYNC_SECONDS", 0.0)


def captions_of(texts: list[str]) -> pa.Table:
    rows = [
        {"clip_id": f"c{i}", "caption": text, "source": "s", "caption_index": 0, "split": None, "labels": None}
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA)


def embed(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows + column / 8 for column in range(DIM)], axis=1).astype(np.float16)


def write(folder: Path, index: pa.Table, shard: int = 3, stop_after: int | None = None) -> EmbeddingStoreWriter:
    """Fill a store in an order that is not the rows' own; stop after some rows as a killed run would."""
    writer = EmbeddingStoreWriter(folder, index, DIM, "float16", SETTINGS)
    order = np.arange(index.num_rows)[::-1]
    while writer.rows_done < min(index.num_rows, stop_after if stop_after is not None else index.num_rows):
        rows = order[writer.rows_done : writer.rows_done + shard]
        writer.write_shard(rows, embed(rows), np.arange(len(rows)), {"truncated": len(rows)})
    if not writer.finished and stop_after is None:
        writer.finish({"counts": writer.counts})
    return writer


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_row_i_is_row_i(tmp_path: Path) -> None:
    captions = captions_of([f"caption {i}" for i in range(10)])
    write(tmp_path / "store", index_of(captions))
    store = EmbeddingStore.open(tmp_path / "store")
    np.testing.assert_array_equal(store.embeddings, embed(np.arange(10)))
    assert not store.embeddings.flags.writeable
    assert isinstance(store.embeddings, np.memmap)
    assert store.meta["rows"] == 10
    assert store.meta["dim"] == DIM
    assert store.meta["dtype"] == "float16"
    assert store.meta["pooling"] == "mean"
    assert store.meta["counts"] == {"truncated": 10}
    store.verify(captions)
    assert sorted(files_of(tmp_path / "store")) == ["embeddings.npy", "index.parquet", "lock", "meta.json"]


@pytest.mark.parametrize("stop_after", [0, 3, 6, 9])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    index = index_of(captions_of([f"caption {i}" for i in range(10)]))
    write(tmp_path / "whole", index)
    write(tmp_path / "stopped", index, stop_after=stop_after)
    with pytest.raises(UserError, match="an unfinished store"):
        EmbeddingStore.open(tmp_path / "stopped")
    write(tmp_path / "stopped", index, shard=2)  # another shard size is no other configuration
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_rows_that_were_not_synced_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(captions_of([f"caption {i}" for i in range(10)]))
    write(tmp_path / "whole", index)
    monkeypatch.setattr("m2dprep.artifacts.embeddings.writer.SYNC_SECONDS", 3600.0)
    assert write(tmp_path / "stopped", index, stop_after=6).rows_done == 6
    assert EmbeddingStoreWriter(tmp_path / "stopped", index, DIM, "float16", SETTINGS).rows_done == 0
    write(tmp_path / "stopped", index)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_a_finished_store_is_left_alone(tmp_path: Path) -> None:
    index = index_of(captions_of(["a", "b"]))
    write(tmp_path, index)
    before = (tmp_path / "embeddings.npy").stat().st_mtime_ns
    writer = write(tmp_path, index)
    assert writer.finished
    assert writer.rows_done == 2
    assert (tmp_path / "embeddings.npy").stat().st_mtime_ns == before


def test_killed_between_the_last_renames(tmp_path: Path) -> None:
    index = index_of(captions_of(["a", "b"]))
    write(tmp_path / "whole", index)
    for kept_marker in (False, True):
        store = tmp_path / f"store{kept_marker}"
        write(store, index, stop_after=2)
        if kept_marker:  # meta.json is there, progress.json is not yet gone
            progress = (store / "progress.json").read_bytes()
            write(store, index)
            (store / "progress.json").write_bytes(progress)
        else:  # the array has its name, meta.json is not there yet
            (store / "embeddings.partial.npy").rename(store / "embeddings.npy")
        write(store, index)
        assert files_of(store) == files_of(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from tests_store import captions_of, embed, DIM, SETTINGS
import m2dprep.artifacts.embeddings.writer
from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
m2dprep.artifacts.embeddings.writer.SYNC_SECONDS = 0
index = index_of(captions_of([f"caption {i}" for i in range(10)]))
writer = EmbeddingStoreWriter(Path(sys.argv[1]), index, DIM, "float16", SETTINGS)
order = np.arange(10)[::-1]
writer.write_shard(order[:3], embed(order[:3]), np.arange(3), {"truncated": 3})
writer._file.write(order[3:6], np.full((1, DIM), 7, np.float16), np.zeros(3, int))  # half of the next shard
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_kill_minus_nine_in_mid_shard(tmp_path: Path) -> None:
    (tmp_path / "tests_store.py").write_bytes(Path(__file__).read_bytes())
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(tmp_path)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[3], env={**os.environ, "PYTHONPATH": "."}, check=False)
    assert killed.returncode == -signal.SIGKILL
    index = index_of(captions_of([f"caption {i}" for i in range(10)]))
    (tmp_path / "killed" / ".m2dprep-1-0123456789ab.tmp").write_bytes(b"half a file")
    assert write(tmp_path / "killed", index).rows_done == 10
    write(tmp_path / "whole", index)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_other_settings_conflict_and_are_named(tmp_path: Path) -> None:
    captions = captions_of(["a", "b"])
    write(tmp_path / "finished", index_of(captions))
    write(tmp_path / "begun", index_of(captions), stop_after=0)
    for folder in (tmp_path / "finished", tmp_path / "begun"):
        for change, key in (
            ({"settings": {**SETTINGS, "pooling": "cls"}}, "pooling"),
            ({"dtype": "float32"}, "dtype"),
            ({"dim": 8}, "dim"),
            ({"index": index_of(captions_of(["a", "c"]))}, "--reuse"),
        ):
            request = {"index": index_of(captions), "dim": DIM, "dtype": "float16", "settings": SETTINGS, **change}
            with pytest.raises(FingerprintConflictError, match=key):
                EmbeddingStoreWriter(folder, **request)  # type: ignore[arg-type]
            EmbeddingStoreWriter(tmp_path / f"{folder.name}-{key}", **request, overwrite=True)  # type: ignore[arg-type]


def overwriter(folder: Path, captions: pa.Table, **options: bool) -> EmbeddingStoreWriter:
    return EmbeddingStoreWriter(folder, index_of(captions), DIM, "float16", SETTINGS, **options)


def fill(writer: EmbeddingStoreWriter, rows: int) -> None:
    order = np.flatnonzero(~writer.done)[:rows]
    writer.write_shard(order, embed(order + 100), np.arange(len(order)))


def test_overwrite_starts_anew_and_the_old_store_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    old, new = captions_of(["a", "b"]), captions_of(["c", "d", "e"])
    write(tmp_path, index_of(old))
    with overwriter(tmp_path, new, overwrite=True) as writer:
        assert not writer.finished
        assert writer.rows_done == 0
        fill(writer, 2)
        EmbeddingStore.open(tmp_path).verify(old)
    EmbeddingStore.open(tmp_path).verify(old)
    EmbeddingStore.open(tmp_path).require_whole()
    with overwriter(tmp_path, new, overwrite=False) as writer:  # goes on without being told to replace again
        assert writer.rows_done == 2
        fill(writer, 1)
        writer.finish({})
    store = EmbeddingStore.open(tmp_path)
    store.verify(new)
    store.require_whole()
    np.testing.assert_array_equal(store.embeddings, embed(np.arange(3) + 100))
    assert sorted(files_of(tmp_path)) == ["embeddings.npy", "index.parquet", "lock", "meta.json"]


@pytest.mark.parametrize("how", ["disk full", "killed", "damaged"])
def test_a_store_that_could_not_be_replaced_is_as_it_was(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = captions_of(["a", "b"]), captions_of(["c", "d", "e"])
    write(tmp_path, index_of(old))
    before = files_of(tmp_path)
    if how == "disk full":

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space"):
            overwriter(tmp_path, new, overwrite=True)
    else:
        writer = overwriter(tmp_path, new, overwrite=True)
        fill(writer, 3)
        if how == "damaged":
            writer._file.write(np.array([1]), np.full((1, DIM), 7, np.float16), np.array([0]))
            with pytest.raises(UserError, match=r"partial.npy is damaged: its rows from 0"):
                writer.finish({})
        writer.close()
    assert before.items() <= files_of(tmp_path).items()
    write(tmp_path, index_of(old))  # finished: what was begun beside it goes
    assert files_of(tmp_path) == before


# Six renames give a new store the place of another one: its marker, array and index go, those of the new one come.
RENAMES = range(6)


def stop_at_rename(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException, *, for_good: bool) -> None:
    """Let a rename raise ``error``, and all later ones if it is ``for_good``, as in a process that is killed."""
    original, calls = Path.rename, itertools.count()

    def rename(self: Path, target: Path) -> Path:
        call = next(calls)
        if call == number or (for_good and call > number):
            raise error
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", ["the new store", "the old store", "a third one"])
@pytest.mark.parametrize("renames", RENAMES)
def test_killed_while_the_new_store_takes_its_place(
    tmp_path: Path, renames: int, goes_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next writer brings the old store back, and goes on with the new one if that is asked for."""
    old, new, third = captions_of(["a", "b"]), captions_of(["c", "d", "e"]), captions_of(["f"])
    write(tmp_path, index_of(old))
    before = files_of(tmp_path)
    writer = overwriter(tmp_path, new, overwrite=True)
    fill(writer, 3)
    stop_at_rename(monkeypatch, renames, KeyboardInterrupt(), for_good=True)
    with pytest.raises(KeyboardInterrupt):
        writer.finish({})
    monkeypatch.undo()
    writer.close()
    if renames:
        with pytest.raises(UserError, match="an unfinished store"):
            EmbeddingStore.open(tmp_path)
    if goes_on == "the new store":
        with overwriter(tmp_path, new) as writer:
            assert writer.rows_done == 3
            writer.finish({})
        store = EmbeddingStore.open(tmp_path)
        store.verify(new)
        np.testing.assert_array_equal(store.embeddings, embed(np.arange(3) + 100))
    elif goes_on == "the old store":
        write(tmp_path, index_of(old))
        assert before.items() <= files_of(tmp_path).items()
        write(tmp_path, index_of(old))  # and what was begun beside it goes
        assert files_of(tmp_path) == before
    else:
        with overwriter(tmp_path, third, overwrite=True):
            assert before.items() <= files_of(tmp_path).items()
    EmbeddingStore.open(tmp_path).require_whole()


@pytest.mark.slow
@pytest.mark.parametrize("renames", RENAMES)
@pytest.mark.parametrize("damaged", [False, True])
def test_an_error_while_the_new_store_takes_its_place(
    tmp_path: Path, renames: int, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = captions_of(["a", "b"]), captions_of(["c", "d", "e"])
    write(tmp_path, index_of(old))
    if damaged:
        (tmp_path / "index.parquet").unlink()
    before = files_of(tmp_path)
    writer = overwriter(tmp_path, new, overwrite=True)
    fill(writer, 3)
    stop_at_rename(monkeypatch, renames - (damaged and renames > 2), OSError(13, "Permission denied"), for_good=False)
    with pytest.raises(OSError, match="Permission"):
        writer.finish({})
    writer.close()
    assert before.items() <= files_of(tmp_path).items()
    with overwriter(tmp_path, new, overwrite=True) as writer:
        assert writer.rows_done == 3
        writer.finish({})
    EmbeddingStore.open(tmp_path).verify(new)
    assert sorted(files_of(tmp_path)) == ["embeddings.npy", "index.parquet", "lock", "meta.json"]


@pytest.mark.parametrize("change", ["flip", "zeros", "another row"])
def test_rows_that_changed_since_they_were_noted_are_told_when_a_run_goes_on(tmp_path: Path, change: str) -> None:
    index = index_of(captions_of([f"caption {i}" for i in range(10)]))
    write(tmp_path, index, stop_after=6).close()
    partial = np.load(tmp_path / "embeddings.partial.npy", mmap_mode="r+")
    row = partial[7].view(np.uint16)
    row[:] = {"flip": row ^ np.array([0, 1, 0, 0], np.uint16), "zeros": row * 0, "another row": partial[8].view("u2")}[
        change
    ]
    partial.flush()
    with pytest.raises(UserError, match=r"partial.npy is damaged: its rows from 0 .*--overwrite"):
        write(tmp_path, index)


def test_rows_written_twice_count_once(tmp_path: Path) -> None:
    writer = EmbeddingStoreWriter(tmp_path, index_of(captions_of(["a", "b", "b"])), DIM, "float16", SETTINGS)
    rows = np.arange(3)
    writer.write_shard(rows, embed(np.array([5, 6])), np.array([0, 1, 1]))
    writer.write_shard(rows[1:], embed(np.array([8])), np.array([0, 0]))
    writer.finish({})
    EmbeddingStore.open(tmp_path).require_whole()


@pytest.mark.parametrize("position", [0, 60, 130, -1])
def test_a_flipped_bit_in_a_finished_store_is_told(tmp_path: Path, position: int) -> None:
    index = index_of(captions_of([f"caption {i}" for i in range(10)]))
    write(tmp_path, index)
    store = EmbeddingStore.open(tmp_path)
    content = bytearray((tmp_path / "embeddings.npy").read_bytes())
    content[position] ^= 1
    (tmp_path / "embeddings.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"embeddings.npy is damaged: its bytes from row 0"):
        store.require_whole()
    with pytest.raises(UserError, match=r"embeddings.npy .*--overwrite"):
        write(tmp_path, index)


def test_a_store_without_digests_is_read_as_before(tmp_path: Path) -> None:
    captions = captions_of(["a", "b"])
    write(tmp_path, index_of(captions))
    meta = json.loads((tmp_path / "meta.json").read_text())
    gone = ("digests", "block_bytes", "odd_rows", "proof", "digest")
    (tmp_path / "meta.json").write_text(json.dumps({key: meta[key] for key in meta if key not in gone}, indent=2))
    store = EmbeddingStore.open(tmp_path)
    store.verify(captions)
    store.require_whole()
    assert not store.is_proven
    assert write(tmp_path, index_of(captions)).finished


def test_a_reader_never_gets_rows_of_a_store_that_took_the_place(tmp_path: Path) -> None:
    write(tmp_path, index_of(captions_of(["a", "b"])))
    store = EmbeddingStore.open(tmp_path)
    with overwriter(tmp_path, captions_of(["c", "d"]), overwrite=True) as writer:
        fill(writer, 2)
        writer.finish({})
    np.testing.assert_array_equal(store.embeddings, embed(np.arange(2)))  # the map is that of the old file
    with pytest.raises(UserError, match="digest differs"):
        store.index()
    with pytest.raises(UserError, match="has been replaced while it was in use"):
        map_array(tmp_path / "embeddings.npy", store.identity)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["missing", "another", "garbage"])
@pytest.mark.parametrize("stop_after", [3, None])
def test_an_index_that_is_gone_comes_back(tmp_path: Path, what: str, stop_after: int | None) -> None:
    captions = captions_of([f"caption {i}" for i in range(10)])
    index = index_of(captions)
    write(tmp_path / "whole", index)
    write(tmp_path / "store", index, stop_after=stop_after).close()
    file = tmp_path / "store" / "index.parquet"
    if what == "missing":
        file.unlink()
    else:
        write(tmp_path / "other", index_of(captions_of(["a"])))
        other = (tmp_path / "other" / "index.parquet").read_bytes()
        file.write_bytes(other if what == "another" else b"garbage")
    write(tmp_path / "store", index)
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("content", [None, b"", b"garbage", "cut"])
def test_a_finished_store_without_its_array_is_not_whole(tmp_path: Path, content: bytes | str | None) -> None:
    index, file = index_of(captions_of(["a", "b"])), tmp_path / "embeddings.npy"
    write(tmp_path, index)
    whole = file.read_bytes()
    file.unlink() if content is None else file.write_bytes(whole[:-1] if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"cannot be read.*--overwrite"):
        write(tmp_path, index)


@pytest.mark.parametrize(
    "change",
    [
        {"done": 3},
        {"done": "!!!"},
        {"done": "AAAA"},
        {"done": "eJxjAAAAAQAB"},  # one byte, of ten rows
        {"counts": None},
        {"counts": {"texts": "x"}},
        {"kept": 3},
        {"done": None},
    ],
)
def test_damaged_progress_is_told(tmp_path: Path, change: dict[str, object]) -> None:
    index = index_of(captions_of([f"caption {i}" for i in range(10)]))
    write(tmp_path, index, stop_after=3).close()
    progress = json.loads((tmp_path / "progress.json").read_text())
    write_object(tmp_path / "progress.json", {**progress, **change})
    with pytest.raises(UserError, match=r"progress.json is damaged .*--overwrite"):
        write(tmp_path, index)


@pytest.mark.parametrize("size", [0, 50, -1, "other"])
def test_a_damaged_partial_array_is_told(tmp_path: Path, size: int | str) -> None:
    index, file = index_of(captions_of([f"caption {i}" for i in range(10)])), tmp_path / "embeddings.partial.npy"
    write(tmp_path, index, stop_after=3).close()
    if isinstance(size, int):
        file.write_bytes(file.read_bytes()[:size])
    else:
        np.save(file, np.zeros((3, DIM), np.float16))
    with pytest.raises(UserError, match=r"embeddings.partial.npy is .*--overwrite"):
        write(tmp_path, index)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_store_has_one_writer(tmp_path: Path, overwrite: bool) -> None:
    index = index_of(captions_of([f"caption {i}" for i in range(10)]))
    first = write(tmp_path, index, stop_after=3)
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="written to by another run"):
        EmbeddingStoreWriter(tmp_path, index, DIM, "float16", SETTINGS, overwrite=overwrite)
    assert files_of(tmp_path) == before  # nothing was removed
    first.close()
    with EmbeddingStoreWriter(tmp_path, index, DIM, "float16", SETTINGS, overwrite=overwrite) as second:
        assert second.rows_done == (0 if overwrite else 3)
    write(tmp_path, index)
    assert "progress.json" not in files_of(tmp_path)


def test_looking_at_a_finished_store_needs_no_lock(tmp_path: Path) -> None:
    index = index_of(captions_of(["a", "b"]))
    write(tmp_path, index)
    (tmp_path / "lock").unlink()
    with exclusive(tmp_path):
        assert write(tmp_path, index).finished
        EmbeddingStore.open(tmp_path).index()
    (tmp_path / "lock").unlink()
    assert write(tmp_path, index).finished
    assert not (tmp_path / "lock").exists()  # nor is anything written: it may lie where we may only read


def test_finishing_too_early_is_a_bug_not_a_store(tmp_path: Path) -> None:
    writer = write(tmp_path, index_of(captions_of(["a"] * 5)), stop_after=3)
    with pytest.raises(RuntimeError, match="3 of 5 rows"):
        writer.finish({})


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("pwrite", errno.ENOSPC),
        ("pwrite", errno.EDQUOT),
        ("pwrite", errno.EIO),
        ("pwrite", errno.ESTALE),
        ("fsync", errno.EIO),
        ("fsync", errno.ENOSPC),
        ("preadv", errno.EIO),
        ("posix_fallocate", errno.EDQUOT),
    ],
)
def test_what_the_disk_does_not_do_is_an_error_with_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    """Through a memory map each of these would end the process; and afterwards the same command goes on."""
    index = index_of(captions_of(["a", "b"]))

    partial, plain = tmp_path / "store" / "embeddings.partial.npy", getattr(os, call)

    def fail(descriptor: int, *rest: Any) -> Any:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == partial:
            raise OSError(error, os.strerror(error))
        return plain(descriptor, *rest)

    monkeypatch.setattr("m2dprep.artifacts.reading.WAITS_SECONDS", (0.0,))
    monkeypatch.setattr(os, call, fail)
    with (
        pytest.raises(OSError, match=os.strerror(error)) as caught,
        EmbeddingStoreWriter(tmp_path / "store", index, DIM, "float16", SETTINGS) as writer,
    ):
        writer.write_shard(np.arange(2), embed(np.arange(2)), np.arange(2))
        writer.finish({})
    assert caught.value.filename == str(partial)
    monkeypatch.undo()
    write(tmp_path / "store", index)
    np.testing.assert_array_equal(EmbeddingStore.open(tmp_path / "store").embeddings, embed(np.arange(2)))


def test_a_file_that_is_cut_while_it_is_filled(tmp_path: Path) -> None:
    """Whoever writes to a map of it ends with SIGBUS."""
    index, partial = index_of(captions_of([f"caption {i}" for i in range(5000)])), tmp_path / "embeddings.partial.npy"
    with EmbeddingStoreWriter(tmp_path, index, DIM, "float16", SETTINGS) as writer:
        rows = np.arange(5000)
        writer.write_shard(rows[:4000], embed(rows[:4000]), rows[:4000])
        os.truncate(partial, 4096)
        with pytest.raises(UserError, match=r"partial.npy has become shorter"):
            writer.read(rows[3000:3001])
        writer.write_shard(rows[4000:], embed(rows[4000:]), np.arange(1000))
        with pytest.raises(UserError, match=r"partial.npy is damaged: its rows from 0 .*--overwrite"):
            writer.finish({})


def test_a_store_is_filled_and_read_without_a_map(tmp_path: Path) -> None:
    index = index_of(captions_of(["a", "b", "c"]))

    def mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    with EmbeddingStoreWriter(tmp_path, index, DIM, "float16", SETTINGS) as writer:
        writer.write_shard(np.array([2, 0, 1]), embed(np.array([2, 0, 1])), np.arange(3))
        np.testing.assert_array_equal(writer.read(np.array([1, 2])), embed(np.array([1, 2])))
        assert not mapped()
        writer.finish({})
    assert not mapped()
    store = EmbeddingStore.open(tmp_path)
    assert mapped(), "the array is there for whoever wants it"
    np.testing.assert_array_equal(store.rows().take(np.array([2, 0])), embed(np.array([2, 0])))
    fill(overwriter(tmp_path, captions_of(["d"]), overwrite=True), 1)
    np.testing.assert_array_equal(store.rows().take(np.array([2, 0])), embed(np.array([2, 0])))
    (tmp_path / "embeddings.npy").write_bytes(b"another")
    with pytest.raises(UserError, match="has been replaced while it was in use"):
        store.rows()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "store", index_of(captions_of(["a"])))
    assert files_of(tmp_path / "store") == {"lock": b""}


def damage(folder: Path, what: str) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    match what:
        case "no folder":
            folder.rename(folder.with_name("elsewhere"))
        case "no marker":
            (folder / "meta.json").unlink()
        case "a broken marker":
            (folder / "meta.json").write_text("{")
        case "a marker of another kind":
            (folder / "meta.json").write_text("[]")
        case "a truncated array":
            content = (folder / "embeddings.npy").read_bytes()
            (folder / "embeddings.npy").write_bytes(content[:-2])
        case "no array":
            (folder / "embeddings.npy").unlink()
        case "another shape":
            write_object(folder / "meta.json", {**meta, "rows": 3})
        case "another type":
            write_object(folder / "meta.json", {**meta, "dtype": "float32"})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", "no such folder"),
        ("no marker", "no store of caption embeddings"),
        ("a broken marker", "cannot be read as JSON"),
        ("a marker of another kind", "no JSON object"),
        ("a truncated array", "cannot be read"),
        ("no array", "cannot be read"),
        ("another shape", "promises"),
        ("another type", "promises"),
    ],
)
def test_damage_is_named_when_a_store_is_opened(tmp_path: Path, what: str, message: str) -> None:
    write(tmp_path / "store", index_of(captions_of(["a", "b"])))
    damage(tmp_path / "store", what)
    with pytest.raises(UserError, match=message):
        EmbeddingStore.open(tmp_path / "store")


def test_a_store_and_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "store", index_of(captions_of(["a"])))
    with pytest.raises(UserError, match="not a folder"):
        EmbeddingStore.open(tmp_path / "store")


def test_the_index_must_be_the_one_of_the_embeddings(tmp_path: Path) -> None:
    write(tmp_path / "one", index_of(captions_of(["a", "b"])))
    write(tmp_path / "two", index_of(captions_of(["a", "c"])))
    write(tmp_path / "three", index_of(captions_of(["a", "b", "c"])))
    (tmp_path / "one" / "index.parquet").write_bytes((tmp_path / "two" / "index.parquet").read_bytes())
    with pytest.raises(UserError, match="digest differs"):
        EmbeddingStore.open(tmp_path / "one").index()
    (tmp_path / "one" / "index.parquet").write_bytes((tmp_path / "three" / "index.parquet").read_bytes())
    with pytest.raises(UserError, match="has 3 rows"):
        EmbeddingStore.open(tmp_path / "one").index()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "", "🎵", "a b"]), min_size=1, max_size=8), st.data())
def test_the_first_row_that_differs_is_named(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store")
    write(folder, index_of(captions_of(texts)))
    store = EmbeddingStore.open(folder)
    store.verify(captions_of(texts))
    row = data.draw(st.integers(0, len(texts) - 1))
    with pytest.raises(UserError, match=rf"row {row} .*caption_digest"):
        store.verify(captions_of([text + "!" if i >= row else text for i, text in enumerate(texts)]))
    with pytest.raises(UserError, match=f"has {len(texts)} rows, the captions have {len(texts) + 1}"):
        store.verify(captions_of([*texts, "more"]))
