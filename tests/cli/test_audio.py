"""melspec and stats from the command line: results on stdout, the rest on stderr, exit codes, resuming."""

import json
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import read_records
from m2dprep.artifacts.tables import read_file_list
from m2dprep.audioprep.config import DTYPES, PRESETS, ConvertConfig
from m2dprep.cli import audio
from m2dprep.cli.main import m2dprep


def run(*arguments: str | Path, expect: int = 0) -> Result:
    result = CliRunner().invoke(m2dprep, [str(argument) for argument in arguments], prog_name="m2dprep")
    assert result.exit_code == expect, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


def melspec(src: Path, dst: Path, *options: str, expect: int = 0) -> Result:
    return run("melspec", src, dst, "--workers", "0", *options, expect=expect)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Four clips in two folders, one of them an evaluation clip."""
    folder = tmp_path / "wavs"
    for number, name in enumerate(["a/1.wav", "a/2.flac", "3.WAV", "eval_segments/4.wav"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, (16000, 2))
        soundfile.write(folder / name, noise, 32000, format="FLAC" if name.endswith("flac") else "WAV")
    return folder


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "data" / "set_lms"


def test_melspec_writes_the_promised_tree(src: Path, dst: Path) -> None:
    result = melspec(src, dst)
    assert result.stdout.strip() == str(dst.parent / "files_set.csv")
    assert "4 inputs = 4 done + 0 skipped + 0 failed" in result.stderr
    assert read_file_list(dst.parent / "files_set.csv") == ["set_lms/3.npy", "set_lms/a/1.npy", "set_lms/a/2.npy"]
    for name in ["3.npy", "a/1.npy", "a/2.npy", "eval_segments/4.npy"]:
        array = np.load(dst / name)
        assert (array.shape, array.dtype) == ((1, 80, 611), np.float32)
    assert read_records(LmsLayout(dst), ["source"])["source"].to_pylist() == sorted(
        ["3.WAV", "a/1.wav", "a/2.flac", "eval_segments/4.wav"]
    )


def test_options_reach_the_arrays(src: Path, dst: Path) -> None:
    options = ["--preset", "32k", "--dtype", "float16", "--min-seconds", "0", "--name", "other", "--json"]
    report = json.loads(melspec(src, dst, *options).stdout)
    assert (report["inputs"], report["done"], report["failed"], report["listed"]) == (4, 4, 0, 3)
    assert report["files_csv"] == str(dst.parent / "files_other.csv")
    array = np.load(dst / "a/1.npy")
    assert (array.shape, array.dtype) == ((1, 80, 51), np.float16)
    assert json.loads(LmsLayout(dst).config.read_text())["config"]["log_mel"]["sample_rate"] == 32000


def test_the_help_tells_the_configurations_defaults_and_choices() -> None:
    options = {option.name: option for option in audio.melspec.params}
    for name in ("dtype", "min_seconds", "max_seconds"):
        assert options[name].default == getattr(ConvertConfig, name)
    for name, choices in (("preset", PRESETS), ("dtype", DTYPES)):
        kind = options[name].type
        assert isinstance(kind, click.Choice)
        assert list(kind.choices) == list(choices)


def test_the_same_command_goes_on_and_another_one_is_refused(src: Path, dst: Path) -> None:
    melspec(src, dst)
    content = (dst / "a/1.npy").read_bytes()
    (dst / "a/1.npy").unlink()
    assert "4 inputs = 1 done + 3 skipped + 0 failed" in melspec(src, dst).stderr
    assert (dst / "a/1.npy").read_bytes() == content
    refused = melspec(src, dst, "--dtype", "float16", expect=5)
    assert "dtype: 'float32' → 'float16'" in refused.stderr
    assert refused.stdout == ""
    melspec(src, dst, "--dtype", "float16", "--overwrite")
    assert np.load(dst / "a/1.npy").dtype == np.float16


def test_failures_are_counted_kept_and_tried_again(src: Path, dst: Path) -> None:
    whole = (src / "a/1.wav").read_bytes()
    (src / "a/1.wav").write_bytes(whole[: len(whole) // 2])
    assert "1 of 4 failed" in melspec(src, dst, expect=3).stderr
    assert not (dst / "a/1.npy").exists()
    result = melspec(src, dst, "--max-failures", "25%")
    assert "4 inputs = 0 done + 3 skipped + 1 failed (truncated 1; rows in" in result.stderr
    (src / "a/1.wav").write_bytes(whole)
    assert "1 failed" in melspec(src, dst, "--max-failures", "1").stderr
    assert "4 inputs = 1 done + 3 skipped + 0 failed" in melspec(src, dst, "--retry-failed").stderr
    assert (dst / "a/1.npy").exists()


def test_too_long_sounds_fail(src: Path, dst: Path) -> None:
    result = melspec(src, dst, "--min-seconds", "0", "--max-seconds", "0.4", "--max-failures", "100%")
    assert "4 failed (too_long 4;" in result.stderr


def test_changed_sources_are_seen_on_request(src: Path, dst: Path) -> None:
    melspec(src, dst)
    soundfile.write(src / "a/1.wav", np.zeros((16000, 2)), 32000)
    assert "4 inputs = 0 done + 4 skipped + 0 failed" in melspec(src, dst).stderr
    assert "4 inputs = 1 done + 3 skipped + 0 failed" in melspec(src, dst, "--check-sources").stderr


def test_a_dry_run_prints_what_is_needed_and_writes_nothing(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = melspec(src, dst, "--dry-run")
    assert "4 clips to convert, judged by 4 of them (0 failed)" in result.stdout
    assert "it fits" in result.stdout
    found = json.loads(melspec(src, dst, "--dry-run", "--json").stdout)
    assert (found["clips"], found["inodes_needed"], found["shortage"]) == (4, 4, None)
    assert not dst.parent.exists()
    monkeypatch.setattr("m2dprep.workflows.melspec.forecast._free", lambda place: (1000, None))
    result = melspec(src, dst, "--dry-run", expect=2)
    assert "it does not fit" in result.stdout
    assert "--dtype float16" in result.stderr
    melspec(src, dst, "--dry-run", "--ignore-space")


def test_a_list_of_files(src: Path, dst: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("source\na/2.flac\n3.WAV\n")
    assert "2 inputs = 2 done" in melspec(src, dst, "--files", str(tmp_path / "list.csv")).stderr
    assert "no such file" in melspec(src, dst, "--files", str(tmp_path / "none.csv"), expect=2).stderr


def test_the_decoder_is_asked_for_before_anything_is_written(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert "install ffmpeg" in melspec(src, dst, "--decoder", "ffmpeg", expect=2).stderr
    assert not dst.exists()


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(src: Path, dst: Path, tmp_path: Path) -> None:
    melspec(src, dst)
    run("melspec", src, tmp_path / "two" / "set_lms", "--workers", "2")
    for path in dst.rglob("*.npy"):
        assert (tmp_path / "two" / "set_lms" / path.relative_to(dst)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "float64"], "float64"),
        (["--preset", "44k"], "44k"),
        (["--max-seconds", "0"], "max-seconds"),
        (["--max-seconds", "2"], "max_seconds 2"),
        (["--min-seconds", "nan"], "min_seconds is nan"),
        (["--max-failures", "many"], "many"),
        (["--workers", "-1"], "workers"),
    ],
)
def test_bad_options(src: Path, dst: Path, options: list[str], message: str) -> None:
    result = run("melspec", src, dst, *options, expect=2)
    assert message in result.stderr
    assert not dst.exists()


def test_bad_folders(src: Path, dst: Path, tmp_path: Path) -> None:
    assert "no such folder" in melspec(tmp_path / "missing", dst, expect=2).stderr
    assert "is not a folder" in melspec(src / "3.WAV", dst, expect=2).stderr
    (tmp_path / "empty").mkdir()
    assert "no audio files" in melspec(tmp_path / "empty", dst, expect=2).stderr
    assert not dst.exists()
    (tmp_path / "file").write_text("")
    result = melspec(src, tmp_path / "file", expect=2)
    assert "file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("recompute", [[], ["--recompute"]])
def test_stats(src: Path, dst: Path, recompute: list[str]) -> None:
    melspec(src, dst)
    result = run("stats", dst, *recompute)
    stats = json.loads((dst.parent / "norm_stats.json").read_text())
    values = np.stack([np.load(dst / name) for name in ["3.npy", "a/1.npy", "a/2.npy"]]).astype(np.float64)
    assert stats["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert stats["std"] == pytest.approx(values.std(), rel=1e-12)
    assert result.stdout == f"mean {values.mean():.6f}  std {values.std():.6f}\n"
    assert "1 evaluation clips left out" in result.stderr
    assert "note: 3 of 3 sounds are shorter than 6.1 s" in result.stderr


@pytest.mark.parametrize("column", ["source", "file_name", "path"])
def test_lists_of_files_have_one_of_three_columns(src: Path, dst: Path, tmp_path: Path, column: str) -> None:
    (tmp_path / "some.csv").write_text(f"{column}\na/1.wav\n")
    assert "1 inputs = 1 done" in melspec(src, dst, "--files", tmp_path / "some.csv").stderr
    (tmp_path / "arrays.csv").write_text(f"{column}\nset_lms/a/1.npy\n")
    counted = run("stats", dst, "--files", tmp_path / "arrays.csv", "--json")
    assert json.loads(counted.stdout)["count_files"] == 1


def test_stats_of_a_list_as_json_somewhere_else(src: Path, dst: Path, tmp_path: Path) -> None:
    melspec(src, dst)
    (tmp_path / "some.csv").write_text("file_name\nset_lms/a/1.npy\n")
    out = tmp_path / "stats.json"
    result = run("stats", dst, "--files", tmp_path / "some.csv", "--output", out, "--json")
    assert json.loads(result.stdout) == read_object(out)
    assert json.loads(result.stdout)["count_files"] == 1
    assert not (dst.parent / "norm_stats.json").exists()


def test_stats_of_what_cannot_be_read(src: Path, dst: Path, tmp_path: Path) -> None:
    assert "no such folder" in run("stats", tmp_path / "missing", expect=2).stderr
    assert "run `m2dprep melspec` first" in run("stats", tmp_path, expect=2).stderr
    melspec(src, dst)
    (dst / "a/1.npy").write_bytes(b"")
    result = run("stats", dst, "--recompute", expect=4)
    assert "a/1.npy" in result.stderr
    assert not (dst.parent / "norm_stats.json").exists()
