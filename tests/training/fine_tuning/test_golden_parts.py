"""The parts of EVAR's fine-tuning: schedule, crops, masks, mixup, losses and weights are those of the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.training.fine_tuning.augment import (
    canvas_frames,
    crop_and_resize,
    draw_boxes,
    draw_stripes,
    mask_stripes,
    mix,
    mixing_shares,
    place_boxes,
)
from m2dprep.training.fine_tuning.objective import label_loss
from m2dprep.training.fine_tuning.schedule import FineTuneSchedule
from m2dprep.training.fine_tuning.settings import RECIPES, FineTuneConfig

GOLDEN = Path(__file__).parents[2] / "golden" / "finetune_parts.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN) as found:
        return {key: found[key] for key in found}


@pytest.mark.parametrize("name", ["as2m", "esc50"])
def test_schedule(golden: dict[str, Any], name: str) -> None:
    told = json.loads(str(golden[f"schedule/{name}/config"]))
    recipe = RECIPES[name]
    assert (recipe.lr, recipe.epochs, recipe.warmup_epochs, recipe.min_lr) == (
        told["lr"], told["epochs"], told["warmup_epochs"], told["lr_min"],
    )  # fmt: skip
    schedule = FineTuneSchedule(recipe, told["iters_per_epoch"])
    assert schedule.total_steps == told["total_updates"]
    first = [schedule.learning_rate(step) for step in range(30)]
    np.testing.assert_allclose(first, golden[f"schedule/{name}/first30"], rtol=1e-12, atol=1e-15)
    later = [schedule.learning_rate(int(step)) for step in golden[f"schedule/{name}/step"]]
    np.testing.assert_allclose(later, golden[f"schedule/{name}/lr"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("warmup", "lr", "epochs", "steps"), [(0.0, 0.1, 3, 7), (1.5, 1.0, 4, 1), (4.0, 0.3, 4, 5)])
def test_schedule_at_its_ends(warmup: float, lr: float, epochs: int, steps: int) -> None:
    schedule = FineTuneSchedule(FineTuneConfig(epochs=epochs, warmup_epochs=warmup, lr=lr), steps)
    rates = [schedule.learning_rate(step) for step in range(schedule.total_steps)]
    assert rates[0] == rates[1] if steps * epochs > 1 else True
    assert rates[0] == (0.0 if warmup else pytest.approx(lr))
    assert all(0 <= rate <= lr for rate in rates)


def test_boxes_and_crops(golden: dict[str, Any]) -> None:
    given = torch.tensor(golden["rrc/input"])
    assert [80, canvas_frames(208)] == golden["rrc/canvas_h_w"].tolist()
    for scales, boxes, output in zip(
        golden["rrc/uniform_freq_time"], golden["rrc/box_i_j_h_w"], golden["rrc/output"], strict=True
    ):
        assert place_boxes(scales, np.zeros((2, 2)), (80, 208))[:, 2:].tolist() == boxes[:, 2:].tolist()
        before = given.clone()
        np.testing.assert_allclose(crop_and_resize(given, boxes).numpy(), output, atol=2e-4)
        assert given.equal(before), "the input stays as it is"


@pytest.mark.parametrize("size", [(80, 208), (80, 1), (1, 300), (5, 7)])
def test_boxes_stay_on_the_canvas(size: tuple[int, int]) -> None:
    draws = np.random.default_rng(0).random((5000, 4))
    draws[:2] = [[0.0] * 4, [np.nextafter(1, 0)] * 4]
    boxes = draw_boxes(draws, size)
    canvas = np.array([size[0], canvas_frames(size[1])])
    assert (boxes[:, 2:] >= 1).all() and (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= canvas).all()
    assert (boxes[:, :2] + boxes[:, 2:] == canvas).any(), "the last corner is drawn too"


@pytest.mark.parametrize("name", ["as", "esc50"])
def test_stripes(golden: dict[str, Any], name: str) -> None:
    most = golden[f"specaug/{name}/params"].tolist()
    shape = tuple(golden[f"specaug/{name}/shape"].tolist())
    found = draw_stripes(golden[f"specaug/{name}/draws"], shape[2:], (most[0], most[1]))
    expected = golden[f"specaug/{name}/f_start_width_t_start_width"]
    assert np.stack(found, axis=1).tolist() == expected.tolist()
    for trial, (f_start, f_width, t_start, t_width) in enumerate(expected.tolist()):
        wanted = torch.ones(shape)
        wanted[:, :, f_start : f_start + f_width] = 0
        wanted[..., t_start : t_start + t_width] = 0
        one = draw_stripes(golden[f"specaug/{name}/draws"][trial : trial + 1], shape[2:], (most[0], most[1]))
        assert mask_stripes(torch.ones(shape), one).equal(wanted)


def test_stripes_of_each_clip() -> None:
    draws = np.random.default_rng(1).random((200, 4))
    masked = mask_stripes(torch.ones(200, 1, 80, 100), draw_stripes(draws, (80, 100), (30, 48)))
    assert len({tuple(one.flatten().tolist()) for one in masked}) > 190
    none = draw_stripes(draws, (80, 100), (0, 0))
    assert mask_stripes(torch.ones(200, 1, 80, 100), none).all()


def test_stripes_wider_than_a_clip_cover_it_as_in_torchaudio() -> None:
    draws = np.random.default_rng(1).random((200, 4))
    found = draw_stripes(draws, (80, 20), (30, 192))
    assert (found.t_start >= 0).all() and (found.f_start + found.f_width <= 80).all()
    covered = (mask_stripes(torch.ones(200, 1, 80, 20), found) == 0).flatten(1).all(dim=1).numpy()
    assert (covered == (found.t_width >= 20)).all()


@pytest.mark.parametrize("what", ["wave", "logmel", "onehot", "multihot"])
def test_mixup(golden: dict[str, Any], what: str) -> None:
    shares = golden["mixup/lambdas"].astype(np.float32)
    values = golden[f"mixup/{what}"]
    mixed = mix(values, values[golden["mixup/permutation"]], shares)
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, golden[f"mixup/out_{what}"], atol=1e-7)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 2.0])
def test_shares_are_distributed_as_beta(alpha: float) -> None:
    shares = mixing_shares(alpha, (np.arange(20_000) + 0.5) / 20_000)
    assert shares.min() >= 0 and shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=1e-3)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-2)


@pytest.mark.parametrize(
    ("kind", "several"),
    [("nll_soft", False), ("nll_onehot", False), ("bce_multihot", True), ("bce_soft_multihot", True)],
)
def test_loss_and_gradient(golden: dict[str, Any], kind: str, several: bool) -> None:
    logits = torch.tensor(golden["loss/logits"], requires_grad=True)
    loss = label_loss(logits, torch.tensor(golden[f"loss/{kind.split('_', 1)[1]}"]), several=several)
    loss.backward()
    assert float(loss) == pytest.approx(float(golden[f"loss/{kind}"]), abs=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), golden[f"loss/{kind}_grad"], atol=1e-6)  # type: ignore[union-attr]


def test_lars_without_weight_decay_is_sgd(golden: dict[str, Any]) -> None:
    weight = torch.nn.Parameter(torch.tensor(golden["lars/param0"]))
    optimizer = torch.optim.SGD([weight], lr=0.0, momentum=FineTuneConfig().momentum)
    for lr, gradient, after in zip(golden["lars/lrs"], golden["lars/grads"], golden["lars/params_after"], strict=True):
        optimizer.param_groups[0]["lr"] = float(lr)
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(weight.detach().numpy(), after, atol=1e-7)
