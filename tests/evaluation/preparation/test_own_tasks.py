"""A task of one's own is a YAML file: every kind of rule at the command line, and what is wrong with one is named."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from m2dprep.evaluation.preparation.rule import read_rule
from m2dprep.evaluation.task import known_tasks, read_task, task_file
from tests.cli.invocation import refused, run
from tests.evaluation.preparation.made_downloads import touch, write

ROOT = Path(__file__).resolve().parents[3]
# As in the original's own captions; audioset is called as there.
GOLDEN = json.loads((ROOT / "tests/golden/evar_zeroshot.json").read_text())["captions"]


@pytest.mark.parametrize("task", sorted(GOLDEN))
def test_captions_are_those_of_the_original(task: str) -> None:
    rule = read_task(known_tasks()["audioset" if task == "as" else task]).caption
    for label, caption in GOLDEN[task]:
        if task != "as":
            assert rule.captions(label) == [caption]


def test_names_of_audioset_give_the_original_captions(tmp_path: Path) -> None:
    """The names come with the lists."""
    from m2dprep.evaluation.prepared import read_evaluation_set

    names = [(label, caption.removesuffix(" can be heard")) for label, caption in GOLDEN["as"]]
    text = "index,mid,display_name\n" + "".join(f'{n},{mid},"{name}"\n' for n, (mid, name) in enumerate(names))
    write(tmp_path / "x" / "class_labels_indices.csv", text)
    write(tmp_path / "x" / "eval_segments.csv", f'# c\nabcdefghijk, 0.0, 10.0, "{names[0][0]}"\n')
    touch(tmp_path / "x", "eval_segments/Yabcdefghijk.wav")
    assert run("evaluate", "prepare", "audioset", tmp_path / "x", "-o", tmp_path / "set").exit_code == 0
    rule = read_evaluation_set(tmp_path / "set").task.caption
    assert [rule.captions(label)[0] for label, _ in GOLDEN["as"]] == [caption for _, caption in GOLDEN["as"]]


# Facts of EVAR and of the data sets: unit seconds, folds or splits, and clips.
FACTS = {
    "esc50": (5, {"all": 2000}, 50),
    "us8k": (4, {"all": 8732}, 10),
    "spcv2": (1, {"train": 84843, "valid": 9981, "test": 11005}, 35),
    "vc1": (8.2, {"train": 138361, "valid": 6904, "test": 8251}, 1251),
    "voxforge": (5.8, {"all": 176428}, 6),
    "cremad": (2.5, {"train": 5155, "valid": 732, "test": 1551}, 6),
    "gtzan": (30, {"train": 443, "valid": 197, "test": 290}, 10),
    "nsynth": (4, {"train": 289205, "valid": 12678, "test": 4096}, 11),
    "surge": (4, {"train": 148896, "valid": 17160, "test": 17336}, 88),
    "fsd50k": (7.6358, {"train": 36796, "valid": 4170, "test": 10231}, 200),
    "audioset": (10, {"train": 2041789 + 22160, "test": 20371}, 527),
    "audiocaps": (None, {"train": 49838, "valid": 495, "test": 975}, None),
    "clotho": (None, {"train": 3839, "valid": 1045, "test": 1045}, None),
    "tut-scenes-2017": (10, {"train": 4680, "test": 1620}, 15),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_the_tasks(name: str) -> None:
    task = read_task(known_tasks()[name])
    assert (task.unit_seconds, dict(task.counts), task.classes) == FACTS[name]
    assert task.name == name
    assert task.title
    assert task.licence
    assert re.match("https?://", task.address)
    assert {paper.protocol for paper in task.papers} == set(task.protocols), "every protocol has figures beside it"
    assert all(0 < paper.score <= 100 for paper in task.papers)
    read_rule(task.metadata)


@pytest.mark.slow
def test_the_list(tmp_path: Path) -> None:
    shown = run("evaluate", "list")
    assert shown.exit_code == 0, shown.output
    for name in FACTS:
        assert re.search(rf"^{name} .*http", shown.stdout, re.MULTILINE)
    facts = json.loads(run("evaluate", "list", "--json").stdout)
    assert {one["task"] for one in facts} == {*FACTS, "tut-rare-2017", "desed"}
    assert next(one for one in facts if one["task"] == "cremad")["to_fetch"].keys() == {"cremad.csv"}


def test_tasks_are_part_of_what_is_installed() -> None:
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = ROOT / "m2dprep" / "evaluation"
    found = {path.stem for pattern in data["m2dprep.evaluation"] for path in folder.glob(pattern)}
    assert found == set(FACTS)


KINDS = {
    "folders as labels": "names: '(?P<label>[^/]+)/[^/]+'\nlabel: '{label}'",
    "a table": "table: t.csv\nfile: '{wav}.wav'\nlabel: '{kind}'\nsplit: '{part}'",
    "a table without header": "table: bare.csv\ncolumns: [a, b]\nfile: '{a}'\nlabel: '{b}'",
    "lines": "lines: l.txt\npattern: '(?P<kind>\\w+) (?P<file>.+)'\nfile: '{file}'\nlabel: '{kind}'",
    "a list of objects": "items: o.json\nfile: '{name}'\nlabel: '{tags}'",
    "folds": "names: '(?P<label>[^/]+)/(?P<fold>\\d)'\nlabel: '{label}'\nfold: '{fold}'",
    "values of splits": "table: t.csv\nfile: '{wav}.wav'\nlabel: '{kind}'\n"
    "split: {of: '{n}', is: {'7': train}, otherwise: test}",
    "lists of splits": "names: '(?P<label>[^/]+)/[^/]+'\nlabel: '{label}'\n"
    "split: {lists: {test: test.txt}, of: '{path}', otherwise: train}",
}
FOUND = {
    "folders as labels": ["cat/1.wav|cat", "dog/2.wav|dog"],
    "a table": ["cat/1.wav|Cat|train", "dog/2.wav|Dog|test"],
    "a table without header": ["cat/1.wav|Cat", "dog/2.wav|Dog, big"],
    "lines": ["cat/1.wav|Cat", "dog/2.wav|Dog"],
    "a list of objects": ["cat/1.wav|x,y", "dog/2.wav|z"],
    "folds": ["cat/1.wav|cat|1", "dog/2.wav|dog|2"],
    "values of splits": ["cat/1.wav|Cat|train", "dog/2.wav|Dog|test"],
    "lists of splits": ["cat/1.wav|cat|train", "dog/2.wav|dog|test"],
}


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "download"
    touch(root, "cat/1.wav", "dog/2.wav")
    write(root / "t.csv", "wav,kind,part,n\ncat/1,Cat,training,7\ndog/2,Dog,Testing,8\n")
    write(root / "bare.csv", '# a comment\ncat/1.wav, Cat\ndog/2.wav, "Dog, big"\n')
    write(root / "l.txt", "Cat cat/1.wav\n\nDog dog/2.wav\n")
    write(root / "o.json", json.dumps([{"name": "cat/1.wav", "tags": ["x", "y"]}, {"name": "dog/2.wav", "tags": "z"}]))
    write(root / "test.txt", "dog/2.wav\n")
    return root


def own_task(tmp_path: Path, rule: str) -> Path:
    text = "name: mine\nmetadata:\n" + "".join(f"  {line}\n" for line in rule.splitlines())
    write(tmp_path / "mine.yaml", text)
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_of_ones_own(kind: str, tmp_path: Path, download: Path) -> None:
    done = run("evaluate", "prepare", own_task(tmp_path, KINDS[kind]), download, "-o", tmp_path / "set")
    assert done.exit_code == 0, done.output
    with (tmp_path / "set" / "metadata.csv").open(newline="") as file:
        assert ["|".join(row) for row in list(csv.reader(file))[1:]] == FOUND[kind]
    assert (tmp_path / "set" / "task.yaml").read_bytes() == (tmp_path / "mine.yaml").read_bytes()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("file: a", "one of table, lines, items, names"),
        ("table: t.csv\nnames: a\nlabel: a\nfile: a", "has table, names"),
        ("table: t.csv\nlabel: a", "file or find"),
        ("table: t.csv\nfile: a", "label or captions"),
        ("table: t.csv\nfile: a\nlabel: a\nfoldd: a", "did you mean 'fold'"),
        ("table: t.csv\nfile: a\nlabel: 3", "metadata.label is 3"),
        ("names: '('\nlabel: a", "no regular expression"),
        ("lines: l.txt\nfile: a\nlabel: a", "lines and pattern"),
        ("table: t.csv\nfile: a\nlabel: a\nsplit: {of: a}", "one of is, lists and table"),
        ("table: t.csv\nfile: a\nlabel: a\nsplit: {of: a, is: {b: dev}}", "the split 'dev'"),
        ("table: t.csv\nfile: a\nlabel: a\nsplit: {of: a, table: b}", "needs key and value"),
        ("table: t.csv\nfind: {names: '(?P<a>x)', key: '{b}'}\nlabel: a", "no named group"),
        ("table: t.csv\nfile: a\nlabel: a\nmissing: maybe", "allowed or failures"),
        ("table: []\nfile: a\nlabel: a", "names no file"),
        ("sources: {}\nlabel: a", "must be a list"),
        ("table: ../t.csv\nfile: a\nlabel: a", "leads out"),
        ("table: t.csv\nfile: '{wave}'\nlabel: a", "needs the field 'wave'; there are wav, kind"),
        (
            "table: t.csv\nfile: '{wav}'\nlabel: a\nsplit: {of: '{n}', table: none.csv, key: a, value: b}",
            "none.csv",
        ),
    ],
)
def test_what_is_wrong_with_a_rule_is_named(rule: str, words: str, tmp_path: Path, download: Path) -> None:
    refused(run("evaluate", "prepare", own_task(tmp_path, rule), download, "-o", tmp_path / "set"), 2, words)


def test_a_task_without_a_rule(tmp_path: Path, download: Path) -> None:
    write(tmp_path / "mine.yaml", "name: mine\n")
    refused(run("evaluate", "prepare", tmp_path / "mine.yaml", download, "-o", tmp_path / "set"), 2, "no metadata rule")


def test_names_of_tasks(tmp_path: Path, download: Path) -> None:
    assert task_file("esc50").name == "esc50.yaml"
    refused(run("evaluate", "prepare", "esc5", download, "-o", tmp_path / "s"), 2, "did you mean esc50")
    refused(run("evaluate", "prepare", "x/y.yaml", download, "-o", tmp_path / "s"), 2, "no such file")
    refused(run("evaluate", "prepare", "esc50", tmp_path / "no", "-o", tmp_path / "s"), 2, "no such folder")
    refused(run("evaluate", "prepare", "esc50", download, "--lists", "no", "-o", tmp_path / "s"), 2, "no such folder")
