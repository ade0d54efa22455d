"""Every source under one interface: its own form in, rows of id and caption out; a pattern for ids; bad files named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.errors import UserError
from captions.sources import CAPTION_ROWS, READERS, ReadOptions, read_source


def pairs(kind: str, *paths: Path, **options: object) -> list[tuple[str, str]]:
    table = read_source(kind, paths, ReadOptions(**options))  # type: ignore[arg-type]
    assert table.schema == CAPTION_ROWS
    return [(row["id"], row["caption"]) for row in table.to_pylist()]


def test_audiocaps_has_one_or_five_rows_a_clip(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    path.write_text('audiocap_id,youtube_id,start_time,caption\n1,rqfQRErjfk8,170,"A, b"\n2,rqfQRErjfk8,170,c\n')
    assert pairs("audiocaps", path) == [("rqfQRErjfk8", "A, b"), ("rqfQRErjfk8", "c")]
    path.write_text("audiocap_id,youtube_id,start_time,caption\n1,rqfQRErjfk8,170,broken, row\n")
    with pytest.raises(UserError, match=r"val.csv is malformed .*line 2: 5 columns, not 4"):
        pairs("audiocaps", path)


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1"])
def test_clotho_in_either_encoding_with_names_as_the_files_have_them(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "clotho_captions_development.csv"
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    path.write_bytes((header + "Café: what? &quot;x&quot;.wav,1,2,3,é,5\n").encode(encoding))
    name = "Café_ what_ &quot;x&quot;.wav"
    assert pairs("clotho", path) == [(name, text) for text in ("1", "2", "3", "é", "5")]


def wavcaps(path: Path, *ids: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    entries = [{"id": name, "caption": f"c{number}", "duration": 1.0} for number, name in enumerate(ids)]
    path.write_text(json.dumps({"num_captions_per_audio": 1, "data": entries}))
    return path


def test_the_four_parts_of_wavcaps(tmp_path: Path) -> None:
    assert pairs("wavcaps", wavcaps(tmp_path / "fsd_final.json", "1234", 5)) == [
        ("FreeSound/1234", "c0"),
        ("FreeSound/5", "c1"),
    ]
    assert pairs("wavcaps", wavcaps(tmp_path / "bbc_final.json", "NHU1")) == [("BBC_Sound_Effects/NHU1", "c0")]
    assert pairs("wavcaps", wavcaps(tmp_path / "SoundBible" / "x.json", "1234")) == [("SoundBible/1234", "c0")]
    audioset = [("-a_0123456b", "c0"), ("YXqu1CeA2c4", "c1")]
    names = ["Y-a_0123456b.wav", "YYXqu1CeA2c4.wav"]
    assert pairs("wavcaps", wavcaps(tmp_path / "as_final.json", *names)) == audioset
    assert pairs("wavcaps", wavcaps(tmp_path / "any.json", *names)) == audioset
    with pytest.raises(UserError, match=r"which part of WavCaps"):
        pairs("wavcaps", wavcaps(tmp_path / "any.json", "1234"))


def test_laion_has_a_file_a_clip(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.json").write_text('{"text": "x", "tag": [], "text_augment_t5": ["t", null]}')
    (tmp_path / "2.json").write_text('{"text": ["y", "z"], "original_data": {}}')
    (tmp_path / "3.json").write_text("{}")
    assert pairs("laion", tmp_path) == [("2", "y"), ("2", "z"), ("3", ""), ("1", "x")]
    both = pairs("laion", tmp_path, caption_columns=("text_augment_t5", "text"))
    assert both == [("2", "y"), ("2", "z"), ("3", ""), ("1", "t"), ("1", "x")]


def test_json_lines_and_parquet_by_their_columns(tmp_path: Path) -> None:
    options = {"id_column": "f", "caption_columns": ("a", "b")}
    (tmp_path / "t.jsonl").write_text('{"f": " x.wav", "a": "1", "b": ["2", "3"]}\n\n{"f": 7, "a": "4", "b": null}\n')
    expected = [("x.wav", "1"), ("x.wav", "2"), ("x.wav", "3"), ("7", "4")]
    assert pairs("jsonl", tmp_path / "t.jsonl", **options) == expected
    table = pa.table({"f": ["x.wav", "7"], "a": ["1", None], "b": [["2", "3"], []]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert pairs("parquet", tmp_path / "t.parquet", **options) == [("x.wav", "1"), ("7", ""), *expected[1:3]]


def test_several_files_are_one_source_but_none_twice(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"id,caption\n{name},{name}\n")
    assert pairs("csv", tmp_path / "b.csv", tmp_path / "a.csv") == [("b", "b"), ("a", "a")]
    with pytest.raises(UserError, match="more than once"):
        pairs("csv", tmp_path / "a.csv", tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        (r"clip_(\d+)", ["12", ""]),
        (r"\d+", ["12", "7"]),
        (r"(clip)_", ["clip", ""]),
        (r"(?:x|clip)_\d", ["clip_1", ""]),
    ],
)
def test_a_pattern_takes_ids_out_of_names(tmp_path: Path, pattern: str, ids: list[str]) -> None:
    (tmp_path / "t.csv").write_text("id,caption\nset1/clip_12_a.wav,x\nother7,y\n".replace("set1", "set"))
    assert [name for name, _ in pairs("csv", tmp_path / "t.csv", id_pattern=pattern)] == ids


def test_bad_requests(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,caption\na,b\n")
    (tmp_path / "t.txt").write_text("text")
    (tmp_path / "t.jsonl").write_text('{"f": 1}\n{"g": 2}\n{"f": [], "g": "x"}\n')
    named = {"id_column": "f", "caption_columns": ("g",)}
    bad: list[tuple[str, str, dict[str, object], str]] = [
        ("csv", "t.csv", {"id_pattern": "("}, "no regular expression"),
        ("csv", "t.csv", {"id_pattern": "(?=a)"}, "RE2"),
        ("clotho", "t.csv", {}, "no column file_name"),
        ("audiocaps", "t.csv", {}, "no column youtube_id"),
        ("audiocaps", "t.csv", {"id_column": "x"}, "columns of its own"),
        ("wavcaps", "t.txt", {}, "JSON"),
        ("laion", "t.csv", {}, "not a folder"),
        ("laion", "missing", {}, "no such folder"),
        ("jsonl", "t.jsonl", {}, "--id-column"),
        ("jsonl", "t.jsonl", named, r"t.jsonl:1 has no g; it has f"),
        ("parquet", "t.txt", named, "cannot be read"),
        ("parquet", "missing", named, "no such file"),
    ]
    for kind, name, options, message in bad:
        with pytest.raises(UserError, match=message):
            pairs(kind, tmp_path / name, **options)


@settings(max_examples=60)
@given(
    st.sampled_from([kind for kind in READERS if kind != "laion"]),
    st.sampled_from(
        ["", '{"data": [{"id": ', "{", "youtube_id,caption\n", "file_name,caption_1\n", '{"id": "a", "caption"']
    ),
    st.one_of(st.text('{}[]":,ab\n0 ', max_size=40).map(str.encode), st.binary(max_size=30)),
)
def test_any_bytes_give_rows_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, start: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.file"
    path.write_bytes(start.encode() + content)
    named = {"id_column": "id", "caption_columns": ("caption",)} if kind in ("csv", "jsonl", "parquet") else {}
    try:
        assert pairs(kind, path, **named) is not None
    except UserError as error:
        assert str(path) in str(error)
