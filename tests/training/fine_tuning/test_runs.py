"""Runs of fine-tuning: what they write, that they go on after any end, and that processes share one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.json_files import is_proven
from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.audioprep.pack import pack
from m2dprep.cli.main import main
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.sharing.card import CardRequest
from m2dprep.evaluation.sharing.hub_folder import export_to_hub_folder
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.layouts import parts_of
from m2dprep.training.log import proofs_of_run
from m2dprep.training.reports.report import ReportOptions, write_report
from tests.evaluation.made_clips import write_checkpoint, write_tones
from tests.forks import ended, run_together, start
from tests.training.fine_tuning.made import SMALL, fine_tune, label_data, lines_of, newest_checkpoint, write_labels

pytestmark = pytest.mark.slow

MakeData = Callable[..., Path]
# Of the made log-mels: a little more than the model's width, so that its positions are interpolated.
FRAMES = ("--frames", 56)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> Path:
    """A folder with ``data``, ``labels.csv`` (14 clips to test on) and a checkpoint."""
    place = tmp_path_factory.mktemp("set")
    data = make_data(place / "data", clips=40, frames=60)
    label_data(data, place / "labels.csv", test_from=26)
    write_checkpoint(place)
    return place


def arguments(place: Path, out: Path, *more: object) -> tuple[object, ...]:
    return (write_path(place), place / "labels.csv", place / "data", *SMALL, *FRAMES, "-o", out, *more)


def write_path(place: Path) -> Path:
    return next(place.glob("m2d_clap_vit_tiny-*/checkpoint-1.pth"))


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    result = fine_tune(*arguments(place, out, "--save-every", 1, "--keep", 0))
    assert result.exit_code == 0, result.output
    return out


def best_weights(run: Path) -> Path:
    found = list(run.glob("m2d_clap_vit_tiny-*/weights_*.pth"))
    assert len(found) == 1
    return found[0]


def test_files_of_a_run(finished: Path) -> None:
    folder = best_weights(finished).parent
    assert folder.name.startswith("m2d_clap_vit_tiny-80x56p16x16p16k-e3b8s43-")
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [f"checkpoint-{n}.pth" for n in (1, 2, 3)]
    lines = lines_of(finished)
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["step"] for line in lines if "valid_accuracy" in line] == [3, 6, 9]
    assert [line["lr"] for line in lines][:2] == [0.0, 0.0]
    kinds = [f"kind_{n}" for n in range(4)]
    assert read_csv_columns(finished / "classes.csv", ["label"], "x")["label"] == kinds
    assert (folder / "classes.txt").read_text().splitlines() == kinds
    proofs = dict(proofs_of_run(finished))
    assert {best_weights(finished), finished / "result.json", folder / "args.json"} <= set(proofs)
    assert all(proof() for proof in proofs.values())


def test_the_best_epochs_weights_are_kept_and_tested(finished: Path) -> None:
    lines = [line for line in lines_of(finished) if "valid_accuracy" in line]
    best = max(reversed(lines), key=lambda line: line["valid_accuracy"])
    epoch = round(best["epoch"]) - 1
    assert best_weights(finished).name == (
        f"weights_ep{epoch}it2-{best['valid_accuracy']:.5f}_loss{best['valid_loss']:.4f}.pth"
    )
    result = Result.read(finished / "result.json")
    assert is_proven(finished / "result.json")
    assert (result.protocol, result.metric, result.n["test"], result.n["classes"]) == ("fine-tune", "accuracy", 14, 4)
    assert result.n["train"] + result.n["valid"] == 26
    right = np.array(result.details["labels"]) == np.array(result.details["predicted"])
    assert result.score == pytest.approx(right.mean())
    weights = torch.load(best_weights(finished), weights_only=True)
    saved = torch.load(best_weights(finished).parent / f"checkpoint-{epoch + 1}.pth", weights_only=True)
    assert all(value.equal(saved["model"][key]) for key, value in weights.items())
    assert saved["args"]["classes"] == [f"kind_{n}" for n in range(4)]


def test_its_page_has_its_score(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("librosa")
    result = Result.read(finished / "result.json")
    write_report(finished, tmp_path / "run.html", ReportOptions(encoded=0))
    page = (tmp_path / "run.html").read_text()
    assert f"accuracy, {result.n['test']} clips" in page
    assert all(label in page for label in result.details["classes"])


def test_scores_follow_from_the_file_alone(finished: Path, place: Path) -> None:
    """Somebody who reads the flat file with a head of his own finds the same classes."""
    checkpoint = Checkpoint.read(best_weights(finished))
    model, head = checkpoint.load_audio_model(torch.device("cpu")), checkpoint.head_weights
    result = Result.read(finished / "result.json")
    crops = np.stack([np.load(place / "data" / name)[..., :56] for name in result.details["files"]])
    log_mel = torch.from_numpy((crops - checkpoint.norm_stats.mean) / checkpoint.norm_stats.std).float()
    with torch.inference_mode():
        features = model.encode(log_mel)[:, 1:].mean(dim=1)
    normal = (features - head["norm.running_mean"]) / (head["norm.running_var"] + 1e-5).sqrt()
    scores = normal @ head["mlp.mlp.0.weight"].T + head["mlp.mlp.0.bias"]
    assert scores.argmax(dim=1).tolist() == result.details["predicted"]


def test_weights_are_read_where_checkpoints_are(finished: Path, tmp_path: Path, make_data: MakeData) -> None:
    assert CheckpointEncoder(best_weights(finished)).parts == {"stacked": 320, "clap": 64}
    newest = newest_checkpoint(finished)
    assert newest.name == "checkpoint-3.pth" and len(parts_of(torch.load(newest, weights_only=True)).head) == 5
    again = fine_tune(*arguments(place_of(finished, tmp_path, make_data), tmp_path / "again"))
    assert again.exit_code == 0, again.output
    assert "its classifier is replaced" in again.stderr


def test_a_finished_run_means_the_weights_that_its_result_is_about(finished: Path, tmp_path: Path) -> None:
    """They say of themselves what a checkpoint says, and its card states the score."""
    judged, newest = best_weights(finished), newest_checkpoint(finished)
    assert find_checkpoint(finished) == find_checkpoint(judged.parent) == judged
    one, other = Checkpoint.read(judged), Checkpoint.read(newest)
    assert (one.config, one.front_end, one.norm_stats) == (other.config, other.front_end, other.norm_stats)
    assert one.text_model == other.text_model
    assert one.args["classes"] == other.args["classes"] != []
    result = Result.read(finished / "result.json")
    assert result.digests["checkpoint"] == CheckpointEncoder(finished, device="cpu").digest
    shared = export_to_hub_folder(finished, tmp_path / "shared", CardRequest("x", "unknown"))
    assert f"{100 * result.score:.2f}" in (shared.folder / "README.md").read_text()
    assert shared.scores == 1


def test_until_it_is_tested_a_run_means_its_newest_checkpoint(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    assert find_checkpoint(tmp_path / "run").name == "checkpoint-3.pth"


def test_the_weights_alone_are_enough(finished: Path, tmp_path: Path) -> None:
    """Somebody needs space and removes what a run would go on from."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    assert find_checkpoint(tmp_path / "run").name == best_weights(finished).name


def place_of(finished: Path, folder: Path, make_data: MakeData) -> Path:
    """A set whose checkpoint is a fine-tuned one."""
    label_data(make_data(folder / "data", clips=24, frames=60), folder / "labels.csv", test_from=16)
    start = folder / "m2d_clap_vit_tiny-80x56p16x16p16k-x"
    start.mkdir()
    (start / "checkpoint-1.pth").write_bytes(best_weights(finished).read_bytes())
    return folder


def test_a_finished_run_is_not_run_again(finished: Path, place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.pth")}
    again = fine_tune(*arguments(place, finished, "--save-every", 1, "--keep", 0, "--json"))
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["score"] == Result.read(finished / "result.json").score
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.pth")} == before


def test_its_settings_make_the_same_run(finished: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((finished / "train.yaml").read_text())
    assert (settings["recipe"], settings["mixup"], settings["lr"]) == ("small", 0.3, 0.05)
    result = fine_tune("--config", finished / "train.yaml", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert without_run(lines_of(tmp_path / "run")) == without_run(lines_of(finished))


def without_run(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "run"} for line in lines]


def test_other_settings_are_another_run(finished: Path, place: Path) -> None:
    for change, words in (("--mixup", "train.mixup: 0.3 → 0.7"), ("--seed", "train.seed")):
        result = fine_tune(*arguments(place, finished, change, 0.7 if change == "--mixup" else 1))
        assert result.exit_code == 5
        assert words in result.output


def _fine_tune(*words: object) -> None:
    """The command, in a process of its own."""
    os.setpgrp()
    sys.argv = ["m2dprep", "fine-tune", *map(str, words)]
    main()


def wait_for(condition: Callable[[], bool], process: ForkServerProcess) -> None:
    while not condition() and process.is_alive():
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_ends_early_goes_on_to_the_same_bytes(
    place: Path, finished: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Killed after each of several checkpoints, or told to stop, and started again."""
    out = tmp_path / "run"
    for steps in (2, 5):
        process = start(_fine_tune, *arguments(place, out, "--save-every", 1, "--save-steps", 1, "--keep", 0))
        wait_for(lambda count=steps: len(list(out.rglob("checkpoint-*.pth"))) >= count, process)  # type: ignore[misc]
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it may have come to its end meanwhile
            os.killpg(process.pid, number)
        assert ended(process) in (-number, 0, 75)
    result = fine_tune(*arguments(place, out, "--save-every", 1, "--save-steps", 1, "--keep", 0))
    assert result.exit_code == 0, result.output
    assert lines_of(out) == lines_of(finished)
    assert best_weights(out).read_bytes() == best_weights(finished).read_bytes()
    one, other = (torch.load(newest_checkpoint(run), weights_only=True) for run in (out, finished))
    assert all(value.equal(other["model"][key]) for key, value in one["model"].items())
    moments = one["optimizer"]["state"]
    assert all(moments[i]["momentum_buffer"].equal(other["optimizer"]["state"][i]["momentum_buffer"]) for i in moments)
    assert Result.read(out / "result.json").score == Result.read(finished / "result.json").score


@pytest.mark.parametrize("changes", [(), ("--accumulate", 2, "--optimizer", "adamw", "--lr", 1e-3, "--head", "probe")])
def test_two_processes_equal_one(place: Path, tmp_path: Path, changes: tuple[object, ...]) -> None:
    codes = run_together(_fine_tune, [arguments(place, tmp_path / "pair", *changes)] * 2, tmp_path / "written")
    words = (tmp_path / "written").read_text()
    assert codes == [0, 0], words[-3000:]
    assert words.count("26 clips") <= 1
    assert fine_tune(*arguments(place, tmp_path / "alone", *changes)).exit_code == 0
    pair, alone = lines_of(tmp_path / "pair"), lines_of(tmp_path / "alone")
    assert len(pair) == len(alone) == 9
    for one, other in zip(pair, alone, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
    assert pair[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)
    assert pair[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-4)
    one, other = (
        torch.load(newest_checkpoint(tmp_path / run), weights_only=True)["model"] for run in ("pair", "alone")
    )
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-2, atol=2e-3, msg=key)
    scores = [Result.read(tmp_path / run / "result.json").score for run in ("pair", "alone")]
    assert scores[0] == pytest.approx(scores[1], abs=0.1)


def test_packed_log_mels_and_loading_processes_change_nothing(place: Path, finished: Path, tmp_path: Path) -> None:
    """A pack without its .npy files; clips named by their ids alone; two loaders."""
    data = tmp_path / "data"
    names = sorted((place / "data/made_lms").glob("*.npy"))
    (data / "made_lms").mkdir(parents=True)
    for path in names:
        write_array(data / "made_lms" / path.name, np.load(path), durable=False)
    pack(data / "made_lms", dtype="float32")
    for path in (data / "made_lms").glob("*.npy"):
        path.unlink()
    (data / "files_made.csv").write_bytes((place / "data/files_made.csv").read_bytes())
    table = read_csv_columns(place / "labels.csv", ["file_name", "label", "split"], "x")
    for number, change in enumerate((lambda name: name, lambda name: f"{Path(name).stem}.wav")):
        rows = [(change(name), *rest) for name, *rest in zip(*table.values(), strict=True)]
        labels = write_labels(tmp_path / f"labels{number}.csv", rows, ("file_name", "label", "split"))
        out = tmp_path / f"run{number}"
        result = fine_tune(
            write_path(place), labels, data, *SMALL, *FRAMES, "-o", out, "--loader-workers", 2 - number,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert without_run(lines_of(out)) == without_run(lines_of(finished)), number


def test_several_labels_are_scored_by_map(place: Path, tmp_path: Path) -> None:
    labels = label_data(place / "data", tmp_path / "labels.csv", test_from=26, several=True)
    result = fine_tune(
        write_path(place), labels, place / "data", *SMALL, *FRAMES, "-o", tmp_path / "run", "--weighted", "--draws", 16,
        "--mask-each", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["metric"] == "mAP" and value["n"]["classes"] == 5 and 0 < value["score"] <= 1
    assert {"valid_map", "valid_loss"} <= set(lines_of(tmp_path / "run")[-1])
    per_class = Result.read(tmp_path / "run/result.json").details["per_class"]
    assert [one["label"] for one in per_class] == ["all", *(f"kind_{n}" for n in range(4))]


@pytest.mark.parametrize("inputs", ["waveforms", "log-mels"])
def test_a_task_of_sounds(tmp_path: Path, inputs: str) -> None:
    """Folds of sounds, one of which cannot be read: all folds one after another, or one."""
    names = write_tones(tmp_path / "sounds", 36)
    (tmp_path / "sounds" / names[7]).write_bytes(b"no sound")
    rows = [(name, f"tone {number % 3}", str(number // 3 % 2 + 1)) for number, name in enumerate(names)]
    task = tmp_path / "task"
    task.mkdir()
    write_labels(task / "metadata.csv", rows, ("file_name", "label", "fold"))
    (task / "task.yaml").write_text("name: tones\nlayout: folds\nunit_seconds: 0.5\n")
    (task / "prepared.json").write_text(json.dumps({"root": str(tmp_path / "sounds")}))
    begin = (write_checkpoint(tmp_path), task, *SMALL, "--inputs", inputs, "--epochs", 2)
    result = fine_tune(*begin, "-o", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["skipped"] == 1 and value["n"] == {"test": 35, "folds": 2, "classes": 3, "failed": 1}
    whole = Result.read(tmp_path / "run/result.json")
    own = [Result.read(tmp_path / f"run/fold-{fold}/result.json").score for fold in (1, 2)]
    assert whole.folds == (tuple(own),)
    assert whole.score == pytest.approx(np.mean([score for score in own if score is not None]))
    assert whole.failures[0]["file_name"] == names[7]
    assert f"inputs {inputs}" in result.stderr or f"{inputs} of 51 frames" in result.stderr
    assert bool(list((tmp_path / "run").glob("log_mels-*/*.npy"))) is (inputs == "log-mels")
    alone = fine_tune(*begin, "--fold", 2, "-o", tmp_path / "second", "--json")
    assert json.loads(alone.stdout)["score"] == own[1]


def test_evars_way_is_labelled(place: Path, tmp_path: Path) -> None:
    result = fine_tune(*arguments(place, tmp_path / "run", "--strict-evar"))
    assert result.exit_code == 0, result.output
    assert "too high" in result.stderr and "too high" in result.stdout
    line = lines_of(tmp_path / "run")[-1]
    assert "test_accuracy" in line and "valid_accuracy" not in line
    found = Result.read(tmp_path / "run/result.json")
    assert found.strict_evar and found.settings["validate_on"] == "test" and found.n["valid"] == 0
    best = max(line["test_accuracy"] for line in lines_of(tmp_path / "run") if "test_accuracy" in line)
    assert found.score == pytest.approx(best)


def test_overwrite_begins_anew(place: Path, tmp_path: Path) -> None:
    assert fine_tune(*arguments(place, tmp_path / "run")).exit_code == 0
    first = best_weights(tmp_path / "run")
    result = fine_tune(*arguments(place, tmp_path / "run", "--seed", 7, "--overwrite"))
    assert result.exit_code == 0, result.output
    assert not first.exists() and "s7-" in best_weights(tmp_path / "run").parent.name
    assert not (tmp_path / "run/earlier-run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--inputs", "waveforms"), "waveforms cannot be made of them"),
        (("--weighted", "--draws", 500), "500 different clips cannot be drawn"),
        (("--fold", 1), "it has no folds"),
        (("--frames", 8), "fewer than one patch"),
        (("--label-column", "sound"), "no column 'sound'"),
        (("--recipe", "as3m"), "'as3m' is not one of"),
    ],
)
def test_requests_that_are_refused(place: Path, tmp_path: Path, more: tuple[object, ...], message: str) -> None:
    result = fine_tune(*arguments(place, tmp_path / "run", *more))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert not list(tmp_path.rglob("*.pth"))


def test_dry_run_measures_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    result = fine_tune(*arguments(place, tmp_path / "run", "--dry-run", "--json"))
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert (value["steps_per_epoch"], value["steps"]) == (3, 9)
    assert 0 < value["trained_parameters"] < value["parameters"] and value["memory_gib"] > 0
    assert not (tmp_path / "run").exists()
