"""Checkpoints are written in every layout, with the original's keys, and read again; released ones encode."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import PRESETS
from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.exporting import export_checkpoint
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.layouts import TEXT_FOLDER, folder_name, infer_config, layout_of, parts_of
from m2dprep.m2dclap.reuse.exporting import LAYOUTS, laid_out
from m2dprep.m2dclap.reuse.spectrogram import spectrogram_tables
from m2dprep.m2dclap.text.model import TextClap
from m2dprep.m2dclap.text.tower import TextTower
from tests.evaluation.made_clips import write_tones
from tests.tiny import TINY_INFERABLE, state_of
from tests.training.tiny_tower import make_tower

pytestmark = pytest.mark.slow
KEYS = json.loads((Path(__file__).parents[1] / "golden" / "keys_2025.json").read_text())["layouts"]
LETTERED = {"a": "training", "b": "training", "c": "fine-tuned", "d": "stage2", "e": "encoder-only"}
NAME = "m2d_clap_vit_tiny-80x48p16x16p16k"


def meta_of(name: str) -> dict[str, torch.Tensor]:
    """A file's tensors without storage, but for those that are looked into."""
    found = {key: torch.empty(shape, device="meta") for key, shape, _ in KEYS[name]["keys"]}
    small = {key: torch.ones(value.shape) for key, value in found.items() if value.ndim <= 1 and value.numel() <= 2}
    return found | small


def checkpoint_of(name: str, folder: Path) -> Checkpoint:
    value = {"model": meta_of(name)} if "under 'model'" in KEYS[name]["note"] else meta_of(name)
    parts = parts_of(value)
    path = folder / f"m2d_clap_vit_base-80x{1001 if name[0] in 'cd' or name.endswith('166') else 608}p16x16p16k-x/a.pth"
    config = infer_config(parts.model, path)
    return Checkpoint(path, config, parts.model, {}, parts.text, parts.head, layout_of(parts), parts.scale)


@pytest.mark.parametrize("name", [name for name in KEYS if name[0] in LETTERED])
def test_the_layout_of_every_original_file_is_written_with_its_keys_and_shapes(name: str, tmp_path: Path) -> None:
    written, below_model = laid_out(checkpoint_of(name, tmp_path), LETTERED[name[0]])
    listed = {key: tuple(shape) for key, shape, _ in KEYS[name]["keys"]}
    assert {key: tuple(value.shape) for key, value in written.items()} == listed
    assert below_model == ("under 'model'" in KEYS[name]["note"])


@pytest.mark.parametrize(
    ("name", "encoder_only"),
    [("b_stage1_2025_419", "e_encoder_only_168"), ("a_train_2024_406", "e_encoder_only_155"),
     ("d_stage2_370", "e_encoder_only_166"), ("c_evar_ft_177", "e_encoder_only_168"),
     ("x_train_m2d_2022", "e_encoder_only_151")],
)  # fmt: skip
def test_an_encoder_alone_is_written_of_every_file(name: str, encoder_only: str, tmp_path: Path) -> None:
    written, below_model = laid_out(checkpoint_of(name, tmp_path), "encoder-only")
    assert not below_model
    listed = [key for key, _, _ in KEYS[encoder_only]["keys"]]
    assert sorted(written) == sorted(listed)
    assert "norm_stats" in written


@pytest.mark.parametrize(
    ("name", "layout", "lacks"),
    [("a_train_2024_406", "stage2", "text tower"), ("d_stage2_370", "training", "predictor"),
     ("e_encoder_only_151", "fine-tuned", "classifier")],
)  # fmt: skip
def test_a_layout_that_holds_more_than_the_checkpoint_is_refused(
    name: str, layout: str, lacks: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"holds no .*{lacks}"):
        laid_out(checkpoint_of(name, tmp_path), layout)
    assert layout in LAYOUTS


def test_the_constants_of_the_spectrogram_compute_our_front_end() -> None:
    tables = spectrogram_tables(PRESETS["16k"])
    shapes = {key: tuple(shape) for key, shape, _ in KEYS["d_stage2_370"]["keys"] if key.startswith("to_spec.")}
    assert {f"to_spec.{key}": tuple(value.shape) for key, value in tables.items()} == shapes
    wave = torch.randn(400, generator=torch.Generator().manual_seed(0))
    power = (tables["stft.wsin"][:, 0] @ wave) ** 2 + (tables["stft.wcos"][:, 0] @ wave) ** 2
    expected = torch.fft.rfft(wave * tables["stft.window_mask"][0, :, 0]).abs() ** 2
    torch.testing.assert_close(power, expected, rtol=1e-3, atol=1e-3)


def released(folder: Path, tower: Path, *, position_ids: bool = False, patch: tuple[int, int] = (16, 16)) -> Path:
    """A file as the authors release it, of a tiny model: names, a Namespace, and nothing of ours."""
    from transformers import AutoModel

    config = replace(TINY_INFERABLE, input_size=(80, 48), patch_size=patch, off_emb_dim=64, sem_mode=1)
    torch.manual_seed(5)
    model = TextClap(config, Normalization(-7.2, 4.3), PRESETS["16k"], TextTower(AutoModel.from_pretrained(tower)))
    weights = dict(model.state_dict())
    if position_ids:
        weights["text_encoder.text_encoder.embeddings.position_ids"] = torch.arange(24)[None]
    path = folder / f"m2d_clap_vit_base-80x48p{patch[0]}x{patch[1]}p16kpBpTI-2025" / "checkpoint-30.pth"
    path.parent.mkdir(parents=True)
    torch.save({"model": weights, "epoch": 30, "args": argparse.Namespace(model="m2d_clap_vit_base", blr=3e-6)}, path)
    return path


def put_beside(checkpoint: Path, tower: Path) -> None:
    """The configuration and tokenizer of a tower where they are looked for."""
    beside = checkpoint.parent / TEXT_FOLDER
    beside.mkdir()
    for one in tower.iterdir():
        if one.suffix in (".json", ".txt"):
            (beside / one.name).write_bytes(one.read_bytes())


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tower(
        tmp_path_factory.mktemp("towers") / "tower", hidden_size=64, num_attention_heads=1, intermediate_size=128
    )


@pytest.mark.parametrize(("position_ids", "patch"), [(False, (16, 16)), (True, (16, 16)), (False, (80, 2))])
def test_a_released_file_compares_clips_with_captions_also_when_it_was_exported(
    tmp_path: Path, tower: Path, position_ids: bool, patch: tuple[int, int]
) -> None:
    path = released(tmp_path / "theirs", tower, position_ids=position_ids, patch=patch)
    encoder = CheckpointEncoder(path, text_model=str(tower))
    clip = np.random.default_rng(0).normal(-7, 4, (1, 80, 100)).astype(np.float32)
    texts = ["the sound of kind 1", "said"]
    audio, text = encoder.encode([clip]), encoder.encode_texts(texts)
    put_beside(path, tower)
    exported = export_checkpoint(path, tmp_path / "ours", "stage2")
    assert exported.file.parent.name == path.parent.name
    again = CheckpointEncoder(exported.file)
    np.testing.assert_allclose(again.encode([clip]), audio, atol=1e-6)
    np.testing.assert_allclose(again.encode_texts(texts), text, atol=1e-6)
    torch.load(exported.file, weights_only=True)
    alone = CheckpointEncoder(export_checkpoint(path, tmp_path / "alone", "encoder-only").file)
    np.testing.assert_allclose(alone.encode([clip]), audio, atol=1e-6)
    with pytest.raises(UserError, match="is there already"):
        export_checkpoint(path, tmp_path / "alone", "encoder-only")


def test_a_run_is_exported_by_command(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    folder = tmp_path / "run" / f"{NAME}-e1b8s0-abc"
    folder.mkdir(parents=True)
    config: ModelConfig = replace(TINY_INFERABLE, sem_mode=1)
    args: dict[str, Any] = {"model": "m2d_clap_vit_tiny", "model_config": config.to_dict()}
    state_of(config).save(folder / "checkpoint-1.pth", 1, args, {})
    result = CliRunner().invoke(
        m2dprep,
        ["export", "checkpoint", str(tmp_path / "run"), str(tmp_path / "out"), "--layout", "training", "--json"],
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    file = Path(told["file"])
    named = folder_name(file)
    assert named is not None
    assert (named.input_size, named.patch_size, named.rate) == ((80, 48), (16, 16), "16k")
    value = torch.load(file, weights_only=True)
    assert set(value) == {"model", "epoch", "args"}
    assert len(value["model"]) == told["tensors"]
    assert Checkpoint.read(file).config.sem_mode == 1


def test_a_released_file_goes_through_every_protocol(tmp_path: Path, tower: Path) -> None:
    """Its tokenizer is beside it, so that no text model is named."""
    path = released(tmp_path / "theirs", tower)
    put_beside(path, tower)
    names = write_tones(tmp_path / "audio", 18)
    rows = ["file_name,label,split,group"]
    rows += [f"{name},kind {n % 3},{'test' if n >= 12 else 'train'},{n // 6}" for n, name in enumerate(names)]
    place = tmp_path / "set"
    place.mkdir()
    (place / "metadata.csv").write_text("\n".join(rows) + "\n")
    (place / "task.yaml").write_text("name: tones\nunit_seconds: 0.7\n")
    (place / "prepared.json").write_text(json.dumps({"root": "../audio"}))
    table = tmp_path / "audio" / "captions.csv"
    table.write_text("file_name,caption\n" + "".join(f"{name},the sound of kind {n}\n" for n, name in enumerate(names)))
    for protocol, clips, more in (
        ("zero-shot", place, []),
        ("retrieval", table, []),
        ("linear", place, ["--epochs", "1", "--seeds", "1"]),
    ):
        result = CliRunner().invoke(m2dprep, ["evaluate", protocol, str(path), str(clips), *more, "--json"])
        assert result.exit_code == 0, (protocol, result.output)
        found = json.loads(result.stdout)
        assert found["model"]["layout"] == "with its text tower, 2025"
        if protocol != "linear":
            assert found["model"]["text_model"]["pooling"] == "cls"
