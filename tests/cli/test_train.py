"""``m2dprep train``: its output, its files and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from m2dprep.cli.evaluation.protocols import zero_shot
from m2dprep.cli.main import COMMANDS, m2dprep
from m2dprep.evaluation.clip_set import DEFAULT_TEMPLATE
from m2dprep.training.config import PRESETS, SIZES, ValidationOptions


@pytest.fixture
def data(tmp_path: Path, make_data: Callable[..., Path]) -> Path:
    return make_data(tmp_path / "data", clips=8, frames=210)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, ["train", *map(str, arguments)])


def test_help_offers_every_model() -> None:
    assert set(SIZES) == set(PRESETS)
    result = run("-h")
    assert result.exit_code == 0
    assert result.stdout.count("m2dprep train") == 6, "usage, four examples, and torchrun"
    assert "train" in COMMANDS


@pytest.mark.slow
def test_a_run_and_the_same_command_again(data: Path, tmp_path: Path) -> None:
    command = (
        data,
        "--model",
        "tiny",
        "--epochs",
        2,
        "--batch-size",
        4,
        "--seed",
        3,
        "--output",
        tmp_path / "run",
        "--json",
    )
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert (value["epochs"], value["steps"], value["clips"], value["skipped"]) == (2, 4, 8, 0)
    assert Path(value["checkpoint"]).name == "checkpoint-2.pth"
    assert "-80x208p16x16p16k-e2b4s3-" in value["checkpoint"]
    assert "8 files listed = 8 used" in result.stderr
    again = run(*command)
    assert json.loads(again.stdout) == value
    assert "going on from" in again.stderr
    quiet = run(*command, "-q")
    assert (json.loads(quiet.stdout), quiet.stderr) == (value, "")


@pytest.mark.slow
def test_other_settings_exit_with_5_until_overwritten(data: Path, tmp_path: Path) -> None:
    command = (data, "--model", "tiny", "--batch-size", 4, "--output", tmp_path / "run")
    assert run(*command, "--epochs", 1).exit_code == 0
    result = run(*command, "--epochs", 2)
    assert result.exit_code == 5
    assert "train.epochs: 1 → 2" in result.stderr
    assert run(*command, "--epochs", 2, "--overwrite").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "huge"), "'huge' is not one of"),
        (("--model", "tiny"), "--batch-size 8"),
        (("--model", "tiny", "--embeddings", "nowhere"), "nowhere"),
        (("--model", "tiny", "--files", "nowhere.csv"), "nowhere.csv"),
        (("--model", "tiny", "--m2d-embeddings", "nowhere.npy"), "nowhere.npy"),
        (("--model", "tiny", "--batch-size", "1"), "--batch-size"),
        (("--model", "tiny", "--device", "cuda"), "cuda"),
        (("--model", "tiny", "--blr", "-1"), "blr"),
    ],
)
def test_bad_requests_exit_with_2_and_leave_nothing(
    options: tuple[str, ...], message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run(data, "--output", tmp_path / "run", *options)
    assert result.exit_code == 2
    assert message.lower() in result.stderr.lower()
    assert not (tmp_path / "run").exists()


def test_missing_data_directory(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere", "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert "no such folder" in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_probes_caption_is_that_of_zero_shot() -> None:
    """Training repeats it, because its help must not import the modules that use it."""
    defaults = {parameter.name: parameter.default for parameter in zero_shot.params}
    assert defaults["template"] == ValidationOptions().probe_template == DEFAULT_TEMPLATE
