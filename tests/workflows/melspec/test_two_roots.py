"""Two source folders for one output: a moved folder resumes; another folder adds arrays and replaces none unasked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import FAILED, read_config, read_records
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.source import Input
from m2dprep.workflows.melspec.job import MelspecOptions, MelspecReport, run_melspec

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.0)


def write_wav(path: Path, seed: int, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))
    soundfile.write(path, values, 16000, subtype="PCM_16")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A folder of three sounds and one file that is not a sound."""
    for number in range(3):
        write_wav(tmp_path / "first" / f"{number:03}.wav", number)
    (tmp_path / "first" / "bad.wav").write_text("no sound")
    assert convert(tmp_path / "first").done == 3
    return tmp_path / "first"


def convert(src: Path, **settings: object) -> MelspecReport:
    options = MelspecOptions(**{"workers": 0, **settings})  # type: ignore[arg-type]
    return run_melspec(src, src.parent / "x_lms", CONFIG, options)


def arrays(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "x_lms").glob("*.npy")}


def test_another_sound_of_the_same_name_and_size_is_refused_and_replaces_when_asked(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = arrays(first.parent)
    write_wav(first.parent / "second" / "001.wav", 99)
    assert (first.parent / "second/001.wav").stat().st_size == (first / "001.wav").stat().st_size
    with pytest.raises(UserError, match=r"1 of the files in .*second, such as 001.wav, .* use --replace"):
        convert(first.parent / "second")
    assert arrays(first.parent) == before
    assert convert(first.parent / "second", replace=True).done == 1
    after = arrays(first.parent)
    assert {name for name in before if before[name] != after[name]} == {"001.npy"}
    assert f"has arrays of {first}" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["longer", "missing", "other suffix"])
def test_whatever_would_replace_an_array_is_refused(first: Path, what: str) -> None:
    second = first.parent / "second"
    second.mkdir()
    settings: dict[str, object] = {}
    if what == "longer":
        write_wav(second / "001.wav", 99, seconds=2)
    elif what == "other suffix":
        write_wav(second / "001.flac", 99)
    else:
        (second / "list.csv").write_text("source\n001.wav\n")
        settings["files"] = second / "list.csv"
    before = arrays(first.parent)
    with pytest.raises(UserError, match="--replace"):
        convert(second, **settings)
    assert arrays(first.parent) == before


def test_a_folder_with_other_names_adds_to_the_output_and_loses_no_row(first: Path) -> None:
    write_wav(first.parent / "second" / "100.wav", 100)
    (first.parent / "second" / "bad too.wav").write_text("no sound")
    report = convert(first.parent / "second")
    assert (report.done, report.skipped, report.failed, report.listed) == (1, 0, 1, 4)
    layout = LmsLayout(first.parent / "x_lms")
    assert (read_config(layout) or {})["source_roots"] == [str(first), str(first.parent / "second")]
    for src in (first, first.parent / "second", first):
        report = convert(src)
        assert (report.done, report.failed) == (0, 1)
        failed = [row["source"] for row in read_records(layout).to_pylist() if row["status"] == FAILED]
        assert failed == ["bad too.wav", "bad.wav"]
    write_wav(first / "100.wav", 7)  # the first folder gets a file name that the second one already has
    with pytest.raises(UserError, match=r"100.wav.*--replace"):
        convert(first)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["moved", "copied", "copied without times", "mounted elsewhere"])
def test_the_same_files_in_another_folder_are_done(first: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = first.parent / "there"
    if how == "moved":
        first.rename(there)
    elif how == "mounted elsewhere":
        first.rename(first.parent / "disk")
        there.symlink_to("disk")
    else:
        shutil.copytree(first, there, copy_function=shutil.copy if "without" in how else shutil.copy2)
    before = arrays(first.parent)
    report = convert(there, check_sources=True)
    assert (report.done, report.skipped, report.failed) == (0, 3, 1)
    assert arrays(first.parent) == before
    assert "3 of the files" in capsys.readouterr().err
    if not first.is_dir():  # it has moved for good, which is reported once
        assert convert(there).skipped == 3
        assert capsys.readouterr().err == ""


def test_a_file_that_was_changed_after_the_move_needs_a_word(first: Path) -> None:
    first.rename(first.parent / "there")
    write_wav(first.parent / "there" / "001.wav", 99)
    with pytest.raises(UserError, match=r"001.wav.*--replace"):
        convert(first.parent / "there")
    assert convert(first.parent / "there", replace=True).done == 1


def test_digests_of_small_and_large_files_see_other_contents(tmp_path: Path) -> None:
    contents = [b"", b"a", b"b", bytes(100_000), bytes(99_999) + b"a", b"a" + bytes(99_999), bytes(100_001)]
    digests = []
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
        digests.append(Input(tmp_path / str(number)).digest())
    assert len(set(digests)) == len(contents)


def test_a_list_that_another_folder_wrote_is_not_replaced(first: Path) -> None:
    other = first.parent / "other_lms"
    write_wav(first.parent / "second" / "100.wav", 100)
    options = MelspecOptions(workers=0, name="x")
    before = (first.parent / "files_x.csv").read_bytes()
    with pytest.raises(UserError, match=r"files_x.csv lists arrays of x_lms.*--name"):
        run_melspec(first.parent / "second", other, CONFIG, options)
    assert (first.parent / "files_x.csv").read_bytes() == before
    assert not list(other.glob("*.npy"))
    (first.parent / "x_lms").rename(first.parent / "gone")  # a list that names no existing folder belongs to nobody
    assert run_melspec(first.parent / "second", other, CONFIG, options).listed == 1


def test_a_list_that_another_folder_wrote_meanwhile_is_not_replaced(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wav(first.parent / "second" / "100.wav", 100)
    listed = first.parent / "files_y.csv"
    monkeypatch.setattr(
        "m2dprep.workflows.melspec.job.compact_records",
        lambda *_: shutil.copy(first.parent / "files_x.csv", listed),
    )
    with pytest.raises(UserError, match=r"files_y.csv lists arrays of x_lms"):
        run_melspec(first.parent / "second", first.parent / "y_lms", CONFIG, MelspecOptions(workers=0))
