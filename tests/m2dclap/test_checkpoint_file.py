"""A damaged checkpoint is reported or provably harmless; a file of another kind is named as such."""

from __future__ import annotations

import errno
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.checkpoint_file import read_file
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.proof import DamagedError
from m2dprep.m2dclap.reuse.initialise import initialise
from m2dprep.training.objectives import MaskedClap
from m2dprep.training.state import TrainState
from tests.tiny import TINY, state_of

pytestmark = pytest.mark.slow

DAMAGES = 100
ARGS = {"model": "m2d_clap_vit_tiny", "model_config": TINY.to_dict(), "blr": 3e-4, "text_model": {"model": "made-up"}}


def new_state() -> TrainState[MaskedClap]:
    torch.manual_seed(0)
    state = state_of(TINY)
    state.objective.model(torch.ones(2, 1, 80, 48), torch.ones(2, TINY.off_emb_dim)).loss.backward()
    state.optimizer.step()
    return state


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "m2d_clap_vit_tiny-80x48p16x16p16k-a" / "checkpoint-3.pth"
    path.parent.mkdir()
    new_state().save(path, 3, ARGS, {"train": {"seed": 0}})
    return path


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def damaged(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(content)))
    changed = bytearray(content)
    if kind == "flip":
        changed[place] ^= 1 << int(rng.integers(8))
    elif kind == "byte":
        changed[place] = (changed[place] + int(rng.integers(1, 256))) % 256
    elif kind == "zeros":
        changed[place : place + 4096] = bytes(len(changed[place : place + 4096]))
    elif kind == "cut":
        del changed[place:]
    elif kind == "appended":
        changed += rng.bytes(64)
    elif kind == "directory":  # the last part of the file, the zip's directory
        place = len(content) - 1 - int(rng.integers(min(8000, len(content))))
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["flip", "byte", "zeros", "cut", "appended", "directory"])
def test_every_damage_is_told_or_changes_nothing(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    content, whole = checkpoint.read_bytes(), read_file(checkpoint)
    rng = np.random.default_rng(1)
    path, told = tmp_path / "checkpoint-3.pth", 0
    for _ in range(DAMAGES):
        path.write_bytes(damaged(content, kind, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = read_file(path)
        except UserError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            told += 1
        else:
            assert same(value, whole)
    assert told == DAMAGES or kind != "cut"
    assert told > DAMAGES // 2 or kind in ("appended", "directory")


@pytest.fixture
def flipped(checkpoint: Path, tmp_path: Path) -> Path:
    """One bit of one weight, in the middle of the largest member; PyTorch itself loads it."""
    with zipfile.ZipFile(checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        values = archive.read(largest)
    content = bytearray(checkpoint.read_bytes())
    content[content.index(values) + len(values) // 2] ^= 1
    path = tmp_path / checkpoint.parent.name / "checkpoint-3.pth"
    path.parent.mkdir()
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["epoch"] == 3
    return path


def test_every_reader_of_checkpoints_tells_it_and_the_way_back(flipped: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint-3\.pth is damaged: its digest is not") as raised:
        new_state().restore(flipped)
    assert "Remove checkpoint-3.pth, and the same command goes on from the checkpoint before it" in str(raised.value)
    for read in (Checkpoint.read, read_file, lambda path: initialise(M2DCLAP(TINY), path)):
        with pytest.raises(DamagedError, match="Take another copy of it, or an earlier checkpoint"):
            read(flipped)


def test_a_checkpoint_of_others_is_compared_with_the_checksums_of_its_members(flipped: Path, tmp_path: Path) -> None:
    torch.save(torch.load(flipped, weights_only=True), tmp_path / "other.pth")
    assert read_file(tmp_path / "other.pth")["epoch"] == 3
    with zipfile.ZipFile(tmp_path / "other.pth") as archive:
        values = archive.read(max(archive.infolist(), key=lambda member: member.file_size))
    content = bytearray((tmp_path / "other.pth").read_bytes())
    content[content.index(values) + len(values) // 2] ^= 1
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(DamagedError, match=r"other\.pth is damaged: its member \S+/data/\d+ is not"):
        read_file(tmp_path / "other.pth")


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("times", [1, 1000])
@pytest.mark.parametrize("call", ["preadv", "pread"], ids=["ours", "others"])
def test_what_the_disk_cannot_read_is_tried_again_and_then_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int, times: int
) -> None:
    if call == "pread":
        torch.save(torch.load(checkpoint, weights_only=True), tmp_path / "other.pth")
        checkpoint = tmp_path / "other.pth"
    plain, left = getattr(os, call), [times]

    def fail(*given: Any) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(error, os.strerror(error))
        return plain(*given)

    monkeypatch.setattr("m2dprep.artifacts.reading.WAITS_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(os, call, fail)
    if times == 1:
        assert read_file(checkpoint)["epoch"] == 3
        return
    with pytest.raises(OSError, match=os.strerror(error)) as caught:
        read_file(checkpoint)
    assert caught.value.filename == str(checkpoint)


def test_everybody_else_reads_our_checkpoints(checkpoint: Path) -> None:
    value = torch.load(checkpoint, weights_only=True)
    assert list(value)[:5] == ["model", "optimizer", "epoch", "scaler", "args"]
    M2DCLAP(TINY).load_state_dict(value["model"])
    with zipfile.ZipFile(checkpoint) as archive:
        assert archive.testzip() is None


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": {"weight": torch.ones(3)}}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_file(path)["model"]["weight"].tolist() == [1, 1, 1]
    torch.save({"model": {"weight": torch.ones(3)}}, path, _use_new_zipfile_serialization=False)
    assert read_file(path)["model"]["weight"].tolist() == [1, 1, 1]


def test_equal_states_give_equal_bytes(checkpoint: Path, tmp_path: Path) -> None:
    """Even if one of them comes from a file, and so consists of other objects."""
    resumed = new_state()
    resumed.restore(checkpoint)
    resumed.unlogged = torch.ones(5, 3)[:0]
    path = tmp_path / "checkpoint-3.pth"
    args = {**ARGS, "model": "".join(["m2d_clap_", "vit_tiny"]), "text_model": {"model": "-".join(["made", "up"])}}
    resumed.save(path, 3, args, {"train": {"seed": 0}})
    assert path.read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n<html><body>Not found", "a web page"),
        (b'{"error": "not found"}', 'a text that begins with \'{"error": "not found"}\''),
        (b"PK\x03\x04 half a zip", "cut off or damaged"),
        (b"\x80\x04K\x01.", "checkpoint"),
        (b"\x89PNG\r\n\x1a\n\x00", "damaged"),
        (bytes(64), "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_file(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    assert "weights_only" not in str(raised.value)


def test_objects_are_named_and_never_advised_to_be_loaded(tmp_path: Path) -> None:
    torch.save({"model": zipfile.ZipInfo("x")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"holds an object of zipfile\.ZipInfo") as raised:
        read_file(tmp_path / "a.pth")
    assert "weights_only" not in str(raised.value)
    with pytest.raises(UserError, match="is not a file"):
        read_file(tmp_path)
