"""Tables of labelled clips: a lost quote or a damaged row is an error with file and line, never a smaller set."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.clip_set import ClipSet

ROWS = [f"{number:02}.wav,{'dog' if number % 2 else 'cat'}" for number in range(24)]


def read(tmp_path: Path, text: str | bytes) -> ClipSet:
    for row in ROWS:
        (tmp_path / row.partition(",")[0]).touch()
    (tmp_path / "clips.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return ClipSet.read(tmp_path / "clips.csv")


def lines(*changed: tuple[int, str]) -> str:
    rows = ["file_name,label", *ROWS]
    for line, row in changed:
        rows[line - 1] = row
    return "\n".join(rows) + "\n"


def test_every_row_is_a_clip(tmp_path: Path) -> None:
    assert len(read(tmp_path, lines()).clips) == len(ROWS)
    assert len(read(tmp_path, lines((5, '"03.wav","dog"'))).clips) == len(ROWS)


DAMAGED: dict[str, tuple[str | bytes, str]] = {
    "an open quote": (lines((5, '03.wav,"dog')), ":? is malformed .*line 5: a quote is opened and not closed"),
    "two of them": (lines((5, '03.wav,"dog'), (9, '07.wav,"dog')), "line 5: a quote is opened and not closed"),
    "one before a quoted label": (lines((5, '03.wav,"dog'), (7, '05.wav,"dog"')), "line 5: a quote is opened"),
    "one at each end": (lines((5, '03.wav,"dog'), (9, '07.wav,dog"')), "row 5: a line break"),
    "one that only closes": (lines((5, '03.wav,dog"')), "line 5: a quote inside a value"),
    "text behind a quote": (lines((5, '03.wav,"dog"s')), "line 5: text behind a closing quote"),
    "another number of columns": (lines((5, "03.wav,dog,cat")), "line 5: 3 columns, not 2"),
    "NUL": (lines((5, "03.wav,d\0g")), "line 5: it holds NUL"),
    "no UTF-8": (lines((5, "03.wav,d\u00f6g")).encode("latin-1"), ":5 is not UTF-8"),
    "UTF-16": (lines().encode("utf-16"), "UTF-16|utf-8"),
    "a column twice": (lines((1, "file_name,label,label")), "more than once|several"),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_what_no_csv_writer_makes_is_refused(tmp_path: Path, name: str) -> None:
    text, message = DAMAGED[name]
    with pytest.raises(UserError, match=rf"clips\.csv.*(?:{message})"):
        read(tmp_path, text)
