"""``m2dprep zero-shot``: its output and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep
from m2dprep.evaluation import text_towers
from m2dprep.m2dclap.model import M2DCLAP
from tests.tiny import TINY_INFERABLE


class FakeEncoder:
    dim = 16

    def describe(self) -> dict[str, Any]:
        return {"model": "made-up"}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(texts), 16)).astype(np.float32)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder())
    torch.manual_seed(0)
    torch.save({"model": M2DCLAP(TINY_INFERABLE).state_dict()}, tmp_path / "checkpoint-1.pth")
    return tmp_path / "checkpoint-1.pth"


@pytest.fixture
def clips(tmp_path: Path, make_log_mel: Callable[..., np.ndarray]) -> Path:
    rng = np.random.default_rng(0)
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", make_log_mel(number % 2, 2, 60, rng))
    (tmp_path / "clips.csv").write_text("file_name,label\n0.npy,a_b\n1.npy,c\n2.npy,a_b\n3.npy,c\n")
    return tmp_path / "clips.csv"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, ["zero-shot", *map(str, arguments)])


def test_text_and_json(checkpoint: Path, clips: Path) -> None:
    text = run(checkpoint, clips, "--text-model", "made-up")
    assert text.exit_code == 0, text.stderr
    assert text.stdout.startswith("accuracy ")
    assert "4 clips = 4 classified + 0 failed" in text.stdout
    result = run(checkpoint, clips, "--text-model", "made-up", "--json")
    value = json.loads(result.stdout)
    assert value["clips"] == 4
    assert [row["label"] for row in value["per_class"]] == ["a_b", "c"]
    assert f"accuracy {value['accuracy']:.2%}" in text.stdout


def test_run_folder(checkpoint: Path, clips: Path) -> None:
    assert run(checkpoint.parent, clips, "--text-model", "made-up").exit_code == 0


def test_too_many_failures_exit_with_3_after_the_result(checkpoint: Path, clips: Path) -> None:
    (clips.parent / "3.npy").unlink()
    command = (checkpoint, clips, "--text-model", "made-up", "--json")
    result = run(*command)
    assert result.exit_code == 3
    value = json.loads(result.stdout)
    assert (value["classified"], value["failed"]) == (3, 1)
    assert value["failures"][0]["file_name"] == "3.npy"
    assert "1 of 4 failed" in result.stderr
    assert run(*command, "--max-failures", "25%").exit_code == 0


def test_nothing_readable_has_no_accuracy(checkpoint: Path, clips: Path) -> None:
    for path in clips.parent.glob("*.npy"):
        path.write_bytes(b"no array")
    result = run(checkpoint, clips, "--text-model", "made-up", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["accuracy"] is None


def test_nothing_there_says_where_it_was_looked_for(checkpoint: Path, clips: Path) -> None:
    for path in clips.parent.glob("*.npy"):
        path.unlink()
    result = run(checkpoint, clips, "--text-model", "made-up")
    assert result.exit_code == 2
    assert f"none of the 4 files that {clips} lists is under {clips.parent}" in result.stderr
    assert "--root" in result.stderr


def test_the_table_of_esc_50_as_it_is_downloaded(checkpoint: Path, clips: Path) -> None:
    rows = clips.read_text().replace("file_name,label", "filename,category").splitlines()
    clips.write_text("\n".join(f"{row},{'fold' if number == 0 else 1}" for number, row in enumerate(rows)))
    assert run(checkpoint, clips, "--text-model", "made-up").exit_code == 0
    columns = ("--file-column", "filename", "--label-column", "category")
    assert run(checkpoint, clips, "--text-model", "made-up", *columns).exit_code == 0
    result = run(checkpoint, clips, "--text-model", "made-up", "--label-column", "target")
    assert result.exit_code == 2
    assert "it has filename, category, fold" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.pth", "clips.csv"), "nowhere.pth"),
        (("checkpoint-1.pth", "nowhere.csv"), "nowhere.csv"),
        (("clips.csv", "clips.csv"), "not a checkpoint"),
        (("checkpoint-1.pth", "clips.csv"), "--text-model"),
        (("checkpoint-1.pth", "clips.csv", "--root", "nowhere"), "nowhere"),
        (("checkpoint-1.pth", "clips.csv", "--classes", "nowhere.txt"), "nowhere.txt"),
        (("checkpoint-1.pth", "clips.csv", "--max-failures", "many"), "many"),
        (("checkpoint-1.pth", "clips.csv", "--template", "sound"), "{label}"),
    ],
)
def test_bad_requests_exit_with_2(
    arguments: tuple[str, ...], message: str, checkpoint: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips.parent)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_unknown_text_model(checkpoint: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run(checkpoint, clips, "--text-model", "./no-such-model")
    assert result.exit_code == 2
    assert "no-such-model" in result.stderr
