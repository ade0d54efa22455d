"""Sets of events as they are downloaded become one table, with their counts, and everything that does not fit."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from m2dprep.artifacts.errors import UserError
from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.events.sets.declared import EVENT_SETS
from m2dprep.evaluation.events.sets.table import read_event_table
from tests.evaluation.preparation.made_downloads import touch, write

PART = "data/mixture_data/evaltest/bbb81504db15a03680a0044474633b67"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, list(map(str, arguments)))


def recipe(name: str, ratio: float | None = None, onset: float = 1.0, length: float = 2.0, **more: object) -> object:
    """A mixture, with an event if it has a ratio."""
    common = {"mixture_audio_filename": name, "bg_classname": "bus", "event_present": ratio is not None}
    if ratio is None:
        return {**common, "ebr": float("-inf"), **more}
    times = {"event_start_in_mixture_seconds": onset, "event_length_seconds": length, "event_class": "gunshot"}
    return {**common, "ebr": ratio, **times, **more}


def write_part(
    root: Path, recipes: Sequence[object] | None, lines: str | None, names: Sequence[str], place: str = PART
) -> Path:
    """The evaluation mixtures of gunshots; there may be no recipes, or no list."""
    touch(root, *(f"{place}/audio/{name}" for name in names))
    (root / place / "meta").mkdir(parents=True, exist_ok=True)
    if recipes is not None:
        (root / place / "meta" / "mixture_recipes_evaltest_gunshot.yaml").write_text(yaml.safe_dump(recipes))
    if lines is not None:
        write(root / place / "meta" / "event_list_evaltest_gunshot.csv", lines)
    return root


def rows(folder: Path, name: str = "metadata.csv") -> list[list[str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.reader(file))[1:]


A, B = f"{PART}/audio/a.wav", f"{PART}/audio/b.wav"
BOTH = [recipe("a.wav", -6.0), recipe("b.wav")]
TABBED, COMMAS = "a.wav\t1.0\t3.0\tgunshot\nb.wav\n", "b.wav\na.wav,1.0,3.0,gunshot\n"


@pytest.mark.parametrize(
    ("recipes", "lines", "ebr", "scene"),
    [
        (BOTH, TABBED, "-6", "bus"),
        (BOTH, COMMAS, "-6", "bus"),
        (BOTH, None, "-6", "bus"),
        (None, TABBED, "", ""),
        (None, COMMAS, "", ""),
    ],
    ids=["recipes and tabs", "recipes and commas", "recipes alone", "tabs alone", "commas alone"],
)
def test_one_table_from_recipes_and_lists(
    tmp_path: Path, recipes: Sequence[object] | None, lines: str | None, ebr: str, scene: str
) -> None:
    write_part(tmp_path / "in", recipes, lines, ["a.wav", "b.wav"])
    done = run("evaluate", "prepare", "tut-rare-2017", tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert sorted(rows(tmp_path / "out")) == [
        [A, "gunshot", "yes", "1", "3", ebr, scene, "test"],
        [B, "gunshot", "no", "", "", "", scene, "test"],
    ]
    assert "evaltest gunshot: 2 recordings, not 500" in done.output
    assert "evaltest gunshot: 1 recordings with an event, not 250" in done.output
    table = read_event_table(tmp_path / "out")
    assert [(one.file, one.classes, len(one.events)) for one in sorted(table.recordings, key=lambda one: one.file)] == [
        (A, ["gunshot"], 1), (B, ["gunshot"], 0),
    ]  # fmt: skip
    assert table.names == {"gunshot": ["gunshot"]}
    assert all((table.root / one.file).exists() for one in table.recordings)


@pytest.mark.parametrize(
    ("recipes", "lines", "names", "reason", "message"),
    [
        (BOTH, TABBED, ["b.wav"], "missing", "no such file"),
        ([*BOTH, recipe("a.wav")], None, ["a.wav", "b.wav"], "repeated", "an earlier entry"),
        (BOTH, "a.wav\t1.5\t3.5\tgunshot\nb.wav\n", ["a.wav", "b.wav"], "different", "the list's are taken"),
        (BOTH, "a.wav\nb.wav\n", ["a.wav", "b.wav"], "different", "the list's are taken"),
        (BOTH, "a.wav\t1.0\t3.0\tgunshot\n", ["a.wav", "b.wav"], "different", "the list has not"),
        (BOTH[:1], TABBED, ["a.wav", "b.wav"], "different", "the recipes have not"),
        ([recipe("a.wav", 0.0, onset=-1.0), BOTH[1]], None, ["a.wav", "b.wav"], "malformed", "no time"),
        ([recipe("a.wav", 0.0, event_class="dog"), BOTH[1]], None, ["a.wav", "b.wav"], "malformed", "another class"),
        ([{"bg_classname": "bus"}, BOTH[1]], None, ["b.wav"], "malformed", "names no mixture_audio_filename"),
    ],
)
def test_what_does_not_fit_is_a_row(
    tmp_path: Path, recipes: Sequence[object], lines: str | None, names: Sequence[str], reason: str, message: str
) -> None:
    write_part(tmp_path / "in", recipes, lines, names)
    done = run("evaluate", "prepare", "tut-rare-2017", tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert done.exit_code == 3, done.output
    (left,) = rows(tmp_path / "out", "left_out.csv")
    assert left[2] == reason
    assert message in left[3]
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["left_out"] == {reason: 1}


@pytest.mark.parametrize("place", ["generated_data/mixtures_evaltest_0a1b", "data/mixture_data/evaltest/0a1b"])
@pytest.mark.parametrize("folder", ["", "generated_data/mixtures_evaltest_0a1b/audio/", "C:\\\\audio\\\\"])
@pytest.mark.parametrize("recipes", [BOTH, None], ids=["recipes", "list alone"])
def test_the_layouts_of_the_baseline_and_of_dcase_util(
    tmp_path: Path, recipes: Sequence[object] | None, folder: str, place: str
) -> None:
    """They synthesise into folders of their own, and their lists may have whole paths."""
    lines = "".join(f"{folder}{line}\n" for line in TABBED.splitlines())
    write_part(tmp_path / "in", recipes, lines, ["a.wav", "b.wav"], place)
    done = run("evaluate", "prepare", "tut-rare-2017", tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert [row[:5] for row in rows(tmp_path / "out")] == [
        [f"{place}/audio/a.wav", "gunshot", "yes", "1", "3"], [f"{place}/audio/b.wav", "gunshot", "no", "", ""]
    ]  # fmt: skip


@pytest.mark.parametrize("patched", [False, True])
def test_mixtures_that_the_challenge_withdrew_are_left_out_and_no_failure(tmp_path: Path, patched: bool) -> None:
    """Of the first release they are there; the authors' patch takes them from the lists and renames their sounds."""
    gone = "mixture_devtest_babycry_038_ba5436f2be7796e0610e850bf9a56d0b.wav"
    kept = "mixture_devtest_babycry_038_00000000000000000000000000000000.wav"  # of a synthesis with other settings
    meta = tmp_path / "in/data/mixture_data/devtest/20b2/meta"
    touch(meta.parent / "audio", kept, f"{gone}_old_dontuse" if patched else gone)
    lines = [kept, *([] if patched else [f"{gone}\t1\t2\tbabycry"])]
    write(meta / "event_list_devtest_babycry.csv", "".join(f"{line}\n" for line in lines))
    write(meta / "event_list_devtest_babycry.csv_old_dontuse", f"{kept}\n{gone}\t1\t2\tbabycry\n")
    recipes = [recipe(kept), recipe(gone, 0.0, 1.0, 1.0, event_class="babycry")]
    write(meta / "mixture_recipes_devtest_babycry.yaml", yaml.safe_dump(recipes))
    done = run("evaluate", "prepare", "tut-rare-2017", tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert [row[0].rpartition("/")[2] for row in rows(tmp_path / "out")] == [kept]
    assert [row[2] for row in rows(tmp_path / "out", "left_out.csv")] == ["withdrawn"]
    assert "devtest babycry: 1 recordings, not 496" in done.output


@pytest.mark.parametrize("kind", ["another set", "two syntheses", "no yaml", "no recordings"])
def test_downloads_that_are_refused(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "in"
    if kind == "another set":
        touch(root, "audio/a.wav")
    elif kind == "two syntheses":
        for place in (PART, PART[:-3]):
            write_part(root, BOTH, None, ["a.wav", "b.wav"], place)
    elif kind == "no yaml":
        write_part(root, BOTH, None, ["a.wav"])
        (root / PART / "meta" / "mixture_recipes_evaltest_gunshot.yaml").write_text("a: [\n")
    else:
        write_part(root, BOTH, None, [])
    expected = {"another set": "does not look like", "two syntheses": "two syntheses", "no yaml": "not YAML",
                "no recordings": "no recording of TUT"}[kind]  # fmt: skip
    done = run("evaluate", "prepare", "tut-rare-2017", root, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert expected in done.output
    assert not (tmp_path / "out" / "metadata.csv").exists()


def test_desed_is_judged_on_all_classes_in_every_recording(tmp_path: Path) -> None:
    root = tmp_path / "in" / "dataset"
    head = "filename\tonset\toffset\tevent_label\n"
    write(root / "metadata/validation/validation.tsv", head + "a.wav\t0.5\t2\tDog\na.wav\t1\t3\tSpeech\nb.wav\t\t\t\n")
    write(root / "metadata/eval/public.tsv", head + "c.wav\t0\t10.0\tBlender\ngone.wav\t1\t2\tCat\n")
    write(root / "metadata/train/weak.tsv", "filename\tevent_labels\nw.wav\tDog,Cat\n")
    touch(root, "audio/validation/validation/a.wav", "audio/validation/validation/b.wav", "audio/eval/public/c.wav")
    done = run("evaluate", "prepare", "desed", tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output  # what YouTube no longer has is allowed to be missing
    table = read_event_table(tmp_path / "out")
    found = {one.file.rpartition("/")[2]: one for one in table.recordings}
    assert {name: len(one.events) for name, one in found.items()} == {"a.wav": 2, "b.wav": 0, "c.wav": 1}
    assert all(len(one.classes) == 10 for one in found.values())
    assert table.splits == ["valid", "test"]
    assert table.names["Alarm_bell_ringing"] == ["alarm bell ringing"]
    assert [row[2] for row in rows(tmp_path / "out", "left_out.csv")] == ["missing"]


HEAD_OF_DESED = "filename\tonset\toffset\tevent_label\n"


@pytest.mark.parametrize(
    ("table", "sound", "split"),
    [
        ("metadata/train/synthetic.tsv", "audio/train/synthetic/0.wav", "train"),
        ("metadata/train/synthetic20/soundscapes.tsv", "audio/train/synthetic20/soundscapes/0.wav", "train"),
        ("metadata/train/synthetic21_train/soundscapes.tsv", "audio/train/synthetic21_train/soundscapes/0.wav",
         "train"),
        ("dcase_synth/metadata/validation/synthetic21_validation/soundscapes.tsv",
         "dcase_synth/audio/validation/synthetic21_validation/soundscapes_16k/0.wav", "valid"),
        ("metadata/validation/synhtetic21_validation/soundscapes.tsv",
         "audio/validation/synthetic21_validation/soundscapes/0.wav", "valid"),
        ("metadata/train/audioset_strong.tsv", "audio/train/strong_label_real/0.wav", "train"),
        ("metadata/validation/validation.tsv", "audio/validation/validation/0.wav", "valid"),
        ("metadata/validation/validation.tsv", "audio/validation/0.wav", "valid"),
        ("dcase2019/dataset/metadata/eval/public.tsv", "dcase2019/dataset/audio/eval/public/0.wav", "test"),
    ],
)  # fmt: skip
def test_sounds_of_desed_lie_where_their_list_does(tmp_path: Path, table: str, sound: str, split: str) -> None:
    """Also if other folders have sounds of the same name, as those of all synthetic parts have."""
    root = tmp_path / "in"
    others = ("synthetic20_reverb/soundscapes", "synthetic20_pitch/soundscapes", "unlabel_in_domain")
    touch(root, sound, *(f"audio/train/{one}/0.wav" for one in others), "audio/validation/validation_16k/0.wav")
    name = "0.jams" if "synthetic" in table else "0.wav"
    write(root / table, f"{HEAD_OF_DESED}{name}\t0.5\t2\tDog\n")
    done = run("evaluate", "prepare", "desed", root, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (own,) = read_event_table(tmp_path / "out").recordings
    assert (own.file, own.split, len(own.events)) == (sound, split, 1)


def test_a_soundscape_of_another_version_is_not_taken_for_one_that_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "in"
    touch(root, "audio/train/synthetic21_train/soundscapes/0.wav", "audio/eval/public/a.wav")
    write(root / "metadata/train/synthetic20/soundscapes.tsv", f"{HEAD_OF_DESED}0.wav\t0.5\t2\tDog\n")
    write(root / "metadata/eval/public.tsv", f"{HEAD_OF_DESED}a.wav\t0.5\t2\tDog\n")
    assert run("evaluate", "prepare", "desed", root, "-o", tmp_path / "out").exit_code == 0
    assert [row[0] for row in rows(tmp_path / "out", "left_out.csv")] == ["0.wav"]
    assert [one.split for one in read_event_table(tmp_path / "out").recordings] == ["test"]


@pytest.mark.slow
def test_sets_of_events_are_listed() -> None:
    done = run("evaluate", "list", "--json")
    listed = {one["task"]: one for one in json.loads(done.stdout)}
    assert set(EVENT_SETS) | {"tut-scenes-2017"} <= set(listed)
    assert sum(listed["tut-rare-2017"]["clips"].values()) == 4487, "500 of each part and class, less what was withdrawn"


HEAD = "file,class,present,onset,offset,ebr,scene,split\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "a.wav,dog,perhaps,1,2,,,test\n", "row 2: present is 'perhaps'"),
        (HEAD + "a.wav,dog,yes,1,x,,,test\n", "row 2: offset is 'x'"),
        (HEAD + "a.wav,dog,yes,nan,2,,,test\n", "row 2: onset is 'nan'"),
        (HEAD + "a.wav,dog,yes,3,2,,,test\n", "row 2: the event of a.wav lasts from 3 to 2 s"),
        (HEAD + "a.wav,dog,yes,-1,2,,,test\n", "row 2: the event of a.wav lasts from -1"),
        (HEAD + "a.wav,dog,no,1,2,,,test\n", "row 2: dog is not present in a.wav, but has a time"),
        (HEAD + "a.wav,dog,no,,,,,test\na.wav,dog,yes,1,2,,,test\n", "row 3: a.wav has the class dog both"),
        (HEAD + "a.wav,dog,no,,,,,test\na.wav,cat,no,,,,,train\n", "row 3: a.wav is in train"),
        (HEAD + "a.wav,dog,no,,,,,somewhere\n", "row 2: the split 'somewhere' is none of"),
        (HEAD + ",dog,no,,,,,test\n", "row 2: file is empty"),
        (HEAD + "../a.wav,dog,no,,,,,test\n", "'../a.wav' leads out"),
        (HEAD, "lists no recordings"),
        ("file\tonset\toffset\tlabel\na.wav\t1\t\tdog\n", "line 2: the event of a.wav has no offset"),
        ("file\tonset\toffset\tlabel\na.wav\t2\t1\tdog\n", "line 2: the event of a.wav ends at 1 s, before"),
        ("file\tonset\toffset\na.wav\t2\t1\n", "has no column label"),
        ("a.wav\t1\t2\tdog\t0.5\tmore\n", "6 values"),
        ("a.wav\nb.wav\n", "has no event of any class; --classes"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(UserError, match=r"table\.csv") as error:
        read_event_table(tmp_path / "table.csv")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "a.wav\t1\t2\tdog\nb.wav\n",
        "b.wav\na.wav\t1\t2\tdog\n",
        "a.wav,1,2,dog\nb.wav\n",
        "filename\tonset\toffset\tevent_label\na.wav\t1.0\t2\tdog\nb.wav\t\t\t\n",
        "label,offset,onset,file,score\ndog,2,1,./a.wav,0.9\n,,,b.wav,\n",
        "\ufefffile,start,end,class\r\na.wav,1,2,dog\r\nb.wav,,,\r\n",
    ],
)
def test_plain_lists_are_judged_on_all_classes(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    table = read_event_table(tmp_path / "list.txt")
    found = {one.file: [tuple(event)[:3] for event in one.events] for one in table.recordings}
    assert found == {"a.wav": [(1.0, 2.0, "dog")], "b.wav": []}
    assert [one.classes for one in table.recordings] == [["dog"]] * 2
    assert table.splits == ["test"]
