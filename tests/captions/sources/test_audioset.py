"""AudioSet's tables: in their published form, and with deviations from it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.sources.audioset import Segments, read_label_names, read_segments, split_name

NAMES = {"/m/1": "One", "/m/2": "Two, too", "/m/3": "Three (3)"}
HEADER = "# created\n# num_ytids=1\n# YTID, start_seconds, end_seconds, positive_labels\n"


def segments(tmp_path: Path, *contents: str | bytes, names: dict[str, str] = NAMES) -> Segments:
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"list{number}.csv")
        paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_segments(paths, names)


def test_lists_as_published(tmp_path: Path) -> None:
    read = segments(
        tmp_path,
        HEADER + '--PJHxphWEs, 30.000, 40.000, "/m/1,/m/2"\n-a_0123456b, 0.000, 10.000, "/m/3"\n',
        '#\nabc, 1, 2.5, "/m/2"\r\n\r\n  \nx y, 30.,40, /m/1',
    )
    assert read.table.to_pylist() == [
        {"clip_id": "--PJHxphWEs", "start_seconds": 30.0, "split": "list0", "labels": ["One", "Two, too"]},
        {"clip_id": "-a_0123456b", "start_seconds": 0.0, "split": "list0", "labels": ["Three (3)"]},
        {"clip_id": "abc", "start_seconds": 1.0, "split": "list1", "labels": ["Two, too"]},
        {"clip_id": "x y", "start_seconds": 30.0, "split": "list1", "labels": ["One"]},  # one label without quotes
    ]
    assert read.rows == 4
    assert not read.duplicates
    assert not read.unknown_labels


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("balanced_train_segments.csv", "balanced_train"),
        ("unbalanced_train_segments.csv.gz", "unbalanced_train"),
        ("eval_segments.csv", "eval"),
        ("train.csv", "train"),
        ("held_out.v2", "held_out.v2"),
    ],
)
def test_the_split_is_the_name_of_the_file(name: str, split: str) -> None:
    assert split_name(Path("somewhere") / name) == split


MALFORMED = {
    "too few columns": ("a, 0, 10\n", "line 4"),
    "too many columns": ('a, 0, 10, "/m/1", x\n', "line 4"),
    "labels without quotes": ("a, 0, 10, /m/1,/m/2\n", "line 4"),
    "a quote that is not closed": ('a, 0, 10, "/m/1\n', "line 4"),
    "a quote that swallows segments": ('a, 0, 10, "/m/1\nb, 0, 10, "/m/1"\nc, 0, 10, "/m/1"\n', "line 4"),
    "text behind a closing quote": ('a, 0, 10, "/m/1" x\n', "line 4"),
    "a quote inside the labels": ('a, 0, 10, "/m/1",/m/2"\n', "line 4"),
    "times that are no numbers": ('ok, 0, 1, "/m/1"\na, zero, 10, "/m/1"\n', "line 5"),
    "no id": (', 0, 10, "/m/1"\n', "line 4"),
    "a header without #": ("YTID, start_seconds, end_seconds, positive_labels\n", "line 4"),
    "a half line at the end": ('ok, 0, 1, "/m/1"\nab', "line 5"),
    "many bad lines": ("x\n" * 9, r"9 lines: line 4: 'x', line 5: 'x', .*, …"),
    "not one segment": ("", "lists no segment"),
    "not UTF-8": (b"a, 0, 10, \xff\n", "list0.csv:4 is not UTF-8"),
    "a broken gzip": (gzip.compress(b"abc")[:-4], "gzip"),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_malformed_lists_are_refused_by_line(tmp_path: Path, name: str) -> None:
    content, message = MALFORMED[name]
    if isinstance(content, str):
        content = HEADER + content
    elif not content.startswith(b"\x1f\x8b"):
        content = HEADER.encode() + content
    with pytest.raises(UserError, match=message):
        segments(tmp_path, content)


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_segments([tmp_path / "missing.csv"], NAMES)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="not a file"):
        read_segments([tmp_path / "folder.csv"], NAMES)
    (tmp_path / "a.csv").write_text('a, 0, 10, "/m/1"\n')
    with pytest.raises(UserError, match="more than once"):
        read_segments([tmp_path / "a.csv", tmp_path / "a.csv"], NAMES)


def test_the_first_of_several_segments_of_an_id_stays_and_the_others_are_named(tmp_path: Path) -> None:
    read = segments(tmp_path, 'a, 0, 10, "/m/1"\nb, 0, 10, "/m/1"\na, 5, 15, "/m/2"\n', '\nb, 7, 17, "/m/2"\n')
    assert read.table.to_pydict()["clip_id"] == ["a", "b"]
    assert read.table.to_pydict()["start_seconds"] == [0, 0]
    assert read.duplicates.count == 2
    assert read.duplicates.examples == (f"a at {tmp_path}/list0.csv:3", f"b at {tmp_path}/list1.csv:2")


def test_a_comment_behind_the_first_segment_is_damage(tmp_path: Path) -> None:
    for damaged in ('#b, 0, 10, "/m/1"', "# b", "#"):
        with pytest.raises(UserError, match=r"malformed .* line 3: '#"):
            segments(tmp_path, f'# list\na, 0, 10, "/m/1"\n{damaged}\nc, 0, 10, "/m/1"\n')


def test_unknown_labels_are_left_out_and_named(tmp_path: Path) -> None:
    read = segments(tmp_path, '#\na, 0, 10, "/m/1,/m/9"\n\nb, 0, 10, "/m/8"\n')
    assert read.table.to_pydict()["labels"] == [["One"], []]
    assert read.unknown_labels.count == 2
    assert read.unknown_labels.examples == (f"/m/9 at {tmp_path}/list0.csv:2", f"/m/8 at {tmp_path}/list0.csv:4")


def test_a_table_of_labels_that_knows_none_is_the_wrong_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is it the right ontology.json"):
        segments(tmp_path, 'a, 0, 10, "/m/9"\nb, 0, 10, "/m/8"\n')


def labels(tmp_path: Path, content: str) -> dict[str, str]:
    (tmp_path / "labels").write_text(content)
    return read_label_names(tmp_path / "labels")


def test_label_names_from_either_file_told_apart_by_content(tmp_path: Path) -> None:
    ontology = [{"id": mid, "name": name, "description": "", "child_ids": ["/m/2"]} for mid, name in NAMES.items()]
    assert labels(tmp_path, json.dumps(ontology)) == NAMES
    assert labels(tmp_path, "\n " + json.dumps(ontology, indent=2)) == NAMES
    csv = 'index,mid,display_name\n0,/m/1,"One"\n1,/m/2,"Two, too"\n2,/m/3,Three (3)\n'
    assert labels(tmp_path, csv) == NAMES
    assert labels(tmp_path, csv.replace("\n", "\r\n")) == NAMES
    assert labels(tmp_path, csv + "3,/m/3,Three (3)\n") == NAMES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("[", "JSON"),
        ("{}", "list of objects"),
        ('[{"id": "/m/1"}]', "entry 1"),
        ('[{"id": "/m/1", "name": "One"}, 3]', "entry 2"),
        ("[]", "names no label"),
        ('[{"id": "/m/1", "name": "One"}, {"id": "/m/1", "name": "Two"}]', "two names, 'One' and 'Two'"),
        ('[{"id": "/m/1", "name": " "}]', "'?/m/1'? has no name"),
        ("index,mid\n0,/m/1\n", "no column display_name"),
        ("index,mid,display_name\n", "names no label"),
        ("index,mid,display_name\n0,/m/1,One,more\n", "line 2: 4 columns, not 3"),
        ("index,mid,display_name\n0,,One\n", "no id"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_what_is_no_table_of_labels(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        labels(tmp_path, content)


LINES = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.builds(
            '{}, {}, {}, "{}"'.format,
            st.text("ab-_Y1", max_size=11),
            st.floats(0, 100),
            st.integers(-1, 100),
            st.lists(st.sampled_from([*NAMES, "/m/9", ""]), max_size=3).map(",".join),
        ),
    ),
    max_size=6,
).map("\n".join)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.one_of(LINES.map(str.encode), st.binary(max_size=60)))
def test_any_bytes_give_segments_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    try:
        read = read_segments([path], NAMES)
    except UserError as error:
        assert str(path) in str(error)
        return
    ids = read.table["clip_id"].to_pylist()
    assert len(set(ids)) == len(ids) == read.rows - read.duplicates.count
    assert all(ids)
    assert all(set(names) <= set(NAMES.values()) for names in read.table["labels"].to_pylist())


@pytest.mark.slow
@settings(max_examples=100)
@given(
    st.one_of(st.text(max_size=60).map(str.encode), st.binary(max_size=60)),
    st.sampled_from([b"", b"[", b"index,mid,display_name\n"]),
)
def test_any_bytes_give_label_names_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "labels.any"
    path.write_bytes(start + content)
    try:
        names = read_label_names(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    assert names
    assert all(mid and name for mid, name in names.items())
