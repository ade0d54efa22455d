"""The classifier of a checkpoint: what its head is applied to, and what is no classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.reuse.classifier import Classifier, column_frames, feature_of
from tests.evaluation.tagging.made_classifiers import HEAD, write_classifier
from tests.tiny import TINY_INFERABLE

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
LENGTHS = (1, 15, 16, 47, 48, 49, 60, 96, 150, 333)


def log_mels(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(-7, 4, (1, 80, length)).astype(np.float32) for length in lengths]


@pytest.mark.parametrize("stacked", [False, True], ids=["flat", "stacked"])
def test_columns_average_to_the_features_of_evaluation(tmp_path: Path, stacked: bool) -> None:
    checkpoint = Checkpoint.read(write_classifier(tmp_path, stacked=stacked))
    classifier = Classifier(checkpoint, CPU, batch_size=3)
    assert feature_of(checkpoint) == ("stacked" if stacked else "flat")
    encoder = AudioEncoder(checkpoint.load_audio_model(CPU), checkpoint.norm_stats)
    encoded = encoder.encode(log_mels(), clap=False)
    columns = classifier.columns(log_mels())
    means = torch.stack([own.mean(dim=0) for own in columns])
    torch.testing.assert_close(means, encoded.stacked if stacked else encoded.flat, rtol=1e-5, atol=1e-5)
    for own, length in zip(columns, LENGTHS, strict=True):
        assert len(own) == len(column_frames(length, 48, 16))
        np.testing.assert_allclose(
            classifier.logits(own).mean(axis=0), classifier.logits(own.mean(dim=0, keepdim=True))[0], atol=1e-4
        )


def test_logits_are_those_of_the_saved_head_computed_by_hand(tmp_path: Path) -> None:
    path = write_classifier(tmp_path)
    saved = torch.load(path, weights_only=True)
    head = {key.removeprefix(HEAD): value.double().numpy() for key, value in saved.items() if key.startswith(HEAD)}
    classifier = Classifier(Checkpoint.read(path), CPU)
    features = torch.randn(5, TINY_INFERABLE.embed_dim)
    scaled = (features.double().numpy() - head["norm.running_mean"]) / np.sqrt(head["norm.running_var"] + 1e-5)
    expected = scaled @ head["mlp.mlp.0.weight"].T + head["mlp.mlp.0.bias"]
    np.testing.assert_allclose(classifier.logits(features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("frames", "chunk", "starts"),
    [
        (47, 48, [0, 16, 32]),
        (49, 48, [0, 16, 32, 48]),
        (100, 41, [0, 16, 41, 57, 82, 98]),  # of a chunk of 41 frames the last nine are lost, of the padded last none
        (40, 41, [0, 16]),  # padded to the chunk's width alone
    ],
)
def test_first_frames_of_columns(frames: int, chunk: int, starts: list[int]) -> None:
    assert column_frames(frames, chunk, 16).tolist() == starts


Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: [state.pop(key) for key in list(state) if key.startswith(HEAD)], "holds no classifier"),
        (lambda state: state.pop(f"{HEAD}norm.running_var"), "lacks norm.running_var"),
        (lambda state: state.update({f"{HEAD}mlp.mlp.3.weight": torch.zeros(2, 2)}), "also has mlp.mlp.3.weight"),
        (lambda state: state.update({f"{HEAD}mlp.mlp.0.bias": torch.zeros(5)}), "is \\[5\\], not \\[6\\]"),
        (lambda state: state.update({f"{HEAD}mlp.mlp.0.bias": torch.full((6,), np.nan)}), "not finite"),
        (lambda state: state.update({f"{HEAD}mlp.mlp.0.weight": torch.zeros(6, 65)}), "takes 65 numbers"),
        (lambda state: state.update({f"{HEAD}mlp.mlp.0.weight": torch.zeros(6)}), "holds no classifier"),
    ],
    ids=["no head", "lacks", "more", "shape", "nan", "width", "dimensions"],
)
def test_what_is_no_classifier_is_told(tmp_path: Path, change: Change, words: str) -> None:
    path = write_classifier(tmp_path)
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(UserError, match=words):
        Classifier(Checkpoint.read(path), CPU)


def test_a_checkpoint_of_training_says_what_it_lacks(tmp_path: Path) -> None:
    torch.save({"model": M2DCLAP(TINY_INFERABLE).state_dict()}, tmp_path / "checkpoint-1.pth")
    with pytest.raises(UserError, match=r"no weights module\.head.*training, 2024.*fine-tuned on labels"):
        Classifier(Checkpoint.read(tmp_path / "checkpoint-1.pth"), CPU)
