"""Caption sets as they are downloaded: each kind with the quirks of real files, its rule for ids, and wrong files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.clips.caption_sets import CSV, ENTRIES, ID_FORMS, KINDS
from m2dprep.artifacts.errors import UserError
from m2dprep.captions.sources.readers import OF_SHARDS, READERS, Read, ReadOptions, read_kind
from m2dprep.captions.template import label_captions, read_template

A, B, C = "-abcdefghi1", "Yabcdefg_i2", "abcdefghij_"  # ids of eleven characters, with what misleads rules by letters


@pytest.fixture
def ontology(tmp_path: Path) -> Path:
    path = tmp_path / "ontology.json"
    path.write_text(json.dumps([{"id": "/m/1", "name": "Dog"}, {"id": "/m/2", "name": "Bark, loud"}]))
    return path


def read(kind: str, path: Path, ontology: Path | None = None, **options: object) -> Read:
    labels = ontology if KINDS[kind].needs_label_names else None
    options.setdefault("sentences", label_captions)
    return read_kind(kind, [path], ReadOptions(labels=labels, **options))  # type: ignore[arg-type]


def pairs(found: Read) -> list[tuple[str, str]]:
    return [(row["id"], row["caption"]) for row in found.rows.to_pylist()]


def table(*rows: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


MUSIC = ["ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list", "caption", "author_id"]
# A file of every kind, as it is published, and its rows.
FILES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "acalt4": (
        table(["youtube_id", "caption1", "caption2", "caption3", "caption4"], [A, "1", "2", "3", "4"]),
        [(A, text) for text in "1234"],
    ),
    "acavcaps": (
        lines(
            {f"{A}_166_48_176_48": {"short": ["s", "t"], "long": ["l"], "music": ["m"]}},
            {f"{C}_0_0_10_0": {"short": "u"}},
        ),
        [(f"{A}_166_48_176_48", text) for text in ("l", "s", "t")] + [(f"{C}_0_0_10_0", "u")],
    ),
    "af_audioset": (
        json.dumps(
            [
                {"ytid": f"Y{A}", "caption": "one"},
                {"ytid": f"Y{B}", "caption": "two"},
                {"ytid": f"Y{A}", "caption": "three"},
            ]
        ),
        [(A, "one"), (B, "two"), (A, "three")],
    ),
    "audiocaps": (
        table(["audiocap_id", "youtube_id", "start_time", "caption"], ["91139", A, "30", "a, b"], ["2", B, "0", "c"]),
        [(A, "a, b"), (B, "c")],
    ),
    "audioset_strong": (
        "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
        f"{A}_110000\t4.5\t5.0\t/m/1\n{B}_0\t0.0\t1.0\t/m/1\n{A}_110000\t0.25\t5.0\t/m/2\n{A}_110000\t6\t7\t/m/1\n",
        [(A, "The sound of Bark, loud, and Dog."), (B, "The sound of Dog.")],
    ),
    "audiosetcaps": (
        table(["id", "caption"], [f"Y{A}", "a"], [f"Y{B}", "b"], [f"{B}_000110", "c"], [f"{C}_84_10", "d"]),
        [(A, "a"), (B, "b"), (f"{B}_000110", "c"), (f"{C}_84_10", "d")],
    ),
    "auto_acd": (
        table(["youtube_id", "caption"], [f"Y{A}", "a"], [f"{B}_000110", "b"]),
        [(f"Y{A}", "a"), (f"{B}_000110", "b")],
    ),
    "clotho": (
        table(["file_name", *(f"caption_{n}" for n in range(1, 6))], ["Rain: here.wav", *"12345"]),
        [("Rain_ here.wav", text) for text in "12345"],
    ),
    "fusionaudio": (
        json.dumps(
            [
                {"audio_id": f"{A}_000110", "instruction": "Describe", "task": "Captioning", "output": "a"},
                {"audio_id": f"Y{B}", "instruction": "Describe", "task": "caption", "output": "b"},
                {"audio_id": C, "instruction": "What?", "task": "QA", "output": "a dog"},
            ]
        ),
        [(f"{A}_000110", "a"), (B, "b")],
    ),
    "musiccaps": (
        table(MUSIC, [A, "30", "40", "/m/1", "['x', 'y']", "A low voice.\nIt sings.", "4"]),
        [(A, "A low voice.\nIt sings.")],
    ),
    "sound_vecaps": (table(["id", "caption"], [f"Y{A}", "a"], [f"Y{B}", "b"]), [(A, "a"), (B, "b")]),
    "vggsound": (
        table([A, "1", "people marching", "test"], [B, "110", "dog barking, near", "train"]),
        [(f"{A}_000001", "The sound of people marching."), (f"{B}_000110", "The sound of dog barking, near.")],
    ),
    "wavcaps": (
        json.dumps({"num_captions_per_audio": 1, "data": [{"id": f"Y{A}.wav", "caption": "a"}]}),
        [(A, "a")],
    ),
}
ON_DISK: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda content: content,
    "with a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "with lines of Windows": lambda content: content.replace(b"\n", b"\r\n"),
    "gzipped": gzip.compress,
    "gzipped with both": lambda content: gzip.compress(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")),
    "without a last line end": lambda content: content.removesuffix(b"\n"),
}


@pytest.mark.parametrize("quirk", list(ON_DISK))
@pytest.mark.parametrize("kind", list(FILES))
def test_every_kind_as_it_lies_on_disks(tmp_path: Path, ontology: Path, kind: str, quirk: str) -> None:
    content, expected = FILES[kind]
    (tmp_path / "file").write_bytes(ON_DISK[quirk](content.encode()))
    found = pairs(read(kind, tmp_path / "file", ontology))
    assert [(name, text.replace("\r\n", "\n")) for name, text in found] == expected


@pytest.mark.parametrize("kind", [kind for kind in FILES if KINDS[kind].container == CSV])
def test_columns_in_another_order_with_others_between(tmp_path: Path, kind: str) -> None:
    content, expected = FILES[kind]
    rows = [["more", *row[::-1]] for row in csv.reader(io.StringIO(content))]
    (tmp_path / "file").write_text(table(*rows))
    assert pairs(read(kind, tmp_path / "file")) == expected


ABSENT = ["", "NaN", "nan", "None", "null", "<NA>", "N/A"]


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("kind", ["audiosetcaps", "musiccaps", "audiocaps", "af_audioset", "acavcaps", "fusionaudio"])
def test_texts_that_say_that_there_is_none_are_empty_and_counted(tmp_path: Path, kind: str, absent: str) -> None:
    content, expected = FILES[kind]
    (tmp_path / "file").write_text(content)
    name, text = expected[-1]
    old = json.dumps(text) if content[0] in "[{" else f",{text}" if kind != "musiccaps" else f'"{text}"'
    new = old.replace(text, absent)
    (tmp_path / "file").write_text(new.join(content.rsplit(old, 1)))
    assert pairs(read(kind, tmp_path / "file")) == [*expected[:-1], (name, "")]


@pytest.mark.parametrize("value", ["null", "NaN", "[]", "[null]"])
@pytest.mark.parametrize("kind", ["af_audioset", "fusionaudio", "acavcaps"])
def test_absent_values_of_json_are_empty_and_counted(tmp_path: Path, kind: str, value: str) -> None:
    content, expected = FILES[kind]
    name, text = expected[-1]
    (tmp_path / "file").write_text(value.join(content.rsplit(json.dumps(text), 1)))
    assert pairs(read(kind, tmp_path / "file")) == [*expected[:-1], (name, "")]


# Kind, id in the file, name of the clip, and whether something is reported.
IDS = [
    ("audiosetcaps", f"Y{A}", A, ""),
    ("audiosetcaps", f"{B}_000044", f"{B}_000044", ""),  # VGGSound: the leading Y is the video's
    ("audiosetcaps", "YmAJAqzo-Y_Y", "mAJAqzo-Y_Y", ""),
    ("audiosetcaps", "9eUrEyAR3xk_84_10", "9eUrEyAR3xk_84_10", ""),
    ("audiosetcaps", A, A, "no form"),  # bare ids are none of its forms
    ("audiosetcaps", "dog", "dog", "no form"),
    ("sound_vecaps", f"Y{C}", C, ""),
    ("sound_vecaps", f"{B}_000044", f"{B}_000044", "no form"),
    ("acavcaps", "wo8sFEF7sWM_166_48_176_48", "wo8sFEF7sWM_166_48_176_48", ""),
    ("acavcaps", "wo8sFEF7sWM_166_176", "wo8sFEF7sWM_166_176", "no form"),
    ("audioset_strong", f"{A}_110000", A, ""),  # milliseconds
    ("audioset_strong", f"{C}_0", C, ""),
    ("audioset_strong", f"{C}_000110", f"{C}_000110", "no form"),  # no milliseconds have leading zeros
    ("fusionaudio", f"{A}_000110", f"{A}_000110", ""),
    ("fusionaudio", f"{A}_110000", f"{A}_110000", "two ways"),  # seconds as in VGGSound, or milliseconds
    ("fusionaudio", f"{A}_30000", A, ""),
    ("fusionaudio", f"a/{A}_30000.wav", f"a/{A}_30000", ""),  # folders are never lost
    ("fusionaudio", f"b/Y{B}.wav", f"b/Y{B}", ""),
    ("fusionaudio", "dog/001.wav", "dog/001.wav", "no form"),
    ("fusionaudio", "cat/001.wav", "cat/001.wav", "no form"),
    ("audiocaps", A, A, ""),
    ("audiocaps", "91139", "91139", "no form"),  # its own number instead of YouTube's id
    ("musiccaps", B, B, ""),
    ("af_audioset", f"Y{B}", B, ""),
    ("af_audioset", f"Y{B}.wav", B, ""),
    ("af_audioset", B, B, ""),
]


def with_id(kind: str, name: str) -> str:
    if kind == "acavcaps":
        return lines({name: {"short": "a"}})
    if kind == "audioset_strong":
        return f"{name}\t0\t1\t/m/1\n"
    if kind == "audiocaps":
        return table(["audiocap_id", "youtube_id", "start_time", "caption"], ["1", name, "0", "a"])
    if kind == "musiccaps":
        return table(MUSIC, [name, "0", "10", "", "", "a", "1"])
    if kind == "fusionaudio":
        return json.dumps([{"audio_id": name, "instruction": "i", "output": "a"}])
    if kind == "af_audioset":
        return json.dumps([{"ytid": name, "caption": "a"}])
    return table(["id", "caption"], [name, "a"])


@pytest.mark.parametrize(("kind", "name", "clip", "reported"), IDS)
def test_the_source_decides_what_an_id_is_and_then_its_form(
    tmp_path: Path, ontology: Path, kind: str, name: str, clip: str, reported: str
) -> None:
    (tmp_path / "file").write_text(with_id(kind, name))
    found = read(kind, tmp_path / "file", ontology)
    assert [row for row, _ in pairs(found)] == [clip]
    said = "\n".join(found.lines())
    assert (reported in said and repr(name) in said) if reported else not said


@pytest.mark.parametrize("form", ID_FORMS)
def test_a_form_can_be_declared(tmp_path: Path, form: str) -> None:
    (tmp_path / "file").write_text(table(["id", "caption"], [f"{A}_110000", "a"], [f"Y{A}", "b"], [A, "c"]))
    read_as = [name for name, _ in pairs(read("csv", tmp_path / "file", id_form=form))]
    expected = {"id_milliseconds": [A, f"Y{A}", A], "Yid": [f"{A}_110000", A, A]}
    assert read_as == expected.get(form, [f"{A}_110000", f"Y{A}", A])


@pytest.mark.parametrize("kind", ["audiosetcaps", "af_audioset", "acavcaps", "fusionaudio"])
def test_rows_that_repeat_are_all_read(tmp_path: Path, kind: str) -> None:
    content = {
        "audiosetcaps": table(["id", "caption"], *[[f"Y{A}", "a"]] * 3),
        "af_audioset": json.dumps([{"ytid": f"Y{A}", "caption": "a"}] * 3),
        "acavcaps": lines(*[{f"{A}_1_0_2_0": {"short": "a"}}] * 3),
        "fusionaudio": lines(*[{"audio_id": f"Y{A}", "output": "a"}] * 3),
    }[kind]
    (tmp_path / "file").write_text(content)
    assert len(set(pairs(read(kind, tmp_path / "file")))) == 1
    assert len(pairs(read(kind, tmp_path / "file"))) == 3


def test_broken_json_lines_are_named_by_their_numbers(tmp_path: Path) -> None:
    good = json.dumps({f"{A}_1_0_2_0": {"short": "a"}})
    (tmp_path / "file").write_text(f'{good}\n{{"x": {{"short": "cu\n\n{good}\n{good[:9]}\n')
    with pytest.raises(UserError, match=r"file:2 cannot be read as JSON .* Of 2 such lines .*file:5") as caught:
        read("acavcaps", tmp_path / "file")
    assert "file:1" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("short,1,dog,test", r"line 2: 'short', '1'"),
        (f"{A},one,dog,test", r"line 2: '-abcdefghi1', 'one'"),
        (f"{A},1.5,dog,test", "line 2"),
        (f"{A},1234567,dog,test", "line 2"),
        (f"{A},1,dog", "line 2: 3 columns, not 4"),
        (f'{A},1,"dog,test', "line 2"),
    ],
)
def test_malformed_rows_of_vggsound_are_named(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "file").write_text(f"{B},1,cat,train\n{row}\n{C},1,cat,train\n")
    with pytest.raises(UserError, match=message):
        read("vggsound", tmp_path / "file")


def test_vggsound_with_a_header_that_someone_added(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(f"youtube_id,start,label,split\n{A},1,dog,test\n")
    sentences = partial(label_captions, template=read_template("This is {label}"))
    assert pairs(read("vggsound", tmp_path / "file", sentences=sentences)) == [(f"{A}_000001", "This is dog")]


def test_strong_labels_without_a_name_are_left_out_and_reported(tmp_path: Path, ontology: Path) -> None:
    (tmp_path / "file").write_text(f"{A}_0\t0\t1\t/m/1\n{A}_0\t0\t1\t/m/9\n{B}_0\t0\t1\t/m/9\n")
    found = read("audioset_strong", tmp_path / "file", ontology)
    assert pairs(found) == [(A, "The sound of Dog."), (B, "")]
    assert "left out: 2 (/m/9 at" in found.lines()[0]
    (tmp_path / "names.tsv").write_text("/m/1\tA dog\n/m/9\tA cat\n")
    found = read("audioset_strong", tmp_path / "file", tmp_path / "names.tsv")
    assert pairs(found) == [(A, "The sound of A dog, and A cat."), (B, "The sound of A cat.")]
    (tmp_path / "file").write_text(f"{A}_0\t0\t1\t/m/9\n")
    with pytest.raises(UserError, match="not one of its labels"):
        read("audioset_strong", tmp_path / "file", ontology)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("audiosetcaps", "id,caption\na,b\n".encode("utf-16"), "is UTF-16"),
        ("audiocaps", f"audiocap_id,youtube_id,start_time,caption\n1,{A},30,a, b\n".encode(), "line 2: 5 columns"),
        ("audioset_strong", f"{A}_0\t1\t2\n".encode(), "file:1 has 3 columns, not 4"),
        ("audioset_strong", f"{A}_0\tnan\t2\t/m/1\n".encode(), "line 1: '-abcdefghi1_0', 'nan', '2'"),
        ("acavcaps", gzip.compress(b'{"a": {"short": "x"}}', mtime=0)[:-4], "no whole gzip file"),
        ("acavcaps", b'{"a": {"short": "x"}}\n{"b": {"short": "\xe9"}}\n', "file:2 is not UTF-8"),
        ("af_audioset", b'[{"ytid": "x", "caption": "y"},', "cannot be read as JSON"),
    ],
)
def test_a_damaged_file_of_the_right_kind_is_not_taken_for_another(
    tmp_path: Path, ontology: Path, kind: str, content: bytes, message: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(kind, tmp_path / "file", ontology)
    assert "use --" not in str(caught.value)


def test_conversations_give_their_first_answer(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "<sound>\nWhat?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "gpt", "value": "x"},
    ]
    (tmp_path / "file").write_text(json.dumps([{"id": "7", "sound": f"audioset/Y{A}.wav", "conversations": turns}]))
    assert pairs(read("af_audioset", tmp_path / "file")) == [(f"audioset/Y{A}", "A dog.")]


def test_tasks_other_than_captioning_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(FILES["fusionaudio"][0])
    assert "left out: 1 (QA: 1)" in read("fusionaudio", tmp_path / "file").lines()[0]
    (tmp_path / "file").write_text(json.dumps([{"audio_id": A, "task": "QA", "output": "x"}]))
    with pytest.raises(UserError, match=r"no entry whose task is captioning; its tasks: QA: 1"):
        read("fusionaudio", tmp_path / "file")


@pytest.mark.parametrize("given_as", list(FILES))
@pytest.mark.parametrize("kind", list(FILES))
def test_a_file_of_another_kind_is_refused_with_the_right_option(
    tmp_path: Path, ontology: Path, kind: str, given_as: str
) -> None:
    """Only sets that are published in one form may be read as each other."""
    same = {frozenset(("sound_vecaps", "audiosetcaps"))}
    if kind == given_as or frozenset((kind, given_as)) in same:
        return
    (tmp_path / "file").write_text(FILES[kind][0])
    with pytest.raises(UserError) as caught:
        read(given_as, tmp_path / "file", ontology)
    message = str(caught.value)
    assert str(tmp_path / "file") in message
    assert KINDS[given_as].files in message
    assert f"use {KINDS[kind].option}" in message or f"or {KINDS[kind].option}" in message


# What is given as what, and what the error says.
WRONG_CONTAINERS = [
    ("shard.tar", "csv", "use --webdataset"),
    ("shard.tar", "audiosetcaps", "use --webdataset"),
    ("shards", "audiosetcaps", "use --webdataset"),
    ("shards", "txt", "use --webdataset"),
    ("hub.parquet", "csv", "use --parquet"),
    ("hub.parquet", "audiocaps", "use --parquet"),
    ("hub.parquet", "webdataset", "use --parquet"),
    ("audiocaps.csv", "parquet", "use --audiocaps"),
    ("audiocaps.csv", "webdataset", "use --audiocaps"),
    ("audiocaps.csv", "laion", "use --audiocaps"),
    ("audiocaps.csv", "jsonl", "use --audiocaps"),
    ("lines.jsonl", "audiocaps", "use --jsonl"),
    ("table.csv", "audiocaps", "use --csv"),
    ("table.csv", "fusionaudio", "use --csv"),
    ("page.html", "clotho", "This is text"),
]


@pytest.mark.parametrize(("name", "given_as", "said"), WRONG_CONTAINERS)
def test_other_containers_are_told_apart_too(tmp_path: Path, name: str, given_as: str, said: str) -> None:
    (tmp_path / "shards").mkdir()
    for path in (tmp_path / "shard.tar", tmp_path / "shards" / "0.tar"):
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("1.wav"))
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "hub.parquet")
    (tmp_path / "audiocaps.csv").write_text(FILES["audiocaps"][0])
    (tmp_path / "lines.jsonl").write_text('{"id": "a", "t": "b"}\n{"id": "c", "t": "d"}\n')
    (tmp_path / "table.csv").write_text("x,y\na,b\n")
    (tmp_path / "page.html").write_text("<html>\nnot found</html>")
    named = {"id_column": "id", "caption_columns": ("t",)} if given_as in ("csv", "jsonl", "parquet") else {}
    with pytest.raises(UserError) as caught:
        read(given_as, tmp_path / name, **named)
    assert str(tmp_path / name) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind.name for kind in ENTRIES])
@settings(max_examples=25)
@given(
    st.sampled_from(
        [
            "",
            "[{",
            "{",
            '{"data": [{"id": ',
            "youtube_id,caption\n",
            "id,caption\n",
            "-abcdefghi1,1,",
            '[{"audio_id": "',
        ]
    ),
    st.one_of(st.text('{}[]":,abt\n0_\t ', max_size=40).map(str.encode), st.binary(max_size=30)),
)
def test_any_bytes_give_rows_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, start: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bytes"
    path.write_bytes(start.encode() + content)
    labels = tmp_path_factory.getbasetemp() / "labels.tsv"
    labels.write_text("/m/1\tDog\n")
    named = {"id_column": "id", "caption_columns": ("caption",)} if kind in ("csv", "jsonl", "parquet") else {}
    try:
        assert read(kind, path, labels, **named).rows is not None
    except UserError as error:
        assert "any.bytes" in str(error)


def test_the_table_of_kinds_and_the_readers_are_of_one_mind() -> None:
    plain = {kind.name for kind in ENTRIES if kind.is_plain}
    assert plain | set(READERS) | set(OF_SHARDS) == set(KINDS)
    assert not plain & (set(READERS) | set(OF_SHARDS))
    assert all(set(kind.forms) <= set(ID_FORMS) for kind in ENTRIES)


def test_the_documents_have_every_kind() -> None:
    text = (Path(__file__).parents[3] / "docs" / "captions.md").read_text()
    for kind in ENTRIES:
        row = f"| `{kind.option}` | {kind.title[0].upper() + kind.title[1:]}: {kind.files} | {kind.ids} | {kind.row} |"
        assert row in text, f"docs/captions.md lacks\n{row}"
        assert kind.address in text
