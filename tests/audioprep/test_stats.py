"""Statistics: exact, the same from records and from arrays, without evaluation clips, and never of less than asked."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.errors import CheckFailedError, UserError
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import append_records, write_config
from m2dprep.artifacts.tables import write_file_list
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.stats import norm_stats, padding_of, write_norm_stats

NAMES = ["a/1.wav", "a/2.wav", "b/3.wav", "b/bad.wav", "eval_segments/4.wav", "eval_segments/5.wav"]


@pytest.fixture(params=["float32", "float16"])
def lms(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A finished conversion: three training clips of 1 to 3 s, two evaluation clips, one failure."""
    src, dst = tmp_path / "src", tmp_path / "data" / "set_lms"
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        noise = rng.normal(0, 0.05 * (number + 1), 16000 * (number % 3 + 1)).clip(-1, 1)
        soundfile.write(src / name, noise, 16000)
    (src / "b/bad.wav").write_bytes(b"text")
    config = ConvertConfig(PRESETS["16k"], min_seconds=0.5, dtype=request.param)
    layout = LmsLayout(dst)
    layout.temporaries.mkdir(parents=True)
    write_config(layout, config.to_dict(), {})
    append_records(layout, convert_shard(discover(src), src, dst, config))
    return dst


def values_of(lms: Path, names: list[str]) -> np.ndarray:
    return np.concatenate([np.load(lms / name).astype(np.float64)[0] for name in names], axis=1)


TRAINING = ["a/1.npy", "a/2.npy", "b/3.npy"]


@pytest.mark.parametrize("recompute", [False, True])
def test_statistics_are_exact(lms: Path, recompute: bool) -> None:
    stats = norm_stats(lms, recompute=recompute)
    values = values_of(lms, TRAINING)
    assert stats.mean == pytest.approx(values.mean(), rel=1e-12)
    assert stats.std == pytest.approx(values.std(), rel=1e-12)
    np.testing.assert_allclose(stats.bin_mean, values.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(stats.bin_std, values.std(axis=1), rtol=1e-12)
    assert (stats.count_files, stats.count_values, stats.excluded_files) == (3, values.size, 2)
    assert stats.source == ("arrays" if recompute else "records")
    assert stats.ddof == 0
    assert stats.fingerprint == json.loads(LmsLayout(lms).config.read_text())["fingerprint"]


def test_records_and_arrays_agree(lms: Path) -> None:
    merged, recomputed = norm_stats(lms).to_dict(), norm_stats(lms, recompute=True).to_dict()
    for name in ("mean", "std", "bin_mean", "bin_std"):
        np.testing.assert_allclose(merged[name], recomputed[name], rtol=1e-6)
    for name in ("count_values", "count_files", "excluded_files", "fingerprint", "ddof"):
        assert merged[name] == recomputed[name]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_file_list_restricts(lms: Path, recompute: bool, tmp_path: Path) -> None:
    files = tmp_path / "files_some.csv"
    write_file_list(files, ["set_lms/a/2.npy", "set_lms/eval_segments/4.npy", "other_lms/9.npy"])
    stats = norm_stats(lms, recompute=recompute, files=files)
    assert stats.mean == pytest.approx(values_of(lms, ["a/2.npy"]).mean(), rel=1e-12)
    assert (stats.count_files, stats.excluded_files) == (1, 1)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_listed_file_without_a_good_record_is_refused(lms: Path, recompute: bool, tmp_path: Path) -> None:
    files = tmp_path / "files_some.csv"
    write_file_list(files, ["set_lms/a/2.npy", "set_lms/b/bad.npy"])
    with pytest.raises(UserError, match=r"'b/bad\.npy'"):
        norm_stats(lms, recompute=recompute, files=files)
    write_file_list(files, ["other_lms/a/2.npy"])
    with pytest.raises(UserError, match="none of its paths begins with set_lms/"):
        norm_stats(lms, recompute=recompute, files=files)
    write_file_list(files, ["set_lms/eval_segments/4.npy"])
    with pytest.raises(UserError, match="only evaluation clips"):
        norm_stats(lms, recompute=recompute, files=files)


@pytest.mark.parametrize("how", ["a line is gone", "a line is new", "a flipped bit", "cut", "empty", "sorted anew"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_list_that_is_not_as_written_is_refused(lms: Path, recompute: bool, how: str, tmp_path: Path) -> None:
    files = tmp_path / "files_some.csv"
    write_file_list(files, [f"set_lms/{name}" for name in TRAINING])
    header, *lines = files.read_text().splitlines(keepends=True)
    changed = {
        "a line is gone": "".join([header, *lines[1:]]),
        "a line is new": "".join([header, *lines, "set_lms/b/4.npy\n"]),
        "a flipped bit": "".join([header, *lines]).replace("a/2", "a/3"),
        "cut": "".join([header, *lines])[:-4],
        "empty": "",
        "sorted anew": "".join([header, *reversed(lines)]),
    }
    files.write_text(changed[how])
    with pytest.raises(UserError, match=r"files_some\.csv is not as m2dprep wrote it"):
        norm_stats(lms, recompute=recompute, files=files)


def test_a_list_of_ones_own_is_taken(lms: Path, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("file_name\nset_lms/a/2.npy\n")
    assert norm_stats(lms, files=tmp_path / "own.csv").count_files == 1


def test_unreadable_arrays_are_named(lms: Path) -> None:
    (lms / "a/1.npy").unlink()
    (lms / "b/3.npy").write_bytes((lms / "b/3.npy").read_bytes()[:1000])
    with pytest.raises(CheckFailedError, match=r"2 of 3 arrays(.|\n)*a/1\.npy(.|\n)*b/3\.npy") as caught:
        norm_stats(lms, recompute=True)
    assert caught.value.exit_code == 4
    assert norm_stats(lms).count_files == 3  # records need no arrays; `check` compares the two


def test_values_that_are_not_finite_are_named(lms: Path) -> None:
    array = np.load(lms / "a/2.npy")
    array[0, 3, 4] = np.nan
    np.save(lms / "a/2.npy", array)
    with pytest.raises(CheckFailedError, match=r"a/2\.npy holds values that are not finite"):
        norm_stats(lms, recompute=True)


def test_arrays_of_others_can_be_computed_too(tmp_path: Path) -> None:
    lms = tmp_path / "theirs_lms"
    (lms / "x").mkdir(parents=True)
    (lms / "_melspec").mkdir()
    np.save(lms / "_melspec/no_input.npy", np.zeros(3))
    first, second = np.random.default_rng(0).normal(-7, 4, (2, 1, 80, 50)).astype(np.float32)
    np.save(lms / "x/1.npy", first)
    np.save(lms / "2.npy", second)
    stats = norm_stats(lms, recompute=True)
    assert stats.mean == pytest.approx(np.stack([first, second]).astype(np.float64).mean(), rel=1e-12)
    assert (stats.count_files, stats.fingerprint) == (2, None)
    with pytest.raises(UserError, match="run `m2dprep melspec` first"):
        norm_stats(lms)


def test_other_numbers_of_bins_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 80, 5), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((1, 64, 5), np.float32))
    with pytest.raises(CheckFailedError, match=r"b\.npy has shape \(1, 64, 5\)"):
        norm_stats(tmp_path, recompute=True)


def test_impossible_requests(tmp_path: Path, lms: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        norm_stats(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no converted files"):
        norm_stats(tmp_path / "empty", recompute=True)
    with pytest.raises(UserError, match="no such file"):
        norm_stats(lms, files=tmp_path / "missing.csv")


def test_written_as_json(lms: Path, tmp_path: Path) -> None:
    stats = norm_stats(lms)
    write_norm_stats(tmp_path / "norm_stats.json", stats)
    assert read_object(tmp_path / "norm_stats.json") == stats.to_dict()


@pytest.mark.parametrize(
    ("min_seconds", "lengths", "padded", "share"),
    [
        (6.1, [1, 1, 1], 3, 5.1 / 6.1),  # as Speech Commands
        (6.1, [5, 5, 5], 3, 1.1 / 6.1),  # as ESC-50
        (6.1, [10, 10, 1], 1, 5.1 / 26.1),
        (1.0, [1, 1, 1], 0, 0.0),
        (0.0, [1, 1, 1], 0, 0.0),
    ],
)
def test_the_share_of_padding(
    tmp_path: Path, min_seconds: float, lengths: list[int], padded: int, share: float
) -> None:
    src, layout = tmp_path / "src", LmsLayout(tmp_path / "data" / "set_lms")
    (src / "eval_segments").mkdir(parents=True)
    for number, seconds in enumerate(lengths):
        soundfile.write(src / f"{number}.wav", np.full(16000 * seconds, 0.1), 16000)
    soundfile.write(src / "eval_segments" / "e.wav", np.full(1600, 0.1), 16000)  # which statistics do not count
    (src / "bad.wav").write_bytes(b"text")
    config = ConvertConfig(PRESETS["16k"], min_seconds=min_seconds)
    layout.temporaries.mkdir(parents=True)
    write_config(layout, config.to_dict(), {})
    append_records(layout, convert_shard(discover(src), src, layout.root, config))
    found = padding_of(layout.root)
    assert found is not None
    assert (found.sounds, found.padded, found.min_seconds) == (len(lengths), padded, min_seconds)
    assert found.share == pytest.approx(share)
    assert (found.note() is not None) == (share > 0.5)


def test_the_padding_of_listed_sounds_alone(lms: Path, tmp_path: Path) -> None:
    write_file_list(tmp_path / "files_some.csv", ["set_lms/a/2.npy", "set_lms/eval_segments/4.npy"])
    found = padding_of(lms, files=tmp_path / "files_some.csv")
    assert found is not None
    assert (found.sounds, found.padded) == (1, 0)


def test_arrays_of_other_programs_tell_nothing_of_padding(tmp_path: Path) -> None:
    (tmp_path / "set_lms").mkdir()
    np.save(tmp_path / "set_lms" / "1.npy", np.zeros((1, 80, 100), np.float32))
    assert padding_of(tmp_path / "set_lms") is None
