"""unpack gives back the arrays of a pack: the same bytes, what is there stays, and a conversion goes on from a pack."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.log_mels.array import open_lms
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.pack import pack, unpack
from m2dprep.audioprep.stats import norm_stats
from m2dprep.cli.main import m2dprep
from m2dprep.workflows.check.job import run_checks
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.5)
HERE = MelspecOptions(workers=0)


@pytest.fixture
def lms(tmp_path: Path) -> Path:
    """A converted and packed folder."""
    for number in range(7):
        path = tmp_path / "wavs" / str(number % 2) / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, 9000 + 500 * number)
        soundfile.write(path, noise, 16000)
    run_melspec(tmp_path / "wavs", tmp_path / "data" / "x_lms", CONFIG, HERE)
    pack(tmp_path / "data" / "x_lms", dtype="float32", clips_per_shard=3)
    return tmp_path / "data" / "x_lms"


def array_problems(folder: Path) -> list[str]:
    results = run_checks(folder.parent, workers=0)
    return [problem.message for result in results if result.check == "arrays" for problem in result.problems]


def arrays(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*.npy") if path.parent.name != "_packed"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_same_bytes_come_back(lms: Path) -> None:
    before = arrays(lms)
    for name in before:
        (lms / name).unlink()
    result = unpack(lms, threads=3)
    assert (result.clips, result.done, result.skipped) == (7, 7, 0)
    assert arrays(lms) == before


def test_what_is_there_stays_and_the_rest_follows(lms: Path) -> None:
    before = arrays(lms)
    removed = sorted(before)[:2]
    for name in removed:
        (lms / name).unlink()
    times = {name: (lms / name).stat().st_mtime_ns for name in before if name not in removed}
    result = unpack(lms)
    assert (result.done, result.skipped) == (2, 5)
    assert arrays(lms) == before
    assert {name: (lms / name).stat().st_mtime_ns for name in times} == times


def test_other_values_in_the_way_are_an_error(lms: Path, tmp_path: Path) -> None:
    name = sorted(arrays(lms))[0]
    np.save(lms / name, np.zeros((1, 80, 10), np.float32))
    with pytest.raises(UserError, match="is there with other values"):
        unpack(lms)
    assert unpack(lms, tmp_path / "elsewhere").done == 7


def test_nothing_to_unpack(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no finished pack"):
        unpack(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        unpack(tmp_path / "missing")


def test_the_command(lms: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(m2dprep, ["unpack", str(lms), "--output", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["done"] == 7
    assert "7 clips = 7 done + 0 skipped" in result.stderr
    assert arrays(tmp_path / "out") == arrays(lms)
    assert not (tmp_path / "out" / "_melspec").exists()


def test_packed_float16_is_within_half_a_step_of_float32(lms: Path, tmp_path: Path) -> None:
    """Steps of float16 are 2**-7 from 8 to 16, where the loudest and the silent log-mels lie."""
    pack(lms, overwrite=True)
    assert unpack(lms).skipped == 7, "what is there in float32 stays"
    unpack(lms, tmp_path / "half")
    for name in arrays(lms):
        whole, half = open_lms(lms / name), open_lms(tmp_path / "half" / name)
        assert half.dtype == np.float16
        assert np.abs(whole - half).max() <= 2.0**-8


class TestAConversionOnTopOfAPack:
    """The .npy files may go once they are packed; what is converted again must not be read from an old pack."""

    def test_packed_arrays_are_done(self, lms: Path, tmp_path: Path) -> None:
        for name in arrays(lms):
            (lms / name).unlink()
        report = run_melspec(tmp_path / "wavs", lms, CONFIG, HERE)
        assert (report.done, report.skipped) == (0, 7)

    def test_new_sources_join(self, lms: Path, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "wavs" / "new.wav", np.zeros(9000), 16000)
        assert run_melspec(tmp_path / "wavs", lms, CONFIG, HERE).done == 1

    def test_changed_sources_are_refused(self, lms: Path, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "wavs" / "0" / "2.wav", np.zeros(9000), 16000)
        with pytest.raises(UserError, match="_packed holds the arrays of 1 of the sources"):
            run_melspec(tmp_path / "wavs", lms, CONFIG, MelspecOptions(workers=0, check_sources=True))

    def test_an_unfinished_pack_of_other_values_is_refused(self, lms: Path, tmp_path: Path) -> None:
        (lms / "_packed" / "meta.json").rename(lms / "_packed" / "progress.json")  # as after a kill before the end
        (lms / "_packed" / "index.parquet").rename(lms / "_packed" / "shard-00000.parquet")
        noise = np.random.default_rng(99).uniform(-0.5, 0.5, 10000)
        soundfile.write(tmp_path / "wavs" / "0" / "2.wav", noise, 16000)
        options = MelspecOptions(workers=0, check_sources=True)
        assert run_melspec(tmp_path / "wavs", lms, CONFIG, options).done == 1
        with pytest.raises(FingerprintConflictError, match="contents: "):
            pack(lms, dtype="float32", clips_per_shard=3)

    def test_both_at_once_are_refused(self, lms: Path, tmp_path: Path) -> None:
        with exclusive(LmsLayout(lms).melspec), pytest.raises(UserError, match="being written to by another run"):
            pack(lms, dtype="float32", clips_per_shard=3)

    @pytest.mark.slow
    def test_starting_anew_removes_the_pack_of_other_values(self, lms: Path, tmp_path: Path) -> None:
        run_melspec(tmp_path / "wavs", lms, CONFIG, MelspecOptions(workers=0, overwrite=True))
        assert (lms / "_packed").exists(), "it holds the very values of the new arrays"
        soundfile.write(tmp_path / "wavs" / "0" / "2.wav", np.zeros(9000), 16000)
        run_melspec(tmp_path / "wavs", lms, CONFIG, MelspecOptions(workers=0, overwrite=True))
        assert not (lms / "_packed").exists()


class TestAFolderWhosePackAloneIsLeft:
    @pytest.fixture(params=["float32", "float16"])
    def packed(self, lms: Path, request: pytest.FixtureRequest) -> Path:
        pack(lms, dtype=request.param, overwrite=True)
        for name in arrays(lms):
            (lms / name).unlink()
        return lms

    def test_packing_again_finds_it_finished(self, packed: Path) -> None:
        dtype = PackedStore.open(packed, None)[0].dtype  # type: ignore[index]
        assert pack(packed, dtype=dtype).packed_before == 7

    def test_statistics_are_computed_from_it(self, packed: Path) -> None:
        recorded, recomputed = norm_stats(packed), norm_stats(packed, recompute=True)
        assert recomputed.count_files == 7
        assert recomputed.mean == pytest.approx(recorded.mean, abs=1e-4)
        shutil.rmtree(packed / "_melspec")
        assert norm_stats(packed, recompute=True).mean == recomputed.mean

    @pytest.mark.slow
    def test_what_comes_out_of_it_is_checked(self, packed: Path) -> None:
        unpack(packed)
        assert array_problems(packed) == []
        shutil.rmtree(packed / "_packed")
        assert array_problems(packed) == []
        changed = packed / "0" / "2.npy"
        np.save(changed, np.load(changed) + np.float16(0.5))
        (problem,) = array_problems(packed)
        assert "its values have changed since" in problem
