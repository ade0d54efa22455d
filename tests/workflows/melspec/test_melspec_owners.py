"""Sources that share an output (``c.wav``, ``c.flac``): one array, one good record, statistics of that array."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import NameFolding
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import append_records, compact_records, read_records
from m2dprep.artifacts.tables import read_file_list, write_csv
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.pack import pack
from m2dprep.audioprep.stats import norm_stats
from m2dprep.workflows.melspec.job import MelspecOptions, MelspecReport, run_melspec

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.5)


def write_sound(path: Path, level: float) -> None:
    samples = level * np.random.default_rng(0).standard_normal(9600)
    soundfile.write(path, samples.clip(-1, 1), 16000)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "wavs").mkdir()
    for number in range(3):
        write_sound(tmp_path / "wavs" / f"c{number}.wav", 0.1)
    return tmp_path / "wavs"


def layout_of(src: Path) -> LmsLayout:
    return LmsLayout(src.parent / "data" / "x_lms")


def convert(src: Path, *names: str, **settings: bool) -> MelspecReport:
    files = None
    if names:
        files = src.parent / "list.csv"
        write_csv(files, ["source"], [[name] for name in names])
    return run_melspec(src, layout_of(src).root, CONFIG, MelspecOptions(workers=0, files=files, **settings))


def rows(src: Path) -> dict[str, str]:
    """The state of every record: ``ok``, or the reason of a failure."""
    table = read_records(layout_of(src), ["source", "status", "reason"]).to_pylist()
    return {row["source"]: row["reason"] or row["status"] for row in table}


def require_consistent(src: Path, files: int) -> None:
    """Check that the list and the statistics have every array once, and that the statistics are those of the arrays."""
    layout = layout_of(src)
    listed = read_file_list(layout.files_csv)
    assert len(listed) == len(set(listed)) == files
    assert sorted(f"x_lms/{name}" for name in layout.array_files()) == listed
    of_records, of_arrays = norm_stats(layout.root), norm_stats(layout.root, recompute=True)
    assert of_records.count_files == of_arrays.count_files == files
    assert of_records.mean == pytest.approx(of_arrays.mean, abs=1e-9)


def test_sources_that_replace_others_take_over_their_arrays(src: Path) -> None:
    convert(src)
    for number in range(3):
        (src / f"c{number}.wav").unlink()
        write_sound(src / f"c{number}.flac", 0.3)
    report = convert(src)
    assert (report.inputs, report.done, report.skipped, report.failed, report.listed) == (3, 3, 0, 0, 3)
    assert rows(src) == {"c0.flac": "ok", "c1.flac": "ok", "c2.flac": "ok"}
    require_consistent(src, 3)
    assert convert(src).skipped == 3


def no_sound(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"no sound")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"overwrite": True}], ids=["resumed", "anew"])
@pytest.mark.parametrize("names", [(), ("c0.flac", "c1.wav", "c2.wav")], ids=["scan", "list"])
def test_an_array_stays_until_the_source_that_takes_it_over_is_converted(
    src: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], settings: dict[str, bool]
) -> None:
    convert(src)
    before = (layout_of(src).root / "c0.npy").read_bytes()
    (src / "c0.wav").unlink()
    no_sound(src / "c0.flac")
    for options in (settings, {}, {"retry_failed": True}):
        assert convert(src, *names, **options).reasons == {"not_audio": 1}
        assert rows(src) == {"c0.flac": "not_audio", "c0.wav": "ok", "c1.wav": "ok", "c2.wav": "ok"}
        assert (layout_of(src).root / "c0.npy").read_bytes() == before
        require_consistent(src, 3)
    assert "such as that of 'c0.wav', in place of 'c0.flac'" in capsys.readouterr().err
    messages = read_records(layout_of(src), ["source", "message"]).to_pylist()
    assert "of 'c0.wav', was kept" in next(row["message"] for row in messages if row["source"] == "c0.flac")
    (src / "c0.flac").unlink()
    write_sound(src / "c0.flac", 0.3)
    assert convert(src, *names, retry_failed=True).failed == 0
    assert rows(src).get("c0.wav", "not_found") == "not_found"
    assert (layout_of(src).root / "c0.npy").read_bytes() != before
    require_consistent(src, 3)


# The source that was converted; the one that takes its array over; names that the output takes for one.
HEIRS = {
    "another format": ("c9.wav", "c9.flac", NameFolding()),
    "the same format in capitals": ("c9.wav", "c9.WAV", NameFolding()),
    "in a folder": ("x/c9.wav", "x/c9.ogg", NameFolding()),
    "a folder renamed in case": ("x/c9.wav", "X/c9.wav", NameFolding(case=True)),
    "a file renamed in case": ("c9.wav", "C9.flac", NameFolding(case=True)),
    "another normal form": ("é.wav", "e\u0301.wav", NameFolding(form=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("heir", HEIRS)
def test_every_kind_of_heir_leaves_the_array_when_it_fails(
    src: Path, monkeypatch: pytest.MonkeyPatch, heir: str
) -> None:
    owner, other, folding = HEIRS[heir]
    monkeypatch.setattr("m2dprep.workflows.melspec.job.probe_folding", lambda folder: folding)
    (src / owner).parent.mkdir(exist_ok=True)
    write_sound(src / owner, 0.1)
    convert(src)
    before = {name: (layout_of(src).root / name).read_bytes() for name in layout_of(src).array_files()}
    (src / owner).unlink()
    no_sound(src / other)
    for _ in range(2):
        assert convert(src).reasons == {"not_audio": 1}
        assert (rows(src)[owner], rows(src)[other]) == ("ok", "not_audio")
        assert {name: (layout_of(src).root / name).read_bytes() for name in layout_of(src).array_files()} == before
        require_consistent(src, 4)


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["c0.wav", "c0.flac", "both", "none"])
def test_an_array_of_two_records_stays_with_the_one_that_it_proves(src: Path, gone: str) -> None:
    convert(src)
    before = (layout_of(src).root / "c0.npy").read_bytes()
    good = {row["source"]: row for row in read_records(layout_of(src)).to_pylist()}["c0.wav"]
    append_records(layout_of(src), [{**good, "source": "c0.flac", "digest": "0" * 16, "mean": good["mean"] + 1}])
    for name in ("c0.wav", "c0.flac"):
        no_sound(src / name)
        (src / name).unlink() if gone in (name, "both") else None
    if gone == "both":
        no_sound(src / "c0.ogg")
    for _ in range(2):
        convert(src)
        assert rows(src)["c0.wav"] in ("ok", "kept")
        assert rows(src).get("c0.flac") in (None, "not_audio", "not_found", "name_conflict")
        assert (layout_of(src).root / "c0.npy").read_bytes() == before
        require_consistent(src, 3)


def test_an_array_that_no_record_proves_is_removed_when_the_heir_fails(src: Path) -> None:
    convert(src)
    array = layout_of(src).root / "c0.npy"
    array.write_bytes(array.read_bytes()[:-4] + b"\1\2\3\4")
    (src / "c0.wav").unlink()
    no_sound(src / "c0.flac")
    convert(src, "c0.flac")
    assert rows(src) == {"c0.flac": "not_audio", "c0.wav": "not_found", "c1.wav": "ok", "c2.wav": "ok"}
    require_consistent(src, 2)


@pytest.mark.slow
@pytest.mark.parametrize("names", [(), ("c0.flac",)], ids=["scan", "list"])
def test_who_was_converted_keeps_its_array_whatever_comes_first_by_name(src: Path, names: tuple[str, ...]) -> None:
    convert(src)
    before = (layout_of(src).root / "c0.npy").read_bytes()
    write_sound(src / "c0.flac", 0.3)
    for _ in range(2):
        report = convert(src, *names)
        assert (report.done, report.reasons) == (0, {"name_conflict": 1})
        assert rows(src) == {"c0.flac": "name_conflict", "c0.wav": "ok", "c1.wav": "ok", "c2.wav": "ok"}
        assert (layout_of(src).root / "c0.npy").read_bytes() == before
        require_consistent(src, 3)
    (layout_of(src).root / "c0.npy").unlink()
    convert(src, *names[:0])
    assert (layout_of(src).root / "c0.npy").read_bytes() == before, "made again, and by its owner"


def test_lists_one_after_the_other(src: Path) -> None:
    write_sound(src / "c0.flac", 0.3)
    assert convert(src, "c0.flac").done == 1
    report = convert(src, "c0.wav", "c1.wav")
    assert (report.done, report.reasons) == (1, {"name_conflict": 1})
    require_consistent(src, 2)


def test_a_conflict_whose_owner_went_is_converted_when_retried(src: Path) -> None:
    write_sound(src / "c0.flac", 0.3)
    assert convert(src).reasons == {"name_conflict": 1}
    (src / "c0.flac").unlink()
    report = convert(src, retry_failed=True)
    assert (report.done, report.skipped, report.failed) == (1, 2, 0)
    assert rows(src) == {"c0.wav": "ok", "c1.wav": "ok", "c2.wav": "ok"}
    require_consistent(src, 3)


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["c0.wav", "c0.flac", ""])
def test_two_good_records_for_one_array_are_settled(src: Path, gone: str) -> None:
    """The leftovers of earlier versions: nobody knows whose values the array has."""
    convert(src)
    write_sound(src / "c0.flac", 0.3)
    good = {row["source"]: row for row in read_records(layout_of(src)).to_pylist()}["c0.wav"]
    append_records(layout_of(src), [{**good, "source": "c0.flac", "mean": good["mean"] + 1}])
    (src / gone).unlink(missing_ok=True) if gone else None
    report = convert(src)
    assert (report.done, report.skipped, report.failed) == (1, 2, 0 if gone else 1)
    require_consistent(src, 3)
    assert convert(src).done == 0


def test_compaction_leaves_one_good_row_an_array(src: Path) -> None:
    layout = layout_of(src)
    layout.melspec.mkdir(parents=True)
    good = {"file_name": "c.npy", "clip_id": "c", "status": "ok"}
    append_records(layout, [{**good, "source": "c.wav"}, {**good, "source": "d.wav", "file_name": "d.npy"}])
    append_records(layout, [{**good, "source": "c.flac"}, {**good, "source": "c.ogg", "status": "failed"}])
    compact_records(layout)
    assert read_records(layout, ["source"])["source"].to_pylist() == ["c.flac", "c.ogg", "d.wav"]


def test_failed_sources_that_changed_are_converted_again_when_asked_for(src: Path) -> None:
    for name in ("c3.wav", "c4.wav"):
        (src / name).write_bytes(b"no sound")
    names = [path.name for path in sorted(src.iterdir())]
    assert convert(src, *names, "c5.wav").reasons == {"not_audio": 2, "not_found": 1}
    for name in ("c3.wav", "c5.wav"):
        write_sound(src / name, 0.1)
    assert convert(src, *names, "c5.wav").failed == 3
    report = convert(src, *names, "c5.wav", check_sources=True)
    assert (report.done, report.skipped, report.reasons) == (2, 3, {"not_audio": 1})


def test_records_of_odd_names_are_forgotten(src: Path) -> None:
    """Earlier versions took sources from lists in any spelling."""
    convert(src, "c0.wav", "c1.wav")
    good = {row["source"]: row for row in read_records(layout_of(src)).to_pylist()}
    odd = [{**good[name], "source": f"./{name}", "file_name": f"./{good[name]['file_name']}"} for name in good]
    append_records(layout_of(src), odd)
    report = convert(src)
    assert (report.done, report.skipped, report.listed) == (1, 2, 3)
    assert rows(src) == {"c0.wav": "ok", "c1.wav": "ok", "c2.wav": "ok"}
    require_consistent(src, 3)


def test_an_array_of_an_odd_name_stays_when_the_source_of_the_plain_name_fails(src: Path) -> None:
    convert(src, "c0.wav")
    good = read_records(layout_of(src)).to_pylist()
    for part in layout_of(src).melspec.glob("records-*"):
        part.unlink()
    odd = [{**row, "source": f"./{row['source']}", "file_name": f"./{row['file_name']}"} for row in good]
    append_records(layout_of(src), odd)
    before = (layout_of(src).root / "c0.npy").read_bytes()
    no_sound(src / "c0.wav")
    assert convert(src).reasons == {"not_audio": 1}
    assert rows(src)["./c0.wav"] == "ok"
    assert (layout_of(src).root / "c0.npy").read_bytes() == before


def test_a_pack_is_in_the_way_of_what_would_be_written_alone(src: Path) -> None:
    convert(src)
    pack(layout_of(src).root, dtype="float16")
    write_sound(src / "c0.flac", 0.3)
    assert convert(src).reasons == {"name_conflict": 1}
    (src / "c0.wav").unlink()
    with pytest.raises(UserError, match="holds the arrays of 1 of the sources"):
        convert(src, retry_failed=True)
    assert rows(src)["c0.wav"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other", "folding"),
    [
        ("c0.wav", "C0.wav", NameFolding(case=True)),
        ("c0.wav", "C0.flac", NameFolding(case=True)),
        ("é.wav", "e\u0301.wav", NameFolding(form=True)),
    ],
)
def test_names_that_the_output_takes_for_one_are_a_conflict_and_the_owner_keeps_its_array(
    src: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: str, folding: NameFolding
) -> None:
    monkeypatch.setattr("m2dprep.workflows.melspec.job.probe_folding", lambda folder: folding)
    write_sound(src / name, 0.1)
    write_sound(src / other, 0.2)
    together = convert(src)
    assert (together.failed, together.reasons) == (1, {"name_conflict": 1})
    (first,) = [source for source in (name, other) if rows(src)[source] == "ok"]
    assert convert(src).done == 0
    # A source that was converted alone keeps its array when the other one is added, whichever sorts first.
    shutil.rmtree(layout_of(src).data)
    (src / first).unlink()
    assert convert(src).failed == 0
    write_sound(src / first, 0.3)
    before = {path.name: path.read_bytes() for path in layout_of(src).root.glob("*.npy")}
    assert convert(src).reasons == {"name_conflict": 1}
    assert {path.name: path.read_bytes() for path in layout_of(src).root.glob("*.npy")} == before
    assert rows(src)[first] == "name_conflict"
    assert convert(src, "c1.wav").done == 0
