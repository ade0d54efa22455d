"""Files of the true keys and shapes of the authors' releases go through every command that evaluates or tags.

The tensors are as large as in the releases but share few numbers, so that the files are small: a row of a weight is
the row above, shifted by one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from m2dprep.audioprep.config import PRESETS
from m2dprep.audioprep.logmel import LogMel
from m2dprep.cli.main import m2dprep
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.layouts import TEXT_FOLDER
from tests.evaluation.made_clips import write_tones
from tests.training.tiny_tower import WORDS

pytestmark = pytest.mark.slow
KEYS = json.loads((Path(__file__).parents[1] / "golden" / "keys_2025.json").read_text())["layouts"]
STAGE2, FINE_TUNED = "d_stage2_370", "c_evar_ft_177"
CLIPS, CLASSES, TESTED = 10, 3, 3


def shifted(shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """A tensor whose elements depend on the sum of their indices, of as few numbers as that takes."""
    numbers = torch.randn(sum(shape) - len(shape) + 1, generator=generator)
    return numbers.mul_(0.05).as_strided(shape, [1] * len(shape))


def tensors_of(layout: str) -> dict[str, torch.Tensor]:
    """Every tensor of a release, with the name, shape and type that it has there."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for key, shape, kind in KEYS[layout]["keys"]:
        name = key.rpartition(".")[2]
        if name == "norm_stats":
            value = torch.tensor([-7.3, 4.1])
        elif kind == "int64":
            value = torch.tensor(1000)
        elif name == "running_var" or (name == "weight" and len(shape) == 1):
            value = 1 + shifted(shape, generator).abs()
        else:
            value = shifted(shape, generator)
        found[key] = value
    return found


class Releases:
    """A file of stage 2 and a fine-tuned one, and clips with labels and captions."""

    def __init__(self, root: Path) -> None:
        self.stage2 = root / "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025" / "checkpoint-30.pth"
        self.fine_tuned = root / "m2d_clap_vit_base-80x1001p16x16p16kpN-AS-FT" / "weights_ep66it3124-0.49058.pth"
        for path in (self.stage2, self.fine_tuned):
            path.parent.mkdir()
        args = argparse.Namespace(model="m2d_clap_vit_base", blr=3e-6)
        torch.save({"model": tensors_of(STAGE2), "epoch": 30, "args": args}, self.stage2)
        torch.save(tensors_of(FINE_TUNED), self.fine_tuned)
        self._put_tokenizer_beside()
        self.names = write_tones(root / "audio", CLIPS)
        self.audio = root / "audio"
        splits = ["train"] * (CLIPS - TESTED) + ["test"] * TESTED
        rows = [f"{name},kind {n % CLASSES},{splits[n]}" for n, name in enumerate(self.names)]
        self.labels = root / "set"
        self.labels.mkdir()
        (self.labels / "metadata.csv").write_text("\n".join(["file_name,label,split", *rows]) + "\n")
        (self.labels / "task.yaml").write_text("name: tones\nunit_seconds: 0.7\n")
        (self.labels / "prepared.json").write_text(json.dumps({"root": "../audio"}))
        self.captions = self.audio / "captions.csv"
        said = [f"{name},the sound of kind {n}" for n, name in enumerate(self.names)]
        self.captions.write_text("\n".join(["file_name,caption", *said]) + "\n")

    def _put_tokenizer_beside(self) -> None:
        from transformers import BertConfig, BertTokenizerFast

        beside = self.stage2.parent / TEXT_FOLDER
        beside.mkdir()
        (beside / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizerFast(str(beside / "vocab.txt"), model_max_length=512).save_pretrained(beside)
        BertConfig().save_pretrained(beside)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(tmp_path_factory.mktemp("releases"))


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(m2dprep, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("layout", [STAGE2, FINE_TUNED])
def test_the_files_have_the_keys_and_shapes_of_the_releases(releases: Releases, layout: str) -> None:
    path = releases.stage2 if layout == STAGE2 else releases.fine_tuned
    with torch.serialization.safe_globals([argparse.Namespace]):
        held = torch.load(path, weights_only=True)
    found = held["model"] if layout == STAGE2 else held
    assert [[key, list(value.shape)] for key, value in found.items()] == [one[:2] for one in KEYS[layout]["keys"]]
    assert path.stat().st_size < 8_000_000


def test_stage_2_goes_through_zero_shot_retrieval_and_linear(releases: Releases) -> None:
    zero_shot = run("evaluate", "zero-shot", releases.stage2, releases.labels)
    assert zero_shot["model"]["layout"] == "with its text tower, 2025"
    assert zero_shot["model"]["norm_stats"] == pytest.approx([-7.3, 4.1])
    assert zero_shot["model"]["text_model"]["pooling"] == "cls"
    assert zero_shot["details"]["files"] == releases.names[-TESTED:]
    retrieval = run("evaluate", "retrieval", releases.stage2, releases.captions)
    assert {*retrieval["details"]} >= {"t2a", "a2t"}
    assert retrieval["details"]["t2a"]["R@10"] == 1.0, "there are ten clips"
    linear = run("evaluate", "linear", releases.stage2, releases.labels, "--epochs", 1, "--seeds", 1)
    assert 0 <= linear["score"] <= 1


def test_a_fine_tuned_file_goes_through_tag(releases: Releases, tmp_path: Path) -> None:
    """Its scores are those of its own tensors: patches averaged, normalised, and one linear layer."""
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"class {number}\n" for number in range(527)))
    sounds = [releases.audio / name for name in releases.names[:2]]
    rows = run("tag", releases.fine_tuned, *sounds, "--classes", classes, "--top", 0, "--scores", "logits")
    checkpoint = Checkpoint.read(releases.fine_tuned)
    encoder = AudioEncoder(checkpoint.load_audio_model(torch.device("cpu")), checkpoint.norm_stats)
    held = tensors_of(FINE_TUNED)
    mean, variance = (held[f"module.head.norm.running_{name}"] for name in ("mean", "var"))
    for row, sound in zip(rows, sounds, strict=True):
        waveform = soundfile.read(sound, dtype="float32")[0]
        features = encoder.encode([LogMel(PRESETS["16k"])(waveform)]).flat[0]
        normal = (features - mean) / (variance + 1e-5).sqrt()
        expected = held["module.head.mlp.mlp.0.weight"] @ normal + held["module.head.mlp.mlp.0.bias"]
        found = {one["label"]: one["score"] for one in row["tags"]}
        ordered = [found[f"class {number}"] for number in range(527)]
        np.testing.assert_allclose(ordered, expected.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tag", "{stage2}", "{sound}"), "classifier"),
        (("evaluate", "zero-shot", "{fine_tuned}", "{labels}", "--text-model", "{nowhere}"), "nowhere"),
    ],
)
def test_what_a_file_does_not_hold_is_said(releases: Releases, arguments: tuple[str, ...], said: str) -> None:
    places = {
        "stage2": releases.stage2,
        "fine_tuned": releases.fine_tuned,
        "labels": releases.labels,
        "sound": releases.audio / releases.names[0],
        "nowhere": releases.audio / "nowhere",
    }
    result = CliRunner().invoke(m2dprep, [one.format(**places) for one in arguments])
    assert result.exit_code == 2, result.output
    assert said in result.output
