"""The base model has the original's 406 parameters; masks have its counts; target, projection and precision behave."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.masking import random_mask
from m2dprep.m2dclap.model import M2DCLAP, clap_loss, m2d_loss, standardise, take
from m2dprep.m2dclap.vit import sincos_positions
from m2dprep.training.config import PRESETS, TrainConfig, preset
from tests.tiny import TINY

SMALL = replace(TINY, depth=2, off_emb_dim=8)


def block_shapes(prefix: str, depth: int, dim: int) -> dict[str, list[int]]:
    """The twelve parameters of each ViT block, as timm names and shapes them."""
    block = {
        "norm1.weight": [dim],
        "norm1.bias": [dim],
        "attn.qkv.weight": [3 * dim, dim],
        "attn.qkv.bias": [3 * dim],
        "attn.proj.weight": [dim, dim],
        "attn.proj.bias": [dim],
        "norm2.weight": [dim],
        "norm2.bias": [dim],
        "mlp.fc1.weight": [4 * dim, dim],
        "mlp.fc1.bias": [4 * dim],
        "mlp.fc2.weight": [dim, 4 * dim],
        "mlp.fc2.bias": [dim],
    }
    return {f"{prefix}.{number}.{name}": shape for number in range(depth) for name, shape in block.items()}


def base_shapes() -> dict[str, list[int]]:
    """Keys and shapes of the original's base checkpoint."""
    return {
        "cls_token": [1, 1, 768],
        "pos_embed": [1, 191, 768],
        "norm_stats": [2],
        "logit_scale": [],
        "patch_embed.proj.weight": [768, 1, 16, 16],
        "patch_embed.proj.bias": [768],
        **block_shapes("blocks", 12, 768),
        "norm.weight": [768],
        "norm.bias": [768],
        "mask_token": [1, 1, 512],
        "decoder_pos_embed": [1, 191, 512],
        "decoder_embed.weight": [512, 768],
        "decoder_embed.bias": [512],
        **block_shapes("decoder_blocks", 8, 512),
        "decoder_norm.weight": [512],
        "decoder_norm.bias": [512],
        "decoder_pred.weight": [768, 512],
        "decoder_pred.bias": [768],
        **block_shapes("target_blocks", 12, 768),
        "target_norm.weight": [768],
        "target_norm.bias": [768],
        **{f"audio_proj.{layer}.weight": [768, 768] for layer in (0, 2)},
        **{f"audio_proj.{layer}.bias": [768] for layer in (0, 2)},
    }


def shapes_of(config: ModelConfig) -> dict[str, list[int]]:
    with torch.device("meta"):
        return {key: list(value.shape) for key, value in M2DCLAP(config).state_dict().items()}


def test_base_model_has_exactly_the_originals_406_parameters() -> None:
    expected = base_shapes()
    assert len(expected) == 406
    assert shapes_of(ModelConfig()) == expected


def test_other_text_dimensions_add_a_projection_and_nothing_else() -> None:
    projection = {"text_proj.weight": [768, 384], "text_proj.bias": [768]}
    assert shapes_of(ModelConfig(off_emb_dim=384)) == base_shapes() | projection


def test_base_masks_133_of_190_patches() -> None:
    config = ModelConfig()
    mask = random_mask(torch.rand(3, config.num_patches), config.num_visible)
    assert mask.visible.shape == (3, 57)
    assert mask.masked.shape == (3, 133)
    assert mask.hidden.sum(dim=1).tolist() == [133.0] * 3


def test_mask_splits_and_restores_every_patch() -> None:
    noise = torch.rand(4, 15)
    mask = random_mask(noise, 4)
    tokens = torch.arange(60.0).view(4, 15, 1)
    rejoined = torch.cat([take(tokens, mask.visible), take(tokens, mask.masked)], dim=1)
    assert take(rejoined, mask.restore).equal(tokens)
    assert (take(noise.unsqueeze(-1), mask.visible).amax(1) <= take(noise.unsqueeze(-1), mask.masked).amin(1)).all()
    assert mask.hidden.gather(1, mask.visible).sum() == 0


def test_target_follows_the_encoder_and_takes_no_gradient() -> None:
    model = M2DCLAP(SMALL)
    assert not model.target_blocks[0].norm1.weight.requires_grad
    before = model.target_blocks[0].mlp.fc1.weight.clone()
    online = model.blocks[0].mlp.fc1.weight
    assert not before.equal(online), "the target starts on its own"
    model.update_target(0.75)
    torch.testing.assert_close(model.target_blocks[0].mlp.fc1.weight, 0.75 * before + 0.25 * online)
    model.update_target(0.0)
    assert model.target_blocks[0].mlp.fc1.weight.equal(online)


def test_noise_fixes_the_mask() -> None:
    model = M2DCLAP(SMALL)
    log_mel, text, noise = torch.randn(2, 1, 80, 48), torch.randn(2, 8), torch.rand(2, 15)
    first, second = model(log_mel, text, noise), model(log_mel, text, noise)
    assert first.loss.equal(second.loss)
    assert not model(log_mel, text).mask.equal(model(log_mel, text).mask)


def test_loss_is_the_weighted_sum() -> None:
    model = M2DCLAP(replace(SMALL, loss_m2d=2.0, loss_clap=0.5))
    output = model(torch.randn(3, 1, 80, 48), torch.randn(3, 8))
    torch.testing.assert_close(output.loss, 2 * output.loss_m2d + 0.5 * output.loss_clap)


def test_losses_at_known_points() -> None:
    target = torch.randn(2, 5, 16)
    assert m2d_loss(3 * standardise(target), target).item() == pytest.approx(0, abs=1e-5)
    assert m2d_loss(-standardise(target), target).item() == pytest.approx(4, abs=1e-5)
    same = torch.ones(4, 8)
    assert clap_loss(same, same, torch.tensor(3.0)).item() == pytest.approx(torch.tensor(4.0).log().item())
    assert clap_loss(torch.eye(4), 5 * torch.eye(4), torch.tensor(4.6)).item() == pytest.approx(0, abs=1e-6)


def test_reduced_precision_keeps_losses_in_float32() -> None:
    model = M2DCLAP(SMALL)
    log_mel, text, noise = torch.randn(4, 1, 80, 48), torch.randn(4, 8), torch.rand(4, 15)
    exact = model(log_mel, text, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(log_mel, text, noise)
    assert output.loss.dtype == torch.float32
    assert output.pred.dtype == torch.bfloat16
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.03)


def test_positions_of_a_shorter_grid_are_the_first_columns() -> None:
    long = sincos_positions(32, (5, 9))[:, 1:].view(5, 9, 32)
    short = sincos_positions(32, (5, 4))[:, 1:].view(5, 4, 32)
    assert long[:, :4].equal(short)
    model = M2DCLAP(SMALL).eval()
    log_mel = torch.randn(1, 1, 80, 48)
    short_tokens = model.embed_patches(log_mel[..., :32]).view(1, 5, 2, 32)
    torch.testing.assert_close(short_tokens, model.embed_patches(log_mel).view(1, 5, 3, 32)[:, :, :2])


def test_logit_scale_is_clamped() -> None:
    model = M2DCLAP(SMALL)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    for value, expected in ((9.0, 100.0), (-1.0, 1.0)):
        model.logit_scale.data.fill_(value)
        model.clamp_logit_scale()
        assert model.logit_scale.exp().item() == pytest.approx(expected)


def test_input_of_1001_frames_has_62_columns() -> None:
    assert ModelConfig(input_size=(80, 1001)).grid_size == (5, 62)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"input_size": (80,)}, "input_size"),
        ({"input_size": (8, 608)}, "mel bins"),
        ({"num_heads": 7}, "embed_dim"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"depth": 0}, "depth"),
        ({"loss_clap": -1.0}, "loss_clap"),
        ({"loss_clap": 0.0, "loss_m2d": 0.0}, "loss_m2d"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ModelConfig(**changes)  # type: ignore[arg-type]


def test_configuration_from_keys() -> None:
    assert ModelConfig.from_dict(ModelConfig().to_dict()) == ModelConfig()
    assert ModelConfig.from_dict({"depth": 3}).depth == 3
    for key in ("embed_dims", "epochs"):
        with pytest.raises(UserError, match=key):
            ModelConfig.from_dict({key: 3})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 0}, "epoch"),
        ({"batch_size": 1}, "batch"),
        ({"seed": -1}, "seed"),
        ({"amp": "fp8"}, "amp"),
        ({"blr": 0.0}, "blr"),
        ({"warmup_epochs": 301.0}, "warmup"),
        ({"ema_decay_init": 1.5}, "ema_decay_init"),
    ],
)
def test_impossible_trainings_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        TrainConfig(**changes)  # type: ignore[arg-type]


def test_presets() -> None:
    base = preset("base")
    assert (base.model, base.train) == (ModelConfig(), TrainConfig())
    with pytest.raises(UserError, match="huge") as error:
        preset("huge")
    assert all(name in str(error.value) for name in PRESETS)
    model, train = base.with_changes({"epochs": 30, "loss_clap": 0.5, "seed": None})
    assert (train.epochs, train.warmup_epochs, model.loss_clap, train.seed) == (30, 2.0, 0.5, 0)
    with pytest.raises(UserError, match="learning"):
        base.with_changes({"learning": 1})
