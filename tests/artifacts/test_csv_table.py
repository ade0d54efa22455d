"""CSV files: read whole, or refused with the lines that are malformed; no row is swallowed in silence."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.text_files import malformed, misplaced_quotes, read_csv_table


def read(tmp_path: Path, content: str | bytes, *columns: str, others: bool = False) -> list[tuple[str, ...]]:
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    table = read_csv_table(path, "a test", columns or ("id", "caption"), others=others)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


READ = {
    "plain": ("id,caption\na,b\nc,d\n", [("a", "b"), ("c", "d")]),
    "no line break at the end": ("id,caption\na,b", [("a", "b")]),
    "Windows line ends": ("id,caption\r\na,b\r\n", [("a", "b")]),
    "a byte order mark": ("\ufeffid,caption\na,b\n", [("a", "b")]),
    "quoted commas and quotes": ('id,caption\na,"b, ""c"""\n', [("a", 'b, "c"')]),
    "a quoted line break": ('id,caption\na,"b\nc"\nd,e\n', [("a", "b\nc"), ("d", "e")]),
    "empty lines": ("\nid,caption\n\na,b\n\n", [("a", "b")]),
    "empty values stay texts": ("id,caption\na,\n,b\nNA,null\n", [("a", ""), ("", "b"), ("NA", "null")]),
    "numbers stay texts": ("id,caption\n007,1e5\n", [("007", "1e5")]),
    "other columns are left out": ("x,caption,id\n1,b,a\n", [("a", "b")]),
    "spaces around the header's names": (" id , caption\na,b\n", [("a", "b")]),
    "gzip": (gzip.compress(b"id,caption\na,b\n"), [("a", "b")]),
    "a header and nothing else": ("id,caption\n", []),
    "a value of 200 kB": ("id,caption\na," + "b" * 200_000 + "\n", [("a", "b" * 200_000)]),
}


@pytest.mark.parametrize("name", list(READ))
def test_read(tmp_path: Path, name: str) -> None:
    content, rows = READ[name]
    assert read(tmp_path, content) == rows


def test_all_columns(tmp_path: Path) -> None:
    assert read(tmp_path, "x,caption,id\n1,b,a\n", "id", others=True) == [("1", "b", "a")]


REFUSED = {
    "no file content": ("", "is empty"),
    "blank lines": ("\n\n", "is empty"),
    "a missing column": ("id,text\na,b\n", "no column caption .*it has id, text"),
    "a column twice": ("id,caption,id\na,b,c\n", "'id' more than once"),
    "too many columns": ("id,caption\na,b\nc,d,e\nf\n", "line 3: 3 columns, not 2, line 4: 1 columns, not 2"),
    "many bad lines": ("id,caption\n" + "a\n" * 9, r"line 2: .*line 6: 1 columns, not 2, …"),
    "the line after a quoted line break": ('id,caption\na,"b\nb"\nc,d,e\n', "line 4: 3 columns"),
    "a quote that is never closed": ('id,caption\na,b\nc,"d\ne,f\n', "line 3: a quote is opened and not closed"),
    "the same without a line after it": ('id,caption\na,"b', "line 2: a quote is opened and not closed"),
    # the second lost quote closes the first: two rows would silently become part of one caption
    "two quotes that are never closed": ('id,caption\na,"b\nc,d\ne,"f\ng,h\n', "line 2"),
    "a quote inside a value": ('id,caption\na,5" pipe\n', "line 2: a quote inside a value"),
    "a quote behind a space": ('id,caption\na, "b"\n', "line 2: a quote inside a value"),
    "text behind a closing quote": ('id,caption\na,"b"c\n', "line 2: text behind a closing quote"),
    "a single quote for an inner one": ('id,caption\na,"b "c" d"\n', "line 2: text behind a closing quote"),
    "a quote that opens before a quoted value": ('id,caption\na,"b\nc,"d, e"\nf,g\n', "line 2: a quote is opened"),
    "a quote that does not open": ('id,caption\na,"b c"\nd,e f"\n', "line 3: a quote inside a value"),
    "a quote before a line's end": ('id,caption\na,b"\nc,"d"\n', "line 2: a quote inside a value"),
    "NUL": ("id,caption\na,b\0\n", "line 2: it holds NUL"),
    "NUL in the header": ("id,caption\0\na,b\n", "header line cannot be read"),
    "a quote in the header": ('id,"caption\na,b\n', "header line cannot be read .*a quote is opened"),
    "not UTF-8": (b"id,caption\na,b\nc,\xe9\n", "table.csv:3 is not UTF-8"),
    "not UTF-8 in the header": (b"id,caption\xff\n", "table.csv:1 is not UTF-8"),
    "UTF-16": ("id,caption\na,b\n".encode("utf-16"), "is UTF-16, not UTF-8"),
    "a broken gzip": (b"\x1f\x8b\x08garbage", "gzip"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.lists(st.tuples(CELLS, CELLS), max_size=6))
def test_what_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("id", "caption"), *rows])
    assert read(tmp_path_factory.getbasetemp(), file.getvalue()) == rows


@pytest.mark.slow
@settings(max_examples=200)
@given(
    st.one_of(st.text('ab,"\n\r ', max_size=40).map(str.encode), st.binary(max_size=40)),
    st.sampled_from([b"", b"id,caption\n"]),
)
def test_any_bytes_give_rows_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    try:
        rows = read(path.parent, start + content)
    except UserError as error:
        assert str(path) in str(error)
        return
    assert all(len(row) == 2 for row in rows)


ODD = [("a", 'b "c", d'), ("e", ""), ("f\ng", '"'), ('"', "h\r\ni")]


@pytest.mark.parametrize("lost", [None, *range(12)])
def test_every_lost_quote_is_noticed(lost: int | None) -> None:
    """Nothing in what the csv module writes is misplaced; without any one of its quotes, something is."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows(ODD)
    text = file.getvalue()
    quotes = [place for place, letter in enumerate(text) if letter == '"']
    if lost is not None:
        text = text[: quotes[lost]] + text[quotes[lost] + 1 :]
    assert misplaced_quotes(text.encode()) == (lost is not None)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.text('a,"\n', max_size=30), st.integers(1, 7))
def test_what_is_let_through_is_what_the_strict_reader_reads(text: str, block_bytes: int) -> None:
    explained = [what for what in malformed(text, ",") if "columns" not in what]
    with mock.patch("m2dprep.artifacts.text_files.BLOCK_BYTES", block_bytes):
        assert misplaced_quotes(text.encode()) == bool(explained)
