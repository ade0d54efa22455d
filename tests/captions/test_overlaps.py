"""Leaks: evaluation sets from their metadata, what sets share, and the names that training data has for them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.captions.overlaps import overlaps, read_sets, write_exclude_list
from m2dprep.captions.sources.evaluation_sets import FORMS, Sound, read_evaluation_sets
from m2dprep.captions.sources.exclusion import keep_clips, read_exclusion
from m2dprep.cli.main import m2dprep

A, B, C = "-abcdefghi1", "Yabcdefg_i2", "abcdefghij_"


def table(path: Path, header: str, *rows: str, encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(f"{row}\n" for row in (header, *rows)).encode(encoding))
    return path


def esc50(path: Path, *numbers: int) -> Path:
    rows = (f"1-{number}-A-{take}.wav,1,0,dog,True,{number},{take}" for take, number in enumerate(numbers))
    return table(path, "filename,fold,target,category,esc10,src_file,take", *rows)


def us8k(path: Path, *numbers: int) -> Path:
    rows = (f"{number}-3-0-{at}.wav,{number},0.0,0.5,1,5,3,dog_bark" for at, number in enumerate(numbers))
    return table(path, "slice_file_name,fsID,start,end,salience,fold,classID,class", *rows)


def fsd50k(path: Path, *numbers: int) -> Path:
    return table(path, "fname,labels,mids", *(f'{number},"Dog,Animal","/m/1,/m/2"' for number in numbers))


def clotho(path: Path, *numbers: int) -> Path:
    header = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
    rows = (
        f'Sound {number}.wav,a;b,{number},https://freesound.org/people/x/sounds/{number},"[0, 1]",Jos\xe9,cc'
        for number in numbers
    )
    return table(path, header, *rows, encoding="iso-8859-1")


def audiocaps(path: Path, *ids: str) -> Path:
    rows = (f"{at},{video},30,A dog {n}." for at, video in enumerate(ids) for n in range(5))
    return table(path, "audiocap_id,youtube_id,start_time,caption", *rows)


def vggsound(path: Path, **split_of: str) -> Path:
    path.write_text("".join(f"{video},30,dog barking,{split}\n" for video, split in split_of.items()))
    return path


BLACKLIST = {"AudioSet": [f"Y{A}.wav", f"Y{B}.wav", f"{B}.wav"], "FreeSound": ["7", 8]}
# A file, and the sounds in it.
FILES = {
    "ESC-50": (
        lambda path: esc50(path, 1, 1, 22),
        [Sound("1-1-A-0.wav", "1"), Sound("1-1-A-1.wav", "1"), Sound("1-22-A-2.wav", "22")],
    ),
    "UrbanSound8K": (lambda path: us8k(path, 1), [Sound("1-3-0-0.wav", "1")]),
    "FSD50K": (lambda path: fsd50k(path, 1, 64760), [Sound("1", "1"), Sound("64760", "64760")]),
    "Clotho": (lambda path: clotho(path, 7), [Sound("Sound 7.wav", "7")]),
    "AudioCaps": (lambda path: audiocaps(path, A, B), [Sound(A, "", A), Sound(B, "", B)]),
    "VGGSound": (lambda path: vggsound(path, **{A: "test", B: "train", C: "test"}), [Sound(A, "", A), Sound(C, "", C)]),
    "WavCaps' blacklist": (
        lambda path: path.write_text(
            json.dumps({"AudioSet": [f"Y{A}.wav", f"Y{B}.wav", f"{B}.wav"], "FreeSound": ["7", 8]})
        ),
        [Sound(A, "", A), Sound(B, "", B), Sound("7", "7"), Sound("8", "8")],
    ),
}


@pytest.mark.parametrize("title", list(FILES))
def test_sets_are_known_by_their_columns(tmp_path: Path, title: str) -> None:
    write, sounds = FILES[title]
    write(tmp_path / "metadata")
    (one,) = read_evaluation_sets(tmp_path / "metadata")
    assert (one.title, list(one.sounds)) == (f"{title} (metadata)", sounds)
    content = (tmp_path / "metadata").read_bytes()
    if title != "Clotho":  # which is no UTF-8
        (tmp_path / "metadata").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
        assert list(read_evaluation_sets(tmp_path / "metadata")[0].sounds) == sounds


def test_every_form_is_tested() -> None:
    assert {form.title for form in FORMS} == set(FILES)


def test_clotho_without_a_number_takes_the_link_and_names_are_as_files_have_them(tmp_path: Path) -> None:
    header = "file_name,keywords,sound_id,sound_link"
    rows = ["What: this?.wav,k,Not found,https://freesound.org/people/a/sounds/80399", "b.wav,k,Not found,Not found"]
    (one,) = read_evaluation_sets(table(tmp_path / "c.csv", header, *rows))
    assert one.sounds == (Sound("What_ this_.wav", "80399"), Sound("b.wav"))


def test_the_published_overlaps(tmp_path: Path) -> None:
    """LAION's table of what sets share, on metadata made up to share as many; clips of the set in the second column."""
    table = {  # the clips that a set shares with the train, valid and test split of another
        ("esc50", "clotho"): (94, 27, 34),
        ("esc50", "fsd50k"): (399, 60, 171),
        ("us8k", "clotho"): (411, 150, 209),
        ("us8k", "fsd50k"): (697, 180, 341),
    }
    writers = {"esc50": esc50, "us8k": us8k, "fsd50k": fsd50k, "clotho": clotho}
    numbers: dict[str, list[int]] = {}
    new = iter(range(10_000, 10**6))
    for (first, second), counts in table.items():
        for split, count in zip(("train", "valid", "test"), counts, strict=True):
            shared = [next(new) for _ in range(count)]
            numbers.setdefault(first, []).extend(shared)
            numbers.setdefault(f"{second}_{split}", []).extend(shared)
    for name, some in numbers.items():
        some += [next(new) for _ in range(100)]  # of nobody else
        writers[name.partition("_")[0]](tmp_path / f"{name}.csv", *some)
    found = {
        (one.first.partition("(")[2][:-5], one.second.partition("(")[2][:-5]): (
            one.matched_by,
            one.ids,
            one.sounds_of_first,
        )
        for one in overlaps(read_sets([tmp_path / f"{name}.csv" for name in numbers]))
    }
    expected = {
        (first, f"{second}_{split}"): ("FreeSound id", count, count)
        for (first, second), counts in table.items()
        for split, count in zip(("train", "valid", "test"), counts, strict=True)
    }
    assert {tuple(sorted(pair)): value for pair, value in found.items()} == {
        tuple(sorted(pair)): value for pair, value in expected.items()
    }


def test_several_clips_of_one_sound_are_counted_as_clips(tmp_path: Path) -> None:
    sets = read_sets(
        [esc50(tmp_path / "e.csv", 1, 1, 2), us8k(tmp_path / "u.csv", 1, 3), audiocaps(tmp_path / "a.csv", A)]
    )
    (one,) = overlaps([*sets, *read_sets([vggsound(tmp_path / "v.csv", **{B: "test"})])])
    assert (one.ids, one.sounds_of_first, one.sounds_of_second) == (1, 2, 1)
    assert str(one).startswith("ESC-50 (e.csv) and UrbanSound8K (u.csv) share 1 sounds by FreeSound id: 2 clips")


# Names in training data, and whether a sound of the evaluation sets below has them.
CLIPS = {
    "FreeSound/1234": True,
    "wavcaps/FreeSound/1234.flac": True,
    "FSD50K.dev_audio/1234": True,
    "1234": True,  # a number without a folder
    "SoundBible/1234": False,
    "BBC_Sound_Effects/1234": False,
    "FreeSound/12345": False,
    "ESC-50/audio/1-1234-A-0.wav": True,
    "1-1235-A-0": False,
    "Sound 1234.wav": True,  # Clotho's name of the same sound
    "Sound 99": False,
    A: True,
    f"Y{A}": True,
    f"{A}_000110": True,
    f"audioset/Y{B}_30.000_40.000.wav": True,
    C: False,
    f"Y{C}.wav": False,
    A[1:] + "x": False,
}


def test_the_list_takes_the_sounds_by_any_name_and_no_others(tmp_path: Path) -> None:
    esc50(tmp_path / "esc50.csv", 1234)
    clotho(tmp_path / "clotho.csv", 1234, 99)
    vggsound(tmp_path / "vggsound.csv", **{A: "test", C: "train"})
    audiocaps(tmp_path / "test.csv", B)
    evaluation = [tmp_path / "esc50.csv", tmp_path / "vggsound.csv", tmp_path / "test.csv"]
    counts = write_exclude_list(tmp_path / "out.csv", evaluation, [tmp_path / "clotho.csv"])
    assert [one.ids for one in counts.overlaps] == [1]
    keep, _ = keep_clips(pa.array(list(CLIPS)), [read_exclusion(tmp_path / "out.csv")])
    assert dict(zip(CLIPS, (~keep).tolist(), strict=True)) == CLIPS
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == counts.rows
    assert rows[-1] == {"clip_id": B, "set": "AudioCaps (test.csv)", "matched_by": "YouTube id", "sound": B}
    assert {row["matched_by"] for row in rows} == {
        "FreeSound id",
        "YouTube id",
        "name",
        "FreeSound id, by Clotho (clotho.csv)",
    }
    again = read_evaluation_sets(tmp_path / "out.csv")
    assert [one.title for one in again] == ["ESC-50 (esc50.csv)", "VGGSound (vggsound.csv)", "AudioCaps (test.csv)"]
    assert sum(len(one.listed) for one in again) == counts.rows


def test_a_list_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    esc50(tmp_path / "a.csv", 1)
    assert write_exclude_list(tmp_path / "out.csv", [tmp_path / "a.csv"]).changed
    assert not write_exclude_list(tmp_path / "out.csv", [tmp_path / "a.csv"]).changed
    esc50(tmp_path / "a.csv", 2)
    with pytest.raises(FingerprintConflictError, match="--overwrite"):
        write_exclude_list(tmp_path / "out.csv", [tmp_path / "a.csv"])
    assert write_exclude_list(tmp_path / "out.csv", [tmp_path / "a.csv"], overwrite=True).changed
    for output, message in [("a.csv", "never changed"), (".", "is a folder")]:
        with pytest.raises(UserError, match=message):
            write_exclude_list(tmp_path / output, [tmp_path / "a.csv"])
    with pytest.raises(UserError, match="more than once"):
        write_exclude_list(tmp_path / "b.csv", [tmp_path / "a.csv"] * 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("fname,labels\nx.wav,Dog\n", "'x.wav' is no id at FreeSound"),
        ("audiocap_id,youtube_id\n1,91139\n", "'91139' is no YouTube id"),
        ("filename,src_file\n", "no sound of ESC-50"),
        ("", "names no clip"),
        ('{"AudioSet": {}}', "list of names"),
    ],
)
def test_malformed_metadata_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_evaluation_sets(tmp_path / "m.csv")
    assert "m.csv" in str(caught.value)


@pytest.mark.slow
@settings(max_examples=80)
@given(
    st.sampled_from(
        ["", "filename,src_file\n", "fname,labels\n", "file_name,sound_id\n", '{"AudioSet": [', '{"FreeSound": {"a"']
    ),
    st.one_of(st.text('{}[]":,ab\n0 \t', max_size=40).map(str.encode), st.binary(max_size=30)),
)
def test_any_bytes_give_sounds_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, start: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.set"
    path.write_bytes(start.encode() + content)
    try:
        assert read_evaluation_sets(path)
    except UserError as error:
        assert "any.set" in str(error)


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ([], {A, B, "FreeSound/7", "FSD50K.dev_audio/7", "FSD50K.eval_audio/7", "Sound 7.wav"}),
        (["youtube"], {A, B}),
        (["freesound"], {"FreeSound/7", "FSD50K.dev_audio/7", "FSD50K.eval_audio/7", "Sound 7.wav"}),
        (["youtube", "freesound"], {A, B, "FreeSound/7", "FSD50K.dev_audio/7", "FSD50K.eval_audio/7", "Sound 7.wav"}),
    ],
)
def test_only_the_names_of_some_kinds(tmp_path: Path, by: list[str], names: set[str]) -> None:
    """The names that Clotho gives its sounds count as FreeSound's, whose ids tell which they are."""
    (tmp_path / "list.json").write_text(json.dumps({"AudioSet": [f"Y{A}.wav", f"Y{B}.wav"], "FreeSound": ["7"]}))
    clotho(tmp_path / "clotho.csv", 7, 8)
    words = [word for kind in by for word in ("--by", kind)]
    out = tmp_path / "out.csv"
    start = ["captions", "exclude-list", str(tmp_path / "list.json")]
    result = CliRunner().invoke(
        m2dprep,
        [*start, "--trained", str(tmp_path / "clotho.csv"), *words, "-o", str(out)],
    )
    assert result.exit_code == 0, result.output
    assert {row.split(",")[0].strip('"') for row in out.read_text().splitlines()[1:]} == names


def test_no_name_of_the_kind_is_an_error(tmp_path: Path) -> None:
    vggsound(tmp_path / "v.csv", **{A: "test"})
    words = ["captions", "exclude-list", str(tmp_path / "v.csv"), "--by", "freesound", "-o", str(tmp_path / "o.csv")]
    result = CliRunner().invoke(m2dprep, words)
    assert result.exit_code == 2
    assert "none of the sounds is known by FreeSound id" in result.stderr
