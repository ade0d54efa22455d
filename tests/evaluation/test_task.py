"""Tasks are read from YAML, prepared sets and any CSV give the clips of a protocol, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.prepared import Columns, read_evaluation_set
from m2dprep.evaluation.protocols.result import Result, mean_and_interval
from m2dprep.evaluation.task import CaptionRule, PaperScore, Task, read_task

CREMAD = """
name: cremad
title: CREMA-D
metric: accuracy
layout: splits
unit_seconds: 2.5
caption:
  template: "{label} can be heard"
  names: {ANG: angry person talking}
counts: {train: 2, valid: 1, test: 1}
classes: 2
address: https://github.com/CheyneyComputerScience/CREMA-D
licence: ODbL
papers:
  - {protocol: zero-shot, model: M2D-CLAP 2024, score: 17.73}
  - {protocol: linear, model: M2D-CLAP 2024, score: 73.4, interval: 0.2}
metadata: {rule: crema-d, speakers: [1001, 1002]}
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_task_is_read_and_written(tmp_path: Path) -> None:
    task = read_task(write(tmp_path / "cremad.yaml", CREMAD))
    assert (task.name, task.unit_seconds, task.counts["train"]) == ("cremad", 2.5, 2)
    assert task.caption.captions("ANG") == ["angry person talking can be heard"]
    assert task.papers[1] == PaperScore("linear", "M2D-CLAP 2024", 73.4, 0.2)
    assert task.metadata["speakers"] == [1001, 1002]
    again = read_task(write(tmp_path / "again.yaml", yaml.safe_dump(task.to_dict())))
    assert again.to_dict() == task.to_dict()


def test_several_labels_and_map_go_together(tmp_path: Path) -> None:
    assert read_task(write(tmp_path / "a.yaml", "name: a\nmetric: mAP\n")).multi_label
    assert read_task(write(tmp_path / "b.yaml", "name: b\nmulti_label: true\n")).metric == "mAP"
    with pytest.raises(UserError, match="scored by mAP"):
        read_task(write(tmp_path / "c.yaml", "name: c\nmetric: mAP\nmulti_label: false\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\n", "names no task"),
        ("name: x\nmetric: f1\n", "line 2.*metric is 'f1'"),
        ("name: x\nlayout: trees\n", "layout is 'trees'"),
        ("name: x\nunit_second: 5\n", "line 2: unknown setting 'unit_second'; did you mean 'unit_seconds'"),
        ("name: x\nunit_seconds: -5\n", "line 2.*unit_seconds is -5"),
        ("name: x\nunit_seconds: 1.0e-9\n", "line 2.*unit_seconds is 1e-09"),
        ("name: x\nunit_seconds: five\n", "line 2.*unit_seconds"),
        ("name: x\ncaption: {template: sound}\n", "line 2.*no {label}"),
        ("name: x\ncaption: {template: []}\n", "line 2.*at least one template"),
        ("name: x\ncaption: {words: {}}\n", "line 2.*unknown words"),
        ("name: x\ncaption: sound\n", "line 2.*caption is 'sound'"),
        ("name: x\ncounts: {train: many}\n", "line 2.*counts.train"),
        ("name: x\ncounts: {dev: 3}\n", "line 2.*unknown dev"),
        ("name: x\npapers: [{model: y}]\n", "line 2.*entry 1 lacks protocol, score"),
        ("name: x\nprotocols: [guessing]\n", "protocols has guessing"),
        ("name: x\nmetadata: 3\n", "line 2.*metadata"),
    ],
)
def test_faults_of_a_task_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_task(write(tmp_path / "x.yaml", text))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared set whose clips lie elsewhere."""
    write(tmp_path / "set" / "task.yaml", CREMAD)
    write(tmp_path / "set" / "prepared.json", json.dumps({"root": "../audio"}))
    write(
        tmp_path / "set" / "metadata.csv",
        "file_name,label,split\na.wav,SAD,train\nb.wav,ANG,train\nc.wav,ANG,valid\nd.wav,SAD,test\ne.wav,HAP,\n",
    )
    write(tmp_path / "audio" / "a.wav", "")
    return tmp_path / "set"


def test_a_prepared_folder(folder: Path) -> None:
    clips = read_evaluation_set(folder)
    assert clips.task.name == "cremad"
    assert clips.classes == ["ANG", "SAD"]
    assert clips.targets().tolist() == [1, 0, 0, 1]
    assert clips.counts() == {"train": 2, "valid": 1, "test": 1}
    assert clips.ignored == 1
    assert clips.rows("train").tolist() == [0, 1]
    assert clips.paths([0])[0].resolve() == (folder.parent / "audio" / "a.wav").resolve()


def test_words_for_labels_that_are_none(folder: Path) -> None:
    write(folder / "labels.csv", 'label,name\nSAD,"sad, or so"\nANG,other\n')
    rule = read_evaluation_set(folder).task.caption
    assert rule.captions("SAD") == ["sad, or so can be heard"]
    assert rule.captions("ANG") == ["angry person talking can be heard"], "the task's own words come first"


def test_the_digest_of_a_split_is_of_its_rows_alone(folder: Path) -> None:
    before = read_evaluation_set(folder)
    digests = before.digests()
    text = (folder / "metadata.csv").read_text()
    write(folder / "metadata.csv", text.replace("c.wav,ANG", "c.wav,SAD"))
    after = read_evaluation_set(folder)
    assert before.digests(["test"])["split"] == after.digests(["test"])["split"]
    assert digests["split"] != after.digests()["split"]
    assert digests["metadata"] != after.digests()["metadata"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write(tmp_path / "1.wav", "")
    return write(tmp_path / "clips.csv", "filename,fold,category\n1.wav,10,dog\n2.wav,2,cat\n3.wav,1,dog\n")


def test_any_table_with_folds(table: Path) -> None:
    clips = read_evaluation_set(table)
    assert clips.fold_names == ["1", "2", "10"]
    assert clips.classes == ["cat", "dog"]
    assert clips.counts() == {"all": 3}
    assert clips.splits == ["test"] * 3


def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path: Path, table: Path) -> None:
    write(table, "file_name,label\n1.wav,10\n2.wav,9\n")
    assert read_evaluation_set(table).classes == ["9", "10"]


def test_several_labels(table: Path) -> None:
    write(table, 'file_name,label,split\n1.wav,"b, a",train\n2.wav,c,train\n3.wav,"a,c",test\n')
    clips = read_evaluation_set(table, Task("x", "mAP", multi_label=True))
    assert clips.classes == ["a", "b", "c"]
    assert clips.targets().tolist() == [[True, True, False], [False, False, True], [True, False, True]]


@pytest.mark.parametrize(
    "text",
    [
        "file_name,caption\nb.wav,one\na.wav,two\nb.wav,three\n",
        "file_name,caption_1,caption_2\nb.wav,one,three\na.wav,two,\n",
        "file_name,caption,split\nb.wav,one,test\na.wav,two,test\nb.wav,three,eval\nc.wav,four,\n",
    ],
)
def test_captions_are_rows_or_columns(tmp_path: Path, text: str) -> None:
    write(tmp_path / "a.wav", "")
    clips = read_evaluation_set(write(tmp_path / "c.csv", text), captions=True)
    assert clips.files == ["a.wav", "b.wav"]
    assert clips.captions == [["two"], ["one", "three"]]
    assert clips.splits == ["test", "test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\n", "lists no clips"),
        ("file_name,label,split\n1.wav,a,nan\n", r"lists no clips \(1 without a split\)"),
        ("file_name,label,split\n1.wav,a,dev\n", "row 2: the split 'dev'"),
        ("file_name,label\n1.wav,\n", "row 2: file_name or label is empty"),
        ('file_name,label\n1.wav,"a\nb"\n', "row 2: a line break"),
        ("file_name,label\n1.wav,a\n1.wav,b\n", "1.wav occurs twice"),
        ("file_name,label,fold\n1.wav,a,\n", "row 2: fold is empty"),
        ("file_name,label\n9.wav,a\n", "none of the 1 files"),
        ("file_name,label\n../1.wav,a\n", "leads out of"),
        ("wav,label\n1.wav,a\n", "no column file_name"),
    ],
)
def test_faults_of_a_table_are_named(table: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_evaluation_set(write(table, text))


def test_a_class_that_training_lacks(table: Path) -> None:
    write(table, "file_name,label,split\n1.wav,a,train\n2.wav,b,train\n3.wav,c,test\n")
    with pytest.raises(UserError, match=r"3\.wav has the label 'c', which is none of the 2 classes"):
        read_evaluation_set(table).targets()
    assert read_evaluation_set(table, classes=["a", "b", "c"]).targets().tolist() == [0, 1, 2]


def test_columns_that_are_not_there(table: Path) -> None:
    for columns in (Columns(fold="f"), Columns(split="s"), Columns(label="l"), Columns(file="x")):
        with pytest.raises(UserError, match="no column"):
            read_evaluation_set(table, columns=columns)
    with pytest.raises(UserError, match="no column fold"):
        read_evaluation_set(write(table, "file_name,label\n1.wav,a\n"), Task("x", layout="folds"))


def test_results_survive_the_disk(tmp_path: Path) -> None:
    result = Result(
        "linear", "x", "accuracy", np.float32(0.5).item(), 0.1, (0.4, 0.6), (42, 43), ((0.4,), (0.6,)),
        {"test": 3}, True, ("a sentence.",), {"lr": 3e-5}, {"split": "0"}, {"numpy": "2"}, {"path": "p"},
        {"curve": np.array([1.0, np.nan])}, ({"file_name": "f", "reason": "r", "message": "m"},),
    )  # fmt: skip
    result.write(tmp_path / "r.json")
    found = Result.read(tmp_path / "r.json")
    assert found.details == {"curve": [1.0, None]}
    assert found.to_dict() == result.to_dict()
    assert found.about(n={"train": 2}, deviations=("b.",)).n == {"test": 3, "train": 2}
    write(tmp_path / "other.json", json.dumps({"accuracy": 1}))
    with pytest.raises(UserError, match="no result"):
        Result.read(tmp_path / "other.json")
    with pytest.raises(UserError, match="no such file"):
        Result.read(tmp_path / "nowhere.json")
    for wrong in ({"scores": None}, {"folds": 3}, {"seeds": 1}):
        with pytest.raises(UserError, match="no result"):
            Result.from_dict({**result.to_dict(), **wrong})


def test_interval_over_seeds_is_students() -> None:
    mean, half = mean_and_interval([0.7, 0.8, 0.9])
    assert mean == pytest.approx(0.8)
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert mean_and_interval([0.7]) == (0.7, None)


def test_a_rule_needs_a_place_for_the_label() -> None:
    with pytest.raises(UserError, match=r"no \{label\}"):
        CaptionRule(("a sound",))
