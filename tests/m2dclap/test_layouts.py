"""Checkpoints of every layout that the original's programs write are recognised, and encode as they did there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.audio_model import AudioModel
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.layouts import FolderName, folder_name, infer_config, layout_of, parts_of
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.training.schedule import decays

GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUTS = json.loads((GOLDEN / "keys_2025.json").read_text())["layouts"]
CPU = torch.device("cpu")
NAMES = {
    "a_train_2024_406": ("training, 2024", 0, 0),
    "b_stage1_2025_419": ("training, 2025", 0, 0),
    "x_train_m2d_2022": ("training, no CLAP", 0, 0),
    "c_evar_ft_177": ("fine-tuned, 2025", 0, 5),
    "c_evar_ft_164": ("fine-tuned, 2024", 0, 5),
    "c_evar_ft_160": ("fine-tuned, no CLAP", 0, 5),
    "d_stage2_370": ("with its text tower, 2025", 199, 0),
    "e_encoder_only_151": ("encoder only, no CLAP", 0, 0),
    "e_encoder_only_155": ("encoder only, 2024", 0, 0),
    "e_encoder_only_166": ("encoder only, 2025", 0, 0),
    "e_encoder_only_168": ("encoder only, 2025", 0, 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_recognised_by_its_keys(name: str) -> None:
    """Tensors without storage stand for the full-size ones, so that nothing is computed."""
    meta = {key: torch.empty(shape, device="meta") for key, shape, _ in LAYOUTS[name]["keys"]}
    parts = parts_of({"model": meta} if "under 'model'" in LAYOUTS[name]["note"] else meta)
    said, text, head = NAMES[name]
    assert layout_of(parts) == said
    assert (len(parts.text), len(parts.head)) == (text, head)
    frames = 608 if meta[next(key for key in meta if key.endswith("pos_embed"))].shape[1] == 191 else 1001
    config = infer_config(parts.model, Path(f"m2d_clap_vit_base-80x{frames}p16x16p16k-a") / "weights.pth")
    assert (config.input_size, config.embed_dim, config.depth, config.num_heads) == ((80, frames), 768, 12, 12)
    with torch.device("meta"):
        own = AudioModel(config, parts.model).state_dict()
    assert {key: tuple(value.shape) for key, value in own.items()} == {
        key: tuple(parts.model[key].shape) for key in own
    }
    left = set(parts.model) - set(own)
    assert all(key.startswith(("norm_stats", "logit_scale", "mask_token", "decoder_", "target_")) for key in left) or (
        any(key.startswith("to_spec.") for key in left)
    )


@pytest.mark.parametrize("name", ["a_train_2024_406", "b_stage1_2025_419"])
def test_models_of_both_generations_have_the_originals_keys_and_shapes(name: str) -> None:
    listed = {key: tuple(shape) for key, shape, _ in LAYOUTS[name]["keys"]}
    second = name.startswith("b_")
    with torch.device("meta"):
        model = M2DCLAP(ModelConfig(off_emb_dim=4096, sem_mode=1) if second else ModelConfig())
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == listed
    groups = json.loads((GOLDEN / "keys_2025.json").read_text())["optimizer_groups"][name[0]]
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert {key for key, value in trained.items() if decays(key, value)} == set(groups["decay"])
    assert {key for key, value in trained.items() if not decays(key, value)} == set(groups["no_decay"])


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("m2d_clap_vit_base-80x608p16x16-240128", ((80, 608), (16, 16), "16k", "", False)),
        ("m2d_clap_vit_base-80x608p16x16p16k-240128", ((80, 608), (16, 16), "16k", "", False)),
        ("m2d_clap_vit_base-80x608p16x16p16kpN-2025", ((80, 608), (16, 16), "16k", "N", False)),
        ("m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025", ((80, 1001), (16, 16), "16k", "B", True)),
        ("m2d_clap_vit_base-80x1001p80x2p16kpBpTI-2025", ((80, 1001), (80, 2), "16k", "B", True)),
        ("m2d_clap_vit_base-80x1001p16x16p16kpBpTIpTI-2.1", ((80, 1001), (16, 16), "16k", "B", True)),
        ("m2d_vit_base-80x200p16x4p32k-a-b-c", ((80, 200), (16, 4), "32k", "", False)),
    ],
)
def test_folders_say_sizes_rates_and_text_towers(folder: str, expected: Any) -> None:
    assert folder_name(Path("anywhere-80x1p1x1") / folder / "checkpoint-30.pth") == FolderName(*expected)


@pytest.mark.parametrize("folder", ["checkpoints", "my-model", "a-80x608", "a-80xp16x16"])
def test_other_folders_say_nothing(folder: str) -> None:
    assert folder_name(Path(folder) / "checkpoint-30.pth") is None


def golden(stage: int, of: str) -> tuple[Any, dict[str, torch.Tensor], ModelConfig]:
    found = np.load(GOLDEN / f"m2d_clap_2025_stage{stage}_tiny.npz")
    weights = {key.removeprefix(of): torch.from_numpy(found[key]) for key in found.files if key.startswith(of)}
    sizes = json.loads(str(found["config"]))
    config = ModelConfig(
        input_size=tuple(sizes["input_size"]), embed_dim=sizes["embed_dim"], depth=sizes["depth"],
        num_heads=sizes["num_heads"], decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2, off_emb_dim=64,
    )  # fmt: skip
    return found, weights, config


@pytest.mark.parametrize("case", ["eval", "eval_long", "eval_short"])
def test_stage_two_of_2025_encodes_as_the_original(case: str, tmp_path: Path) -> None:
    found, weights, config = golden(2, "final/")
    path = tmp_path / "m2d_clap_vit_tiny-80x167p16x16p16kpBpTI-a" / "checkpoint-1.pth"
    path.parent.mkdir()
    torch.save({"model": weights}, path)
    # The original's tiny model has heads of another size than its large ones, which no file tells.
    checkpoint = replace(Checkpoint.read(path), config=config)
    assert checkpoint.layout == "with its text tower, 2025"
    assert checkpoint.norm_stats == pytest.approx((-7.2618, 4.3512), abs=1e-4)
    encoder = AudioEncoder(checkpoint.load_audio_model(CPU), checkpoint.norm_stats)
    clips = [clip.astype(np.float32) for clip in found[f"{case}/x"]]
    encoded = encoder.encode(clips)
    assert encoded.clap is not None
    assert np.abs(encoded.clap.numpy() - found[f"{case}/audio_emb"]).max() < 1e-4
    tokens = found[f"{case}/tokens"].mean(axis=1)
    assert np.abs(encoded.flat.numpy() - tokens).max() < 1e-4


def test_stage_one_of_2025_has_a_projection_of_texts() -> None:
    _, weights, config = golden(1, "final/")
    model = AudioModel(replace(config, off_emb_dim=48, input_size=(80, 64)), weights).eval()
    model.load_state_dict({key: weights[key] for key in model.state_dict()})
    found = np.load(GOLDEN / "m2d_clap_2025_stage1_tiny.npz")
    assert model.project_text(torch.from_numpy(found["step0/text_emb"])).shape[1] == 64


@pytest.fixture
def save(tmp_path: Path) -> Callable[[dict[str, torch.Tensor]], Path]:
    def save(weights: dict[str, torch.Tensor]) -> Path:
        path = tmp_path / "m2d_clap_vit_x-80x32p16x16p16k-a" / "checkpoint-1.pth"
        path.parent.mkdir(exist_ok=True)
        torch.save(weights, path)
        return path

    return save


def small(**heads: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(input_size=(80, 32), embed_dim=64, depth=1, num_heads=1, mask_ratio=0.5)
    return {**AudioModel(config, {}).state_dict(), **{key.replace("__", "."): value for key, value in heads.items()}}


def test_an_encoder_alone_has_features_and_no_embedding_for_captions(save: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.read(save(small()))
    encoded = AudioEncoder(checkpoint.load_audio_model(CPU), Normalization(-7, 4)).encode([np.ones((1, 80, 40), "f")])
    assert encoded.stacked.shape == (1, 5 * 64)
    assert encoded.clap is None
    with pytest.raises(UserError, match="no audio_proj"):
        checkpoint.require_clap_head()


def test_a_text_projection_without_an_audio_head_compares_with_the_average_of_patches(
    save: Callable[..., Path],
) -> None:
    checkpoint = Checkpoint.read(save(small(text_proj__weight=torch.ones(64, 3), text_proj__bias=torch.zeros(64))))
    checkpoint.require_clap_head()
    encoded = AudioEncoder(checkpoint.load_audio_model(CPU), Normalization(-7, 4)).encode([np.ones((1, 80, 40), "f")])
    assert encoded.clap is not None
    assert torch.allclose(encoded.clap, encoded.flat, atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"audio_proj__sem_token": torch.zeros(1, 1, 64)}, "lacks 14 of its model's weights: audio_proj.sem_blocks"),
        ({"audio_proj__0__weight": torch.zeros(64, 64)}, "lacks 3 of its model's weights: audio_proj.0.bias"),
        ({"audio_proj__0__weight": torch.zeros(64)}, r"audio_proj.0.weight is \[64\]"),
        ({"norm__weight": torch.zeros(3)}, r"norm.weight is \[3\], its model needs \[64\]"),
        ({"norm__weight": torch.full((64,), torch.nan)}, "not finite"),
    ],
)
def test_heads_that_are_not_whole(save: Callable[..., Path], heads: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Checkpoint.read(save(small(**heads))).load_audio_model(CPU)


def test_a_front_end_that_nobody_has(save: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "m2d_clap_vit_x-80x32p16x16p48k-a" / "checkpoint-1.pth"
    path.parent.mkdir()
    torch.save(small(), path)
    with pytest.raises(UserError, match="front end of 48k"):
        Checkpoint.read(path).front_end  # noqa: B018
