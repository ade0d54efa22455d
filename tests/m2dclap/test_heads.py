"""The classifier's head computes what EVAR's does; the semantic heads have the sizes and the start of the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.heads import ClassifierHead, SemanticHead, new_audio_head
from m2dprep.m2dclap.model import M2DCLAP

GOLDEN = Path(__file__).parents[1] / "golden" / "finetune_parts.npz"


def test_head_is_evars_in_training_and_after_it() -> None:
    with np.load(GOLDEN) as golden:
        given = {key.removeprefix("head/"): golden[key] for key in golden if key.startswith("head/")}
    head = ClassifierHead(12, 4)
    x = torch.tensor(given["x"])
    head.load_state_dict(
        {
            "norm.running_mean": torch.zeros(12),
            "norm.running_var": torch.ones(12),
            "norm.num_batches_tracked": torch.tensor(0),
            "mlp.mlp.0.weight": torch.tensor(given["weight"]),
            "mlp.mlp.0.bias": torch.tensor(given["bias"]),
        }
    )
    head.train()
    np.testing.assert_allclose(head(x).detach().numpy(), given["out_train"], atol=1e-6)
    np.testing.assert_allclose(head.norm.running_mean.numpy(), given["running_mean"], atol=1e-6)
    np.testing.assert_allclose(head.norm.running_var.numpy(), given["running_var"], atol=1e-6)
    head.eval()
    np.testing.assert_allclose(head(x).detach().numpy(), given["out_eval"], atol=1e-6)


def test_head_starts_small() -> None:
    torch.manual_seed(0)
    linear = ClassifierHead(768, 527).mlp.mlp[0]
    assert abs(float(linear.weight.detach().std()) - 0.01) < 5e-4
    assert not linear.bias.any()


@pytest.mark.parametrize(
    ("sem_mode", "tensors", "parameters"),
    # A block has 12 tensors: (4 + 2·ratio)·D² + (10 + ratio)·D numbers; token and norm are 3·D in 3.
    [(0, 4, 1_181_184), (1, 15, 3_548_928), (2, 27, 7_095_552), (3, 39, 14_183_424), (4, 51, 18_910_464)],
)
def test_audio_heads_have_the_size_of_the_original(sem_mode: int, tensors: int, parameters: int) -> None:
    with torch.device("meta"):
        head = new_audio_head(768, sem_mode)
    assert len(head.state_dict()) == tensors
    assert sum(value.numel() for value in head.parameters()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("sem_mode", [1, 2])
def test_a_semantic_head_starts_as_the_originals(sem_mode: int) -> None:
    torch.manual_seed(0)
    model = M2DCLAP(ModelConfig(depth=1, decoder_depth=1, off_emb_dim=4096, sem_mode=sem_mode))
    head = model.audio_proj
    assert isinstance(head, SemanticHead)
    assert not head.sem_token.any()
    for block in head.sem_blocks:
        assert block.attn.num_heads == 1
        for linear, fan in ((block.attn.qkv, 768 + 2304), (block.mlp.fc1, 1536)):
            assert not linear.bias.any()
            assert float(linear.weight.detach().abs().max()) == pytest.approx((6 / fan) ** 0.5, rel=1e-3)
    assert {module.eps for module in head.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
    assert {module.eps for module in model.blocks.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    weight = model.text_proj.weight.detach()
    assert float(weight.std()) == pytest.approx(0.009, abs=1e-4), "PyTorch's own start, not Xavier's"
    assert model.text_proj.bias.any()


@pytest.mark.slow
def test_the_text_head_of_2024_starts_as_before() -> None:
    torch.manual_seed(0)
    model = M2DCLAP(ModelConfig(depth=1, decoder_depth=1, off_emb_dim=4096))
    assert float(model.text_proj.weight.detach().abs().max()) == pytest.approx((6 / (4096 + 768)) ** 0.5, rel=1e-3)
    assert not model.text_proj.bias.any()
