"""The options of `fill` and `add`: start seconds, the original's rules, templates, de-biasing, exclusions."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA
from m2dprep.artifacts.text_files import Tally
from m2dprep.captions.build import AddOptions, FillOptions, add, fill
from m2dprep.captions.clean import debias
from m2dprep.captions.sources.audioset import SEGMENTS_SCHEMA, Segments
from m2dprep.captions.sources.caption_rows import CAPTION_ROWS
from m2dprep.captions.sources.exclusion import keep_clips, read_exclusion
from m2dprep.captions.template import Template, label_captions, read_template

CLIPS = ["YXqu1CeA2c4", "Xqu1CeA2c4_", "aaaaaaaaaaa", "bbbbbbbbbbb"]


def segments(start: float = 30.0, unknown: int = 0) -> Segments:
    rows = [{"clip_id": clip, "start_seconds": start, "split": "eval", "labels": ["L", "M"]} for clip in CLIPS]
    return Segments(pa.Table.from_pylist(rows, schema=SEGMENTS_SCHEMA), len(rows), Tally(0), Tally(unknown))


def rows(*pairs: tuple[str, str]) -> pa.Table:
    return pa.Table.from_pylist([{"id": name, "caption": text} for name, text in pairs], schema=CAPTION_ROWS)


def texts(table: pa.Table) -> list[str]:
    assert table.schema == CAPTIONS_SCHEMA
    return table["caption"].to_pylist()


def test_match_start_refuses_other_seconds_and_counts_them() -> None:
    source = rows(("aaaaaaaaaaa_000031", "other"), ("bbbbbbbbbbb_000099", "other"), ("bbbbbbbbbbb_000030", "same"))
    assert texts(fill(segments(), source).captions)[2:] == ["other", "same"]
    merged = fill(segments(), source, FillOptions(match_start=True))
    assert texts(merged.captions)[2:] == ["The sound of L, and M.", "same"]
    counts = merged.coverage.source
    assert counts is not None
    assert (counts.used, counts.start_refused, counts.duplicates, counts.other_start) == (1, 2, 0, 0)
    assert "refused: other start second  2" in "\n".join(merged.coverage.lines())


WORDS = st.sampled_from(["a", "b ", ' be: "c"', 'x be: "d" e "f"', "g"])
NAMES = st.sampled_from(
    ["YXqu1CeA2c4_000044", "YYXqu1CeA2c4", "Yaaaaaaaaaaa", "aaaaaaaaaaa_000030", "bbbbbbbbbbb", "Yno"]
)


@pytest.mark.slow
@given(st.lists(st.tuples(NAMES, WORDS), min_size=1, max_size=10))
def test_m2d_compat_is_the_original_row_for_row(pairs: list[tuple[str, str]]) -> None:
    expected = dict.fromkeys(CLIPS, "The sound of L, and M.")
    for name, text in pairs:
        clip = name[1:12] if name[0] == "Y" else name[:11]
        if clip in expected:
            match = re.search(r'be: "(.+)"', text)
            expected[clip] = match[1] if match else text
    merged = fill(segments(), rows(*pairs), FillOptions(rules="m2d_compat"))
    assert dict(zip(CLIPS, texts(merged.captions), strict=True)) == expected


def test_m2d_compat_keeps_the_original_s_y_bug_and_its_failures() -> None:
    compat = FillOptions(rules="m2d_compat")
    merged = fill(segments(), rows(("YXqu1CeA2c4_000030", "A dog.")), compat)
    assert texts(merged.captions)[:2] == ["The sound of L, and M.", "A dog."]  # the caption of the first clip
    assert texts(fill(segments(), rows(("YXqu1CeA2c4_000030", "A dog."))).captions)[0] == "A dog."
    with pytest.raises(UserError, match="no closing quote"):
        fill(segments(), rows(("aaaaaaaaaaa", 'be: "x')), compat)
    with pytest.raises(UserError, match="row 2 has no caption"):
        fill(segments(), rows(("aaaaaaaaaaa", "x"), ("bbbbbbbbbbb", "")), compat)
    with pytest.raises(UserError, match="unknown labels"):
        fill(segments(unknown=1), rows(("aaaaaaaaaaa", "x")), compat)


LISTS = [["A"], ["A", "B"], ["A", "B", "C"], []]


@pytest.mark.parametrize(
    ("one", "many", "expected"),
    [
        ("m2d", None, ["The sound of A.", "The sound of A, and B.", "The sound of A, B, and C."]),
        ("laion", None, ["The sound of A", "The sounds of A and B", "The sounds of A, B and C"]),
        ("This is {label}!", None, ["This is A!", "This is A, and B!", "This is A, B, and C!"]),
        ("{label}", "{labels}", ["A", "A, B", "A, B, C"]),
        ("laion", "{labels} or {last}", ["The sound of A", "A or B", "A, B or C"]),
    ],
)
def test_templates(one: str, many: str | None, expected: list[str]) -> None:
    lists = pa.array(LISTS, pa.list_(pa.string()))
    assert label_captions(lists, read_template(one, many)).to_pylist() == [*expected, None]


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("no label", None),
        ("{label} {label}", None),
        ("{label}", "{label}"),
        ("{label}", "{last} {labels}"),
        ("{label} {x}", None),
    ],
)
def test_templates_need_their_places(one: str, many: str | None) -> None:
    with pytest.raises(UserError, match="template"):
        read_template(one, many)


def test_a_template_in_fill() -> None:
    merged = fill(segments(), None, FillOptions(template=Template("{label}", "{labels}")))
    assert texts(merged.captions) == ["L, M"] * 4


DEBIASED = {
    "A man and a woman talk.": "A person and a person talk.",
    "Men, WOMEN and a Man's dog": "People, PEOPLE and a Person's dog",
    "A fireman, a boy, a mannequin and his German human": "A fireman, a boy, a mannequin and his German human",
}


def test_debias() -> None:
    captions = pa.chunked_array([list(DEBIASED), ["The man"]])
    assert debias(captions).to_pylist() == [*DEBIASED.values(), "The person"]
    merged = add(None, rows(("a", "A man.")), "s", options=AddOptions(new_clips=True, debias=True))
    assert texts(merged.captions) == ["A person."]
    assert texts(fill(segments(), rows(("aaaaaaaaaaa", "A man.")), FillOptions(debias=True)).captions)[2] == "A person."


EXCLUSIONS = {
    "ids, one a line": ("# comment\naaaaaaaaaaa\n\nnobody\n", ["aaaaaaaaaaa", "nobody"]),
    "file names": ("wavs/Yaaaaaaaaaaa_30.000.wav\n", ["wavs/Yaaaaaaaaaaa_30.000.wav"]),
    "a CSV with a column of ids": ("n,youtube_id\n1,aaaaaaaaaaa\n", ["aaaaaaaaaaa"]),
    "a segment list": ('# YTID, x\naaaaaaaaaaa, 30.000, 40.000, "/m/1"\n', ["aaaaaaaaaaa"]),
    "a JSON list": ('["Yaaaaaaaaaaa.wav"]', ["Yaaaaaaaaaaa.wav"]),
    "WavCaps' lists": ('{"AudioSet": ["Yaaaaaaaaaaa.wav"], "FreeSound": [12]}', ["Yaaaaaaaaaaa.wav", "FreeSound/12"]),
}


@pytest.mark.parametrize("name", list(EXCLUSIONS))
def test_lists_to_exclude(tmp_path: Path, name: str) -> None:
    content, names = EXCLUSIONS[name]
    (tmp_path / "list").write_text(content)
    exclusion = read_exclusion(tmp_path / "list")
    assert list(exclusion.names) == names
    clips = pa.array(["bbbbbbbbbbb", "aaaaaaaaaaa", "aaaaaaaaaaa_000099", "FreeSound/12"])
    keep, [counts] = keep_clips(clips, [exclusion])
    assert keep.tolist() == [True, False, False, "FreeSound/12" not in names]  # the whole video, whatever its start
    assert counts.removed == (~keep).sum()
    assert counts.names_without_clip == ("nobody" in names)


@pytest.mark.parametrize("content", ["", "# only\n", "[", "[[1]]", '{"a": 1}', "[]"])
def test_what_is_no_list(tmp_path: Path, content: str) -> None:
    (tmp_path / "list").write_text(content)
    with pytest.raises(UserError, match="list"):
        read_exclusion(tmp_path / "list")


def test_excluded_clips_are_out_of_the_table_and_each_list_says_how_many(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("aaaaaaaaaaa\nnobody\n")
    (tmp_path / "b").write_text("Yaaaaaaaaaaa\nYXqu1CeA2c4_000001\n")
    lists = (read_exclusion(tmp_path / "a"), read_exclusion(tmp_path / "b"))
    merged = fill(segments(), rows(("bbbbbbbbbbb", "x")), FillOptions(exclude=lists))
    assert merged.captions["clip_id"].to_pylist() == ["Xqu1CeA2c4_", "bbbbbbbbbbb"]
    assert [counts.removed for counts in merged.coverage.excluded] == [1, 1]
    assert "1 (2 names, 1 of no clip)" in "\n".join(merged.coverage.lines())
    again = add(
        fill(segments(), None).captions,
        rows(("aaaaaaaaaaa", "x"), ("bbbbbbbbbbb", "y")),
        "s",
        options=AddOptions(exclude=lists),
    )
    assert again.captions["clip_id"].to_pylist() == ["Xqu1CeA2c4_", "bbbbbbbbbbb", "bbbbbbbbbbb"]


def test_new_clips_come_at_the_end() -> None:
    there = add(None, rows(("a", "1")), "s").captions
    more = rows(("x/b.wav", "2"), ("a", "3"), ("FreeSound/1", "4"))
    assert add(there, more, "t").captions["clip_id"].to_pylist() == ["a", "a"]
    merged = add(there, more, "t", options=AddOptions(new_clips=True))
    assert merged.captions["clip_id"].to_pylist() == ["a", "a", "x/b", "FreeSound/1"]
    assert merged.coverage.clips == 3
