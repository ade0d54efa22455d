"""A fine-tuned checkpoint keeps the head for captions of before; who uses it is told, and events read tags alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from m2dprep.evaluation.embedding.command import EmbedRequest, embed_audio
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.events import models
from m2dprep.evaluation.events.models import Models, listeners
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.reuse.classifier import WEIGHT
from tests.evaluation.made_clips import write_checkpoint, write_tones

NOTE = "was fine-tuned on labels after it had learnt from captions"


@pytest.fixture
def trained(tmp_path: Path) -> Checkpoint:
    return Checkpoint.read(write_checkpoint(tmp_path))


def fine_tuned(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, head_weights={WEIGHT: torch.zeros(3, 64)})


def test_words_are_scored_with_a_note(
    trained: Checkpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m2dprep.evaluation.encoders.text_tower", lambda *_, **__: SimpleNamespace())
    assert CheckpointEncoder(trained, device="cpu").text_tower is not None
    assert capsys.readouterr().err == ""
    encoder = CheckpointEncoder(fine_tuned(trained), device="cpu")
    assert [encoder.text_tower, encoder.text_tower]
    assert capsys.readouterr().err.count(NOTE) == 1, "once per model"


@pytest.mark.slow
@pytest.mark.parametrize(("contents", "notes"), [("clap", 1), ("both", 1), ("features", 0)])
def test_stores_are_made_with_a_note(
    tmp_path: Path,
    trained: Checkpoint,
    contents: str,
    notes: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Checkpoint, "has_moved_on", property(lambda checkpoint: True))
    write_tones(tmp_path / "sounds", 1)
    embed_audio(
        EmbedRequest(trained.path, [tmp_path / "sounds"], tmp_path / "store", contents=contents, device="cpu"),
        quiet=True,
    )
    assert capsys.readouterr().err.count(NOTE) == notes


def test_events_are_read_from_tags_alone_unless_captions_are_wanted(
    tmp_path: Path, trained: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = CheckpointEncoder(fine_tuned(trained), device="cpu")
    made: dict[str, Any] = {
        "_checkpoint": lambda *_: encoder, "class_names": lambda *_: None, "load_words": lambda *_, **__: None,
        "Ear": lambda encoder, **_: encoder,
    }  # fmt: skip
    for name, function in made.items():
        monkeypatch.setattr(models, name, function)
    assert listeners(Models(trained.path)).routes == ["tags"]
    assert listeners(Models(trained.path), ["clap", "tags"]).routes == ["clap", "tags"]
    assert listeners(Models(trained.path, clap=tmp_path)).routes == ["tags", "clap", "mean"]
