"""``m2dprep tag``: everything that melspec reads gets its tags, whole, by windows and over time, or a row why not."""

from __future__ import annotations

import csv
import json
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner, Result

from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.cli.main import m2dprep
from tests.evaluation.tagging.made_classifiers import RATE, sound, write_class_list, write_classifier, write_sound

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_classifier(tmp_path_factory.mktemp("classifier"))
    write_class_list(path.parent / "classes.txt")
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, [*map(str, arguments)])


def tag(*arguments: object) -> Result:
    return invoke("tag", *arguments)


def rows_of(*arguments: object, exit_code: int = 0) -> list[dict[str, Any]]:
    result = tag(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def scores(row: dict[str, Any]) -> dict[str, float]:
    return {one["label"]: one["score"] for one in row["tags"]}


def same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 2e-5) -> None:
    assert scores(one) == pytest.approx(scores(other), abs=tolerance)


ALL = ("--top", 0, "--scores", "logits")


def test_text_json_and_the_best_first(checkpoint: Path, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 3.0)
    text = tag(checkpoint, path, "--top", 2)
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith(f"{path}  0.00–3.00 s  class ")
    assert "1 inputs = 1 done + 0 skipped + 0 failed" in text.stderr
    (row,) = rows_of(checkpoint, path, "--top", 0)
    assert [*scores(row).values()] == sorted(scores(row).values(), reverse=True)
    assert len(row["tags"]) == 6
    assert all(0 <= score <= 1 for score in scores(row).values())
    assert sum(scores(rows_of(checkpoint, path, "--top", 0, "--scores", "softmax")[0]).values()) == pytest.approx(
        1, abs=1e-5
    )
    logits = scores(rows_of(checkpoint, path, *ALL)[0])
    assert scores(row) == pytest.approx({key: 1 / (1 + np.exp(-value)) for key, value in logits.items()}, abs=1e-5)
    middle = sorted(logits.values())[3]
    kept = rows_of(checkpoint, path, *ALL, "--threshold", middle)[0]["tags"]
    assert {one["label"] for one in kept} == {label for label, logit in logits.items() if logit >= middle}
    assert len(kept) == 3
    assert rows_of(checkpoint, path, "--threshold", 1.1)[0]["tags"] == []


@pytest.mark.parametrize(
    ("window", "hop", "seconds"), [(2.0, 1.0, 5.3), (1.5, 1.5, 4.5), (1.0, 2.5, 6.0), (9.0, 1.0, 3)]
)
def test_a_window_is_scored_as_a_file_with_its_samples_alone(
    checkpoint: Path, tmp_path: Path, window: float, hop: float, seconds: float
) -> None:
    whole = write_sound(tmp_path / "whole.wav", seconds, subtype="FLOAT")
    samples, rows = sound(seconds), rows_of(checkpoint, whole, "--window", window, "--hop", hop, *ALL)
    expected = [k * hop for k in range(100) if k == 0 or (k * hop < seconds and (k - 1) * hop + window < seconds)]
    assert [row["start"] for row in rows] == pytest.approx(expected)
    assert rows[-1]["end"] <= seconds
    for row in rows:
        start, end = round(row["start"] * RATE), round(row["end"] * RATE)
        assert end == min(start + round(window * RATE), len(samples))
        soundfile.write(tmp_path / "cut.wav", samples[start:end], RATE, subtype="FLOAT")
        same(row, rows_of(checkpoint, tmp_path / "cut.wav", *ALL)[0])


@pytest.mark.parametrize("stacked", [False, True], ids=["flat", "stacked"])
@pytest.mark.parametrize("seconds", [0.01, 0.3, 1.27, 40.0])
def test_the_average_of_all_columns_is_the_clip(tmp_path: Path, stacked: bool, seconds: float) -> None:
    path = write_classifier(tmp_path, stacked=stacked)
    write_class_list(path.parent / "classes.txt")
    wav = write_sound(tmp_path / "a.wav", seconds)
    (clip,) = rows_of(path, wav, *ALL)
    columns = rows_of(path, wav, "--frames", *ALL)
    means = {label: np.mean([scores(row)[label] for row in columns]) for label in scores(clip)}
    assert scores(clip) == pytest.approx(means, abs=1e-4)
    starts = [row["start"] for row in columns]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert all(row["start"] <= row["end"] <= seconds + 1e-6 for row in columns)
    assert np.diff(starts) == pytest.approx(0.16)


def test_columns_of_windows_begin_where_their_window_does(checkpoint: Path, tmp_path: Path) -> None:
    wav = write_sound(tmp_path / "a.wav", 3.0)
    columns = rows_of(checkpoint, wav, "--frames", "--window", 1, "--hop", 0.5, *ALL)
    windows = rows_of(checkpoint, wav, "--window", 1, "--hop", 0.5, *ALL)
    for number, window in enumerate(windows):
        own = columns[number * 7 : number * 7 + 7]
        assert own[0]["start"] == window["start"]
        assert own[-1]["end"] <= window["end"]
        means = {label: np.mean([scores(row)[label] for row in own]) for label in scores(window)}
        assert scores(window) == pytest.approx(means, abs=1e-4)


def test_all_kinds_of_inputs(checkpoint: Path, tmp_path: Path) -> None:
    """The same sounds as files, in archives, in a list, as log-mels, and in a pack have the same tags."""
    sounds = tmp_path / "sounds"
    for number, name in enumerate(("a.wav", "deep/b.flac", "c.wav")):
        write_sound(sounds / name, 1.0 + number, number)
    with tarfile.open(tmp_path / "all.tar", "w") as tar, zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(sounds.rglob("*.*")):
            tar.add(path, path.relative_to(sounds).as_posix())
            archive.write(path, path.relative_to(sounds).as_posix())
    (tmp_path / "list.csv").write_text("file_name\nc.wav\na.wav\ndeep/b.flac\n")
    melspec = ["melspec", str(sounds), str(tmp_path / "data/x_lms"), "--min-seconds", "0", "--workers", "0"]
    assert CliRunner().invoke(m2dprep, melspec).exit_code == 0
    expected = {Path(row["file_name"]).stem: row for row in rows_of(checkpoint, sounds, *ALL)}
    assert [row["file_name"] for row in rows_of(checkpoint, sounds, *ALL)] == ["a.wav", "c.wav", "deep/b.flac"]
    (single,) = rows_of(checkpoint, tmp_path / "data/x_lms/a.npy", *ALL)
    same(single, expected["a"])

    def check(*arguments: object) -> None:
        found = {Path(row["file_name"].replace("::", "/")).stem: row for row in rows_of(checkpoint, *arguments, *ALL)}
        assert set(found) == {"a", "b", "c"}
        for name, row in found.items():
            same(row, expected[name])

    for path in ("all.tar", "all.zip", "data/x_lms", "data"):
        check(tmp_path / path)
    check(tmp_path / "list.csv", "--root", sounds)
    check(*(sounds / name for name in ("a.wav", "deep/b.flac", "c.wav")))
    check(tmp_path / "data/files_x.csv")
    pack = CliRunner().invoke(m2dprep, ["pack", str(tmp_path / "data/x_lms"), "--dtype", "float32"])
    assert pack.exit_code == 0, pack.output
    for array in (tmp_path / "data/x_lms").rglob("*.npy"):
        if "_packed" not in array.parts:
            array.unlink()
    check(tmp_path / "data/x_lms")
    check(tmp_path / "data")
    several = rows_of(checkpoint, tmp_path / "all.tar", sounds, *ALL)
    assert len({row["file_name"] for row in several}) == len(several) == 6


def test_windows_of_log_mels_are_runs_of_their_frames(checkpoint: Path, tmp_path: Path) -> None:
    log_mel = np.random.default_rng(0).normal(-7, 4, (1, 80, 341)).astype(np.float32)
    np.save(tmp_path / "a.npy", log_mel)
    rows = rows_of(checkpoint, tmp_path / "a.npy", "--window", 1, "--hop", 0.7, *ALL)
    assert [row["start"] for row in rows] == pytest.approx([0, 0.7, 1.4, 2.1, 2.8])
    for row in rows:
        start = round(row["start"] * 100)
        np.save(tmp_path / "cut.npy", log_mel[..., start : start + 101])
        same(row, rows_of(checkpoint, tmp_path / "cut.npy", *ALL)[0])


def test_a_long_sound_in_pieces_is_scored_as_its_whole_log_mel(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of a waveform, with the frames around them, join to the log-mel of the file."""
    from m2dprep.evaluation.tagging import opening, sounds

    wav = write_sound(tmp_path / "a.wav", 21.3)
    monkeypatch.setattr(opening, "PREPARED_FRAMES", 10)
    monkeypatch.setattr(sounds, "BYTES_IN_MEMORY", 1000)
    melspec = ["melspec", str(tmp_path), str(tmp_path / "x_lms"), "--min-seconds", "0", "--workers", "0"]
    assert CliRunner().invoke(m2dprep, melspec).exit_code == 0
    same(rows_of(checkpoint, wav, *ALL)[0], rows_of(checkpoint, tmp_path / "x_lms/a.npy", *ALL)[0])
    (cut,) = rows_of(checkpoint, wav, "--window", 100, *ALL)
    same(cut, rows_of(checkpoint, wav, *ALL)[0])


def test_a_long_log_mel_is_read_in_stretches(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file, a folder or a pack, and by windows, as one that is read at once."""
    from m2dprep.artifacts.log_mels import stretches
    from m2dprep.evaluation.tagging import opening, sounds

    write_sound(tmp_path / "in/a.wav", 11.3)
    assert invoke("melspec", tmp_path / "in", tmp_path / "x_lms", "--workers", "0").exit_code == 0
    file, windows = tmp_path / "x_lms/a.npy", ("--window", 3, "--hop", 2)
    whole, cut = rows_of(checkpoint, file, *ALL), rows_of(checkpoint, file, *windows, *ALL)
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 80 * 4 * 100)
    monkeypatch.setattr(opening, "PREPARED_FRAMES", 10)
    monkeypatch.setattr(sounds, "BYTES_IN_MEMORY", 1000)
    assert rows_of(checkpoint, file, *ALL) == whole
    assert rows_of(checkpoint, file, *windows, *ALL) == cut
    assert invoke("pack", tmp_path / "x_lms", "--dtype", "float32").exit_code == 0
    file.unlink()
    (row,) = rows_of(checkpoint, tmp_path / "x_lms", *ALL)
    assert row["tags"] == whole[0]["tags"]
    shard = next((tmp_path / "x_lms/_packed").glob("shard-*.npy"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    (row,) = rows_of(checkpoint, tmp_path / "x_lms", exit_code=3)
    assert (row["status"], "damaged" in row["message"]) == ("failed", True)


@pytest.mark.parametrize("kind", ["wav", "npy"])
def test_a_sound_whose_reading_gives_nothing_is_given_up(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is a row, the others are tagged, and the same command tries it again."""
    from m2dprep.evaluation.tagging import opening

    write_sound(tmp_path / "in/a.wav", 0.6)
    write_sound(tmp_path / "in/b.wav", 0.8)
    folder, name = tmp_path / "in", f"a.{kind}"
    if kind == "npy":
        assert invoke("melspec", folder, tmp_path / "x_lms", "--workers", "0").exit_code == 0
        folder = tmp_path / "x_lms"
    woken, opened = threading.Event(), opening._open

    def hanging(item: Any, *others: Any) -> Any:
        if item.name == name:
            woken.wait(60)
        return opened(item, *others)

    command = (checkpoint, folder, "--read-timeout", "0.5", "--max-failures", "1", "-o", tmp_path / "tags.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(opening, "_open", hanging)
        result = tag(*command)
    woken.set()
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    assert [(row["status"], row.get("reason")) for row in rows] == [("failed", "read_timeout"), ("ok", None)]
    assert "gave nothing for 0.5 s" in rows[0]["message"]
    result = tag(*command)
    assert "0 failed" in result.stderr, result.stderr


def made_folder(folder: Path, count: int = 7) -> Path:
    for number in range(count):
        write_sound(folder / f"{number}.wav", 0.5 + 0.3 * number, number)
    (folder / "bad.wav").write_bytes(b"RIFF no sound")
    return folder


def test_formats_hold_the_same_rows(checkpoint: Path, tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "sounds")
    arguments = (checkpoint, folder, "--window", 1, "--max-failures", 1, "--threshold", 0.5)
    for suffix in ("jsonl", "csv", "parquet"):
        result = tag(*arguments, "-o", tmp_path / f"tags.{suffix}")
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{tmp_path / f'tags.{suffix}'}\n"
    lines = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    failed = [row for row in lines if row["status"] == "failed"]
    assert [(row["file_name"], row["reason"]) for row in failed] == [("bad.wav", "malformed")] or failed[0]["reason"]
    table = pq.read_table(tmp_path / "tags.parquet").to_pylist()
    assert [(row["file_name"], row["start"], [tag["score"] for tag in row["tags"]]) for row in table] == [
        (row["file_name"], row["start"], [tag["score"] for tag in row["tags"]]) for row in lines
    ]
    with (tmp_path / "tags.csv").open(newline="") as file:
        flat = list(csv.DictReader(file))
    assert sum(max(1, len(row["tags"])) for row in lines) == len(flat)
    assert {row["file_name"] for row in flat} == {row["file_name"] for row in lines}
    assert [float(row["score"]) for row in flat if row["score"]] == [
        one["score"] for row in lines for one in row["tags"]
    ]


def test_the_same_command_again_does_nothing_and_others_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "sounds", 3)
    output = tmp_path / "tags.jsonl"
    arguments = (checkpoint, folder, "--max-failures", 1, "-o", output)
    first = tag(*arguments, "--json")
    assert json.loads(first.stdout) | {"reasons": None} == {
        "output": str(output), "inputs": 4, "done": 3, "skipped": 0, "failed": 1, "rows": 4, "reasons": None,
        "notes": [],
    }  # fmt: skip
    content, stamp = output.read_bytes(), output.stat().st_mtime_ns
    again = json.loads(tag(*arguments, "--json").stdout)
    assert (again["done"], again["skipped"], again["failed"]) == (0, 3, 1)
    assert (output.read_bytes(), output.stat().st_mtime_ns) == (content, stamp)
    for other, words in (
        (("--top", 3), "top: 5 → 3"),
        (("--window", 1), "windows"),
        (("--scores", "softmax"), "activation"),
    ):
        result = tag(*arguments, *other)
        assert result.exit_code == 5
        assert words in result.stderr
    write_sound(folder / "new.wav", 1.0)
    result = tag(*arguments)
    assert result.exit_code == 5
    assert "sounds are new, changed or gone" in result.stderr
    assert tag(*arguments, "--overwrite").exit_code == 0
    assert len(output.read_text().splitlines()) == 5
    output.write_text("something else\n")
    result = tag(*arguments)
    assert result.exit_code == 5
    assert "was changed since" in result.stderr
    assert output.read_text() == "something else\n"


def test_too_many_failures_exit_with_3_after_the_rows(checkpoint: Path, tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "sounds", 2)
    (folder / "empty.wav").touch()
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan), RATE, subtype="FLOAT")
    np.save(folder / "wrong.npy", np.zeros((1, 64, 30), np.float32))
    np.save(folder / "infinite.npy", np.full((1, 80, 30), np.inf, np.float32))
    rows = rows_of(checkpoint, folder, exit_code=3)
    found = {row["file_name"]: row.get("reason") for row in rows}
    assert found == {
        "0.wav": None, "1.wav": None, "bad.wav": found["bad.wav"], "empty.wav": "empty_file", "nan.wav": "nonfinite",
        "wrong.npy": "not_a_log_mel", "infinite.npy": "nonfinite",
    }  # fmt: skip
    assert found["bad.wav"] is not None


def test_a_failing_sound_changes_nothing_of_the_others(checkpoint: Path, tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "sounds", 5)
    before = rows_of(checkpoint, folder, *ALL, "--max-failures", 9)
    (folder / "2.wav").write_bytes(b"")
    after = {row["file_name"]: row for row in rows_of(checkpoint, folder, *ALL, "--max-failures", 9)}
    for row in before:
        if row["file_name"] != "2.wav" and row["status"] == "ok":
            same(row, after[row["file_name"]])


def test_names_that_hurt(checkpoint: Path, tmp_path: Path) -> None:
    names = ["a,b.wav", 'quo"te.wav', "new\nline.wav", "carriage\rreturn.wav", "$x_1$.wav", "é ☃.wav", "=1+1.wav"]
    for number, name in enumerate(names):
        write_sound(tmp_path / "sounds" / name, 0.4, number)
    for suffix in ("jsonl", "csv", "parquet"):
        assert tag(checkpoint, tmp_path / "sounds", "-o", tmp_path / f"t.{suffix}").exit_code == 0
    found = [json.loads(line)["file_name"] for line in (tmp_path / "t.jsonl").read_text().split("\n") if line]
    assert sorted(found) == sorted(names)
    assert set(pq.read_table(tmp_path / "t.parquet")["file_name"].to_pylist()) == set(names)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert {row["file_name"] for row in csv.DictReader(file)} == set(names)
    assert set(read_csv_columns(tmp_path / "t.csv", ["file_name"], "tags")["file_name"]) == set(names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hop", 1), "--window"),
        (("--classes", "missing.txt"), "missing.txt"),
        (("-o", "tags.xyz"), ".jsonl, .csv and .parquet"),
        (("--format", "csv"), "--format needs --output"),
        (("-o", "."), "is a folder"),
        (("-o", "/", "--format", "csv"), "is a folder"),
        (("--window", "nan"), "finite"),
        (("--window", 0), "--window"),
        (("--top", -1), "--top"),
        (("--max-failures", "x"), "--max-failures"),
    ],
)
def test_bad_requests(checkpoint: Path, tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    result = tag(checkpoint, write_sound(tmp_path / "a.wav", 0.5), *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_nothing_to_tag(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("nothing")
    for path, words in ((tmp_path / "gone.wav", "no such file"), (tmp_path / "empty", "holds no sound")):
        result = tag(checkpoint, path)
        assert result.exit_code == 2
        assert words in result.stderr


def test_log_mels_of_another_front_end_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    write_sound(tmp_path / "sounds/a.wav", 1.0)
    melspec = ["melspec", str(tmp_path / "sounds"), str(tmp_path / "x_lms"), "--preset", "32k", "--workers", "0"]
    assert CliRunner().invoke(m2dprep, melspec).exit_code == 0
    result = tag(checkpoint, tmp_path / "x_lms")
    assert result.exit_code == 2
    assert "another front end" in result.stderr
    assert "sample_rate: 32000 → 16000" in result.stderr


def test_pictures(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "sounds"
    write_sound(folder / "a$b.wav", 2.0)
    write_sound(folder / "deep/b.wav", 0.5)
    assert tag(checkpoint, folder / "a$b.wav", "--plot", tmp_path / "one.png").exit_code == 0
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    result = tag(checkpoint, folder, "--window", 0.5, "--plot", tmp_path / "plots", "-o", tmp_path / "t.jsonl")
    assert result.exit_code == 0, result.output
    assert {path.relative_to(tmp_path / "plots").as_posix() for path in (tmp_path / "plots").rglob("*.png")} == {
        "a$b.wav.png", "deep/b.wav.png",
    }  # fmt: skip
    result = tag(checkpoint, folder, "--plot", tmp_path / "all.png")
    assert result.exit_code == 2
    assert "several sounds" in result.stderr


def test_names_of_classes(tmp_path: Path) -> None:
    path = write_classifier(tmp_path, 3)
    wav = write_sound(tmp_path / "a.wav", 0.5)
    result = tag(path, wav)
    assert result.exit_code == 2
    assert "does not say what its 3 classes are; --classes FILE" in result.stderr
    table = tmp_path / "class_labels_indices.csv"
    table.write_text('index,mid,display_name\n0,/m/09,"Speech"\n1,/m/01,"Male speech, man"\n2,/t/d1,"Dog"\n')
    (tmp_path / "plain.txt").write_text("first\nsecond\nthird\n")
    plain = scores(rows_of(path, wav, "--classes", tmp_path / "plain.txt", *ALL)[0])
    (row,) = rows_of(path, wav, "--classes", table, *ALL)
    by_id = {one["id"]: one["score"] for one in row["tags"]}
    assert by_id == {"/m/01": plain["first"], "/m/09": plain["second"], "/t/d1": plain["third"]}
    assert {one["id"]: one["label"] for one in row["tags"]}["/m/01"] == "Male speech, man"
    (tmp_path / "labels.csv").write_text("label,name\n/t/d1,Dog\n/m/01,Man\n/m/09,Speech\n")
    (row,) = rows_of(path, wav, "--classes", tmp_path / "labels.csv", *ALL)
    assert {one["id"]: one["score"] for one in row["tags"]} == by_id
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "twice.txt").write_text("a\nb\nb\n")
    for file, words in (("two.txt", "lists 2 classes, but the classifier"), ("twice.txt", "'b' twice")):
        result = tag(path, wav, "--classes", tmp_path / file)
        assert result.exit_code == 2
        assert words in result.stderr
