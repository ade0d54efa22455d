"""The classifier's head computes what EVAR's does, and its checkpoints load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from m2dprep.m2dclap.heads import ClassifierHead

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
