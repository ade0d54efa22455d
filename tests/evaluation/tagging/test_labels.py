"""``m2dprep tag --labels``: words of the user's own, scored by captions of them, whole and by windows."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import m2dprep as python
from m2dprep.artifacts.errors import UserError
from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.encoders import CheckpointEncoder, scale_of
from m2dprep.evaluation.tagging import labels as of_labels
from tests.evaluation.made_clips import write_checkpoint
from tests.evaluation.tagging.made_classifiers import write_classifier, write_sound

pytestmark = pytest.mark.slow

WORDS = ("a dog", "rain", "song")


def texts(self: CheckpointEncoder, captions: Sequence[str]) -> np.ndarray:
    """A direction for each caption, without a text encoder."""
    return np.stack([np.random.default_rng(zlib.crc32(one.encode())).normal(size=64) for one in captions])


@pytest.fixture(autouse=True)
def no_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointEncoder, "encode_texts", texts)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint that knows captions, and sounds."""
    folder = tmp_path_factory.mktemp("labels")
    write_checkpoint(folder)
    for number, seconds in enumerate((0.4, 2.3, 1.0)):
        write_sound(folder / f"sounds/{number}.wav", seconds, number)
    return folder


def tag(place: Path, *arguments: object) -> Result:
    checkpoint = next(place.glob("m2d*/*.pth"))
    how = ("--device", "cpu", "--max-failures", 9)
    return CliRunner().invoke(m2dprep, list(map(str, ("tag", checkpoint, place / "sounds", *how, *arguments))))


def scores(result: Result) -> list[dict[str, float]]:
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return [{one["label"]: one["score"] for one in row["tags"]} for row in rows]


def test_scores_are_cosines_to_captions_as_in_python(place: Path) -> None:
    """And the words may be named in any way."""
    found = scores(tag(place, "--labels", ",".join(WORDS), "--json"))
    model = python.load(next(place.glob("m2d*/*.pth")), device="cpu")
    expected = model.similarity(
        [place / f"sounds/{number}.wav" for number in range(3)], [f"{word} can be heard" for word in WORDS]
    )
    for own, row in zip(found, expected, strict=True):
        assert [own[word] for word in WORDS] == pytest.approx(row.tolist(), abs=2e-5)
        assert list(own) == [WORDS[number] for number in np.argsort(-row)], "the best first"
    (place / "words.txt").write_text("rain\n\na dog\nsong\n")
    for given in (("--labels", "a dog", "--labels", "rain, song"), ("--labels", place / "words.txt")):
        assert scores(tag(place, *given, "--json")) == found
    other = scores(tag(place, "--labels", ",".join(WORDS), "--template", "the sound of {label}", "--json"))
    assert other != found


def test_windows_and_any_batch_and_piece(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = ("--labels", ",".join(WORDS), "--window", 0.5, "--hop", 0.25, "--json")
    found = scores(tag(place, *how))
    assert len(found) == 1 + 9 + 3
    for change in (("--batch-size", 1), ("--batch-size", 5)):
        for one, other in zip(scores(tag(place, *how, *change)), found, strict=True):
            assert one == pytest.approx(other, abs=2e-5)
    whole = scores(tag(place, "--labels", ",".join(WORDS), "--json"))
    monkeypatch.setattr(of_labels, "CHUNKS_PER_PIECE", 1)
    for one, other in zip(scores(tag(place, "--labels", ",".join(WORDS), "--json")), whole, strict=True):
        assert one == pytest.approx(other, abs=2e-5)


def test_shares_are_of_cosines_at_the_models_temperature(place: Path) -> None:
    cosines = scores(tag(place, "--labels", ",".join(WORDS), "--json"))
    scale = scale_of(CheckpointEncoder(next(place.glob("m2d*/*.pth")), device="cpu"))
    for own, row in zip(scores(tag(place, "--labels", ",".join(WORDS), "--scores", "softmax", "--json")), cosines,
                        strict=True):  # fmt: skip
        assert sum(own.values()) == pytest.approx(1, abs=1e-5)
        wide = {word: np.exp(scale * value) for word, value in row.items()}
        assert own == pytest.approx({word: one / sum(wide.values()) for word, one in wide.items()}, abs=1e-3)
        assert list(own) == list(row)


def test_a_run_goes_on_and_other_words_are_refused(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "tags.csv"
    assert tag(place, "--labels", "a dog,rain", "-o", out).exit_code == 0
    before = out.read_bytes()
    again = tag(place, "--labels", "a dog,rain", "-o", out)
    assert "3 inputs = 0 done + 3 skipped + 0 failed" in again.stderr
    assert out.read_bytes() == before
    for other in (("--labels", "a dog,snow"), ("--labels", "a dog,rain", "--template", "{label}")):
        assert tag(place, *other, "-o", out).exit_code == 5


def test_pictures_are_of_windows(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = ("--plot", tmp_path / "plots")
    assert tag(place, "--labels", "a dog,rain", *plots, "--window", 0.5, "--json").exit_code == 0
    assert len(list((tmp_path / "plots").glob("*.png"))) == 3
    assert tag(place, "--labels", "a dog,rain", *plots).exit_code == 2


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["a dog, rain"], ["a dog", "rain"]),
        (["a.b"], ["a.b"]),
        (["sounds"], ["sounds"]),  # a folder has this name as well
        (["speech/music"], ["speech/music"]),
        (["words.txt, rain.txt"], ["words.txt", "rain.txt"]),
        ([", ".join(f"word {number}" for number in range(200))], [f"word {number}" for number in range(200)]),
        (["x" * 5000], ["x" * 5000]),  # longer than a file's name may be
        (["rain", "words.txt"], ["rain", "first", "second, of two"]),
    ],
)
def test_words_and_files_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], labels: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds").mkdir()
    (tmp_path / "words.txt").write_text("first\nsecond, of two\n")
    assert list(of_labels.labels_of(given).labels) == labels


@pytest.mark.parametrize("name", ["gone.txt", "lists/gone.csv", "GONE.TXT", "x" * 300 + ".txt"])
def test_a_list_that_is_not_there_is_no_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no such file"):
        of_labels.labels_of(["rain", name])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--labels", " , "), "names no words"),
        (("--labels", "rain", "--labels", "dog,rain"), "names 'rain' twice"),
        (("--labels", "rain", "--frames"), "--frames is of a classifier"),
        (("--labels", "rain", "--classes", "x.txt"), "--classes is of a classifier"),
        (("--labels", "rain", "--scores", "sigmoid"), "--scores sigmoid is of a classifier"),
        (("--labels", "rain", "--template", "something"), "has no {label}"),
        (("--scores", "cosine"), "--scores cosine is of --labels"),
        ((), "holds no classifier"),
        ((), "--labels can score words of yours"),
    ],
)
def test_what_does_not_go_together_is_told(place: Path, arguments: tuple[str, ...], words: str) -> None:
    (place / "x.txt").write_text("a\n")
    told = tag(place, *(place / one if one == "x.txt" else one for one in arguments))
    assert told.exit_code == 2, told.output
    assert words in told.stderr


def test_a_classifier_without_captions_scores_no_words(place: Path, tmp_path: Path) -> None:
    arguments = ["tag", str(write_classifier(tmp_path)), str(place / "sounds"), "--labels", "rain"]
    told = CliRunner().invoke(m2dprep, arguments)
    assert told.exit_code == 2
    assert "captions" in told.stderr
