"""``m2dprep evaluate prepare`` on the layout of every task, with quirks: what goes in, what comes out, what is told."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from m2dprep.evaluation.prepared import read_evaluation_set
from m2dprep.evaluation.task import known_tasks
from tests.cli.invocation import refused, run
from tests.evaluation.preparation.made_downloads import DOWNLOADS, touch, write


class Expected(NamedTuple):
    """Rows of metadata.csv, then (reason, name) of what is left out, and names of files that belong to no row."""

    rows: list[str]
    left_out: Sequence[tuple[str, str]] = ()
    extra: Sequence[str] = ()


EXPECTED = {
    "esc50": Expected(
        ["audio/1-1-A-0.wav|dog|1|1", "audio/2-2-A-9.WAV|crow|2|2"],
        [("missing", "audio/3-3-B-0.wav")],
        ["audio/9-9-A-9.wav"],
    ),
    "us8k": Expected(
        ["audio/fold10/7-0-0.wav|dog_bark|10|7", "audio/fold2/8-0-0.wav|car_horn|2|8"],
        [("repeated", "audio/fold10/7-0-0.wav")],
    ),
    "cremad": Expected(
        [
            "AudioWAV/1001_DFA_ANG_XX.wav|ANG|test",
            "AudioWAV/1002_IEO_SAD_HI.WAV|SAD|train",
            "AudioWAV/1003_IEO_HAP_LO.wav|HAP|valid",
            "AudioWAV/1076_MTI_SAD_XX.wav|SAD|",
        ],
        [("missing", "1004_DFA_NEU_XX")],
        ["AudioMP3/1001_DFA_ANG_XX.mp3", "AudioWAV/notes.wav"],
    ),
    "gtzan": Expected(
        [
            "genres_original/blues/blues.00000.au|blues|train",
            "genres_original/jazz/jazz.00054.au|jazz|",
            "genres_original/pop/pop.00001.au|pop|valid",
        ],
        [("missing", "pop/pop.00002")],
    ),
    "nsynth": Expected(
        [
            "nsynth-train/audio/bass_1.wav|bass|train",
            "nsynth-valid/audio/vocal_2.wav|vocal|valid",
            "nsynth-test/audio/bass_3.wav|bass|test",
        ],
        [
            ("missing", "nsynth-train/audio/bass_1-gone.wav"),
            ("missing", "nsynth-valid/audio/vocal_2-gone.wav"),
            ("missing", "nsynth-test/audio/bass_3-gone.wav"),
        ],
    ),
    "fsd50k": Expected(
        [
            "FSD50K.dev_audio/64760.wav|Electric_guitar,Music|train",
            "FSD50K.dev_audio/16399.wav|Bark|valid",
            "FSD50K.eval_audio/37199.wav|Bark,Animal|test",
        ],
        [("no_label", "FSD50K.dev_audio/9.wav")],
        ["FSD50K.dev_audio/9.wav"],
    ),
    "audioset": Expected(
        [
            "balanced_train_segments/part00/--PJHxphWEs.m4a|/m/09x0r,/t/dd00088|train",
            "eval_segments/Y--4gqARaEJE_0.000_10.000.wav|/m/068hy,/m/07q6cd_|test",
            "eval_segments/Yabcdefghij.FLAC|/m/068hy|test",
        ],
        [("missing", "eval_segments/gone_gone_g")],
        ["eval_segments/--PJHxphWEs.wav"],
    ),
    "spcv2": Expected(
        ["bed/0a_nohash_0.wav|bed|train", "bed/0b_nohash_0.wav|bed|valid", "cat/0a_nohash_1.WAV|cat|test"],
        [("missing", "cat/gone")],
        ["_background_noise_/pink.wav"],
    ),
    "vc1": Expected(
        [
            "vox1_dev_wav/wav/id10001/1zc/00001.wav|id10001|train",
            "vox1_test_wav/wav/id10001/7gW/00001.wav|id10001|test",
            "vox1_dev_wav/wav/id10002/abc/00002.wav|id10002|valid",
        ],
        [("malformed", ""), ("missing", "wav/id10270/gone/00001.wav")],
    ),
    "voxforge": Expected(
        ["Alex-1/wav/a1.wav|en|train", "Bea-2/wav/b1.wav|de|valid", "Ce-3/wav/c1.wav|it|test"],
        [("missing", "Di-4/wav/d1.wav")],
    ),
    "surge": Expected(
        ["Bass 1.2/21.ogg|21|train", "Bass 1.2/22.OGG|22|train", "Lead/21.ogg|21|valid", "Pad/100.ogg|100|test"],
        [],
        ["Pad/preview.ogg"],
    ),
    "audiocaps": Expected(
        [
            "wav/val/Y-0SdAVK79lg.wav|A dog barks|valid",
            "wav/test/YYabcdefghij.wav|Rain, and wind|test",
            "wav/test/YYabcdefghij.wav|Rain falls|test",
        ],
        [("missing", "gone_gone_g")],
        ["wav/test/Yzzzzzzzzzzz.wav"],
    ),
    "tut-scenes-2017": Expected(
        [
            "TUT-acoustic-scenes-2017-development/audio/b020_90_100.wav|beach|train|b020",
            "TUT-acoustic-scenes-2017-development/audio/a1.wav|cafe/restaurant|train|a1",
            "TUT-acoustic-scenes-2017-evaluation/audio/10.wav|city_center|test|",
        ],
        [("missing", "TUT-acoustic-scenes-2017-evaluation/audio/gone.wav")],
        ["TUT-acoustic-scenes-2017-evaluation/audio/11.wav"],
    ),
    "clotho": Expected(
        [
            *(f"evaluation/Rain_ heavy_.wav|{text}|test" for text in ("a", "b", "c", "d", "e, f")),
            *(f"evaluation/Door (1).wav|{text}|test" for text in ("a", "c", "d", "e")),
        ],
        [("missing", "evaluation/Gone.wav")],
        ["development/Other.wav"],
    ),
}


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def prepared(task: str, tmp_path: Path, *options: object) -> Any:
    download, lists = tmp_path / "download", tmp_path / "lists"
    for folder in (download, lists):
        folder.mkdir(parents=True, exist_ok=True)
    DOWNLOADS[task](download, lists)
    return run("evaluate", "prepare", task, download, "-o", tmp_path / "set", "--lists", lists, *options)


def test_every_task_is_tried() -> None:
    assert set(DOWNLOADS) == set(EXPECTED) == set(known_tasks())


@pytest.mark.slow
@pytest.mark.parametrize("task", EXPECTED)
def test_the_layout_of(task: str, tmp_path: Path) -> None:
    done = prepared(task, tmp_path, "--max-failures", "100%", "--json")
    assert done.exit_code == 0, done.output
    folder, expected = tmp_path / "set", EXPECTED[task]
    assert ["|".join(row) for row in rows(folder / "metadata.csv")] == expected.rows
    assert [(row[2], row[0]) for row in rows(folder / "left_out.csv")] == list(expected.left_out)
    assert [row[0] for row in rows(folder / "extra.csv")] == list(expected.extra)
    value = json.loads(done.stdout)
    assert value == json.loads((folder / "prepared.json").read_text())
    assert sum(value["left_out"].values()) == len(expected.left_out)
    assert value["expected"] == dict(known_counts(task))
    clips = read_evaluation_set(folder, captions=task in ("audiocaps", "clotho"))
    assert clips.task.name == task
    assert all(path.exists() for path in clips.paths(range(len(clips.files))))
    assert sum(value["found"].values()) == len(clips.files) == sum(clips.counts().values())
    assert value["without_split"] == clips.ignored


def known_counts(task: str) -> dict[str, int]:
    from m2dprep.evaluation.task import read_task

    return dict(read_task(known_tasks()[task]).counts)


@pytest.mark.slow
@pytest.mark.parametrize("task", EXPECTED)
def test_counts_are_always_told_and_failures_give_their_exit_code(task: str, tmp_path: Path) -> None:
    done = prepared(task, tmp_path)
    reasons = {reason for reason, _ in EXPECTED[task].left_out}
    allowed = task in ("audioset", "audiocaps")
    assert done.exit_code == (0 if not reasons or allowed else 3), done.output
    counts = known_counts(task)
    for name, n in counts.items():
        line = next(line for line in done.stdout.splitlines() if line.startswith("clips" if name == "all" else name))
        assert line.split()[-1] == f"{n:,}"
    for reason in reasons:
        assert f"{reason} " in done.stdout
    if EXPECTED[task].extra:
        assert f"{len(EXPECTED[task].extra)} audio files belong to no row" in done.stdout


def test_the_folder_finds_its_clips_after_both_have_moved(tmp_path: Path) -> None:
    prepared("spcv2", tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    clips = read_evaluation_set(tmp_path / "there" / "set")
    assert all(path.exists() for path in clips.paths(range(3)))


def test_words_for_labels_that_are_none(tmp_path: Path) -> None:
    prepared("audioset", tmp_path)
    rule = read_evaluation_set(tmp_path / "set").task.caption
    assert rule.captions("/m/068hy") == ["Domestic animals, pets can be heard"]


@pytest.mark.parametrize("task", ["cremad", "gtzan", "vc1", "voxforge", "surge", "audioset"])
def test_lists_that_are_to_be_fetched_are_named_with_their_address(task: str, tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    DOWNLOADS[task](tmp_path / "download", tmp_path / "lists")
    done = run("evaluate", "prepare", task, tmp_path / "download", "-o", tmp_path / "set")
    refused(done, 2, "http", "--lists")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("task", ["cremad", "gtzan", "vc1"])
def test_fetched_lists_may_lie_in_the_download(task: str, tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    DOWNLOADS[task](tmp_path / "download", tmp_path / "download")
    done = run("evaluate", "prepare", task, tmp_path / "download", "-o", tmp_path / "set", "--max-failures", "100%")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("task", EXPECTED)
def test_another_folder_is_refused_with_what_is_looked_for(task: str, tmp_path: Path) -> None:
    other = tmp_path / "holiday"
    touch(other, "2024/beach.jpg", "2024/notes.txt")
    (tmp_path / "lists").mkdir()
    done = run("evaluate", "prepare", task, other, "-o", tmp_path / "set", "--lists", tmp_path / "lists")
    refused(done, 2, str(other))
    assert not (tmp_path / "set").exists()


def test_the_message_names_files(tmp_path: Path) -> None:
    touch(tmp_path / "x", "UrbanSound8K/metadata/readme.txt")
    refused(run("evaluate", "prepare", "esc50", tmp_path / "x", "-o", tmp_path / "set"), 2, "meta/esc50.csv", "ESC-50")


def test_a_folder_around_two_copies_is_ambiguous(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "x" / name / "meta" / "esc50.csv", "filename,fold,category,src_file\n1.wav,1,dog,1\n")
    refused(run("evaluate", "prepare", "esc50", tmp_path / "x", "-o", tmp_path / "set"), 2, "several copies", "a, b")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("filename,fold\n1.wav,1\n", ("category", "fold")),
        ("filename;fold;category\n1.wav;1;dog\n", ("filename",)),
        ("filename,fold,category,src_file\n", ("no rows",)),
        ("filename,fold,category,src_file\n../secret.wav,1,dog,1\n", ("outside", "secret")),
        ("filename,fold,category,src_file\n1.wav,1,dog,1,more\n", ("line 2",)),
        ('filename,fold,category,src_file\n1.wav,1,"dog\n', ("line 2",)),
        ("", ("empty",)),
    ],
)
def test_tables_that_are_not_what_they_should_be(table: str, words: tuple[str, ...], tmp_path: Path) -> None:
    touch(tmp_path, "secret.wav", "x/audio/other.wav")
    write(tmp_path / "x" / "meta" / "esc50.csv", table)
    refused(run("evaluate", "prepare", "esc50", tmp_path / "x", "-o", tmp_path / "set"), 2, *words)


def test_nothing_outside_the_download_is_taken_by_a_table(tmp_path: Path) -> None:
    touch(tmp_path, "secret.wav", "x/audio/1.wav")
    text = "filename,fold,category,src_file\n1.wav,1,dog,1\n../../secret.wav,1,dog,1\n/etc/passwd,1,dog,1\n"
    write(tmp_path / "x" / "meta" / "esc50.csv", text)
    done = run("evaluate", "prepare", "esc50", tmp_path / "x", "-o", tmp_path / "set")
    assert done.exit_code == 3
    assert [row[0] for row in rows(tmp_path / "set" / "metadata.csv")] == ["audio/1.wav"]
    assert {row[2] for row in rows(tmp_path / "set" / "left_out.csv")} <= {"outside", "missing"}


def test_the_same_command_again_gives_the_same_bytes_and_others_need_a_word(tmp_path: Path) -> None:
    prepared("spcv2", tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    assert prepared("spcv2", tmp_path).exit_code == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
    esc50 = tmp_path / "esc50"
    DOWNLOADS["esc50"](esc50, esc50)
    words = ("evaluate", "prepare", "esc50", esc50, "-o", tmp_path / "set", "--max-failures", "50%")
    refused(run(*words), 2, "spcv2", "--overwrite")
    assert run(*words, "--overwrite").exit_code == 0
    write(tmp_path / "mine" / "metadata.csv", "precious\n")
    refused(run(*words[:4], "-o", tmp_path / "mine"), 2, "was not made by this command")
    assert (tmp_path / "mine" / "metadata.csv").read_text() == "precious\n"


def test_rows_that_contradict_each_other(tmp_path: Path) -> None:
    touch(tmp_path / "x", "audio/1.wav")
    write(tmp_path / "x" / "meta" / "esc50.csv", "filename,fold,category,src_file\n1.wav,1,dog,1\n1.WAV,2,cat,1\n")
    run("evaluate", "prepare", "esc50", tmp_path / "x", "-o", tmp_path / "set")
    assert [row[1] for row in rows(tmp_path / "set" / "metadata.csv")] == ["dog"]
    assert "dog, fold 1, and here as cat, fold 2" in rows(tmp_path / "set" / "left_out.csv")[0][3]


def test_a_name_in_two_splits(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    DOWNLOADS["gtzan"](tmp_path / "x", tmp_path / "lists")
    write(tmp_path / "lists" / "test_filtered.txt", "blues/blues.00000.wav\n")
    done = run("evaluate", "prepare", "gtzan", tmp_path / "x", "-o", tmp_path / "s", "--lists", tmp_path / "lists")
    refused(done, 2, "test_filtered.txt", "blues.00000", "train")
