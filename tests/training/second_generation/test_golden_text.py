"""The original's tiny stage 2 of 2025: masks, latents, losses, gradients and three training steps are equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.audioprep.config import PRESETS
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.heads import SEMANTIC_NORM_EPS
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.masking import structured_marks
from m2dprep.m2dclap.text.model import MAX_LOGIT_SCALE, TextClap
from m2dprep.m2dclap.text.tower import TextTower
from m2dprep.training.config import TrainConfig
from m2dprep.training.loader import normalised
from m2dprep.training.schedule import decays, make_optimizer
from m2dprep.training.second_generation.objective import TextClapObjective, TextInput

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parents[2] / "golden"
STEPS = range(3)


class Golden:
    """The file of stage 2, opened by key, as tensors."""

    def __init__(self) -> None:
        self.arrays = np.load(GOLDEN / "m2d_clap_2025_stage2_tiny.npz")
        self.config: dict[str, Any] = json.loads(str(self.arrays["config"]))
        names = ("input_size", "patch_size", "embed_dim", "depth", "num_heads", "sem_mode", "layer_norm_eps")
        self.model_config = ModelConfig(**{name: self.config[name] for name in names}, off_emb_dim=64)
        self.stats = Normalization(*self.config["norm_stats"])

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): self[key] for key in self.arrays.files if key.startswith(prefix)}

    def objective(self, group: str = "init/") -> TextClapObjective:
        from transformers import BertConfig, BertModel

        tower = TextTower(BertModel(BertConfig(**self.config["bert"])))
        model = TextClap(self.model_config, self.stats, PRESETS["16k"], tower)
        missing, unexpected = model.load_state_dict(self.group(group), strict=False)
        assert not unexpected
        assert all(key.startswith("to_spec.") for key in missing)
        return TextClapObjective(model, self.stats, lambda model, path: "").train()

    def inputs(self, key: str, visible: torch.Tensor | None) -> TextInput:
        lengths = tuple(self[key + "attention_mask"].sum(dim=1).tolist())
        return TextInput(normalised(self[key + "x"], None, self.stats), visible, self[key + "input_ids"], lengths, 0)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_what_learns_and_what_decays(golden: Golden) -> None:
    model = golden.objective().model
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert set(trained) == set(golden.arrays["trainable_names"].tolist())
    assert {name for name, value in trained.items() if not decays(name, value)} == set(
        golden.arrays["no_decay_names"].tolist()
    )
    assert golden.config["sem_layer_norm_eps"] == SEMANTIC_NORM_EPS
    assert pytest.approx(golden.config["logit_scale_max"]) == MAX_LOGIT_SCALE


@pytest.mark.parametrize("step", STEPS)
def test_masks(golden: Golden, step: int) -> None:
    key = f"step{step}/"
    rows, columns = golden[key + "perm_f"], golden[key + "perm_t"]
    marks = structured_marks((5, 10), rows[:, : int(golden[key + "NF"])], columns[:, : int(golden[key + "NT"])])
    assert marks.float().equal(golden[key + "marked"])
    kept = torch.ones(4, 50).scatter(1, golden[key + "ids_keep"], 0.0)
    assert kept.equal(golden[key + "mask"]), "the original shows what it marks"


def test_three_training_steps(golden: Golden) -> None:
    config, objective = golden.config, golden.objective()
    model = objective.model
    train = TrainConfig(batch_size=256, blr=config["lr"], betas=config["betas"], weight_decay=config["weight_decay"])
    optimizer = make_optimizer(objective, train)
    for step in STEPS:
        key = f"step{step}/"
        inputs = golden.inputs(key, golden[key + "ids_keep"])
        close(model.backbone.patches(inputs.log_mel, inputs.visible), golden[key + "tokens"])
        found = objective.embed(inputs)
        close(found.audio, golden[key + "audio_emb"])
        close(found.text, golden[key + "text_emb"])
        loss = objective.losses(inputs)["loss"]
        assert loss.item() == pytest.approx(golden[key + "loss"].item(), rel=5e-5), step
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), config["clip_grad"])
        assert norm.item() == pytest.approx(golden[key + "grad_norm"].item(), rel=5e-5)
        if step == 0:
            gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
            expected = golden.group("grad0/")
            assert gradients.keys() == expected.keys(), "the pooler gets no gradient"
            for name, gradient in gradients.items():
                close(gradient, expected[name], 5e-5)
        optimizer.step()
        close(model.logit_scale.detach(), golden[key + "logit_scale_unclamped"])
        objective.model.clamp_logit_scale()
        close(model.logit_scale.detach(), golden[key + "logit_scale"])
    own = model.state_dict()
    for name, value in golden.group("final/").items():
        if name.endswith("attention.self.key.bias"):
            continue  # its true gradient is zero, and Adam scales rounding up
        if name.endswith("qkv.bias"):
            close(own[name].view(3, -1)[[0, 2]], value.view(3, -1)[[0, 2]])
            continue
        close(own[name], value)


@pytest.mark.parametrize("kind", ["eval", "eval_long", "eval_short"])
def test_evaluation_of_clips_of_any_length(golden: Golden, kind: str) -> None:
    model = golden.objective("final/").model.eval()
    clips = [clip.numpy() for clip in golden[f"{kind}/x"]]

    class Audio(torch.nn.Module):
        """The model as evaluation sees it."""

        config, cls_token = model.config, model.backbone.cls_token
        has_clap_head = True

        def encode(self, log_mel: torch.Tensor) -> torch.Tensor:
            return model.backbone.encode(log_mel)

        def project_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
            close(tokens, golden[f"{kind}/tokens"])
            projected: torch.Tensor = model.backbone.audio_proj(tokens)
            return projected

    found = AudioEncoder(Audio(), golden.stats).encode(clips)  # type: ignore[arg-type]
    assert found.clap is not None
    close(found.clap, golden[f"{kind}/audio_emb"])
    if kind == "eval":
        lengths = golden["eval/attention_mask"].sum(dim=1).tolist()
        with torch.no_grad():
            close(model.text_encoder(golden["eval/input_ids"], lengths), golden["eval/text_emb"])
