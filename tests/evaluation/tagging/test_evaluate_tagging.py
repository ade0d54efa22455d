"""``m2dprep evaluate tagging``: the classifier's scores against a table's labels, and every misfit told by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.tagging.class_names import audioset_names
from tests.evaluation.tagging.made_classifiers import write_class_list, write_classifier, write_sound

pytestmark = pytest.mark.slow
CLASSES, CLIPS = 6, 9


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_classifier(folder, CLASSES)
    for number in range(CLIPS):
        write_sound(folder / f"{number}.wav", 1.0 + 0.2 * number, number)
    return folder


@pytest.fixture
def checkpoint(place: Path) -> Path:
    found = next(place.glob("m2d*/*.pth"))
    (found.parent / "classes.txt").unlink(missing_ok=True)
    return found


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, list(map(str, arguments)))


def evaluated(*arguments: object) -> dict[str, Any]:
    result = run("evaluate", "tagging", *arguments, "--json")
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def table(path: Path, labels: list[str], column: str = "label", **columns: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", column, *columns])
        writer.writerows(zip([f"{n}.wav" for n in range(CLIPS)], labels, *columns.values(), strict=True))
    return path


def logits(checkpoint: Path, place: Path, classes: int = CLASSES) -> np.ndarray:
    names = write_class_list(place / "tagged.txt", classes)
    tagged = run(
        "tag", checkpoint, *(place / f"{n}.wav" for n in range(CLIPS)), "--classes", names, "--top", 0, "--scores",
        "logits", "--json",
    )  # fmt: skip
    rows = [{one["label"]: one["score"] for one in row["tags"]} for row in json.loads(tagged.stdout)]
    return np.array([[row[f"class {n}"] for n in range(classes)] for row in rows])


@pytest.mark.parametrize("named", [True, False], ids=["head says its classes", "table's classes, sorted"])
def test_accuracy_is_that_of_the_tags(checkpoint: Path, place: Path, named: bool) -> None:
    scores = logits(checkpoint, place)
    right = scores.argmax(axis=1)
    labels = [f"class {n}" for n in right]
    labels[0] = f"class {scores[0].argsort()[-2]}"
    missing = [n for n in range(CLASSES) if f"class {n}" not in labels]
    if named:
        write_class_list(checkpoint.parent / "classes.txt")
    else:  # every class must occur, so that the sorted classes are the head's
        labels[1 : 1 + len(missing)] = [f"class {n}" for n in missing]
    value = evaluated(checkpoint, table(place / "one.csv", labels), "--predictions", place / "predictions.csv")
    expected = np.mean([label == f"class {n}" for label, n in zip(labels, right, strict=True)])
    assert value["score"] == pytest.approx(expected)
    assert value["metric"] == "accuracy"
    assert value["n"]["clips"] == CLIPS
    assert any("does not say" in sentence for sentence in value["deviations"]) is not named
    assert set(value["digests"]) >= {"checkpoint", "metadata", "split"}
    rows = list(csv.DictReader((place / "predictions.csv").open()))
    assert [row["predicted"] for row in rows] == [f"class {n}" for n in right]
    assert [row["correct"] for row in rows] == [
        str(a == f"class {b}").lower() for a, b in zip(labels, right, strict=True)
    ]


@pytest.mark.parametrize("column", ["label", "labels"])
def test_several_labels(checkpoint: Path, place: Path, column: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    write_class_list(checkpoint.parent / "classes.txt")
    scores = logits(checkpoint, place)
    labels = [f"class {n % 3}, class {3 + n % 2}" for n in range(CLIPS)]
    flags = ["--multi-label"] if column == "label" else []
    output = place / f"{column}.json"
    value = evaluated(checkpoint, table(place / "many.csv", labels, column), *flags, "-o", output)
    truth = np.array([[f"class {c}" in own.split(", ") for c in range(CLASSES)] for own in labels])
    aps = [metrics.average_precision_score(truth[:, c], scores[:, c]) for c in range(5)]
    areas = [metrics.roc_auc_score(truth[:, c], scores[:, c]) for c in range(5)]
    assert value["score"] == pytest.approx(sum(aps) / 6)
    assert value["details"]["mAP_of_classes_with_positives"] == pytest.approx(np.mean(aps))
    assert value["details"]["auc"] == pytest.approx(np.mean(areas))
    assert value["details"]["classes_without_positives"] == ["class 5"]
    text = run("evaluate", "tagging", checkpoint, place / "many.csv", *flags)
    assert f"AUC {np.mean(areas):.4f}" in text.stdout
    assert "1 classes have no positive" in text.stdout
    for suffix in ("html", "md"):
        report = run("evaluate", "report", output, "-o", place / f"report.{suffix}")
        assert report.exit_code == 0, report.output
        assert "AUC" in (place / f"report.{suffix}").read_text()


def test_audiosets_mids_by_the_list_of_the_head(checkpoint: Path, place: Path) -> None:
    mids = [f"/m/0{n}" for n in (5, 3, 1, 4, 0, 2)]
    lines = [f'{n},{mid},"Name, {n}"' for n, mid in enumerate(mids)]
    (place / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *lines]) + "\n")
    best = logits(checkpoint, place).argmax(axis=1)
    labels = [sorted(mids)[n] for n in best]
    value = evaluated(
        checkpoint, table(place / "mids.csv", labels), "--head-classes", place / "class_labels_indices.csv"
    )
    assert value["score"] == 1


@pytest.mark.parametrize("column", ["ids", "labels"])
def test_a_head_of_527_knows_audiosets_mids_and_words(place: Path, column: str) -> None:
    """Also where the table has few of its classes, and the head does not say what they are."""
    checkpoint = write_classifier(place / "of_audioset", 527)
    names = getattr(audioset_names(), column)
    best = logits(checkpoint, place, 527).argmax(axis=1)
    value = evaluated(checkpoint, table(place / f"{column}.csv", [names[number] for number in best]))
    assert value["score"] == 1
    assert any("taken to be AudioSet's" in sentence for sentence in value["deviations"])


def test_folds(checkpoint: Path, place: Path) -> None:
    write_class_list(checkpoint.parent / "classes.txt")
    folds = [str(1 + n % 3) for n in range(CLIPS)]
    clips = table(place / "folds.csv", [f"class {n % 6}" for n in range(CLIPS)], fold=folds)
    every, one = evaluated(checkpoint, clips), evaluated(checkpoint, clips, "--fold", 2)
    assert (every["n"]["clips"], one["n"]["clips"]) == (CLIPS, 3)
    assert any("All folds are tested" in sentence for sentence in every["deviations"])
    assert not one["deviations"]
    result = run("evaluate", "tagging", checkpoint, clips, "--fold", 9)
    assert result.exit_code == 2
    assert "no fold '9'; it has 1, 2, 3" in result.stderr


GOOD = [f"class {n % 6}" for n in range(CLIPS)]


@pytest.mark.parametrize(
    ("labels", "flags", "words"),
    [
        (["dog", *GOOD[1:]], [], "0.wav has the label 'dog', which is none of the 6 classes of the classifier"),
        (["class 0,class 1", *GOOD[1:]], [], "--multi-label"),
        ([",", *GOOD[1:]], ["--multi-label"], r"0.wav has no label (',')"),
        (["", *GOOD[1:]], [], "label is empty"),
    ],
)
def test_labels_that_the_head_does_not_know(
    checkpoint: Path, place: Path, labels: list[str], flags: list[str], words: str
) -> None:
    write_class_list(checkpoint.parent / "classes.txt")
    result = run("evaluate", "tagging", checkpoint, table(place / "bad.csv", labels), *flags)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_heads_of_other_numbers_of_classes(checkpoint: Path, place: Path) -> None:
    clips = table(place / "few.csv", [f"class {n % 4}" for n in range(CLIPS)])
    result = run("evaluate", "tagging", checkpoint, clips)
    assert result.exit_code == 2
    assert "has 6 classes and does not say which" in result.stderr
    assert "has 4; --head-classes" in result.stderr
    result = run("evaluate", "tagging", checkpoint, clips, "--head-classes", write_class_list(place / "four.txt", 4))
    assert result.exit_code == 2
    assert "has 6 classes, and 4 names are given" in result.stderr


def test_unreadable_clips_are_failures(checkpoint: Path, place: Path) -> None:
    write_class_list(checkpoint.parent / "classes.txt")
    (place / "gone").mkdir(exist_ok=True)
    for number in range(CLIPS - 1):
        (place / f"gone/{number}.wav").write_bytes((place / f"{number}.wav").read_bytes())
    clips = table(place / "gone/clips.csv", GOOD)
    result = run("evaluate", "tagging", checkpoint, clips, "--json")
    assert result.exit_code == 3
    value = json.loads(result.stdout)
    assert (value["n"]["clips"], value["n"]["failed"]) == (CLIPS - 1, 1)
    assert value["failures"][0]["file_name"] == f"{CLIPS - 1}.wav"


def prepared(folder: Path, place: Path, name: str, labels: list[str]) -> None:
    folder.mkdir(parents=True)
    table(folder / "metadata.csv", labels, split=["test"] * CLIPS)
    (folder / "task.yaml").write_text(f"name: {name}\nprotocols: [retrieval]\nmetric: accuracy\nlayout: splits\n")
    (folder / "prepared.json").write_text(json.dumps({"root": str(place)}))


def test_evaluate_all_runs_it_where_the_classes_are_the_tasks(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    prepared(tmp_path / "tasks/mine", place, "mine", GOOD)
    prepared(tmp_path / "tasks/other", place, "other", [f"kind {n % 6}" for n in range(CLIPS)])
    command = ("evaluate", "all", checkpoint, tmp_path / "tasks", "--protocol", "tagging", "--json")
    assert json.loads(run(*command, "-o", tmp_path / "unnamed").stdout or '{"rows": []}')["rows"] == []
    write_class_list(checkpoint.parent / "classes.txt")
    result = run(*command, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["task"], row["protocol"]) for row in rows] == [("mine", "tagging")]
    assert rows[0]["result"]["score"] == pytest.approx(evaluated(checkpoint, table(place / "all.csv", GOOD))["score"])
    assert (tmp_path / "report/results/mine.tagging.html").exists()
