"""`m2dprep.load` and its model: where models come from, arrays as files, shapes and rates, tags, and data sets."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

import m2dprep
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.evaluation import text_towers
from tests.cli.invocation import run
from tests.evaluation.made_clips import FOLDER, tone, write_checkpoint
from tests.evaluation.search.fake_words import FakeEncoder
from tests.evaluation.tagging.made_classifiers import write_class_list, write_classifier

pytestmark = pytest.mark.slow

RATE = 16_000


@pytest.fixture(autouse=True)
def text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder / "run")
    (folder / "wavs").mkdir()
    for number in range(3):
        soundfile.write(folder / f"wavs/{number}.wav", tone(number, 0.8, seed=number), RATE)
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> m2dprep.Model:
    return m2dprep.load(place / "run", device="cpu")


def released(place: Path, folder: Path) -> Path:
    """A zip as the authors release them: a folder whose name says the shape, with a checkpoint in it."""
    path = folder / "released.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(place / "run" / FOLDER / "checkpoint-1.pth", f"{FOLDER}/checkpoint-1.pth")
        archive.writestr(f"{FOLDER}/README.txt", "made")
    return path


def test_where_models_come_from(
    place: Path, tmp_path: Path, model: m2dprep.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M2DPREP_CACHE", str(tmp_path / "cache"))
    expected = model.encode_audio(place / "wavs/0.wav")
    shutil.copytree(place / "run" / FOLDER, tmp_path / "alone" / FOLDER)
    (tmp_path / "zips").mkdir()
    given = [
        str(place / "run"), place / "run" / FOLDER, place / "run" / FOLDER / "checkpoint-1.pth",
        released(place, tmp_path), released(place, tmp_path), released(place, tmp_path / "zips").parent,
    ]  # fmt: skip
    for one in given:
        np.testing.assert_array_equal(m2dprep.load(one, device="cpu").encode_audio(place / "wavs/0.wav"), expected)
    assert len(list((tmp_path / "cache/released").iterdir())) == 1, "a zip is unpacked once"


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_zip_that_is_damaged(place: Path, tmp_path: Path, cut: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2DPREP_CACHE", str(tmp_path / "cache"))
    content = bytearray(released(place, tmp_path).read_bytes())
    content[round(len(content) * cut)] ^= 255
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(m2dprep.UserError):
        m2dprep.load(tmp_path / "bad.zip", device="cpu")
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.writestr("../checkpoint-1.pth", "x")
    with pytest.raises(m2dprep.UserError, match="leads out"):
        m2dprep.load(tmp_path / "out.zip")


@pytest.mark.parametrize(
    ("name", "said"), [("no/such/run", "no such run"), ("gone.pth", "no such run"), ("owner/name", "owner/name")]
)
def test_no_such_model(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(m2dprep.UserError, match=said):
        m2dprep.load(name)


def test_a_name_on_the_hub(place: Path, model: m2dprep.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(place / "run" / FOLDER))
    found = m2dprep.load("owner/name", device="cpu")
    np.testing.assert_array_equal(found.encode_text("rain"), model.encode_text("rain"))


def forms(samples: np.ndarray) -> dict[str, Any]:
    """One sound as arrays of all kinds."""
    whole = (samples * 32767).astype(np.int16)
    exact = whole / 32768
    two = [whole, whole]
    return {
        "float32": exact.astype(np.float32),
        "float64": exact,
        "int16": whole,
        "int32": whole.astype(np.int32) << 16,
        "tensor": torch.from_numpy(exact.astype(np.float32)),
        "one channel": whole[:, None],
        "channels first": whole[None],
        "two channels": np.stack(two, axis=1),
        "two channels first": np.stack(two),
        "not contiguous": np.repeat(whole, 2)[::2],
        "in a list": [whole],
        "six channels": [np.stack(two * 3, axis=1)],
    }


@pytest.mark.parametrize("form", list(forms(np.zeros(4))))
@pytest.mark.parametrize("rate", [RATE, 44_100, 8_000])
def test_an_array_gives_what_its_file_gives(model: m2dprep.Model, tmp_path: Path, form: str, rate: int) -> None:
    samples = tone(1, 0.7, rate)
    soundfile.write(tmp_path / "a.wav", (samples * 32767).astype(np.int16), rate)
    expected = model.encode_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(model.encode_audio(forms(samples)[form], rate), expected, atol=2e-5)


def test_several_sounds_at_once(model: m2dprep.Model, place: Path) -> None:
    paths = sorted((place / "wavs").iterdir())
    one_by_one = np.concatenate([model.encode_audio(path) for path in paths])
    mixed = [str(paths[0]), soundfile.read(paths[1])[0], paths[2]]
    np.testing.assert_allclose(model.encode_audio(mixed, RATE), one_by_one, atol=2e-5)
    many = model.encode_audio(paths * 50)
    np.testing.assert_allclose(many, np.tile(one_by_one, (50, 1)), atol=2e-5)
    assert model.encode_audio([]).shape == (0, 64)


X = np.zeros(800, np.float32)


@pytest.mark.parametrize(
    ("sounds", "rate", "said"),
    [
        (X, None, "sample_rate is missing"),
        (X, 16, "in kHz"),
        (X, 16000.5, "whole number"),
        (X, "16000", "not a number"),
        (X, 1_000_000, "192,000"),
        (X.reshape(2, 2, 200), RATE, "list"),
        (X.reshape(20, 40), RATE, r"list\(array\)"),
        ([X.reshape(20, 40)], RATE, "at most 8 channels"),
        (X[:0], RATE, "no samples"),
        (np.full(800, 3e4, np.float32), RATE, "32768"),
        (np.full(800, np.nan, np.float32), RATE, "finite"),
        (X.astype(bool), RATE, "bool"),
        (X.astype(complex), RATE, "complex"),
        (["gone.wav"], None, "gone.wav"),
        ([None], RATE, "NoneType"),
        (5, RATE, "no sound"),
    ],
)
def test_what_is_no_sound(model: m2dprep.Model, sounds: Any, rate: Any, said: str) -> None:
    with pytest.raises(m2dprep.UserError, match=said):
        model.encode_audio(sounds, rate)


@pytest.mark.parametrize("log_mel", [np.zeros((40, 20)), np.zeros((2, 80, 20)), np.zeros((1, 80, 0)), np.zeros(80)])
def test_what_is_no_log_mel(model: m2dprep.Model, log_mel: np.ndarray) -> None:
    with pytest.raises(m2dprep.UserError, match=r"\(1, 80, frames\)"):
        model.encode_log_mels([log_mel])


@pytest.mark.parametrize("text", ["", "  ", ["a", ""], [3]])
def test_what_is_no_text(model: m2dprep.Model, text: Any) -> None:
    with pytest.raises(m2dprep.UserError, match="no text"):
        model.encode_text(text)


def test_similarity_takes_embeddings_or_what_gives_them(model: m2dprep.Model, place: Path) -> None:
    paths, words = sorted((place / "wavs").iterdir()), ["a dog", "rain"]
    sounds, texts = model.encode_audio(paths), model.encode_text(words)
    expected = sounds @ texts.T
    assert expected.shape == (3, 2)
    for audio in (sounds, paths, torch.from_numpy(sounds), sounds * 3):
        for text in (texts, words, texts * 5):
            np.testing.assert_allclose(model.similarity(audio, text), expected, atol=2e-5)


def test_an_encoder_without_captions(place: Path) -> None:
    encoder = m2dprep.load(write_classifier(place / "tuned"), device="cpu")
    assert encoder.encode_audio(place / "wavs/0.wav", kind="flat").shape == (1, 64)
    assert "clap" not in encoder.sizes
    for call in (lambda: encoder.encode_audio(place / "wavs/0.wav"), lambda: encoder.encode_text("rain")):
        with pytest.raises(m2dprep.UserError, match="no head for captions"):
            call()


def test_tags_by_words(model: m2dprep.Model, place: Path) -> None:
    labels = ["dog", "rain", "song"]
    tags = model.tag([place / "wavs/0.wav", tone(1, 0.5)], RATE, labels=labels)
    assert list(tags.columns) == ["file_name", "start", "end", "label", "score"]
    cosines = model.similarity([place / "wavs/0.wav"], [f"{label} can be heard" for label in labels])[0]
    own = tags[tags.file_name == str(place / "wavs/0.wav")]
    assert own.label.tolist() == [labels[place] for place in np.argsort(-cosines)]
    np.testing.assert_allclose(own.score, np.sort(cosines)[::-1], atol=1e-5)
    assert set(tags.file_name) == {str(place / "wavs/0.wav"), "sound 1"}
    with pytest.raises(m2dprep.UserError, match="labels="):
        model.tag(place / "wavs/0.wav")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": "dog"}, None),
        ({"labels": ["dog", " "]}, "are not all words"),
        ({"labels": ["dog", 5]}, "are not all words"),
        ({"labels": []}, "no words"),
        ({"labels": ["dog"], "classes": "classes.txt"}, "give one of them"),
        ({"labels": ["dog"], "top": -1}, "top -1 is below 0"),
        ({"labels": ["dog"], "window": 0}, "window 0 is no time"),
        ({"labels": ["dog"], "window": -1.0}, "window -1.0 is no time"),
        ({"labels": ["dog"], "window": 1.0, "hop": float("nan")}, "hop nan is no time"),
    ],
)
def test_what_can_be_asked_of_tags(
    model: m2dprep.Model, place: Path, options: dict[str, Any], said: str | None
) -> None:
    if said is None:  # a word alone is one label, and not its letters
        assert model.tag(place / "wavs/0.wav", **options).label.tolist() == ["dog"]
        return
    with pytest.raises(m2dprep.UserError, match=said):
        model.tag(place / "wavs/0.wav", **options)


def test_tags_by_a_classifier_are_those_of_the_command(place: Path, tmp_path: Path) -> None:
    checkpoint, classes = write_classifier(tmp_path), write_class_list(tmp_path / "classes.txt")
    sound = place / "wavs/1.wav"
    words = ("--classes", classes, "--window", 0.4, "--top", 2, "--device", "cpu", "-o", tmp_path / "tags.jsonl")
    assert run("tag", checkpoint, sound, *words).exit_code == 0
    import pandas as pd

    rows = pd.read_json(tmp_path / "tags.jsonl", lines=True)
    tags = m2dprep.load(checkpoint, device="cpu").tag(sound, classes=classes, window=0.4, top=2)
    assert tags.label.tolist() == [tag["label"] for row in rows.tags for tag in row]
    np.testing.assert_allclose(tags.score, [tag["score"] for row in rows.tags for tag in row], atol=1e-12)
    tuned = m2dprep.load(checkpoint, device="cpu")
    samples = tuned.tag(soundfile.read(sound)[0], RATE, classes=classes, window=0.4, top=2)
    assert samples.label.tolist() == tags.label.tolist()


@pytest.fixture(scope="module")
def data(place: Path) -> Path:
    """Log-mels, captions and embeddings of the sounds."""
    columns = {
        "clip_id": ["0", "2"], "caption": ["zero", "two"], "source": ["made"] * 2, "caption_index": [0, 0],
        "split": [None] * 2, "labels": [["A", "B"], []],
    }  # fmt: skip
    (place / "data").mkdir()
    write_captions(place / "data/captions.parquet", pa.table(columns, schema=CAPTIONS_SCHEMA))
    words = ("--workers", 0, "--min-seconds", 0.1)
    assert run("melspec", place / "wavs", place / "data/made_lms", *words).exit_code == 0
    both = ("--contents", "both", "--device", "cpu")
    assert run("embed-audio", place / "run", place / "wavs", place / "store", *both).exit_code == 0
    return place / "data"


def test_embeddings_as_a_data_set(place: Path, data: Path) -> None:
    rows = m2dprep.open_embeddings(place / "store", captions=data)
    assert len(rows) == 3
    assert [row["captions"] for row in rows] == [["zero"], [], ["two"]]
    assert [row["labels"] for row in rows] == [["A", "B"], [], []]
    assert [row["file"] for row in rows] == ["0.wav", "1.wav", "2.wav"]
    assert rows[0]["embedding"].dtype == rows[0]["features"].dtype == torch.float32
    assert (rows[-1]["file"], rows[0]["features"].shape) == ("2.wav", (320,))
    with pytest.raises(IndexError):
        rows[3]
    batches = list(torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=list))
    assert [len(batch) for batch in batches] == [2, 1]
    copy = pickle.loads(pickle.dumps(rows))
    assert torch.equal(copy[2]["embedding"], rows[2]["embedding"])
    assert len(pickle.dumps(rows)) < 2000


def test_log_mels_as_a_data_set(place: Path, data: Path, tmp_path: Path, model: m2dprep.Model) -> None:
    shutil.copytree(data, tmp_path / "packed")
    assert run("pack", tmp_path / "packed/made_lms", "--dtype", "float32").exit_code == 0
    for path in (tmp_path / "packed/made_lms").glob("*.npy"):
        path.unlink()
    expected = model.encode_audio(sorted((place / "wavs").iterdir()))
    for folder in (data / "made_lms", tmp_path / "packed/made_lms"):
        items = m2dprep.open_log_mels(folder, captions=data)
        assert [item["file"] for item in items] == ["0.npy", "1.npy", "2.npy"]
        assert [item["captions"] for item in items] == [["zero"], [], ["two"]]
        np.testing.assert_allclose(model.encode_log_mels([item["log_mel"] for item in items]), expected, atol=2e-5)
        assert pickle.loads(pickle.dumps(items))[1]["clip_id"] == "1"


def test_what_is_no_data_set(place: Path, tmp_path: Path) -> None:
    for call, where in ((m2dprep.open_embeddings, place / "wavs"), (m2dprep.open_log_mels, tmp_path)):
        with pytest.raises(m2dprep.UserError, match=str(where)):
            call(where)
