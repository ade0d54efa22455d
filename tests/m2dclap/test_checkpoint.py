"""Checkpoints follow the original's rules and its files load; everything else is refused with a reason and never
run."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import PRESETS as FRONT_ENDS
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint, infer_config
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.training.config import TrainConfig
from m2dprep.training.run_folder import checkpoint_folder_name
from tests.tiny import TINY_INFERABLE, state_of

CPU = torch.device("cpu")
MODEL = replace(TINY_INFERABLE, off_emb_dim=8)
FOLDER = "m2d_clap_vit_tiny-80x48p16x16p16k-test"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return M2DCLAP(MODEL).state_dict()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(value: Any, folder: str = FOLDER, name: str = "checkpoint-3.pth") -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        torch.save(value, path)
        return path

    return save


def encodes(path: Path) -> torch.Tensor:
    """The output of a loaded checkpoint for a fixed log-mel."""
    model = Checkpoint.read(path).load_model(CPU)
    with torch.no_grad():
        return model.clap_audio(torch.ones(1, 1, 80, 48))


def test_folder_name_follows_the_originals_rule() -> None:
    name = checkpoint_folder_name("base", ModelConfig(), TrainConfig(seed=3), 16000, "0123456789abcdef")
    assert name == "m2d_clap_vit_base-80x608p16x16p16k-e300b512s3-01234567"
    model, shape = name.split("-")[:2]
    assert model == "m2d_clap_vit_base"
    assert shape.split("p") == ["80x608", "16x16", "16k"]
    assert "-80x208p80x2p32k-" in checkpoint_folder_name(
        "tiny", ModelConfig(input_size=(80, 208), patch_size=(80, 2)), TrainConfig(), 32000, "0123456789abcdef"
    )


@pytest.mark.slow
def test_state_survives_the_disk(tmp_path: Path) -> None:
    state = state_of(MODEL)
    state.objective.model(torch.randn(2, 1, 80, 48), torch.randn(2, 8)).loss.backward()
    state.optimizer.step()
    state.step, state.unlogged = 17, torch.rand(2, 3)
    state.save(tmp_path / "checkpoint-4.pth", 4, {"model": "m2d_clap_vit_tiny"}, {"train": {}})
    raw = torch.load(tmp_path / "checkpoint-4.pth", weights_only=True)
    assert list(raw) == ["model", "optimizer", "epoch", "scaler", "args", "m2dprep"]
    assert type(raw["args"]) is dict
    assert raw["model"]["norm_stats"].shape == (2,)
    other = state_of(MODEL)
    other.restore(tmp_path / "checkpoint-4.pth")
    assert other.step == 17
    assert other.unlogged.equal(state.unlogged)
    for key, value in state.objective.weights().items():
        assert other.objective.weights()[key].equal(value)
    moments = [s.optimizer.state_dict()["state"] for s in (state, other)]
    assert all(moments[0][i]["exp_avg"].equal(moments[1][i]["exp_avg"]) for i in moments[0])


def test_restoring_anything_else_is_refused(save: Callable[..., Path], weights: dict[str, torch.Tensor]) -> None:
    state = state_of(replace(MODEL, depth=1))
    for value in ({"model": weights}, weights):
        with pytest.raises(UserError, match="cannot be gone on from"):
            state.restore(save(value))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["top level", "model", "fine-tuned", "backbone", "namespace", "extra keys"])
def test_forms_of_foreign_checkpoints(form: str, save: Callable[..., Path], weights: dict[str, torch.Tensor]) -> None:
    expected = encodes(save({"model": weights}, name="plain.pth"))
    value: dict[str, Any] = {
        "top level": dict(weights),
        "model": {"model": weights, "epoch": 3},
        "fine-tuned": {f"module.ar.runtime.backbone.{key}": tensor for key, tensor in weights.items()},
        "backbone": {f"backbone.{key}": tensor for key, tensor in weights.items()} | {"head.weight": torch.ones(2)},
        "namespace": {"model": weights, "args": argparse.Namespace(model="m2d_clap_vit_tiny", epochs=3, out=Path("x"))},
        "extra keys": {"model": weights | {"text_encoder.weight": torch.ones(3)}},
    }[form]
    assert encodes(save(value)).equal(expected)


def test_missing_norm_stats_fall_back_to_the_originals(
    save: Callable[..., Path], weights: dict[str, torch.Tensor]
) -> None:
    with_stats = save({"model": weights | {"norm_stats": torch.tensor([-6.5, 3.5])}}, name="a.pth")
    assert Checkpoint.read(with_stats).norm_stats == (-6.5, 3.5)
    without = save({"model": {key: value for key, value in weights.items() if key != "norm_stats"}})
    checkpoint = Checkpoint.read(without)
    assert checkpoint.norm_stats == pytest.approx((-7.1, 4.2))
    checkpoint.load_model(CPU)


def test_configuration_of_a_foreign_checkpoint(save: Callable[..., Path], weights: dict[str, torch.Tensor]) -> None:
    path = save({"model": weights})
    assert infer_config(weights, path) == replace(MODEL, loss_clap=ModelConfig.loss_clap)
    longer = weights | {"pos_embed": torch.zeros(1, 311, 64)}
    for folder in ("m2d_clap_vit_x-80x1001p16x16p16k-a", "without-a-size"):
        assert infer_config(longer, save({}, folder)).input_size == (80, 1001)
    assert infer_config(longer, save({}, "m2d_clap_vit_x-80x992p16x16p16k-a")).input_size == (80, 992)


@pytest.mark.parametrize(
    ("patch", "columns", "frames"),
    [(16, 62, 1001), (16, 38, 608), (16, 31, 501), (16, 13, 208), (16, 12, 200), (16, 6, 101), (16, 51, 821),
     (4, 50, 200), (2, 152, 304), (16, 7, 112), (16, 63, 1008)],
)  # fmt: skip
def test_frames_of_a_foreign_checkpoint_without_its_folders_name(
    save: Callable[..., Path], weights: dict[str, torch.Tensor], patch: int, columns: int, frames: int
) -> None:
    """Frames beyond the last column are lost in each chunk, so they must be those that the model was made for."""
    rows = 80 // 16
    changed = weights | {
        "pos_embed": torch.zeros(1, 1 + rows * columns, 64),
        "patch_embed.proj.weight": torch.zeros(64, 1, 16, patch),
    }
    assert infer_config(changed, save({}, "without-a-size")).input_size == (80, frames)


def test_front_end_of_a_foreign_checkpoint(save: Callable[..., Path], weights: dict[str, torch.Tensor]) -> None:
    for rate in ("16k", "32k"):
        path = save({"model": weights}, f"m2d_clap_vit_tiny-80x48p16x16p{rate}-a")
        assert Checkpoint.read(path).front_end == FRONT_ENDS[rate]


def test_encoder_without_captions(save: Callable[..., Path], weights: dict[str, torch.Tensor]) -> None:
    encoder = {
        key: value for key, value in weights.items() if not key.startswith(("audio_proj", "text_proj", "decoder"))
    }
    checkpoint = Checkpoint.read(save(encoder))
    checkpoint.load_model(CPU)
    with pytest.raises(UserError, match="audio_proj"):
        checkpoint.require_clap_head()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("blocks.0.norm1.weight"), "lacks 1 .*blocks.0.norm1.weight"),
        (lambda weights: weights.update({"norm.bias": torch.zeros(3)}), r"norm.bias is \[3\], its model needs \[64\]"),
        (lambda weights: weights.pop("cls_token"), "no M2D encoder"),
        (lambda weights: weights.update({"pos_embed": torch.zeros(1, 3, 64)}), "2 positions"),
        (lambda weights: weights.pop("pos_embed"), "0 positions"),
    ],
)
def test_unusable_weights_are_named(
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
    save: Callable[..., Path],
    weights: dict[str, torch.Tensor],
) -> None:
    changed = dict(weights)
    change(changed)
    with pytest.raises(UserError, match=message):
        Checkpoint.read(save({"model": changed})).load_model(CPU)


class Trap:
    """Pickled, it would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_that_a_file_names_is_run(save: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a checkpoint that can be read"):
        Checkpoint.read(save({"model": Trap(tmp_path / "sprung")}))
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"model": Trap(tmp_path / "sprung")}, protocol=2))
    with pytest.raises(UserError, match="not a checkpoint that can be read"):
        Checkpoint.read(tmp_path / "old.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint-1\.pth is not a checkpoint"):
        Checkpoint.read(tmp_path / "checkpoint-1.pth")


def test_other_values(save: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="holds a list"):
        Checkpoint.read(save([1, 2]))
    with pytest.raises(UserError, match="no such file"):
        Checkpoint.read(Path("nowhere.pth"))


def test_newest_checkpoint_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    folder = tmp_path / FOLDER
    folder.mkdir()
    for place in ("9", "100", "20", "20-30", "99-7000"):
        (folder / f"checkpoint-{place}.pth").touch()
    (folder / "checkpoint-200.pth.part").touch()
    for start in (tmp_path, folder, folder / "checkpoint-100.pth"):
        assert find_checkpoint(start) == folder / "checkpoint-100.pth"
    (folder / "checkpoint-100-3.pth").touch()
    assert find_checkpoint(folder) == folder / "checkpoint-100-3.pth"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoint-1.pth").touch()
    with pytest.raises(UserError, match="several models"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"some text\n", b"PK\x03\x04 half a zip", b"\x80\x04K\x01.", bytes(64)])
def test_any_bytes_that_are_no_checkpoint_are_refused_in_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint-1.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint-1\.pth is not a checkpoint"):
        Checkpoint.read(tmp_path / "checkpoint-1.pth")


OURS = {"model_config": MODEL.to_dict(), "front_end": asdict(FRONT_ENDS["16k"]), "text_model": {"model": "a"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *(("model_config", key, value) for key in MODEL.to_dict() for value in ("many", None, [], {}, 2**40, True)),
        *(("front_end", key, value) for key in asdict(FRONT_ENDS["16k"]) for value in ("many", None, [], 10**12, True)),
        *(("text_model", key, [3]) for key in ("model", "pooling", "prefix", "revision", "normalized", "max_length")),
        ("model_config", "another", 3),
        ("front_end", "another", 3),
        ("model_config", "depth", 3),
        ("model_config", "embed_dim", 128),
        ("model_config", "input_size", [80, 480]),
        ("model_config", "off_emb_dim", 9),
    ],
)
def test_wrong_arguments_are_named_with_the_file(
    save: Callable[..., Path], weights: dict[str, torch.Tensor], part: str, key: str, value: Any
) -> None:
    path = save({"model": weights, "args": {**OURS, part: {**OURS[part], key: value}}})
    with pytest.raises(UserError) as raised:
        checkpoint = Checkpoint.read(path)
        assert checkpoint.front_end is not None
        assert checkpoint.text_model
    assert str(path) in str(raised.value)
    assert key in str(raised.value) or key == "input_size"


@pytest.mark.parametrize(
    "value", [torch.ones(3), torch.ones(()), torch.tensor([0.0, 0.0]), torch.tensor([1, float("nan")])]
)
def test_statistics_that_normalise_nothing(
    save: Callable[..., Path], weights: dict[str, torch.Tensor], value: torch.Tensor
) -> None:
    checkpoint = Checkpoint.read(save({"model": weights | {"norm_stats": value}}))
    with pytest.raises(UserError, match="norm_stats"):
        checkpoint.norm_stats  # noqa: B018


@pytest.mark.parametrize("key", ["cls_token", "patch_embed.proj.weight", "pos_embed", "mask_token", "text_proj.weight"])
def test_weights_of_another_number_of_dimensions(
    save: Callable[..., Path], weights: dict[str, torch.Tensor], key: str
) -> None:
    for value in (torch.ones(()), torch.ones(5)):
        with pytest.raises(UserError, match=f"{key} is"):
            Checkpoint.read(save({"model": weights | {key: value}}))
