"""``m2dprep evaluate report`` and ``compare``: files in, documents out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.evaluation.protocols.result import Result
from tests.cli.invocation import refused, run
from tests.evaluation.preparation.made_downloads import write
from tests.evaluation.reports.test_pages import Reader

CLASSES = ["cat", "dog"]


def result(path: Path, predicted: list[int], task: str = "esc50", protocol: str = "zero-shot") -> Path:
    labels = [0, 1, 0, 1]
    details = {
        "classes": CLASSES, "files": [f"{n}.wav" for n in range(4)], "labels": labels, "predicted": predicted,
        "margins": [0.0 if a == b else -0.1 * (n + 1) for n, (a, b) in enumerate(zip(labels, predicted, strict=True))],
    }  # fmt: skip
    score = float(np.mean(np.array(labels) == predicted))
    path.parent.mkdir(parents=True, exist_ok=True)
    Result(protocol, task, "accuracy", score, n={"clips": 4}, details=details).write(path)
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for n in range(4):
        soundfile.write(tmp_path / f"{n}.wav", np.zeros(1600), 16000)
    write(tmp_path / "clips.csv", "file_name,label\n0.wav,cat\n1.wav,dog\n2.wav,cat\n3.wav,dog\n")
    return tmp_path / "clips.csv"


def test_a_page_with_players_and_published_figures(tmp_path: Path, clips: Path) -> None:
    source = result(tmp_path / "a.json", [0, 0, 0, 0])
    target = tmp_path / "new" / "page.html"
    assert run("evaluate", "report", source, "--root", tmp_path, "-o", target).exit_code == 0
    read = Reader(target.read_text())
    assert read.links == ["../3.wav", "../1.wav"], "the worst first"
    assert "M2D-CLAP 2024 75.45" in read.text
    assert run("evaluate", "report", source, "--clips", clips, "--embed", "-o", target).exit_code == 0
    assert [link[:15] for link in Reader(target.read_text()).links] == ["data:audio/wav;"] * 2


def test_markdown_and_predictions_beside_the_result(tmp_path: Path) -> None:
    source = result(tmp_path / "a.json", [0, 0, 0, 0])
    assert run("evaluate", "report", source, "-o", tmp_path / "a.md").exit_code == 0
    assert "**accuracy 50.00**" in (tmp_path / "a.md").read_text()


def test_runs_side_by_side(tmp_path: Path) -> None:
    first, second = result(tmp_path / "a.json", [0, 0, 0, 0]), result(tmp_path / "b.json", [0, 1, 0, 1])
    shown = run("evaluate", "compare", first, second, "-o", tmp_path / "c.html")
    assert shown.exit_code == 0, shown.output
    assert "50.00 →  100.00  +50.00" in shown.stdout
    assert "+50.00" in Reader((tmp_path / "c.html").read_text()).text
    (value,) = json.loads(run("evaluate", "compare", first, second, "--json", "-o", tmp_path / "c.md").stdout)
    assert value["differences"][0]["difference"] == 0.5
    assert "| accuracy | 50.00 | 100.00 |" in (tmp_path / "c.md").read_text()


def test_reports_of_all_tasks_are_compared_task_by_task(tmp_path: Path) -> None:
    for name, predicted in (("base", [0, 0, 0, 0]), ("large", [0, 1, 0, 0]), ("huge", [0, 1, 0, 1])):
        for protocol in ("zero-shot", "linear"):
            result(tmp_path / name / "results" / f"esc50.{protocol}.json", predicted, protocol=protocol)
    result(tmp_path / "base" / "results" / "us8k.linear.json", [0, 0, 0, 0])
    shown = run("evaluate", "compare", tmp_path / "base", tmp_path / "large", tmp_path / "huge")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("esc50, zero-shot: base → ") == 2
    assert shown.stdout.count("esc50, linear: base → ") == 2
    assert "us8k" not in shown.stdout


def test_what_is_refused(tmp_path: Path, clips: Path) -> None:
    first = result(tmp_path / "a.json", [0, 0, 0, 0])
    refused(run("evaluate", "report", first, "-o", tmp_path / "a.pdf"), 2, ".html or .md")
    refused(run("evaluate", "report", tmp_path / "no.json", "-o", tmp_path / "a.md"), 2, "no such file")
    refused(run("evaluate", "report", clips, "-o", tmp_path / "a.md"), 2, "clips.csv")
    refused(run("evaluate", "compare", first), 2, "at least two")
    refused(run("evaluate", "compare", first, tmp_path), 2, "no report")
    refused(run("evaluate", "compare", first, result(tmp_path / "b.json", [0] * 4, "us8k")), 2, "cannot be compared")
    write(tmp_path / "other" / "task.yaml", "name: mine\n")
    refused(run("evaluate", "report", first, "--clips", tmp_path / "other", "-o", tmp_path / "a.md"), 2, "holds mine")
