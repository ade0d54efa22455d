"""Names of classes: AudioSet's 527 are known, by mid, wherever a classifier or a table does not name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.clip_set import read_classes
from m2dprep.evaluation.tagging.class_names import (
    AUDIOSET_CLASSES,
    audioset_names,
    class_names,
    names_of,
    own_class_names,
)
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.config import ModelConfig


def classifier(path: Path, classes: int, args: dict[str, Any] | None = None) -> Checkpoint:
    head = {"mlp.mlp.0.weight": torch.zeros(classes, 64)}
    return Checkpoint(path / "weights.pth", ModelConfig(), {}, args or {}, head_weights=head)


def test_the_names_of_audioset() -> None:
    """527 mids in the order of their code points, in which EVAR's heads have them, and the words of the ontology."""
    names = audioset_names()
    assert len(names.ids) == len(set(names.ids)) == len(set(names.labels)) == AUDIOSET_CLASSES
    assert list(names.ids) == sorted(names.ids)
    assert sum("," in label for label in names.labels) == 75
    assert (names.ids[0], names.labels[0]) == ("/g/122z_qxw", "Firecracker")
    assert (names.ids[-1], names.labels[-1]) == ("/t/dd00136", "Whimper (dog)")
    words = dict(zip(names.ids, names.labels, strict=True))
    assert words["/m/09x0r"] == "Speech"
    assert words["/m/05zppz"] == "Male speech, man speaking"
    assert words["/m/0195fx"] == "Subway, metro, underground"


def test_a_head_of_527_that_says_nothing_is_audiosets(tmp_path: Path) -> None:
    assert class_names(classifier(tmp_path, AUDIOSET_CLASSES)) == audioset_names()._replace(assumed=True)
    with pytest.raises(UserError, match="what its 526 classes are"):
        class_names(classifier(tmp_path, 526))
    (tmp_path / "classes.txt").write_text("".join(f"class {number}\n" for number in range(AUDIOSET_CLASSES)))
    assert class_names(classifier(tmp_path, AUDIOSET_CLASSES)).labels[0] == "class 0"


def test_a_line_ends_with_a_line_feed_alone(tmp_path: Path) -> None:
    """Labels may hold other characters that end lines for Python, such as a line separator."""
    labels = ["one\u2028line", "two\x0bparts", "ü 日本"]
    (tmp_path / "classes.txt").write_text("".join(f"{label}\r\n" for label in labels), encoding="utf-8", newline="")
    assert class_names(classifier(tmp_path, 3)).labels == tuple(labels)
    assert read_classes(tmp_path / "classes.txt") == sorted(labels)


@pytest.mark.parametrize(
    ("args", "labels", "ids"),
    [
        ({"classes": ["/m/0k4j", "/m/09x0r"]}, ("Car", "Speech"), ("/m/0k4j", "/m/09x0r")),
        ({"classes": ["Car", "Speech"], "class_ids": ["/m/0k4j", "/m/09x0r"]}, ("Car", "Speech"),
         ("/m/0k4j", "/m/09x0r")),
        ({"classes": ["/m/0k4j", "mine"]}, ("/m/0k4j", "mine"), ()),
        ({"classes": ["Car", "Speech"]}, ("Car", "Speech"), ()),
    ],
)  # fmt: skip
def test_mids_alone_get_their_words(
    tmp_path: Path, args: dict[str, Any], labels: tuple[str, ...], ids: tuple[str, ...]
) -> None:
    names = own_class_names(classifier(tmp_path, 2, args))
    assert names is not None
    assert (names.labels, names.ids, names.assumed) == (labels, ids, False)


def test_mids_in_a_list_beside_the_checkpoint_get_their_words(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("/m/0k4j\n/m/09x0r\n")
    assert class_names(classifier(tmp_path, 2)).labels == ("Car", "Speech")


def test_words_are_given_for_mids_alone() -> None:
    assert names_of(["/m/0k4j", "/t/dd00136"]) == {"/m/0k4j": "Car", "/t/dd00136": "Whimper (dog)"}
    assert names_of(["/m/0k4j", "dog"]) == names_of([]) == {}
