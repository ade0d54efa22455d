"""Every source under one interface: its own form in, rows of id and caption out; a pattern for ids; bad files named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.sources.caption_rows import CAPTION_ROWS
from m2dprep.captions.sources.readers import ReadOptions, read_source


def pairs(kind: str, *paths: Path, **options: object) -> list[tuple[str, str]]:
    table = read_source(kind, paths, ReadOptions(**options))  # type: ignore[arg-type]
    assert table.schema == CAPTION_ROWS
    return [(row["id"], row["caption"]) for row in table.to_pylist()]


def test_audiocaps_has_one_or_five_rows_per_clip(tmp_path: Path) -> None:
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


def test_laion_has_one_file_per_clip(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.json").write_text('{"text": "x", "tag": [], "text_augment_t5": ["t", null]}')
    (tmp_path / "2.json").write_text('{"text": ["y", "z"], "original_data": {}}')
    (tmp_path / "3.json").write_text("{}")
    assert pairs("laion", tmp_path) == [("2", "y"), ("2", "z"), ("3", ""), ("a/1", "x")]
    both = pairs("laion", tmp_path, caption_columns=("text_augment_t5", "text"))
    assert both == [("2", "y"), ("2", "z"), ("3", ""), ("a/1", "t"), ("a/1", ""), ("a/1", "x")]


def test_json_lines_and_parquet_by_their_columns(tmp_path: Path) -> None:
    options = {"id_column": "f", "caption_columns": ("a", "b")}
    (tmp_path / "t.jsonl").write_text('{"f": " x.wav", "a": "1", "b": ["2", "3"]}\n\n{"f": 7, "a": "4", "b": null}\n')
    expected = [("x.wav", "1"), ("x.wav", "2"), ("x.wav", "3"), ("7", "4"), ("7", "")]
    assert pairs("jsonl", tmp_path / "t.jsonl", **options) == expected
    table = pa.table({"f": ["x.wav", "7"], "a": ["1", None], "b": [["2", "3"], []]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert pairs("parquet", tmp_path / "t.parquet", **options) == [("x.wav", "1"), ("7", ""), *expected[1:3], ("7", "")]


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
        ("audiocaps", "t.csv", {}, "looks like AudioSetCaps"),
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


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.sampled_from(["acalt4", "auto_acd", "audiocaps", "clotho", "wavcaps", "csv", "jsonl", "parquet"]),
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


HALVES = {  # where half a character stands, and what the error names
    "wavcaps": ('{"data": [{"id": "1", "caption": "a"}, {"id": "2", "caption": "b \\ud83d c"}]}', r"data\[1\].caption"),
    "jsonl": ('{"id": "a", "caption": "b"}\n{"id": "\\ude00", "caption": "c"}', r":2 holds half .* in id"),
}


@pytest.mark.parametrize("kind", list(HALVES))
def test_half_characters_are_named_by_their_place(tmp_path: Path, kind: str) -> None:
    content, place = HALVES[kind]
    (tmp_path / "fsd_final.json").write_text(content)
    named = {"id_column": "id", "caption_columns": ("caption",)} if kind == "jsonl" else {}
    with pytest.raises(UserError, match=place):
        pairs(kind, tmp_path / "fsd_final.json", **named)
    (tmp_path / "fsd_final.json").write_text(content.replace("\\ud83d", "\\ud83d\\ude00").replace('"\\ude00', '"x'))
    assert len(pairs(kind, tmp_path / "fsd_final.json", **named)) == 2


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000, "true", "1e400", "{}"])
def test_ids_that_are_none_are_named_by_their_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"id": "a", "caption": "b"}}\n{{"id": {value}, "caption": "c"}}\n')
    with pytest.raises(UserError, match=r"t\.jsonl:2"):
        pairs("jsonl", tmp_path / "t.jsonl", id_column="id", caption_columns=("caption",))


def test_every_row_is_counted_also_nulls_and_empty_lists(tmp_path: Path) -> None:
    entries = [{"id": 1, "caption": None}, {"id": None, "caption": "a"}, {"id": 3, "caption": []}]
    (tmp_path / "fsd_final.json").write_text(json.dumps({"data": entries}))
    assert pairs("wavcaps", tmp_path / "fsd_final.json") == [("FreeSound/1", ""), ("", "a"), ("FreeSound/3", "")]
    named = {"id_column": "id", "caption_columns": ("caption",)}
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert pairs("jsonl", tmp_path / "t.jsonl", **named) == [("1", ""), ("", "a"), ("3", "")]
    lists = [["a", None], None, [], ["b"]]
    for kind in (pa.list_(pa.string()), pa.large_list(pa.string())):
        table = pa.table({"id": [1, 2, 3, None], "caption": pa.array(lists, kind)})
        pq.write_table(table, tmp_path / "t.parquet")
        expected = [("1", "a"), ("1", ""), ("2", ""), ("3", ""), ("", "b")]
        assert pairs("parquet", tmp_path / "t.parquet", **named) == expected
    pq.write_table(pa.table({"id": ["a"], "caption": [{"x": "y"}]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="caption holds struct"):
        pairs("parquet", tmp_path / "t.parquet", **named)


def test_of_a_parquet_file_the_named_columns_are_read(tmp_path: Path) -> None:
    """The audio in a table from a hub takes gigabytes; here it is damaged, which shows only if it is read."""
    audio = [b"never read " * 1000]
    table = pa.table({"audio": pa.array(audio, pa.binary()), "id": ["a"], "caption": ["b"]})
    pq.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False)
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    place = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0).column(0).data_page_offset
    data[place : place + 8] = bytes(8)
    (tmp_path / "t.parquet").write_bytes(bytes(data))
    with pytest.raises(OSError):
        pq.read_table(tmp_path / "t.parquet")
    assert pairs("parquet", tmp_path / "t.parquet", id_column="id", caption_columns=("caption",)) == [("a", "b")]


def test_clotho_in_windows_1252(tmp_path: Path) -> None:
    path = tmp_path / "clotho.csv"
    header = b"file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    path.write_bytes(header + b"a.wav,1,2,3,it\x92s caf\xe9,5\n")
    assert pairs("clotho", path)[3] == ("a.wav", "it’s café")
    path.write_bytes(header + b"a.wav,1,2,3,\x81\xe9,5\n")
    with pytest.raises(UserError, match=r"clotho.csv:2 is neither UTF-8 nor ISO-8859-1 \(byte 0x81\)"):
        pairs("clotho", path)
