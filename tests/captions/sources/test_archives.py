"""Captions inside archives and beside sounds: whose they are, all forms of shards, damage, and what is never read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.sources.readers import Read, ReadOptions, read_kind


def read(kind: str, *paths: Path, **options: object) -> Read:
    return read_kind(kind, paths, ReadOptions(**options))  # type: ignore[arg-type]


def pairs(found: Read) -> list[tuple[str, str]]:
    return [(row["id"], row["caption"]) for row in found.rows.to_pylist()]


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_zip(path: Path, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


FORMS: dict[str, Callable[[Path, Mapping[str, bytes]], None]] = {
    "s.tar": write_tar,
    "s.tar.gz": lambda path, members: write_tar(path, members, "w:gz"),
    "s.tar.xz": lambda path, members: write_tar(path, members, "w:xz"),
    "s.tbz2": lambda path, members: write_tar(path, members, "w:bz2"),
    "s.zip": write_zip,
}
SOUND = b"never read"
LAION = json.dumps({"text": ["a dog", "dogs"], "tag": [], "text_augment_all": ["a man"], "original_data": {}}).encode()
# What an archive holds, and the captions in it.
CONTENTS: dict[str, tuple[dict[str, bytes], list[tuple[str, str]]]] = {
    "LAION's": ({"1.flac": SOUND, "1.json": LAION}, [("1", "a dog"), ("1", "dogs")]),
    "a text": ({"a/1.wav": SOUND, "a/1.txt": b" a dog\n"}, [("a/1", " a dog\n")]),
    "the text first": ({"1.txt": b"a", "1.ogg": SOUND}, [("1", "a")]),
    "both": ({"1.mp3": SOUND, "1.json": b'{"text": "b"}', "1.txt": b"a"}, [("1", "a"), ("1", "b")]),
    "caption as the key": ({"1.mp3": SOUND, "1.json": b'{"caption": "b", "x": 1}'}, [("1", "b")]),
    "dots in names": (
        {"Y-abc_30.000_40.000.wav": SOUND, "Y-abc_30.000_40.000.txt": b"a", "Y-abc_50.000_60.000.wav": SOUND},
        [("Y-abc_30.000_40.000", "a"), ("Y-abc_50.000_60.000", "")],
    ),
    "keys of WebDataset": ({"7.flac": SOUND, "7.caption.txt": b"a"}, [("7", "a")]),
    "one name in two folders": (
        {"dog/1.wav": SOUND, "dog/1.txt": b"a", "cat/1.wav": SOUND, "cat/1.txt": b"b"},
        [("dog/1", "a"), ("cat/1", "b")],
    ),
    "a dot before the path": ({"./1.wav": SOUND, "./1.txt": b"a"}, [("1", "a")]),
    "a byte order mark": ({"1.wav": SOUND, "1.txt": b"\xef\xbb\xbfa"}, [("1", "a")]),
    "without a text": ({"1.wav": SOUND, "2.wav": SOUND, "2.json": b"{}"}, [("1", ""), ("2", "")]),
    "the last of one name, as in tar": (
        {"1.wav": SOUND, "1.txt": b"a", "./1.txt": b"b"},
        [("1", "b")],
    ),
    "texts alone": ({"1.txt": b"a", "2.json": b'{"text": "b"}'}, [("1", "a"), ("2", "b")]),
    "rubbish of systems": (
        {"1.wav": SOUND, "1.txt": b"a", "._1.txt": b"\x00\x05", "__MACOSX/._1.txt": b"\x00"},
        [("1", "a")],
    ),
}


@pytest.mark.parametrize("content", list(CONTENTS))
@pytest.mark.parametrize("form", list(FORMS))
def test_the_texts_of_an_archive_are_those_of_its_sounds(tmp_path: Path, form: str, content: str) -> None:
    members, expected = CONTENTS[content]
    FORMS[form](tmp_path / form, members)
    assert pairs(read("webdataset", tmp_path / form)) == expected
    before = [(f"s/{name}", text) for name, text in expected]
    assert pairs(read("webdataset", tmp_path / form, by_archive=True)) == before


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("text_augment_all",), ["a man"]),
        (("text_augment_all", "text"), ["a man", "a dog", "dogs"]),
        (("txt",), ["b"]),
        (("txt", "text"), ["b", "a dog", "dogs"]),
        (("absent",), [""]),
    ],
)
def test_keys_can_be_named(tmp_path: Path, keys: tuple[str, ...], expected: list[str]) -> None:
    write_tar(tmp_path / "s.tar", {"1.flac": SOUND, "1.json": LAION, "1.txt": b"b"})
    assert [text for _, text in pairs(read("webdataset", tmp_path / "s.tar", caption_columns=keys))] == expected


def test_folders_and_patterns_of_shards(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, form in enumerate(["b.tar", "a.zip", "in/c.tar.gz"]):
        FORMS["s." + form.partition(".")[2]](tmp_path / form, {f"{number}.wav": SOUND, f"{number}.txt": form.encode()})
    (tmp_path / "README.md").write_text("no shard")
    (tmp_path / "._b.tar").write_text("of macOS")
    assert pairs(read("webdataset", tmp_path)) == [("1", "a.zip"), ("0", "b.tar"), ("2", "in/c.tar.gz")]
    assert pairs(read("webdataset", tmp_path / "*.tar")) == [("0", "b.tar")]
    assert pairs(read("webdataset", tmp_path / "**" / "*.gz", tmp_path / "b.tar")) == [
        ("2", "in/c.tar.gz"),
        ("0", "b.tar"),
    ]
    for paths, message in [
        (["*.tgz"], "no such file"),
        (["b.tar", "*.tar"], "more than once"),
        (["x.tar"], "no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            read("webdataset", *(tmp_path / path for path in paths))


def test_a_name_in_two_shards_is_no_clip(tmp_path: Path) -> None:
    for shard in ("a.tar", "b.tar"):
        write_tar(tmp_path / shard, {"1.wav": SOUND, "1.txt": shard.encode()})
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"every sound .*\(1 in .*a\.tar and .*b\.tar.* --layout-from archive"):
        read("webdataset", tmp_path)
    write_tar(tmp_path / "b.tar", {"1.wav": SOUND, "1.txt": b"b.tar", "2.wav": SOUND, "2.txt": b"two"})
    found = read("webdataset", tmp_path)
    assert pairs(found) == [("1", ""), ("1", ""), ("2", "two")]
    assert found.lines()[0].startswith(
        "sounds of one name in several shards, whose captions may be any's and are left out"
    )
    assert ": 1 (1 in " in found.lines()[0]
    write_tar(tmp_path / "b.tar", {"1.wav": SOUND, "1.txt": b"b.tar"})
    assert pairs(read("webdataset", tmp_path, by_archive=True)) == [("a/1", "a.tar"), ("b/1", "b.tar")]
    (tmp_path / "b.tar").rename(tmp_path / "in" / "a.tar")
    assert pairs(read("webdataset", tmp_path, by_archive=True)) == [("a/1", "a.tar"), ("in/a/1", "b.tar")]


def test_texts_of_no_sound_and_paths_that_lead_out_are_reported(tmp_path: Path) -> None:
    members = {"1.wav": SOUND, "1.txt": b"a", "2.txt": b"b", "../3.txt": b"c", "/4.txt": b"d"}
    write_tar(tmp_path / "s.tar", members)
    found = read("webdataset", tmp_path / "s.tar")
    assert pairs(found) == [("1", "a"), ("2", "b")]
    assert sorted(line.partition(" (")[0] for line in found.lines()) == [
        "captions of no sound in their archive: 1",
        "members whose path leads out, left out: 2",
    ]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in a member": lambda content: content[:2000],
    "cut behind a member": lambda content: content[:1024],
    "without its end": lambda content: content[:2048],
    "a header in the middle": lambda content: content[:1030] + b"x" * 20 + content[1050:],
    "another behind it": lambda content: content + content,
    "another file": lambda _: b"<html>not found</html>" * 100,
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.parametrize("form", list(FORMS))
def test_all_damaged_shards_are_named(tmp_path: Path, form: str, damage: str) -> None:
    members = {"1.wav": SOUND, "1.txt": b"a" * 400}
    for name in ("good", "bad1", "bad2"):
        path = tmp_path / form.replace("s.", f"{name}.")
        FORMS[form](path, {f"{name}{member}": content for member, content in members.items()})
        if name != "good":
            content = path.read_bytes()
            whole = damage in ("another file", "empty") or form == "s.tar"  # the others are damages of tars
            path.write_bytes(DAMAGES[damage](content) if whole else content[: len(content) // 2])
    with pytest.raises(UserError) as caught:
        read("webdataset", tmp_path)
    assert "bad1." in str(caught.value)
    assert "bad2." in str(caught.value)
    assert "good." not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.json", b'{"text": 1}', r"s.tar::1.json: 'text' is neither a text"),
        ("1.json", b"[1]", r"s.tar::1.json is no object"),
        ("1.json", b'{"text": "x', r"s.tar::1.json cannot be read as JSON"),
        ("1.txt", b"\xff\xfe", r"s.tar::1.txt is UTF-16"),
        ("1.txt", b"a\n\xe9", r"s.tar::1.txt:2 is not UTF-8"),
    ],
)
def test_malformed_members_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_tar(tmp_path / "s.tar", {"1.wav": SOUND, name: content})
    with pytest.raises(UserError, match=message):
        read("webdataset", tmp_path / "s.tar")


@settings(max_examples=60)
@given(st.binary(max_size=600), st.integers(0, 3000), st.sampled_from(list(FORMS)))
def test_any_damage_gives_captions_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, rubbish: bytes, place: int, form: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{form}"
    FORMS[form](path, {"1.wav": SOUND, "1.json": LAION, "2.txt": b"x"})
    content = bytearray(path.read_bytes())
    content[place : place + len(rubbish)] = rubbish
    path.write_bytes(bytes(content))
    try:
        read("webdataset", path)
    except UserError as error:
        assert f"any{form}" in str(error)


def hub_table(path: Path, names: list[str], texts: list[object], **more: list[object]) -> None:
    """A table as the hub has it, with a struct of audio whose bytes are never read."""
    audio = [{"bytes": SOUND, "path": f"{name}.flac"} for name in names]
    pq.write_table(pa.table({"audio": audio, "text": texts, **more}), path)


def test_parquet_of_the_hub_needs_no_names(tmp_path: Path) -> None:
    hub_table(tmp_path / "t-0.parquet", ["a", "b"], ["1", None])
    hub_table(tmp_path / "t-1.parquet", ["c"], ["3"])
    expected = [("a.flac", "1"), ("b.flac", ""), ("c.flac", "3")]
    assert pairs(read("parquet", tmp_path)) == expected
    assert pairs(read("parquet", tmp_path / "t-*.parquet")) == expected
    hub_table(tmp_path / "t-0.parquet", ["a"], ["1"], id=[7], video_id=["v"], captions=[["x", "y"]])
    assert pairs(read("parquet", tmp_path / "t-0.parquet")) == [("v", "x"), ("v", "y")]
    assert pairs(read("parquet", tmp_path / "t-0.parquet", id_column="id", caption_columns=("text",))) == [("7", "1")]


@pytest.mark.parametrize(
    "values", [[1.5, 2.5], [1, 2], [True, False], [[1.0], [2.0]], [[1], []], [{"text": "a"}, {"text": "b"}]]
)
def test_parquet_whose_captions_are_no_texts_is_refused(values: list[object], tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "caption": values}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"the column caption holds .*, neither texts nor lists of texts"):
        read("parquet", tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_texts_of_parquet_may_be_of_any_kind(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "caption": pa.array(["x", None]).cast(kind)}), tmp_path / "a.parquet")
    assert pairs(read("parquet", tmp_path / "a.parquet")) == [("a", "x"), ("b", "")]


def test_parquet_whose_columns_are_not_obvious_or_damaged(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: which column holds the ids\? It has x, text"):
        read("parquet", tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["a"], "y": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"which columns hold captions\? It has id, y"):
        read("parquet", tmp_path / "a.parquet")
    for name in ("b", "c"):
        (tmp_path / f"{name}.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"b\.parquet cannot be read .* And 1 more: .*c\.parquet"):
        read("parquet", tmp_path, caption_columns=("y",))


def test_texts_beside_sounds(tmp_path: Path) -> None:
    for name, content in {
        "dog/001.flac": SOUND,
        "dog/001.txt": b"\xef\xbb\xbfa dog\r\nbarks",
        "cat/001.WAV": SOUND,
        "cat/001.TXT": b"a cat",
        "cat/002.wav": SOUND,
        "README.txt": b"about",
        "dog/._001.txt": b"\x00",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = read("txt", tmp_path)
    assert pairs(found) == [("cat/001", "a cat"), ("cat/002", ""), ("dog/001", "a dog\r\nbarks")]
    assert found.lines() == [f"{tmp_path}: .txt files of no sound, left out: 1 (README.txt)."]


def test_texts_beside_no_sound(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        read("txt", tmp_path)
    (tmp_path / "a.txt").write_text("A")
    assert pairs(read("txt", tmp_path)) == [("a", "A")]  # the sounds lie elsewhere
    (tmp_path / "b.wav").write_bytes(SOUND)
    with pytest.raises(UserError, match=r"no \.txt file has the name of a sound: a\.txt, but b"):
        read("txt", tmp_path)
    with pytest.raises(UserError, match=r"use --laion"):
        (tmp_path / "json").mkdir()
        (tmp_path / "json" / "a.json").write_text("{}")
        read("txt", tmp_path / "json")


def test_gzip_without_a_tar_inside(tmp_path: Path) -> None:
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(b"text"))
    with pytest.raises(UserError, match=r"s\.tar\.gz is damaged"):
        read("webdataset", tmp_path)
