"""Readers of caption tables: one row per caption, in file order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.clips.caption_sets import ACALT4, AUTO_ACD
from m2dprep.artifacts.errors import UserError
from m2dprep.captions.sources.caption_rows import CAPTION_ROWS
from m2dprep.captions.sources.csv_readers import read_caption_csv
from m2dprep.captions.sources.readers import read_source


def write(tmp_path: Path, content: str) -> Path:
    (tmp_path / "t.csv").write_text(content)
    return tmp_path / "t.csv"


def pairs(table: object) -> list[tuple[str, str]]:
    assert table.schema == CAPTION_ROWS  # type: ignore[attr-defined]
    return [(row["id"], row["caption"]) for row in table.to_pylist()]  # type: ignore[attr-defined]


def test_auto_acd_keeps_ids_as_they_stand(tmp_path: Path) -> None:
    path = write(tmp_path, "youtube_id,caption\nYabc, a \nYXqu1CeA2c4_000044,b\n")
    assert pairs(read_source(AUTO_ACD, [path])) == [("Yabc", " a "), ("YXqu1CeA2c4_000044", "b")]


def test_acalt4_has_four_captions_per_row(tmp_path: Path) -> None:
    path = write(tmp_path, "youtube_id,caption1,caption2,caption3,caption4\nx,1,2,3,4\ny,5,6,7,8\n")
    assert pairs(read_source(ACALT4, [path])) == [
        *(("x", str(n)) for n in range(1, 5)),
        *(("y", str(n)) for n in range(5, 9)),
    ]


CSV = {
    "two columns": ("file,Captions\na,b\n", {}, [("a", "b")]),
    "the id first, all captions": ("f,Caption_1,caption_source,caption2\na,b,c,d\n", {}, [("a", "b"), ("a", "d")]),
    "an id column": ("n,caption,id\n1,b,a\n", {"id_column": "id"}, [("a", "b")]),
    "caption columns, in the order asked for": (
        "id,x,y\na,b,c\n",
        {"caption_columns": ["y", "x"]},
        [("a", "c"), ("a", "b")],
    ),
    "both": ("x,y,z\na,b,c\n", {"id_column": "z", "caption_columns": ["x"]}, [("c", "a")]),
    "several rows of an id": ("id,caption\na,b\na,c\n", {}, [("a", "b"), ("a", "c")]),
    "space around an id": ("id,caption\n a ,b\n", {}, [("a", "b")]),
}


@pytest.mark.parametrize("name", list(CSV))
def test_any_csv(tmp_path: Path, name: str) -> None:
    content, options, expected = CSV[name]
    assert pairs(read_caption_csv(write(tmp_path, content), **options)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("id,a,b\n1,2,3\n", {}, "which columns hold captions.*id, a, b"),
        ("id\n1\n", {}, "which columns hold captions"),
        ("id,caption\n", {}, "no rows"),
        # what pandas writes with its index, what only speaks of captions, and a table without a header
        (",id,caption\n0,a,b\n", {}, "its first column has no name.*id, caption.*--id-column"),
        ("id,caption_source\na,b\n", {}, "which columns hold captions.*id, caption_source"),
        ("id,caption_lang,n_captions,captioner\na,b,c,d\n", {}, "which columns hold captions"),
        ("rain.wav,It rains.\ndog.wav,A dog.\n", {}, "first line has rain.wav, It rains.*needs a header"),
        ("id,text\na,b\n", {}, "which columns hold captions"),
        ('id,caption\n"a,1\nb",2\n', {}, "the id 'a,1..b' holds a line break"),
        ('id,caption\na,"b"c\n', {}, "line 2: text behind a closing quote"),
        ("id,caption\n1,2\n", {"id_column": "nope"}, "no column nope"),
        ("id,caption\n1,2\n", {"caption_columns": ["nope"]}, "no column nope"),
        ("id,caption\n1,2\n", {"id_column": "caption", "caption_columns": ["caption"]}, "named twice"),
        ("id,caption\n1,2\n", {"caption_columns": ["caption", "caption"]}, "named twice"),
    ],
)
def test_which_columns(tmp_path: Path, content: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_caption_csv(write(tmp_path, content), **options)  # type: ignore[arg-type]


def test_the_named_tables_need_their_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "id,caption\na,b\n")
    with pytest.raises(UserError, match=r"is not Auto-ACD \(train.csv: youtube_id,caption\)"):
        read_source(AUTO_ACD, [path])
    with pytest.raises(UserError, match=r"is not ACalt4 .*youtube_id,caption1,…,caption4"):
        read_source(ACALT4, [path])


@pytest.mark.slow
@settings(max_examples=100)
@given(st.text('ab,"\n capt', max_size=60), st.sampled_from(["", "id,caption\n", "youtube_id,caption\n"]))
def test_any_text_gives_rows_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, text: str, start: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), start + text)
    for reader in (read_caption_csv, lambda path: read_source(AUTO_ACD, [path])):
        try:
            assert reader(path).num_rows > 0  # type: ignore[operator]
        except UserError as error:
            assert str(path) in str(error)
