"""Features are computed once per model and clips, go on after a kill with the same bytes, and lose nothing silently."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.errors import Failure, MachineLostError, UserError
from m2dprep.evaluation import features as module
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.features import Features, features
from m2dprep.evaluation.reading import Clip, ClipLoader, Crop
from tests.evaluation.made_clips import tone, write_checkpoint, write_tones

CLIPS = 20


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> CheckpointEncoder:
    return CheckpointEncoder(write_checkpoint(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(module, "WINDOW", 6)
    return [tmp_path / "wavs" / name for name in write_tones(tmp_path / "wavs", CLIPS)]


def compute(
    encoder: CheckpointEncoder, paths: Sequence[Path], folder: Path | None, crop: Crop | None = None
) -> Features:
    return features(encoder, paths, [path.name for path in paths], crop or Crop(), folder, quiet=True)


class Killed(BaseException):
    pass


def test_parts_are_what_the_model_makes(encoder: CheckpointEncoder, paths: list[Path]) -> None:
    found = compute(encoder, paths, None)
    assert encoder.parts == {"stacked": 320, "clap": 64}
    assert found.part("stacked").shape == (CLIPS, 320)
    assert found.part("clap").shape == (CLIPS, 64)
    assert found.part("flat") == pytest.approx(found.part("stacked").reshape(CLIPS, 5, 64).mean(axis=1))
    alone = encoder.encode([encoder.loader(Crop())(paths[7], "x").values])  # type: ignore[union-attr]
    assert found.rows[7] == pytest.approx(alone[0], abs=2e-5)
    with pytest.raises(UserError, match="has no embedding words; it has stacked, clap"):
        found.part("words")


def test_a_second_call_computes_nothing(
    encoder: CheckpointEncoder, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compute(encoder, paths, tmp_path / "f")
    monkeypatch.setattr(CheckpointEncoder, "encode", lambda *_: pytest.fail("computed again"))
    again = compute(encoder, paths, tmp_path / "f")
    assert np.array_equal(first.rows, again.rows)
    assert first.folder is not None
    EmbeddingStore.open(first.folder).require_whole()


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    encoder: CheckpointEncoder, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    paths[2].write_bytes(b"no sound")
    whole = compute(encoder, paths, tmp_path / "whole")
    counted: list[int] = []
    encode = CheckpointEncoder.encode

    def stopping(self: CheckpointEncoder, clips: Sequence[np.ndarray]) -> np.ndarray:
        if len(counted) == after:
            raise Killed
        counted.append(len(clips))
        return encode(self, clips)

    monkeypatch.setattr("m2dprep.artifacts.embeddings.writer.SYNC_SECONDS", 0.0)
    monkeypatch.setattr(CheckpointEncoder, "encode", stopping)
    with pytest.raises(Killed):
        compute(encoder, paths, tmp_path / "cut")
    monkeypatch.setattr(
        CheckpointEncoder, "encode", lambda self, clips: counted.append(len(clips)) or encode(self, clips)
    )
    resumed = compute(encoder, paths, tmp_path / "cut")
    assert sum(counted) == CLIPS - 1, "no clip is encoded twice"
    assert resumed.failures == whole.failures
    assert whole.folder is not None
    assert resumed.folder is not None
    assert (resumed.folder / "embeddings.npy").read_bytes() == (whole.folder / "embeddings.npy").read_bytes()


def test_what_cannot_be_read_is_a_failure_and_a_row_of_nan(encoder: CheckpointEncoder, paths: list[Path]) -> None:
    paths[3].write_bytes(b"no sound")
    paths[17].unlink()
    found = compute(encoder, paths, None)
    assert [(one["file_name"], one["reason"]) for one in found.failures] == [
        ("003.wav", "not_audio"), ("017.wav", "not_found")
    ]  # fmt: skip
    assert np.flatnonzero(~found.whole).tolist() == [3, 17]
    assert np.isnan(found.rows[[3, 17]]).all()


@pytest.mark.parametrize(("reason", "again"), [("transient", True), ("permission", True), ("not_audio", False)])
def test_what_the_machine_failed_to_read_is_tried_again(
    encoder: CheckpointEncoder, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str,
    again: bool,
) -> None:  # fmt: skip
    load, lost = ClipLoader.__call__, [path.name for path in paths[4:14]]

    def loaded(self: ClipLoader, path: Path, name: str) -> Clip | Failure:
        return Failure(name, reason, "for now") if name in lost else load(self, path, name)

    with monkeypatch.context() as patch:
        patch.setattr(ClipLoader, "__call__", loaded)
        assert compute(encoder, paths, tmp_path / "f").whole.sum() == CLIPS - len(lost)
    found = compute(encoder, paths, tmp_path / "f")
    assert found.whole.all() == again
    assert bool(found.failures) != again


def test_clips_that_cannot_be_read_one_after_another_stop_it(
    encoder: CheckpointEncoder, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole task is not judged by the few clips that were read before the disk went."""
    with monkeypatch.context() as patch:
        patch.setattr(ClipLoader, "__call__", lambda self, path, name: Failure(name, "transient", "for now"))
        with pytest.raises(MachineLostError, match=r"20 files in a row could not be read, the last of them 019\.wav"):
            compute(encoder, paths, tmp_path / "f")
    assert compute(encoder, paths, tmp_path / "f").whole.all()


def test_all_of_a_window_may_fail(encoder: CheckpointEncoder, paths: list[Path]) -> None:
    for path in paths[:6]:
        path.unlink()
    assert compute(encoder, paths, None).whole.sum() == CLIPS - 6


def test_other_clips_models_and_crops_are_other_stores(
    encoder: CheckpointEncoder, paths: list[Path], tmp_path: Path
) -> None:
    import soundfile

    folder = tmp_path / "f"
    places = {compute(encoder, paths, folder).folder, compute(encoder, paths[:5], folder).folder}
    places.add(compute(encoder, paths, folder, Crop(0.5)).folder)
    soundfile.write(paths[0], tone(2, 0.7), 16000)
    places.add(compute(encoder, paths, folder).folder)
    assert len(places) == 4


def test_longer_clips_are_counted(encoder: CheckpointEncoder, paths: list[Path], tmp_path: Path) -> None:
    assert compute(encoder, paths, tmp_path / "f", Crop(0.75)).longer == CLIPS // 2
    assert compute(encoder, paths, tmp_path / "f", Crop(0.75)).longer == CLIPS // 2
    assert compute(encoder, paths, None, Crop(5.0)).longer == 0
