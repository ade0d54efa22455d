"""A trained model names the classes that it hears; unreadable clips are rows; wrong requests are explained."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.evaluation import text_towers
from m2dprep.evaluation.clip_set import ClipSet, caption_of
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.protocols import zero_shot as protocol
from m2dprep.evaluation.report import render
from m2dprep.evaluation.run import class_texts
from m2dprep.evaluation.zeroshot import ZeroShotResult, evaluation_set, zero_shot
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig, ValidationOptions
from m2dprep.training.train import train
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec
from tests.tiny import TINY

MakeData = Callable[..., Path]
OPTIONS = RunOptions("tiny", save=SavePlan(every_epochs=25), validation=ValidationOptions(features_every=0))
TRAIN = TrainConfig(epochs=25, batch_size=12, blr=0.06, warmup_epochs=2, ema_decay_init=0.9, ema_decay_end=0.99)
CLASSES = 4


@dataclass
class FakeEncoder:
    """Knows captions with ``kind 0``, ``kind 1``, … in them; their embeddings point where the training captions' do."""

    directions: np.ndarray
    loaded: dict[str, Any]
    weights: str = "sha256:0"
    texts: list[str] = field(default_factory=list)

    @property
    def dim(self) -> int:
        return int(self.directions.shape[1])

    def describe(self) -> dict[str, Any]:
        return {"model": self.loaded["name"], "weights": self.weights}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        kinds = [int(text.partition("kind ")[2][0]) for text in texts]
        return self.directions[kinds].astype(np.float32)


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch, class_directions: np.ndarray) -> list[FakeEncoder]:
    """Replaces the text encoder, and lists the encoders that were loaded."""
    loaded: list[FakeEncoder] = []

    def load(name: str, **settings: Any) -> FakeEncoder:
        loaded.append(FakeEncoder(class_directions, {"name": name, **settings}))
        return loaded[-1]

    monkeypatch.setattr(text_towers, "load_encoder", load)
    return loaded


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> Path:
    return make_data(tmp_path_factory.mktemp("set") / "data", clips=48, classes=CLASSES, frames=60)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has hardly begun to learn."""
    out = tmp_path_factory.mktemp("run")
    train(DataChoice(data), out, TINY, replace(TRAIN, epochs=1, warmup_epochs=0), OPTIONS)
    return out


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, make_log_mel: Callable[..., np.ndarray]) -> Path:
    """A table of 20 log-mels of lengths that the training never saw."""
    folder = tmp_path_factory.mktemp("held_out")
    rng = np.random.default_rng(5)
    rows = [["file_name", "label", "remark"]]
    for clip in range(20):
        np.save(folder / f"{clip}.npy", make_log_mel(clip % CLASSES, CLASSES, 55 + 30 * (clip % 3), rng))
        rows.append([f"{clip}.npy", f"kind_{clip % CLASSES}", "x"])
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "clips.csv"


@pytest.mark.slow
def test_a_trained_model_names_what_it_hears(
    data: Path, held_out: Path, encoders: list[FakeEncoder], tmp_path: Path
) -> None:
    train(DataChoice(data), tmp_path, TINY, TRAIN, OPTIONS)
    result = zero_shot(tmp_path, ClipSet.read(held_out))
    assert result.accuracy is not None
    assert result.accuracy >= 0.9
    assert result.classified == 20
    assert encoders[0].texts == [f"kind {kind} can be heard" for kind in range(CLASSES)]
    assert encoders[0].loaded["name"] == "made-up"
    assert (encoders[0].loaded["pooling"], encoders[0].loaded["normalize"]) == ("mean", False)
    value = json.loads(json.dumps(result.to_dict()))
    assert value["chance"] == 0.25
    assert [row["n"] for row in value["per_class"]] == [5] * 4
    assert sum(map(sum, value["confusion"]["counts"])) == 20


@pytest.mark.slow
def test_captions_dealt_to_the_wrong_clips_teach_nothing(
    data: Path, held_out: Path, encoders: list[FakeEncoder], tmp_path: Path
) -> None:
    train(DataChoice(data), tmp_path, TINY, replace(TRAIN, shuffle_captions=True), OPTIONS)
    accuracy = zero_shot(tmp_path, ClipSet.read(held_out)).accuracy
    assert accuracy is not None
    assert accuracy <= 0.5


@pytest.mark.slow
def test_predictions_are_the_nearest_captions(run: Path, held_out: Path, encoders: list[FakeEncoder]) -> None:
    """With classes in another order, and some that do not occur, the decisions are the same."""
    names = held_out.parent / "classes.txt"
    names.write_text("kind_3\nkind_1\n\nkind_0\nkind_2\n")
    assert (
        zero_shot(run, ClipSet.read(held_out, None, names)).confusion
        == zero_shot(run, ClipSet.read(held_out)).confusion
    )


@pytest.mark.slow
def test_unreadable_clips_are_rows(
    run: Path, held_out: Path, encoders: list[FakeEncoder], tmp_path: Path, make_log_mel: Callable[..., np.ndarray]
) -> None:
    shutil.copytree(held_out.parent, tmp_path / "set")
    folder = tmp_path / "set"
    (folder / "0.npy").unlink()
    (folder / "1.npy").write_bytes(b"no array")
    np.save(folder / "2.npy", np.full((1, 80, 50), np.inf, np.float32))
    np.save(folder / "3.npy", np.zeros((1, 64, 50), np.float32))
    (folder / "text.wav").write_text("no sound")
    with (folder / "clips.csv").open("a") as file:
        file.write("text.wav,kind_0,x\n")
    result = zero_shot(run, ClipSet.read(folder / "clips.csv"))
    assert result.classified == 16
    assert [(failure.file_name, failure.reason) for failure in result.failures] == [
        ("0.npy", "not_a_log_mel"),
        ("1.npy", "not_a_log_mel"),
        ("2.npy", "nonfinite"),
        ("3.npy", "not_a_log_mel"),
        ("text.wav", "not_audio"),
    ]
    assert "21 clips = 16 classified + 5 failed" in render(result)
    assert "text.wav" in render(result)


def converted_clips(folder: Path) -> Path:
    """A table of five converted sounds, of which four are not what the conversion wrote, each in another way."""
    rng = np.random.default_rng(0)
    (folder / "wavs").mkdir(parents=True)
    for number in range(5):
        soundfile.write(folder / "wavs" / f"{number}.wav", rng.normal(scale=0.1, size=12000), 16000)
    arrays = folder / "data" / "x_lms"
    run_melspec(folder / "wavs", arrays, ConvertConfig(PRESETS["16k"], min_seconds=0.5), MelspecOptions(workers=0))
    flipped = bytearray((arrays / "1.npy").read_bytes())
    flipped[-5] ^= 1
    (arrays / "1.npy").write_bytes(flipped)
    shutil.copyfile(arrays / "0.npy", arrays / "2.npy")
    np.save(arrays / "3.npy", np.zeros((1, 80, 76), np.float32))
    np.save(arrays / "4.npy", np.load(arrays / "4.npy")[..., :-1])
    (folder / "clips.csv").write_text(
        "file_name,label\n" + "".join(f"data/x_lms/{number}.npy,kind_{number % 2}\n" for number in range(5))
    )
    return folder / "clips.csv"


@pytest.mark.slow
def test_log_mels_that_are_not_what_their_records_say_are_rows(
    run: Path, encoders: list[FakeEncoder], tmp_path: Path
) -> None:
    result = zero_shot(run, ClipSet.read(converted_clips(tmp_path)))
    assert result.classified == 1
    assert [(Path(failure.file_name).name, failure.reason) for failure in result.failures] == [
        (f"{number}.npy", "damaged") for number in (1, 2, 3, 4)
    ]
    assert "digest is not that of its record" in result.failures[0].message


@pytest.mark.slow
def test_audio_files_go_through_the_trainings_front_end(run: Path, encoders: list[FakeEncoder], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", rng.normal(scale=0.1, size=(12000, 2)), 44100)
    (tmp_path / "clips.csv").write_text("file_name,label\n0.wav,kind_0\n1.wav,kind_1\n")
    assert zero_shot(run, ClipSet.read(tmp_path / "clips.csv")).classified == 2


def test_root_and_template(run: Path, held_out: Path, encoders: list[FakeEncoder], tmp_path: Path) -> None:
    shutil.copy(held_out, tmp_path / "elsewhere.csv")
    clips = ClipSet.read(tmp_path / "elsewhere.csv", held_out.parent)
    result = zero_shot(run, clips, template="hear {label} !", text_model="my/model")
    assert result.classified == 20
    assert encoders[0].texts[0] == "hear kind 0 !"
    assert encoders[0].loaded["name"] == "my/model"
    with pytest.raises(UserError, match=r"\{label\}"):
        zero_shot(run, clips, template="a sound")


def test_captions_of_classes() -> None:
    assert caption_of("glass_breaking", "{label} can be heard") == "glass breaking can be heard"
    assert caption_of("{odd}", "{label} can be heard") == "{odd} can be heard"


def test_a_text_model_of_another_length_is_refused(run: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder(np.zeros((4, 5)), {"name": name}))
    with pytest.raises(UserError, match="5 numbers"):
        zero_shot(run, ClipSet.read(held_out))


def test_other_weights_are_refused_unless_they_are_insisted_on(
    run: Path,
    held_out: Path,
    encoders: list[FakeEncoder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(FakeEncoder, "describe", lambda self: {"model": "x", "weights": "sha256:1"})
    with pytest.raises(UserError, match=r"other weights than the training's.*--text-model"):
        zero_shot(run, ClipSet.read(held_out))
    zero_shot(run, ClipSet.read(held_out), text_model="another")
    assert "other weights" in capsys.readouterr().err


def test_checkpoints_that_cannot_classify(
    run: Path, held_out: Path, encoders: list[FakeEncoder], tmp_path: Path
) -> None:
    weights = Checkpoint.read(next(run.rglob("*.pth"))).weights
    torch.save({"model": weights}, tmp_path / "unknown-text-model.pth")
    with pytest.raises(UserError, match="--text-model"):
        zero_shot(tmp_path / "unknown-text-model.pth", ClipSet.read(held_out))
    encoder = {key: value for key, value in weights.items() if not key.startswith(("audio_proj", "text_proj"))}
    torch.save(encoder, tmp_path / "encoder.pth")
    with pytest.raises(UserError, match="audio_proj"):
        zero_shot(tmp_path / "encoder.pth", ClipSet.read(held_out))


def test_what_is_not_finite_is_no_result(
    run: Path, held_out: Path, encoders: list[FakeEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is nearest to the first class, so without a check it would be an accuracy like any other."""
    value = torch.load(next(run.rglob("*.pth")), weights_only=True)
    value["model"]["audio_proj.0.weight"][0, 0] = torch.nan
    torch.save(value, tmp_path / "diverged.pth")
    with pytest.raises(UserError, match=r"weights are not finite \(audio_proj\.0\.weight first\).* earlier checkpoint"):
        zero_shot(tmp_path / "diverged.pth", ClipSet.read(held_out))
    with monkeypatch.context() as patched:
        directions = np.ones((4, 16))
        directions[2] = np.nan
        patched.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder(directions, {"name": name}))
        with pytest.raises(UserError, match=r"not finite of 1 classes \(kind_2 first\)"):
            zero_shot(run, ClipSet.read(held_out))
    encode = CheckpointEncoder.encode

    def overflow(encoder: CheckpointEncoder, log_mels: Sequence[np.ndarray]) -> np.ndarray:
        embeddings = encode(encoder, log_mels)
        embeddings[3] = np.nan
        return embeddings

    monkeypatch.setattr(CheckpointEncoder, "encode", overflow)
    result = zero_shot(run, ClipSet.read(held_out))
    assert [(failure.file_name, failure.reason) for failure in result.failures] == [("3.npy", "nonfinite")]
    assert result.classified == 19


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,class\na.wav,x\n", "label"),
        ("file_name,label\n", "no clips"),
        ("file_name,label\n../a.wav,x\nb.wav,y\n", "leads out of"),
        ("file_name,label\na.wav,x\nb.wav,x\n", "1 classes"),
        ("file_name,label\na.wav,x\nb.wav,\n", "row 3"),
        ("file_name,label\na.wav,x\nb.wav,z\n", "does not list: z"),
    ],
)
def test_tables_that_cannot_be_used(table: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(table)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    with pytest.raises(UserError, match=message):
        ClipSet.read(tmp_path / "clips.csv", None, tmp_path / "classes.txt" if "z\n" in table else None)


def clip_table(folder: Path, table: str) -> Path:
    """A CSV beside which the files a.wav and b.wav exist, as far as a table of clips checks."""
    for name in ("a.wav", "b.wav"):
        (folder / name).write_bytes(b"")
    (folder / "clips.csv").write_text(table)
    return folder / "clips.csv"


@pytest.mark.parametrize(
    ("table", "given", "said"),
    [
        ("file_name,label,class\na.wav,x,1\nb.wav,y,2\n", {}, ""),
        ("filename,fold,target,category,esc10\na.wav,1,0,x,T\nb.wav,1,1,y,T\n", {}, "labels in category"),
        ("slice_file_name,fsID,classID,class\na.wav,1,0,x\nb.wav,1,1,y\n", {}, "the column slice_file_name"),
        ("\ufefffile_name,label\na.wav,x\nb.wav,y\n", {}, ""),
        ("sound,name\na.wav,x\nb.wav,y\n", {"file_column": "sound", "label_column": "name"}, ""),
        ("filename,category,class\na.wav,1,x\nb.wav,2,y\n", {"label_column": "class"}, "the column filename"),
    ],
)  # fmt: skip
def test_columns_by_the_names_that_data_sets_have(
    table: str, given: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ESC-50 and UrbanSound8K as they are downloaded; a guess is reported."""
    clips = ClipSet.read(clip_table(tmp_path, table), **given)  # type: ignore[arg-type]
    assert [(clip.file_name, clip.label) for clip in clips.clips] == [("a.wav", "x"), ("b.wav", "y")]
    shown = capsys.readouterr().err
    assert said in shown
    assert bool(said) == bool(shown)


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        ("sound,name\na.wav,x\n", {}, "no column file_name; it has sound, name. --file-column"),
        ("file_name,name\na.wav,x\n", {}, "no column label; it has file_name, name. --label-column"),
        ("file_name,class,category\na.wav,x,y\n", {}, r"several columns that could be the labels \(class, category\)"),
        ("filename,path,label\na.wav,b.wav,x\n", {}, r"several columns that could be the files \(filename, path\)"),
        ("file_name,label,label\na.wav,x,y\n", {}, "its header names 'label' more than once"),
        ("file_name,label\na.wav,x\n", {"label_column": "kind"}, "no column 'kind'; it has file_name, label"),
        ("", {}, "clips.csv is empty"),
    ],
)
def test_columns_that_cannot_be_decided_are_listed(
    table: str, given: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        ClipSet.read(clip_table(tmp_path, table), **given)  # type: ignore[arg-type]


def test_files_that_are_all_missing_say_where_they_were_looked_for(tmp_path: Path) -> None:
    clips = clip_table(tmp_path, "file_name,label\nsounds/a.wav,x\nsounds/b.wav,y\n")
    with pytest.raises(UserError, match=rf"none of the 2 files .* is under {tmp_path} \(sounds/a.wav .* --root names"):
        ClipSet.read(clips)
    (tmp_path / "root").mkdir()
    with pytest.raises(UserError, match=rf"is under {tmp_path / 'root'} .* relative to the root, --probe-root names"):
        ClipSet.read(clips, tmp_path / "root", root_option="--probe-root")
    (tmp_path / "root" / "sounds").mkdir()
    (tmp_path / "root" / "sounds" / "b.wav").write_bytes(b"")
    assert len(ClipSet.read(clips, tmp_path / "root").clips) == 2  # the other one will be a row of its own


@pytest.mark.parametrize(
    "labels",
    [("dog bark", "dog_bark"), ("dog", "dog "), ("_dog", "dog"), ("a  b", "a b"), ("x\u00a0y", "x y")],
)
def test_classes_that_have_one_caption_are_refused_before_anything_is_loaded(
    run: Path, held_out: Path, encoders: list[FakeEncoder], labels: tuple[str, str]
) -> None:
    """Otherwise every clip of the second would count as wrong."""
    clips = replace(ClipSet.read(held_out), classes=["kind_0", *labels])
    with pytest.raises(UserError, match=r"the classes .* have one caption"):
        zero_shot(run, clips)
    assert encoders == []


class UncasedEncoder(FakeEncoder):
    """Knows a text's letters, not their case, and takes the first twelve of them."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(text.lower()[:12].encode())).standard_normal(self.dim) for text in texts]
        return np.stack(rows).astype(np.float32) * (1 + 1e-6 * np.arange(len(texts), dtype=np.float32)[:, None])


@pytest.mark.parametrize("labels", [("Dog", "dog"), ("a siren far off", "a siren far away"), ("DOG", "Dog")])
def test_classes_that_the_encoder_does_not_tell_apart_are_refused(
    class_directions: np.ndarray, labels: tuple[str, str]
) -> None:
    encoder: Any = UncasedEncoder(class_directions, {"name": "uncased"})
    with pytest.raises(
        UserError, match=f"'{labels[0]}' and '{labels[1]}' have captions that the text encoder does not"
    ):
        class_texts(encoder, evaluation_set(ClipSet([], ["cat", *labels, "cow"])))
    assert class_texts(encoder, evaluation_set(ClipSet([], ["cat", "dog", "cow"]))).shape[1] == 3


def test_many_classes_are_compared_in_parts(class_directions: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SAME_BLOCK", 2)
    rows = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    assert protocol.first_equal(rows) is None
    rows[7] = rows[3] * 2
    assert protocol.first_equal(rows) == (3, 7)


def test_class_lists_are_checked(tmp_path: Path, held_out: Path) -> None:
    (tmp_path / "twice.txt").write_text("x\nx\n")
    with pytest.raises(UserError, match="twice"):
        ClipSet.read(held_out, None, tmp_path / "twice.txt")
    with pytest.raises(UserError, match="no such file"):
        ClipSet.read(held_out, None, tmp_path / "nowhere.txt")


def test_report_as_text() -> None:
    result = ZeroShotResult("c.pth", "m", "{label}", ["bark", "purr"], [[3, 1], [0, 0]], [], [])
    assert render(result).splitlines() == [
        "accuracy 75.00% (3 of 4 clips, 2 classes, chance 50.00%)",
        "4 clips = 4 classified + 0 failed",
        "checkpoint c.pth",
        "captions '{label}' by m",
        "",
        "class  clips  right  accuracy",
        "bark       4      3     75.0%",
        "purr       0      0         –",
        "",
        "true \\ predicted  0  1",
        "0 bark            3  1",
        "1 purr            ·  ·",
    ]


def test_many_classes_list_the_commonest_confusions() -> None:
    classes = [f"c{number:02}" for number in range(30)]
    confusion = [[0] * 30 for _ in classes]
    confusion[3][7], confusion[4][4], confusion[9][1] = 5, 2, 6
    text = render(ZeroShotResult("c.pth", "m", "{label}", classes, confusion, []))
    assert "commonest confusions\nclips  true  predicted\n    6  c09   c01\n    5  c03   c07" in text
