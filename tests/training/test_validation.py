"""Validation does not depend on the training batch; ranks tell learning from collapse; runs are plotted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_file_list, write_csv, write_file_list
from m2dprep.cli.main import m2dprep
from m2dprep.evaluation import text_towers
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.training.config import DataChoice, RunOptions, TrainConfig, ValidationOptions
from m2dprep.training.data_dir import open_training_data
from m2dprep.training.log import read_log
from m2dprep.training.speed import block_flops, matrix_peak, train_flops_per_clip
from m2dprep.training.train import make_state, train
from m2dprep.training.validation import Validation, explained_variance_area, rank_me
from tests.evaluation.test_zeroshot import converted_clips
from tests.tiny import TINY

TRAIN = TrainConfig(epochs=4, batch_size=6, blr=0.05, warmup_epochs=1, ema_decay_init=0.9, ema_decay_end=0.99)
CPU = torch.device("cpu")


class FakeEncoder:
    dim = 16

    def __init__(self, directions: np.ndarray) -> None:
        self._directions = directions

    def describe(self) -> dict[str, Any]:
        return {"model": "made-up", "weights": "sha256:0"}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self._directions[[int(text.split()[1]) for text in texts]].astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path]) -> Path:
    root = make_data(tmp_path_factory.mktemp("set") / "data", clips=30, frames=60)
    write_file_list(root / "held_out.csv", read_file_list(root / "files_made.csv")[:7])
    return root


def test_held_out_clips_are_validated_on_and_never_trained_on(data: Path) -> None:
    opened = open_training_data(DataChoice(data, held_out=(data / "held_out.csv",)), 80)
    assert opened.summary() == "30 files listed = 23 used + 7 held out + 0 without captions + 0 unreadable"
    assert opened.held_out is not None
    held_out = opened.held_out.log_mels.file_names.to_pylist()
    assert held_out == read_file_list(data / "held_out.csv")
    assert not set(held_out) & set(opened.training.log_mels.file_names.to_pylist())
    metrics = []
    for config in (TRAIN, replace(TRAIN, batch_size=12, noise_ratio=0.0)):
        objective = make_state(TINY, config, opened, CPU).objective
        validation = Validation(ValidationOptions(features_every=0), opened, config, objective, TINY)
        metrics.append(validation.metrics(1))
        assert objective.training
        assert objective.model.training
    assert metrics[0] == metrics[1]
    assert set(metrics[0]) == {"valid_loss", "valid_loss_m2d", "valid_loss_clap"}
    assert metrics[0]["valid_loss"] == pytest.approx(metrics[0]["valid_loss_m2d"] + metrics[0]["valid_loss_clap"])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("names", "message"), [([], "lists no files"), (None, "is held out"), (["made_lms/clip0000-0.npy"], "at least 2")]
)
def test_held_out_lists_that_cannot_be_used(data: Path, tmp_path: Path, names: list[str] | None, message: str) -> None:
    write_file_list(tmp_path / "list.csv", read_file_list(data / "files_made.csv") if names is None else names)
    with pytest.raises(UserError, match=message):
        open_training_data(DataChoice(data, held_out=(tmp_path / "list.csv",)), 80)


def test_weights_come_from_the_lists(data: Path, tmp_path: Path) -> None:
    names = read_file_list(data / "files_made.csv")
    rows = [[name, str(number % 3)] for number, name in enumerate(names)]
    write_csv(tmp_path / "list.csv", ["file_name", "weight"], rows)
    opened = open_training_data(DataChoice(data, (tmp_path / "list.csv",), weighted=True), 80)
    assert opened.weights is not None
    assert opened.weights.tolist() == [number % 3 for number in range(30)]
    for text, message in (("-1", "row 3"), ("many", "row 3"), ("inf", "row 3")):
        write_csv(tmp_path / "list.csv", ["file_name", "weight"], [rows[0], [names[1], text]])
        with pytest.raises(UserError, match=message):
            open_training_data(DataChoice(data, (tmp_path / "list.csv",), weighted=True), 80)
    with pytest.raises(UserError, match="weight"):
        open_training_data(DataChoice(data, weighted=True), 80)


def test_ranks_of_known_features() -> None:
    torch.manual_seed(0)
    assert rank_me(torch.eye(16)) == pytest.approx(16, rel=1e-4)
    assert rank_me(torch.ones(50, 1) * torch.rand(1, 16)) == pytest.approx(1, rel=1e-3)
    assert rank_me(torch.randn(2000, 8)) == pytest.approx(8, rel=0.01)
    two = torch.randn(500, 2) @ torch.linalg.qr(torch.randn(16, 2))[0].T
    assert rank_me(two) == pytest.approx(2, rel=0.02)
    assert explained_variance_area(torch.randn(20000, 8)) == pytest.approx(0.5, abs=0.02)
    assert explained_variance_area(two) == pytest.approx(1 - 1 / 16, abs=0.01)
    assert explained_variance_area(torch.ones(5, 3)) == 1


def test_model_flops_are_those_that_a_profiler_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from m2dprep.m2dclap.model import M2DCLAP

    model = M2DCLAP(TINY)
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(4, 1, 80, 48), torch.ones(4, 16)).loss.backward()
    assert 4 * train_flops_per_clip(TINY) == pytest.approx(counter.get_total_flops(), rel=0.12)
    assert train_flops_per_clip(ModelConfig()) == pytest.approx(8.47e10, rel=0.01), "the base model, by hand"
    assert block_flops(1, 10) == 2 * 12 * 100 + 40
    assert matrix_peak(CPU, "none") > 1e8


def task(folder: Path, data: Path, text: str, rows: list[list[str]]) -> Path:
    """A prepared folder whose clips are log-mels of the data directory."""
    folder.mkdir()
    (folder / "task.yaml").write_text(text)
    write_csv(folder / "metadata.csv", rows[0], rows[1:])
    (folder / "prepared.json").write_text(json.dumps({"root": str(data)}))
    return folder


LABELS = "name: kinds\nprotocols: [zero-shot, linear]\ncaption: {template: '{label} here'}\n"
CAPTIONS = "name: said\nprotocols: [retrieval]\nmetric: t2a_R@1\nlayout: captions\n"


def probed(data: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a probe measures of two states of a model, the second with other weights."""
    opened = open_training_data(DataChoice(data), 80)
    objective = make_state(TINY, TRAIN, opened, CPU).objective
    options = ValidationOptions(features_every=0, probe_every=3, probe=folder)
    validation = Validation(options, opened, TRAIN, objective, TINY)
    assert [epoch for epoch in range(1, 7) if validation.due(epoch)] == [3, 6]
    first = validation.metrics(3)
    assert objective.training
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return dict(first), dict(validation.metrics(6))


def test_a_prepared_task_is_classified_between_epochs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_directions: np.ndarray
) -> None:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder(class_directions))
    names = read_file_list(data / "held_out.csv")
    rows = [[name, f"kind {name[-5]}", "test"] for name in [*names, "gone-0.npy"]]
    folder = task(tmp_path / "kinds", data, LABELS, [["file_name", "label", "split"], *rows])
    first, second = probed(data, folder)
    assert set(first) == {"probe_accuracy", "probe_failed"}
    assert first["probe_failed"] == 1
    assert 0 <= first["probe_accuracy"] <= 1
    assert first["probe_accuracy"] * 7 == pytest.approx(round(first["probe_accuracy"] * 7))
    assert set(second) == set(first)


def test_a_prepared_task_with_captions_is_searched_between_epochs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_directions: np.ndarray
) -> None:
    encoded: list[str] = []

    class Counting(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            encoded.extend(texts)
            return super().encode(texts)

    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: Counting(class_directions))
    rows = [
        [name, f"kind {name[-5]} {word}", "test"] for name in read_file_list(data / "held_out.csv") for word in "ab"
    ]
    folder = task(tmp_path / "said", data, CAPTIONS, [["file_name", "caption", "split"], *rows])
    first, second = probed(data, folder)
    assert set(first) == {"probe_t2a_r1", "probe_t2a_map10", "probe_a2t_r1", "probe_failed"}
    assert all(0 <= value <= 1 for name, value in first.items() if name != "probe_failed")
    assert first != second, "it is the model of that epoch that is measured"
    assert len(encoded) == len(set(encoded)), "every caption is encoded once"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nprotocols: [linear]\n", "neither zero-shot nor retrieval"),
        (LABELS.replace("{label} here", "kind 1 {label}") + "classes: x\n", "classes"),
        (LABELS, "have one caption"),
    ],
)
def test_tasks_that_are_no_probe(
    text: str, message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_directions: np.ndarray
) -> None:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder(class_directions))
    rows = [
        [name, label] for name, label in zip(read_file_list(data / "held_out.csv"), ("kind 1", "kind_1"), strict=False)
    ]
    with pytest.raises(UserError, match=message):
        probed(data, task(tmp_path / "x", data, text, [["file_name", "label"], *rows]))
    with pytest.raises(UserError, match="no prepared task"):
        probed(data, tmp_path)


@pytest.mark.slow
def test_the_probe_leaves_out_log_mels_that_are_not_what_their_records_say(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    class_directions: np.ndarray,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder(class_directions))
    probe = converted_clips(tmp_path)
    probe.write_text(probe.read_text().replace("kind_", "kind "))
    validation = ValidationOptions(features_every=0, probe_every=1, probe_clips=probe)
    train(
        DataChoice(data),
        tmp_path / "run",
        TINY,
        replace(TRAIN, epochs=1, warmup_epochs=0),
        RunOptions("tiny", validation=validation),
    )
    (line,) = [line for line in read_log(tmp_path / "run/log.jsonl") if "zero_shot_failed" in line]
    assert line["zero_shot_failed"] == 4
    assert "4 clips of the probe failed, data/x_lms/1.npy (damaged) first" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_watched_and_drawn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_directions: np.ndarray
) -> None:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder(class_directions))
    names = read_file_list(data / "held_out.csv")
    write_csv(
        tmp_path / "probe.csv", ["file_name", "label"], [[name, f"kind {name[-5]}"] for name in [*names, "gone-0.npy"]]
    )
    validation = ValidationOptions(
        valid_every=2,
        features_every=2,
        probe_every=20,
        probe_clips=tmp_path / "probe.csv",
        probe_root=data,
        probe_template="{label} here",
        probe=task(
            tmp_path / "kinds", data, LABELS, [["file_name", "label"], *([name, f"kind {name[-5]}"] for name in names)]
        ),
    )
    choice = DataChoice(data, held_out=(data / "held_out.csv",))
    config = replace(TRAIN, epochs=20, batch_size=10, blr=0.05)
    train(choice, tmp_path / "run", TINY, config, RunOptions("tiny", validation=validation))
    lines = {line["epoch"]: line for line in read_log(tmp_path / "run/log.jsonl")}
    assert [epoch for epoch, line in lines.items() if "valid_loss" in line] == list(range(2, 21, 2))
    assert [epoch for epoch, line in lines.items() if "zero_shot_accuracy" in line] == [20]
    assert lines[20]["zero_shot_failed"] == 1
    assert lines[20]["probe_accuracy"] == pytest.approx(lines[20]["zero_shot_accuracy"])
    assert lines[20]["zero_shot_accuracy"] >= 0.5
    assert lines[20]["valid_loss"] < lines[2]["valid_loss"]
    assert 1 <= lines[20]["rank_me"] <= 23
    assert 0.5 <= lines[20]["explained_variance_area"] <= 1
    drawn = CliRunner().invoke(m2dprep, ["plot", str(tmp_path / "run")])
    assert drawn.exit_code == 0, drawn.stderr
    assert drawn.stdout.strip() == str(tmp_path / "run/run.png")
    assert (tmp_path / "run/run.png").read_bytes().startswith(b"\x89PNG")
    nothing = CliRunner().invoke(m2dprep, ["plot", str(tmp_path)])
    assert nothing.exit_code == 2
    assert "no log.jsonl" in nothing.stderr
