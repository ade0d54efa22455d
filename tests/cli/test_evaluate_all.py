"""``m2dprep evaluate all`` from data sets to the table, with a model of tiny size: protocols, resuming, failures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from m2dprep.evaluation import text_towers
from m2dprep.m2dclap.model import M2DCLAP
from tests.cli.invocation import refused, run
from tests.evaluation.preparation.made_downloads import write
from tests.evaluation.reports.test_pages import Reader
from tests.tiny import TINY_INFERABLE

TONES = """
name: tones
title: Tones
protocols: [zero-shot, linear]
unit_seconds: 0.5
counts: {train: 12, test: 6}
classes: 2
papers: [{protocol: linear, model: A paper, score: 99.5}]
metadata:
  names: '(?P<kind>[a-z]+)/(?P<part>train|test)-.*'
  label: "{kind}"
  split: "{part}"
"""
SAID = """
name: said
protocols: [retrieval]
metric: t2a_R@1
layout: captions
metadata:
  table: captions.csv
  file: "{file}"
  captions: ["{text}"]
"""


class FakeEncoder:
    dim = 16

    def describe(self) -> dict[str, Any]:
        return {"model": "made-up"}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [sum(map(ord, text)) for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=16) for seed in seeds]).astype(np.float32)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder())
    torch.manual_seed(0)
    torch.save({"model": M2DCLAP(TINY_INFERABLE).state_dict()}, tmp_path / "checkpoint-1.pth")
    return tmp_path / "checkpoint-1.pth"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two prepared tasks of one's own: tones and noises, and captions of them."""
    rng = np.random.default_rng(0)
    time = np.arange(6000) / 16000
    for number in range(9):
        part = "train" if number < 6 else "test"
        for kind, sound in (("tone", np.sin(2 * np.pi * (300 + 40 * number) * time)), ("noise", rng.normal(size=6000))):
            path = tmp_path / "sounds" / kind / f"{part}-{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.3 * sound / np.abs(sound).max(), 16000)
    rows = [f"{kind}/test-{number}.wav,{kind} number {number}" for kind in ("tone", "noise") for number in (6, 7, 8)]
    write(tmp_path / "sounds" / "captions.csv", "file,text\n" + "\n".join([*rows, rows[0] + " again"]) + "\n")
    for name, text in (("tones", TONES), ("said", SAID)):
        write(tmp_path / f"{name}.yaml", text)
        done = run(
            "evaluate", "prepare", tmp_path / f"{name}.yaml", tmp_path / "sounds", "-o", tmp_path / "tasks" / name
        )
        assert done.exit_code == 0, done.output
    return tmp_path / "tasks"


@pytest.mark.slow
def test_all_protocols_of_all_tasks(checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    words = (
        "evaluate",
        "all",
        checkpoint,
        tasks,
        "-o",
        report,
        "--text-model",
        "made-up",
        "--device",
        "cpu",
        "--seeds",
        "42,43",
    )
    done = run(*words)
    assert done.exit_code == 0, done.output
    lines = {tuple(line.split()[:2]): line for line in done.stdout.splitlines()[1:]}
    assert set(lines) == {("said", "retrieval"), ("tones", "zero-shot"), ("tones", "linear")}
    assert "99.5" in lines[("tones", "linear")]
    assert "A paper" in done.stdout.splitlines()[0]
    value = {
        (row["task"], row["protocol"]): row["result"]
        for row in json.loads((report / "report.json").read_text())["rows"]
    }
    assert value[("tones", "linear")]["seeds"] == [42, 43]
    assert value[("said", "retrieval")]["n"]["captions"] == 7
    for link in Reader((report / "report.html").read_text()).links:
        inner = Reader((report / link).read_text())
        assert all((report / "results" / player).resolve().is_file() for player in inner.links)
    again = run(*words)
    assert again.stdout == done.stdout
    assert again.stderr.count("finished before") == 3
    assert run(*words, "--json").stdout == (report / "report.json").read_text()
    compared = run("evaluate", "compare", report, report)
    assert compared.exit_code == 0, compared.output
    assert compared.stdout.count("not told apart") == 1 + 1 + 7


@pytest.mark.slow
def test_clips_that_cannot_be_read_and_tasks_that_fail(checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    """A damaged clip is a problem of its task; a task that cannot be run at all is a row."""
    (tmp_path / "sounds" / "tone" / "test-6.wav").write_bytes(b"no sound")
    shutil.copytree(tasks / "tones", tasks / "broken")
    write(tasks / "broken" / "metadata.csv", "file_name,label,split\n")
    words = (
        "evaluate",
        "all",
        checkpoint,
        tasks,
        "-o",
        tmp_path / "report",
        "--text-model",
        "x",
        "--protocol",
        "zero-shot",
    )
    done = run(*words)
    assert done.exit_code == 3
    assert "1 clips could not be read" in done.stdout
    assert "lists no clips" in done.stdout
    assert "2 of 2 have a problem" in done.stderr


@pytest.mark.slow
def test_what_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(run("evaluate", "all", checkpoint, tmp_path / "no", "-o", tmp_path / "r"), 2, "no such folder")
    refused(run("evaluate", "all", checkpoint, tmp_path / "empty", "-o", tmp_path / "r"), 2, "holds no task")
    refused(run("evaluate", "all", checkpoint, "-o", tmp_path / "r"), 2, "Missing argument")
    refused(run("evaluate", "all", tmp_path / "no.pth", tmp_path / "empty", "-o", tmp_path / "r"), 2, "no.pth")
