"""Files prove their bytes: JSON, Parquet and lists tell every change, and stay what others can read."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2dprep.artifacts.digests import BLOCK_BYTES, block_digests, differing_blocks, plain_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import is_proven, read_object, write_object
from m2dprep.artifacts.tables import (
    is_as_written,
    list_digest_path,
    read_file_list,
    read_parquet,
    verify_file_list,
    verify_parquet,
    write_csv,
    write_file_list,
    write_parquet,
    write_proven_csv,
)

VALUE = {"mean": -7.25, "text": "zwölf \u2192 🎵", "nested": {"list": [1, 2, None]}, "empty": {}}
TABLE = pa.table({"name": [f"n{i}" for i in range(500)], "value": np.arange(500) / 7})
SCHEMA = TABLE.schema


@pytest.mark.parametrize("refused", [1, 2])
def test_a_list_that_cannot_get_its_name_leaves_the_old_one_and_its_digest_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """The first new file is the digest of both lists, the second the new list."""
    path = tmp_path / "files_a.csv"
    write_file_list(path, ["a/1.npy"])
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    calls = itertools.count(1)
    replace = os.replace

    def refuse(*given: Any) -> None:
        if next(calls) == refused:
            raise PermissionError(13, "Permission denied")
        replace(*given)

    with monkeypatch.context() as patched, pytest.raises(PermissionError):
        patched.setattr(os, "replace", refuse)
        patched.setattr(Path, "replace", lambda self, target: refuse(self, target))
        write_file_list(path, ["a/1.npy", "a/2.npy"])
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_json_is_read_alike_by_everybody(tmp_path: Path) -> None:
    write_object(tmp_path / "x.json", VALUE)
    assert read_object(tmp_path / "x.json") == VALUE
    assert is_proven(tmp_path / "x.json")
    assert VALUE.items() <= json.loads((tmp_path / "x.json").read_text()).items()
    write_object(tmp_path / "y.json", json.loads((tmp_path / "x.json").read_text()))  # what was read may be written
    assert (tmp_path / "y.json").read_bytes() == (tmp_path / "x.json").read_bytes()


@pytest.mark.parametrize("value", [{}, {"digest": "mine"}, {"a": '"digest": "0123456789abcdef"\n}\n'}])
def test_any_object_can_be_proven(tmp_path: Path, value: dict[str, str]) -> None:
    write_object(tmp_path / "x.json", value)
    assert is_proven(tmp_path / "x.json")


@pytest.mark.slow
def test_every_bit_of_json_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_object(path, VALUE)
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.json"):
            read_object(path)
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"x\.json"):
            read_object(path)


@pytest.mark.parametrize("content", [b"\xff", b"", b"[1]", b"{" * 5000, b'{"a": ' + b"9" * 5000 + b"}", b"null"])
def test_json_that_is_none_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json"):
        read_object(tmp_path / "x.json")


def test_json_of_others_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"mean": 1}')
    assert read_object(tmp_path / "x.json") == {"mean": 1}
    assert not is_proven(tmp_path / "x.json")
    assert read_object(tmp_path / "missing.json") is None


def test_parquet_is_read_alike_by_everybody(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, TABLE, row_group_size=100)
    assert verify_parquet(path, "a table")
    assert read_parquet(path, SCHEMA, "a table").equals(TABLE)
    assert pq.read_table(path).equals(TABLE)
    assert pd.read_parquet(path).equals(TABLE.to_pandas())
    assert pq.ParquetFile(path).metadata.num_row_groups == 5
    again = tmp_path / "y.parquet"
    write_parquet(again, TABLE, row_group_size=100)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_every_byte_of_parquet_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, TABLE.slice(0, 20))
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.parquet"):
            read_parquet(path, SCHEMA, "a table")
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"x\.parquet"):
            read_parquet(path, SCHEMA, "a table")


def test_pages_of_some_columns_have_checksums(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, TABLE)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    damaged = bytearray(path.read_bytes())
    damaged[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"x\.parquet"):
        read_parquet(path, SCHEMA, "a table", ["name"])


def test_parquet_of_others_is_read_and_has_no_proof(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "x.parquet")
    assert read_parquet(tmp_path / "x.parquet", SCHEMA, "a table").equals(TABLE)
    assert not verify_parquet(tmp_path / "x.parquet", "a table")


def test_a_column_that_earlier_versions_lack_is_null(tmp_path: Path) -> None:
    schema = SCHEMA.append(pa.field("digest", pa.string()))
    pq.write_table(TABLE, tmp_path / "x.parquet")
    assert read_parquet(tmp_path / "x.parquet", schema, "a table")["digest"].null_count == 500


def test_lists_have_their_digest_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "files_a.csv"
    write_file_list(path, ["a_lms/b.npy", "a_lms/a.npy"])
    assert verify_file_list(path)
    assert list_digest_path(path).read_text() == f"XXH3_{plain_digest(path)}  files_a.csv\n"
    path.write_text("file_name\na_lms/a.npy\n")  # a line less
    with pytest.raises(UserError, match=r"not as m2dprep wrote it.*check .* --accept files_a\.csv"):
        verify_file_list(path)
    assert read_file_list(path) == ["a_lms/a.npy"]
    list_digest_path(path).unlink()
    assert not verify_file_list(path)
    write_csv(path, ["file_name"], [["x"]])
    write_file_list(path, ["y"])
    assert verify_file_list(path)


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["with a digest", "without one", "not there"])
@pytest.mark.parametrize("steps", range(4))
def test_a_list_that_is_being_replaced_is_proven_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, steps: int
) -> None:
    """The process ends at one of the renames; a list that had no digest has none until the next run."""
    path, left, replace = tmp_path / "files_a.csv", [steps], os.replace

    def stop(*given: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        replace(*given)

    if begun != "not there":
        write_file_list(path, ["a_lms/a.npy"])
    if begun == "without one":
        list_digest_path(path).unlink()
    if (child := os.fork()) == 0:
        monkeypatch.setattr(os, "replace", stop)
        monkeypatch.setattr(Path, "replace", stop)
        write_file_list(path, ["a_lms/b.npy"])
        os._exit(0)
    os.waitpid(child, 0)
    if path.exists():
        assert is_as_written(path) in (True, None if begun == "without one" else True)
    write_file_list(path, ["a_lms/b.npy"])
    assert list_digest_path(path).read_text() == f"XXH3_{plain_digest(path)}  files_a.csv\n"


def test_a_writer_that_fails_leaves_list_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "files_a.csv"
    write_file_list(path, ["a_lms/a.npy"])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def rows() -> Iterator[list[str]]:
        yield from (["x" * 5000] for _ in range(9))
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_proven_csv(path, ["file_name"], rows())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_blocks_that_differ_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    content = bytearray(np.random.default_rng(0).bytes(2 * BLOCK_BYTES + 5))
    path.write_bytes(content)
    digests = block_digests(path)
    assert differing_blocks(path, digests) == []
    content[BLOCK_BYTES + 3] ^= 1
    path.write_bytes(content)
    assert differing_blocks(path, digests) == [1]
    path.write_bytes(content[:BLOCK_BYTES])
    assert differing_blocks(path, digests) == [1, 2]
