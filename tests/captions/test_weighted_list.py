"""``m2dprep captions weights``: a list with weights from captions.parquet or a CSV, which training draws by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.captions.label_weights import label_weights
from tests.cli.invocation import refused, run
from tests.conftest import MakeData

LABELS = {"clip0000-0": "a,b", "clip0001-1": "a", "clip0002-2": "a", "clip0003-3": " c "}


@pytest.fixture
def data(make_data: MakeData, tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", clips=6)


def table(data: Path, **labels: str) -> Path:
    path = data / "labels.csv"
    rows = [f'"{name}.wav","{label}"' for name, label in (labels or LABELS).items()]
    path.write_text("\n".join(["file_name,label", *rows]) + "\n")
    return path


def test_a_csv_of_labels(data: Path) -> None:
    output = data / "weighted.csv"
    command = ("captions", "weights", str(data / "files_made.csv"), str(table(data)), "-o", str(output))
    first = run(*command, "--json")
    assert first.exit_code == 0, first.output
    assert "6 files = 4 done + 2 skipped (without labels) + 0 failed; 3 classes" in first.stderr
    assert json.loads(first.stdout)["weighted"] == 4
    found = read_csv_columns(output, ["file_name", "weight"], "the list")
    assert found["file_name"] == [f"made_lms/{name}.npy" for name in LABELS]
    expected = label_weights([["a", "b"], ["a"], ["a"], ["c"]])
    assert list(map(float, found["weight"])) == expected.tolist(), "every digit"
    before = output.read_bytes()
    assert "holds just that already" in run(*command).stderr
    assert output.read_bytes() == before
    refused(run(*command, "--added", "100"), 5, "--overwrite")
    assert run(*command, "--added", "100", "--overwrite").exit_code == 0
    assert output.read_bytes() != before


def test_labels_of_the_captions(data: Path) -> None:
    output = data / "weighted.csv"
    done = run("captions", "weights", str(data / "files_made.csv"), str(data / "captions.parquet"), "-o", str(output))
    assert done.exit_code == 0, done.output
    weights = [float(one) for one in read_csv_columns(output, ["weight"], "the list")["weight"]]
    assert weights == label_weights([[f"kind_{n % 4}"] for n in range(6)]).tolist()


@pytest.mark.parametrize(
    ("labels", "output", "words"),
    [
        ({"other": "a"}, "weighted.csv", "none of the 6 files"),
        (LABELS, "files_weighted.csv", "--files"),
        (LABELS, "train_x.csv", "--files"),
    ],
)
def test_refused(data: Path, labels: dict[str, str], output: str, words: str) -> None:
    where = table(data, **labels)
    refused(run("captions", "weights", str(data / "files_made.csv"), str(where), "-o", str(data / output)), 2, words)


def test_a_clip_twice_and_no_labels(data: Path) -> None:
    path = data / "labels.csv"
    twice, none = "file_name,label\na.wav,x\na.wav,y\n", "file_name,x\na,b\n"
    for text, words in ((twice, "a.wav occurs twice"), (none, "no column labels or label")):
        path.write_text(text)
        where = str(data / "files_made.csv")
        refused(run("captions", "weights", where, str(path), "-o", str(data / "weighted.csv")), 2, words)


@pytest.mark.slow
def test_training_draws_by_the_list(data: Path) -> None:
    labels = {f"clip{n:04d}-{n % 4}": "rare" if n == 5 else "common" for n in range(6)}
    output = data / "weighted.csv"
    made = run("captions", "weights", str(data / "files_made.csv"), str(table(data, **labels)), "-o", str(output))
    assert made.exit_code == 0, made.output
    small = ("--model", "tiny", "--files", str(output), "--weighted", "--batch-size", "2", "--epochs", "1")
    for more, steps in ((("--draws", "4", "--distinct"), 2), (("--draws", "8"), 4), ((), 3)):
        done = run("train", str(data), "-o", str(data / f"run{steps}"), *small, *more, "--device", "cpu", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["steps"] == steps
    refused(
        run("train", str(data), "-o", str(data / "more"), *small, "--draws", "7", "--distinct", "--device", "cpu"), 2,
        "7 different clips cannot be drawn per epoch: there are 6 with a weight above 0",
    )  # fmt: skip
