"""A folder for the hub holds the model whole, all that reads checkpoints reads it, and its card invents nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import m2dprep
from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_json_object, write_object
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.sharing.card import CardRequest
from m2dprep.evaluation.sharing.facts import facts_of
from m2dprep.evaluation.sharing.hub_folder import export_to_hub_folder
from m2dprep.evaluation.tagging.class_names import class_names
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.heads import ClassifierHead
from m2dprep.m2dclap.layouts import HEAD_PREFIX
from m2dprep.m2dclap.model import M2DCLAP
from tests.cli.invocation import refused, run
from tests.tiny import TINY

pytestmark = pytest.mark.slow
REQUEST = CardRequest("tiny", "apache-2.0", ("me/sounds",))
FRONT_END = {"sample_rate": 32000, "n_fft": 800, "win_length": 800, "hop_length": 320, "n_mels": 80, "f_min": 50.0,
             "f_max": 16000.0, "eps": 1e-7}  # fmt: skip


def a_run(folder: Path, classes: int = 0, **args: Any) -> Path:
    torch.manual_seed(0)
    place = folder / "m2d_clap_vit_tiny-80x48p16x16p16k-x"
    place.mkdir(parents=True)
    weights = dict(M2DCLAP(TINY).state_dict())
    if classes:
        head = ClassifierHead(TINY.embed_dim, classes).state_dict()
        weights |= {f"{HEAD_PREFIX}{key}": value for key, value in head.items()}
        (place / "classes.txt").write_text("".join(f"class, {n}\n" for n in range(classes)))
    own = {"model_config": TINY.to_dict(), "front_end": FRONT_END, **args}
    torch.save({"model": weights, "args": own}, place / "checkpoint-3.pth")
    train = {"epochs": 3, "batch_size": 8, "seed": 5}
    data = {"clips": 1234, "norm_stats": [-7.0, 4.0]}
    config = {"settings": {"train": train, "data": data}, "data": str(folder / "private_place" / "data")}
    write_object(folder / "config.json", config)
    return folder


def head_of(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_it_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run", text_model={"model": "some/encoder", "model_path": "/secret", "pooling": "mean"})
    found = export_to_hub_folder(source, tmp_path / "shared", REQUEST)
    ours, theirs = (Checkpoint.read(find_checkpoint(one)) for one in (source, found.folder))
    assert sorted(path.name for path in found.folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert theirs.config == ours.config
    assert theirs.front_end == ours.front_end
    assert theirs.norm_stats == ours.norm_stats
    assert torch.equal(theirs.logit_scale, ours.logit_scale)
    assert theirs.text_model == {"model": "some/encoder", "pooling": "mean"}
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal((1, 80, frames)).astype(np.float32) for frames in (30, 48, 100)]
    first, second = (
        AudioEncoder(one.load_audio_model(torch.device("cpu")), one.norm_stats).embed(clips) for one in (ours, theirs)
    )
    assert np.array_equal(first, second)
    assert not any(key.startswith(("decoder_", "target_", "mask_token")) for key in theirs.weights)


def test_a_text_encoder_of_an_installed_package_is_found_elsewhere(tmp_path: Path) -> None:
    noted = {"model": "model", "model_path": "/home/me/.venv/lib/site-packages/pack/model", "pooling": "mean"}
    found = export_to_hub_folder(a_run(tmp_path / "run", text_model=noted), tmp_path / "shared", REQUEST)
    assert Checkpoint.read(find_checkpoint(found.folder)).text_model["model_path"] == "site-packages/pack/model"


def test_a_classifier_keeps_its_classes(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run", classes=4)
    folder = export_to_hub_folder(source, tmp_path / "shared", REQUEST).folder
    theirs = Checkpoint.read(find_checkpoint(folder))
    assert class_names(theirs).labels == ("class, 0", "class, 1", "class, 2", "class, 3")
    assert theirs.head_weights.keys() == Checkpoint.read(find_checkpoint(source)).head_weights.keys()
    assert head_of((folder / "README.md").read_text())["pipeline_tag"] == "audio-classification"


def test_the_card_says_what_is_known_and_names_no_place(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run")
    checkpoint = find_checkpoint(source)
    good = Result(
        "zero-shot", "esc50", "accuracy", 0.75, n={"clips": 2000}, digests={"checkpoint": file_digest(checkpoint)}
    )
    good.write(tmp_path / "good.json")
    found = export_to_hub_folder(source, tmp_path / "shared", REQUEST, [tmp_path / "good.json"])
    card = (found.folder / "README.md").read_text()
    head = head_of(card)
    assert (head["license"], head["library_name"], head["datasets"]) == ("apache-2.0", "m2dprep", ["me/sounds"])
    (entry,) = head["model-index"][0]["results"]
    assert entry["dataset"]["name"] == "esc50"
    assert entry["metrics"][0]["value"] == 0.75
    assert "| zero-shot | esc50 | accuracy | 75.00 |" in card
    assert "| epochs | 3 |" in card
    assert "| clips | 1,234 |" in card
    assert "private_place" not in card + (found.folder / "config.json").read_text()
    assert found.untold == ()


def test_captions_are_those_of_the_training_or_are_not_counted(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    source = a_run(tmp_path / "run")
    data = make_data(tmp_path / "data", clips=6)
    config = read_json_object(source / "config.json", "a run")
    trained = read_json_object(data / "capemb_made/meta.json", "a store")["fingerprint"]
    config["settings"]["data"]["embeddings"] = [trained]
    write_object(source / "config.json", {**config, "data": str(data)})
    checkpoint = Checkpoint.read(find_checkpoint(source))
    assert ("captions", "12 of made") in facts_of(checkpoint, source, []).data
    config["settings"]["data"]["embeddings"] = [trained, "0123456789abcdef"]  # one was replaced since
    write_object(source / "config.json", {**config, "data": str(data)})
    assert "captions" not in dict(facts_of(checkpoint, source, []).data)


def test_the_card_says_what_is_not_known(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(a_run(tmp_path / "run"))
    alone = tmp_path / "elsewhere" / "m2d_clap_vit_tiny-80x48p16x16p16k-x" / "checkpoint-3.pth"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(checkpoint.read_bytes())
    found = export_to_hub_folder(alone, tmp_path / "shared", CardRequest("x", "unknown"))
    card = (found.folder / "README.md").read_text()
    assert len(found.untold) == 3
    for words in ("It is not known on which data", "It is not known how", "No scores", "It is not known under which"):
        if words != "It is not known how":  # the sizes of the model are known
            assert words in card
    assert head_of(card)["license"] == "unknown"


def test_a_result_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run")
    Result("zero-shot", "esc50", "accuracy", 0.9, digests={"checkpoint": "0" * 64}).write(tmp_path / "other.json")
    with pytest.raises(UserError, match="of another checkpoint"):
        export_to_hub_folder(source, tmp_path / "shared", REQUEST, [tmp_path / "other.json"])
    assert not (tmp_path / "shared").exists()


def test_the_own_result_of_other_weights_is_not_stated(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run", classes=2)
    Result("fine-tune", "esc50", "accuracy", 0.9, digests={"checkpoint": "0" * 64}).write(source / "result.json")
    found = export_to_hub_folder(source, tmp_path / "shared", REQUEST)
    assert "90.00" not in (found.folder / "README.md").read_text()
    assert any("other weights" in one for one in found.untold)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damage_is_found(name: str, tmp_path: Path) -> None:
    folder = export_to_hub_folder(a_run(tmp_path / "run"), tmp_path / "shared", REQUEST).folder
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError):
        Checkpoint.read(find_checkpoint(folder))


@pytest.mark.parametrize("content", [b"", b"junk", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError):
        Checkpoint.read(find_checkpoint(tmp_path))


def test_the_command_wants_a_licence_and_an_empty_place(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run")
    refused(run("export", "hf", source, tmp_path / "shared"), 2, "--license")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    refused(run("export", "hf", source, tmp_path / "taken", "--license", "mit"), 2, "there already")
    done = run("export", "hf", source, tmp_path / "shared", "--license", "mit", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["folder"] == str(tmp_path / "shared")
    assert "the card cannot say how the model scores" in done.stderr


def test_it_is_loaded_by_its_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client is replaced by one that has the folder: nothing here is downloaded."""
    folder = export_to_hub_folder(a_run(tmp_path / "run"), tmp_path / "shared", REQUEST).folder
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str], **_: object) -> str:
        asked.append(name)
        wanted = [path for path in folder.iterdir() if any(path.match(one) for one in allow_patterns)]
        assert {path.name for path in wanted} >= {"model.safetensors", "config.json"}
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model, local = m2dprep.load("me/m2d-clap-tiny", device="cpu"), m2dprep.load(tmp_path / "run", device="cpu")
    assert asked == ["me/m2d-clap-tiny"]
    log_mel = np.random.default_rng(0).standard_normal((1, 80, 60)).astype(np.float32)
    assert np.array_equal(model.encode_log_mels([log_mel]), local.encode_log_mels([log_mel]))
    assert model.sample_rate == 32000


@pytest.mark.parametrize(
    "words",
    [
        ("--license", "my own"),
        ("--license", "MIT"),
        ("--license", ""),
        ("--license", "mit", "--name", "../model"),
        ("--license", "mit", "--name", "a/b/c"),
        ("--license", "mit", "--name", "me/my model"),
        ("--license", "mit", "--datasets", "me/sounds", "--datasets", "my sounds"),
    ],
)
def test_names_that_the_hub_does_not_take_are_refused_before_any_work(words: tuple[str, ...], tmp_path: Path) -> None:
    refused(
        run("export", "hf", tmp_path, tmp_path / "shared", *words), 2, f"{words[-1]!r} is no name that the hub takes"
    )
    assert not (tmp_path / "shared").exists()
