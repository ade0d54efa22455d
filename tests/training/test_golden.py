"""The original's tiny models: losses, latents, gradients, three training steps and the unmasked encoding are equal."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.training.config import TrainConfig
from m2dprep.training.schedule import decays, make_optimizer

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = ["m2d_clap_tiny.npz", "m2d_clap_tiny_textproj.npz", "m2d_clap_2025_stage1_tiny.npz"]
STEPS = range(3)


class Golden:
    """One file, opened by key, as tensors."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(GOLDEN / name)
        self.config: dict[str, Any] = json.loads(str(self.arrays["config"]))
        names = {field.name for field in fields(ModelConfig)}
        self.model_config = ModelConfig.from_dict({key: self.config[key] for key in names & set(self.config)})

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): self[key] for key in self.arrays.files if key.startswith(prefix)}

    def model(self, group: str = "init/") -> M2DCLAP:
        model = M2DCLAP(self.model_config)
        model.load_state_dict(self.group(group))
        return model


@pytest.fixture(params=FILES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def without_key_biases(name: str, *values: torch.Tensor) -> list[torch.Tensor]:
    """All but the middle third of a qkv bias.

    A constant added to every key does not change attention, so the true gradient of a key bias is zero. The computed
    one is rounding noise, which Adam scales up to steps of the learning rate; it differs with the number of threads.
    """
    if not name.endswith("qkv.bias"):
        return list(values)
    return [value.view(3, -1)[[0, 2]] for value in values]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_state_dict_has_the_originals_keys_and_shapes(golden: Golden) -> None:
    shapes = {key: value.shape for key, value in M2DCLAP(golden.model_config).state_dict().items()}
    assert shapes == {key: value.shape for key, value in golden.group("init/").items()}


def test_positions_are_the_originals(golden: Golden) -> None:
    model = M2DCLAP(golden.model_config)
    for name in ("pos_embed", "decoder_pos_embed"):
        torch.testing.assert_close(getattr(model, name), golden[f"init/{name}"], rtol=0, atol=1e-6)


def test_weight_decay_spares_the_originals_parameters(golden: Golden) -> None:
    model = golden.model()
    spared = {name for name, value in model.named_parameters() if value.requires_grad and not decays(name, value)}
    assert spared == set(golden.arrays["no_decay_names"].tolist())


@pytest.mark.slow
def test_three_training_steps(golden: Golden) -> None:
    config = golden.config
    model = golden.model()
    train = TrainConfig(batch_size=256, blr=config["lr"], betas=config["betas"], weight_decay=config["weight_decay"])
    optimizer = make_optimizer(model, train)
    for step in STEPS:
        key = f"step{step}/"
        output = model(golden[key + "x"], golden[key + "text_emb"], golden[key + "noise"])
        for name in ("loss", "loss_m2d", "loss_clap"):
            assert getattr(output, name).item() == pytest.approx(golden[key + name].item(), rel=1e-5), (step, name)
        assert output.mask.equal(golden[key + "mask"])
        close(output.latent, golden[key + "latent"])
        close(output.pred, golden[key + "pred"])
        close(output.target, golden[key + "target"])
        close(output.audio_embedding, golden[key + "audio_emb"])
        optimizer.zero_grad()
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config["clip_grad"])
        assert norm.item() == pytest.approx(golden[key + "grad_norm"].item(), rel=1e-5)
        if step == 0:
            gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
            expected = golden.group("grad0/")
            assert gradients.keys() == expected.keys()
            for name, gradient in gradients.items():
                close(gradient, expected[name])
        optimizer.step()
        model.update_target(config["ema_decay"])
        model.clamp_logit_scale()
    for name, value in golden.group("final/").items():
        close(*without_key_biases(name, model.state_dict()[name], value))


def test_unmasked_encoding(golden: Golden) -> None:
    model = golden.model("final/").eval()
    with torch.no_grad():
        close(model.encode(golden["eval/x"]), golden["eval/latent"])
        close(model.clap_audio(golden["eval/x"]), golden["eval/clap_audio"])
