"""Tables keep what they are given, and say what is wrong with what they are not."""

import csv
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import inside, is_evaluation_clip
from m2dprep.artifacts.tables import (
    CAPTIONS_SCHEMA,
    read_captions,
    read_csv_columns,
    read_file_list,
    write_captions,
    write_file_list,
    write_parquet,
)

ODD_NAMES = [
    "a_lms/plain.npy",
    "a_lms/with, comma.npy",
    'a_lms/"quoted".npy',
    "a_lms/new\nline.npy",
    "a_lms/ünï-Yé.npy",
]


def test_file_list_is_sorted_and_read_alike_by_pandas(tmp_path: Path) -> None:
    path = tmp_path / "files_a.csv"
    write_file_list(path, reversed(ODD_NAMES))  # type: ignore[arg-type]
    assert read_file_list(path) == sorted(ODD_NAMES)
    assert pd.read_csv(path).file_name.tolist() == sorted(ODD_NAMES)


def test_plain_names_are_written_unquoted(tmp_path: Path) -> None:
    write_file_list(tmp_path / "files_a.csv", ["b_lms/-id_.npy"])
    assert (tmp_path / "files_a.csv").read_text() == "file_name\nb_lms/-id_.npy\n"


def test_empty_file_list(tmp_path: Path) -> None:
    write_file_list(tmp_path / "files_a.csv", [])
    assert read_file_list(tmp_path / "files_a.csv") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", " is empty"),
        ("name\nx\n", " has no column file_name .*it has name"),
        ("a,b\n1\n", " has no column file_name"),
        ("\xff", ":1 is not UTF-8"),
        ('file_name,label\na,"b\nc,d\n', " is malformed .*line 2: a quote is opened and not closed"),
    ],
)
def test_bad_csv_names_the_file_and_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"list\.csv{message}"):
        read_csv_columns(path, ["file_name"], "a list")


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_file_list(tmp_path / "none.csv")
    with pytest.raises(UserError, match="is not a file"):
        read_file_list(tmp_path)


def test_captions_round_trip(tmp_path: Path) -> None:
    table = pa.table(
        {
            "clip_id": ["a", "a"],
            "caption": ["One.", "Two, «three»."],
            "source": ["label", "acalt4"],
            "caption_index": [0, 1],
            "split": [None, "eval"],
            "labels": [["Beep, bleep"], []],
        },
    )
    write_captions(tmp_path / "captions.parquet", table)
    again = read_captions(tmp_path / "captions.parquet")
    assert again.schema == CAPTIONS_SCHEMA
    assert again.to_pylist() == table.to_pylist()
    assert read_captions(tmp_path / "captions.parquet", ["caption"])["caption"].to_pylist() == ["One.", "Two, «three»."]


def test_captions_with_a_missing_column_or_type(tmp_path: Path) -> None:
    write_parquet(tmp_path / "c.parquet", pa.table({"clip_id": ["a"], "caption": ["x"]}))
    with pytest.raises(UserError, match="no column source, caption_index"):
        read_captions(tmp_path / "c.parquet")
    write_parquet(tmp_path / "c.parquet", pa.table({"clip_id": [["a"]], "caption": ["x"]}))
    with pytest.raises(UserError, match=r"c\.parquet"):
        read_captions(tmp_path / "c.parquet", ["clip_id"])


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.npy", "a/../../x.npy"])
def test_paths_from_tables_stay_inside(path: str) -> None:
    with pytest.raises(UserError, match="leads out"):
        inside(Path("data"), path)


def test_evaluation_clips_are_known_by_their_folder() -> None:
    assert is_evaluation_clip("audioset_lms/eval_segments/Ya.npy")
    assert not is_evaluation_clip("audioset_lms/balanced/eval_segments.npy")


@pytest.mark.parametrize("reader", ["ours", "pandas", "csv"])
def test_a_list_of_odd_names_is_one_row_a_name_to_every_reader(tmp_path: Path, reader: str) -> None:
    names = [
        "x_lms/a.npy",
        "x_lms/c\rr.npy",
        "x_lms/l\nf.npy",
        "x_lms/b\r\nt.npy",
        'x_lms/q"q.npy',
        "x_lms/,.npy",
        " NA.npy",
    ]
    path = tmp_path / "files_x.csv"
    write_file_list(path, names)
    if reader == "ours":
        found = read_file_list(path)
    elif reader == "pandas":
        found = pd.read_csv(path).file_name.tolist()
    else:
        with path.open(newline="", encoding="utf-8") as file:
            found = [row["file_name"] for row in csv.DictReader(file)]
    assert found == sorted(names)


def test_a_byte_order_mark_is_no_part_of_a_header(tmp_path: Path) -> None:
    (tmp_path / "files_x.csv").write_bytes(b"\xef\xbb\xbffile_name\nx_lms/a.npy\n")
    assert read_file_list(tmp_path / "files_x.csv") == ["x_lms/a.npy"]
