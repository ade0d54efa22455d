"""Which clip a name means, as a table; and the same for any names, one at a time, as the rule reads."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.clips.clip_id import TIMED_FORM, file_stem, youtube_id
from m2dprep.artifacts.clips.matching import NO_CLIP, match_files, match_names
from m2dprep.artifacts.clips.readings import folded, last_parts, paths, shorter_ends

ID, OTHER = "YXqu1CeA2c4", "-bcdefghijk"
LISTED = {
    # what is listed, the clips there are: the clip of each file
    "a stem": (["l/rain.npy"], ["rain"], ["rain"]),
    "a path": (["l/dog/001.npy", "l/cat/001.npy"], ["dog/001", "cat/001"], ["dog/001", "cat/001"]),
    "a path that another file lacks": (["l/dog/001.npy", "l/cat/001.npy"], ["dog/001"], ["dog/001", None]),
    "another folder's clip": (["l/cat/001.npy"], ["dog/001"], [None]),
    "another folder's clip, two folders up": (["l/a/x/001.npy", "l/b/x/001.npy"], ["a/x/001"], ["a/x/001", None]),
    "a stem that two files share": (["l/dog/001.npy", "l/cat/001.npy"], ["001"], [None, None]),
    "the same in two folders of log-mels": (["k/001.npy", "l/001.npy"], ["001"], [None, None]),
    "told apart by these": (["k/001.npy", "l/001.npy"], ["k/001", "l/001"], ["k/001", "l/001"]),
    "shared, though one has its own": (["l/dog/001.npy", "l/cat/001.npy"], ["dog/001", "001"], ["dog/001", None]),
    "an end that two files share": (["l/a/x/1.npy", "l/b/x/1.npy", "l/c/1.npy"], ["x/1", "c/1"], [None, None, "c/1"]),
    "a whole path before an end": (["l/001.npy", "l/cat/001.npy"], ["001"], ["001", None]),
    "both by their paths": (["l/001.npy", "l/cat/001.npy"], ["cat/001", "001"], ["001", "cat/001"]),
    "parts that number alike": (["w/FreeSound/1.npy", "w/BBC/1.npy"], ["BBC/1"], [None, "BBC/1"]),
    "ids with more folders": (["l/dog/001.npy"], ["audio/dog/001", "audio/cat/001"], ["audio/dog/001"]),
    "ids with more folders, twice": (["l/dog/001.npy"], ["a/dog/001", "b/dog/001"], [None]),
    "ids with a folder that no file has": (["l/001.npy"], ["dog/001"], [None]),
    "ids that are file names": (["l/dog/001.npy"], ["dog/001.flac"], ["dog/001.flac"]),
    "ids of other spellings": (["l/a/b.npy", "l/c.npy"], ["./a//b.WAV", "/c.mp3"], ["./a//b.WAV", "/c.mp3"]),
    "dots in names": (["l/a.b.npy", "l/blues.00000.npy"], ["a.b", "blues.00000.au"], ["a.b", "blues.00000.au"]),
    "Clotho's names": (["l/ a_b_.npy"], ["a:b?"], ["a:b?"]),
    "Clotho's names, shared": (["l/a_b.npy", "l/ a_b.npy"], ["a:b"], [None, None]),
    "a name before its likeness": (["l/a_b.npy"], ["a:b", "a_b"], ["a_b"]),
    "accents of macOS": (["l/e\u0301te\u0301.npy"], ["\u00e9t\u00e9"], ["\u00e9t\u00e9"]),
    "AudioSet's form": ([f"l/Y{OTHER}.npy", f"l/Y{ID}_30.000_40.000.npy"], [ID, OTHER], [OTHER, ID]),
    "VGGSound's form": ([f"l/deep/{ID}_000044.npy"], [ID, "Xqu1CeA2c4_"], [ID]),
    "an id that begins with Y": ([f"l/{ID}.npy"], [ID, "Xqu1CeA2c4"], [ID]),
    "a time behind the id": ([f"l/{OTHER}_30.npy"], [OTHER], [OTHER]),
    "two seconds of a video": ([f"l/{ID}_000010.npy", f"l/{ID}_000020.npy"], [ID], [None, None]),
    "two seconds of a video, one known": ([f"l/{ID}_000010.npy", f"l/{ID}_000020.npy"], [f"{ID}_000010"], [0, None]),
    "an id before its form": ([f"l/{ID}.npy", f"l/Y{ID}.npy"], [ID], [ID, None]),
    "a video's own clip beside VGGSound's": (
        [f"l/{ID}_000010.npy", f"k/Y{ID}.npy"],
        [f"{ID}_000010", ID],
        [f"{ID}_000010", ID],
    ),
    "two of VGGSound's beside it": (
        [f"l/{ID}_000010.npy", f"l/{ID}_000020.npy", f"k/Y{ID}.npy"],
        [f"{ID}_000010", ID],
        [f"{ID}_000010", None, None],
    ),
    "a video in two sets": (
        [f"as_lms/Y{OTHER}.npy", f"wavcaps_lms/AudioSet_SL_flac/Y{OTHER}.npy"],
        [OTHER, f"AudioSet_SL/Y{OTHER}"],
        [OTHER, f"AudioSet_SL/Y{OTHER}"],
    ),
    "AudioCaps' own ids": ([f"l/Y{OTHER}.npy"], [OTHER, f"Y{OTHER}"], [f"Y{OTHER}"]),
    "a folder named after a format": (
        ["w/FreeSound_flac/1.npy", "w/BBC_Sound_Effects_flac/1.npy", "w/a_wav/b_mp3/2.npy"],
        ["FreeSound/1", "a/b/2"],
        ["FreeSound/1", None, "a/b/2"],
    ),
    "a format in the id": (["w/FreeSound/1.npy"], ["FreeSound_flac/1"], ["FreeSound_flac/1"]),
    "a word before a format": (["w/my_flac_files/1.npy"], ["my_files/1"], [None]),
    "numbered takes": (["l/dog_barking_01.npy", "l/dog_barking_02.npy"], ["dog_barking"], [None, None]),
    "a name and its takes": (["l/dog_barking.npy", "l/dog_barking_01.npy"], ["dog_barking"], ["dog_barking", None]),
    "ids in AudioSet's form": ([f"l/{ID}.npy", f"l/Y{OTHER}_30.npy"], [f"Y{ID}", f"Y{OTHER}"], [f"Y{ID}", f"Y{OTHER}"]),
    "a file beside a folder with one of its name": (
        ["0.npy", "sub/0.npy", "1.npy", "sub/1.npy"],
        ["0", "1", "sub/1"],
        ["0", None, "1", "sub/1"],
    ),
    "nothing listed": ([], ["a"], []),
    "no clips": (["l/a.npy"], [], [None]),
}


@pytest.mark.parametrize("name", list(LISTED))
def test_listed_files(name: str) -> None:
    files, clips, expected = LISTED[name]
    found = match_files(files, clips)
    assert [None if clip == NO_CLIP else clips[clip] for clip in found.clip.tolist()] == [
        clips[clip] if isinstance(clip, int) else clip for clip in expected
    ]


def test_what_is_shared_is_counted_with_an_example() -> None:
    clips, files = ["001", "rain"], ["l/dog/001.npy", "l/cat/001.npy", "l/rain.npy", "l/snow.npy"]
    found = match_files(files, clips)
    assert found.shared.tolist() == [0, 1]
    assert found.wanted.tolist() == [0, 0]
    [line] = found.lines(files, clips)
    assert "same clip: 2, such as l/dog/001.npy and l/cat/001.npy may both be the clip '001'" in line
    assert match_files(files[1:], clips).lines(files[1:], clips) == []
    clips = ["a/dog/001", "b/dog/001"]
    assert "l/dog/001.npy may be several clips" in match_files(files, clips).lines(files, clips)[0]
    clips, files = ["dog/001", "001"], ["l/cat/001.npy", "l/dog/001.npy"]
    assert "l/cat/001.npy and l/dog/001.npy may both" in match_files(files, clips).lines(files, clips)[0]


IN_TABLES = {
    # ids of a table of captions, the clips there are: the clip of each id
    "literally": (["rain", "b.c", f"Y{OTHER}"], ["b.c", "rain", f"Y{OTHER}", OTHER], ["rain", "b.c", f"Y{OTHER}"]),
    "names of files": (["a/b.wav", "c.MP3"], ["a/b", "c"], ["a/b", "c"]),
    "a folder that the clip lacks": (["x/b.wav"], ["b"], ["b"]),
    "another folder": (["x/b.wav"], ["y/b"], [None]),
    "an end that two names share": (["x/b.wav", "y/b.wav"], ["b"], [None, None]),
    "one name in two spellings": (["x/b.wav", "x/b.flac", "./x/b"], ["b"], ["b", "b", "b"]),
    "a name without a folder among clips with one": (["b.wav"], ["x/b"], [None]),
    "several captions of a video": ([f"Y{ID}", f"{ID}_000044", ID], [ID], [ID, ID, ID]),
    "a name that has the form of another": (["dog_barking_000002"], ["dog_barking_000001", "dog_barking"], [1]),
    "takes of a sound": (["dog_barking_01", "dog_barking_02"], ["dog_barking"], [None, None]),
    "the id of a clip in AudioSet's form": ([ID, f"{ID}_000030"], [f"Y{ID}"], [f"Y{ID}", f"Y{ID}"]),
    "nothing": (["", "q"], ["a"], [None, None]),
}


@pytest.mark.parametrize("name", list(IN_TABLES))
def test_ids_in_tables(name: str) -> None:
    names, clips, expected = IN_TABLES[name]
    found = match_names(pa.chunked_array([names[:1], names[1:]], pa.string()), pa.array(clips, pa.string())).clip
    assert [None if clip is None else clips[clip] for clip in found.to_pylist()] == [
        clips[clip] if isinstance(clip, int) else clip for clip in expected
    ]


def test_start_seconds_are_those_of_vggsounds_form() -> None:
    names = pa.array([f"{ID}_000044", f"Y{ID}", "dog_barking_000001"])
    found = match_names(names, pa.array([ID, "dog_barking_000001"]))
    assert found.start_seconds.tolist()[0] == 44
    assert np.isnan(found.start_seconds[1:]).all()


def readings(file: str) -> list[tuple[int, str]]:
    """(how literal it is, the reading) of a listed file without odd spellings, as `artifacts.clips.matching` says."""
    parts = file.removesuffix(".npy").split("/")
    found = [(0 if depth < 2 else 1, "/".join(parts[depth:])) for depth in range(len(parts))]
    form = youtube_id(parts[-1])
    timed = TIMED_FORM.fullmatch(parts[-1])
    return found + [(3, form)] * (form is not None) + ([(4, timed[1])] if timed and form is None else [])


def one_at_a_time(files: list[str], clips: list[str]) -> list[int]:
    claims: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for file in files:
        for rank, text in readings(file):
            claims[text].append((rank, file))
    settled: dict[str, tuple[int, str]] = {}

    def counts(level: int, other: str) -> bool:
        """Whether a claim counts: not to a YouTube id, by a file that has a clip by a more literal reading."""
        return level < 3 or other not in settled or settled[other][0] >= level

    for rank in range(5):
        found = {}
        for file in files:
            usable = [
                text
                for level, text in readings(file)
                if level == rank
                and text in clips
                and not any(at <= rank and other != file and counts(at, other) for at, other in claims[text])
            ]
            if usable and file not in settled:
                found[file] = rank, usable[0]
        settled |= found
    return [clips.index(settled[file][1]) if file in settled else NO_CLIP for file in files]


STEMS = st.sampled_from(
    ["1", "2", "aaaaaaaaaaa", "Yaaaaaaaaaaa", "aaaaaaaaaaa_000010", "aaaaaaaaaaa_20", "Yaaaaaaaaaaa_5"]
)
FOLDERS = st.sampled_from(["", "a/", "b/", "a/b/", "b/b/"])
FILES = st.tuples(st.sampled_from(["k/", "l/"]), FOLDERS, STEMS).map(lambda parts: "".join(parts) + ".npy")
CLIPS = st.tuples(st.sampled_from(["", "k/"]), FOLDERS, STEMS).map("".join)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(FILES, unique=True, max_size=8), st.lists(CLIPS, unique=True, max_size=8))
def test_any_names_as_the_rule_reads(files: list[str], clips: list[str]) -> None:
    # ids whose ends or YouTube ids name files too are in the table above
    clips = [clip for clip in clips if clip.count("/") < 2 and clip.rpartition("/")[2] != "Yaaaaaaaaaaa"]
    assert match_files(files, clips).clip.tolist() == one_at_a_time(files, clips)


@pytest.mark.slow
@given(st.lists(FILES, unique=True, min_size=1, max_size=8), st.lists(CLIPS, unique=True, max_size=8))
def test_no_clip_is_that_of_two_files_and_order_does_not_matter(files: list[str], clips: list[str]) -> None:
    found = match_files(files, clips).clip
    taken = found[found != NO_CLIP]
    assert len(np.unique(taken)) == len(taken)
    assert match_files(files[::-1], clips).clip.tolist() == found.tolist()[::-1]


@given(st.lists(st.text("qB./ :\u00e9", max_size=8), max_size=6))
def test_paths_of_columns_are_those_of_names(names: list[str]) -> None:
    column = pa.array(names, pa.string())
    clean = ["/".join(part for part in name.split("/") if part not in ("", ".")) for name in names]
    assert paths(column).to_pylist() == clean
    assert last_parts(pa.array(clean, pa.string())).to_pylist() == [name.rpartition("/")[2] for name in clean]
    ends: dict[int, list[str]] = {row: [] for row in range(len(clean))}
    for rows, texts in shorter_ends(pa.array(clean, pa.string())):
        for row, text in zip(rows.tolist(), texts.to_pylist(), strict=True):
            ends[row].append(text)
    assert list(ends.values()) == [
        ["/".join(name.split("/")[depth:]) for depth in range(1, len(name.split("/")))] for name in clean
    ]
    fold = folded(column)
    assert fold is None or all(":" not in name for name in fold.to_pylist())


def test_suffixes_go_once_and_hidden_names_stay() -> None:
    names = ["a/b.WAV", "a.wav.npy", "b.txt", ".wav", "a/.npy", "a.30.000", "a.npy"]
    assert paths(pa.array(names)).to_pylist() == ["a/b", "a.wav", "b.txt", ".wav", "a/.npy", "a.30.000", "a"]
    assert [file_stem(name) for name in ("x/a.npy", "x/a.30.000.npy")] == paths(
        pa.array(["a.npy", "a.30.000.npy"])
    ).to_pylist()
