"""Linear evaluation follows EVAR's own runs exactly, and is right where EVAR is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols import linear as module
from m2dprep.evaluation.protocols.linear import LinearSettings, linear
from m2dprep.evaluation.protocols.linear_head import Draws, HeadSettings, Part, Scaler, score_of, train_head
from m2dprep.evaluation.protocols.result import Result

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "evar_linear.npz")
FAST = HeadSettings(lr=3e-3)


def problem(name: str) -> tuple[np.ndarray, np.ndarray, dict[str, list[str]]]:
    """Features, targets, and splits or folds of one of the original's problems."""
    targets = GOLDEN["multi/Y"].astype(bool) if name == "multi" else GOLDEN[f"{name}/y"]
    if name == "folds":
        return GOLDEN["folds/X"], targets, {"folds": [str(fold) for fold in GOLDEN["folds/fold"]]}
    return GOLDEN[f"{name}/X"], targets, {"splits": GOLDEN[f"{name}/split"].tolist()}


def run(name: str, settings: LinearSettings) -> Result:
    features, targets, parts = problem(name)
    classes = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    return linear(features, targets, [str(one) for one in range(classes)], settings, **parts)


def replayed_rows(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The rows that the original trained, validated and tested on, and those that it scaled by."""
    if name == "folds":
        fold = GOLDEN["folds/fold"]
        train, test = np.flatnonzero(fold != 1), np.flatnonzero(fold == 1)
        held, kept = GOLDEN["folds/replay/holdout_valid_idx"], GOLDEN["folds/replay/holdout_train_idx"]
        return train[kept], train[held], test, train
    split = GOLDEN[f"{name}/split"]
    train, valid, test = (np.flatnonzero(split == one) for one in ("train", "valid", "test"))
    return train, valid, test, train


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single", "folds", "multi"])
def test_a_run_of_the_original_is_followed_exactly(name: str) -> None:
    features, targets, _ = problem(name)
    given = {key.rpartition("/")[2]: GOLDEN[key] for key in GOLDEN.files if key.startswith(f"{name}/replay/")}
    train, valid, test, scaled = replayed_rows(name)
    scaler = Scaler.fit(features, scaled)
    assert scaler.mean == pytest.approx(given["scaler_mean"], abs=1e-12)
    assert scaler.scale == pytest.approx(given["scaler_scale"], abs=1e-12)
    several = targets.ndim == 2
    numbers = targets.astype(np.float32) if several else targets

    def part(rows: np.ndarray) -> Part:
        return Part(scaler(features, rows), torch.from_numpy(numbers[rows]))

    initial = torch.from_numpy(given["init_weight"]), torch.from_numpy(given["init_bias"])
    orders = [torch.from_numpy(order.astype(np.int64)) for order in given["orders"]]
    head = train_head(part(train), part(valid), initial, orders, FAST, several=several, squashed=True)
    assert head.epochs_run == given["epochs_run"]
    assert head.best_epoch == given["best_epoch"]
    assert head.curve == pytest.approx(given["val_metric"].tolist(), abs=1e-9)
    assert np.abs(head.weight.numpy() - given["final_weight"]).max() < 1e-5
    assert np.abs(head.bias.numpy() - given["final_bias"]).max() < 1e-5
    logits = head.logits(part(test).features)
    assert score_of(logits, part(test).targets, several=several, squashed=True) == pytest.approx(float(given["score"]))
    predicted = logits.sigmoid().numpy() if several else logits.argmax(dim=1).numpy()
    assert predicted == pytest.approx(given["test_pred"], abs=1e-5)


@pytest.mark.parametrize("name", ["single", "multi", "folds"])
def test_random_numbers_are_those_of_the_originals_loop(name: str) -> None:
    weight, bias = GOLDEN[f"{name}/replay/init_weight"], GOLDEN[f"{name}/replay/init_bias"]
    draws = Draws(42)
    found = draws.weights(*weight.shape)
    assert np.array_equal(found[0].numpy(), weight)
    assert np.array_equal(found[1].numpy(), bias)
    recorded = GOLDEN[f"{name}/replay/orders"]
    for order, expected in zip(draws.orders(recorded.shape[1]), recorded, strict=False):
        assert np.array_equal(order.numpy(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ["single", "multi"])
def test_a_seed_gives_the_run_that_it_gives_in_the_original(name: str, strict: bool) -> None:
    result = run(name, LinearSettings(FAST, (44,), strict))
    place = f"{name}/lr0.003"
    assert result.score == pytest.approx(GOLDEN[f"{place}/score"][2], abs=1e-9)
    found = result.details["runs"][0]
    assert found["epochs_run"] == GOLDEN[f"{place}/epochs_run"][2, 0]
    assert found["best_epoch"] == GOLDEN[f"{place}/best_epoch"][2, 0]
    assert found["best_valid"] == pytest.approx(GOLDEN[f"{place}/best_val"][2, 0], abs=1e-9)


@pytest.mark.slow
def test_folds_with_held_out_rows_are_those_of_the_original() -> None:
    result = run("folds", LinearSettings(FAST, (42,), strict_evar=True))
    assert result.folds[0] == pytest.approx(GOLDEN["folds/lr0.003/score_folds"][0].tolist(), abs=1e-9)
    assert [one["best_epoch"] for one in result.details["runs"]] == GOLDEN["folds/lr0.003/best_epoch"][0].tolist()
    assert [one["valid"] for one in result.details["runs"]] == [32] * 5


@pytest.mark.slow
def test_folds_by_the_right_way_score_within_the_originals_spread() -> None:
    more = GOLDEN["folds/lr0.003/score_more_seeds"]
    result = run("folds", LinearSettings(HeadSettings(lr=3e-3, epochs=120)))
    assert result.score == pytest.approx(more.mean(), abs=3 * more.std())
    assert len(result.scores) == 3
    assert result.interval is not None
    assert any("stratified" in one or "by class" in one for one in result.deviations)


def test_two_classes_are_scored_right_and_wrong_on_demand() -> None:
    strict = run("twoclass", LinearSettings(FAST, (42,), strict_evar=True))
    assert strict.score == pytest.approx(float(GOLDEN["twoclass/lr3e-3/defect_score"]))
    assert strict.deviations == ()
    assert strict.strict_evar
    right = run("twoclass", LinearSettings(FAST, (42,)))
    assert right.score == 1.0
    assert any("Two classes" in one for one in right.deviations)


def small(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell their classes well, in turn."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    return (rng.normal(size=(rows, 8)) * 0.3 + np.eye(classes, 8)[targets]).astype(np.float32), targets


QUICK = LinearSettings(HeadSettings(lr=0.05, epochs=30), (1, 2))


def test_the_scaler_does_not_see_held_out_rows_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    fit = Scaler.fit
    monkeypatch.setattr(Scaler, "fit", lambda features, rows: seen.append(len(rows)) or fit(features, rows))
    features, targets = small(120, 3)
    for strict, expected in ((True, 80), (False, 72)):
        seen.clear()
        settings = LinearSettings(QUICK.head, (1,), strict)
        linear(features, targets, list("abc"), settings, splits=["train"] * 80 + ["test"] * 40)
        assert seen == [expected] or (not strict and abs(seen[0] - expected) <= 2)


def test_a_recordings_clips_stay_together_and_every_class_is_held_out() -> None:
    targets = np.arange(200) % 5
    groups = np.array([f"{target}-{row // 20}" for row, target in enumerate(targets)])
    kept, held = module.stratified(targets, groups, np.random.default_rng(0))
    assert not set(groups[kept]) & set(groups[held])
    assert set(targets[held]) == set(range(5))
    assert sorted([*kept, *held]) == list(range(200))
    assert 15 <= len(held) <= 30


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rare_classes_stay_in_training(count: int) -> None:
    targets = np.array([0] * 40 + [1] * 40 + [2] * count)
    kept, held = module.stratified(targets, np.array([]), np.random.default_rng(0))
    assert 2 in targets[kept]
    assert (2 in targets[held]) == (count > 1)


def test_rows_with_several_labels_are_held_out_so_that_both_sides_have_them() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((300, 20)) < 0.08
    kept, held = module.stratified(targets, np.array([]), rng)
    assert targets[kept].any(axis=0).all()
    assert targets[held].any(axis=0).all()
    assert len(held) < 100


def test_results_say_how_they_came_about() -> None:
    features, targets = small(120, 3)
    calls: list[int] = []
    splits = ["train"] * 60 + ["valid"] * 30 + ["test"] * 29 + ["none"]
    result = linear(features, targets, list("abc"), QUICK, splits=splits, task="x", finished=lambda: calls.append(1))
    assert len(calls) == 2
    assert result.n == {"train": 60, "valid": 30, "test": 29, "classes": 3, "dimensions": 8}
    assert result.seeds == (1, 2)
    assert result.score is not None
    assert result.score > 0.8
    assert result.details["test_rows"] == list(range(90, 119))
    assert np.mean(result.details["correct_share"]) == pytest.approx(result.score)
    assert np.sum(result.details["confusion"]) == 29
    assert Result.from_dict(result.to_dict()).to_dict() == result.to_dict()


def test_the_same_seeds_give_the_same_result() -> None:
    features, targets = small(100, 4)
    folds = [str(row % 3) for row in range(100)]
    one, other = (linear(features, targets, list("abcd"), QUICK, folds=folds) for _ in range(2))
    assert one.to_dict() == other.to_dict()
    assert len(one.folds) == 2
    assert len(one.folds[0]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("device_threads", [2, 3, 7])
def test_the_number_of_threads_changes_no_bit(device_threads: int) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 60)
    features = (rng.normal(size=(60, 2100)) + targets[:, None]).astype(np.float32)  # four slices of columns
    splits = ["train"] * 40 + ["valid"] * 10 + ["test"] * 10
    found = []
    before = torch.get_num_threads()
    for threads, seeds in ((1, (1, 2, 3)), (device_threads, (1, 2, 3)), (device_threads, (1,))):
        torch.set_num_threads(threads)
        try:
            result = linear(features, targets, list("abc"), LinearSettings(QUICK.head, seeds), splits=splits)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        found.append(result)
    assert found[0].to_dict() == found[1].to_dict()
    assert found[2].details["runs"] == found[0].details["runs"][:1]
    part = Part(torch.from_numpy(features), torch.from_numpy(targets))
    heads = [
        train_head(part, part, Draws(1).weights(3, 2100), Draws(1).orders(60), QUICK.head, threads=threads)
        for threads in (1, device_threads)
    ]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)
    assert heads[0].curve == heads[1].curve


def test_an_error_of_one_seed_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = small(60, 3)
    draw = Draws.weights

    def infinite(draws: Draws, classes: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = draw(draws, classes, dim)
        return (weight * torch.inf, bias) if draws.seed == 2 else (weight, bias)

    monkeypatch.setattr(Draws, "weights", infinite)
    endless = LinearSettings(HeadSettings(lr=0.05, epochs=100_000, patience=100_000), (1, 2, 3))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(UserError, match="a head diverges"):
            linear(features, targets, list("abc"), endless, splits=["train"] * 40 + ["valid"] * 10 + ["test"] * 10)
    finally:
        torch.set_num_threads(before)


def test_constant_columns_are_not_divided_by_nothing() -> None:
    features, _ = small(60, 3)
    features[:, 2] = 7.3
    scaler = Scaler.fit(features, np.arange(60))
    assert scaler.scale[2] == 1
    sklearn = pytest.importorskip("sklearn.preprocessing")
    theirs = sklearn.StandardScaler().fit(features)
    assert scaler.mean == pytest.approx(theirs.mean_, abs=1e-12)
    assert scaler.scale == pytest.approx(theirs.scale_, abs=1e-12)
    assert scaler(features, np.arange(60)).numpy() == pytest.approx(theirs.transform(features), abs=1e-5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"splits": ["train"] * 60}, "no clips of the split test"),
        ({"splits": ["test"] * 60}, "no clips of the split train"),
        ({"folds": ["1"] * 60}, "all clips are in fold 1"),
    ],
)
def test_parts_that_cannot_be(parts: dict[str, list[str]], message: str) -> None:
    features, targets = small(60, 3)
    with pytest.raises(UserError, match=message):
        linear(features, targets, list("abc"), QUICK, **parts)


def test_other_requests_that_cannot_be() -> None:
    features, targets = small(60, 3)
    splits = ["train"] * 40 + ["test"] * 20
    with pytest.raises(UserError, match="none twice"):
        LinearSettings(seeds=(1, 1))
    for seed in (-1, 2**32, 10**30):
        with pytest.raises(UserError, match=f"{seed} is no seed"):
            LinearSettings(seeds=(1, seed))
    with pytest.raises(UserError, match="at least two"):
        linear(features, np.zeros(60, int), ["a"], QUICK, splits=splits)
    features[7] = np.inf
    with pytest.raises(UserError, match=r"not all finite \(row 7 first\)"):
        linear(features, targets, list("abc"), QUICK, splits=splits)


def test_a_head_that_diverges_is_no_result() -> None:
    features, targets = small(60, 3)
    part = Part(torch.from_numpy(features), torch.from_numpy(targets))
    initial = torch.full((3, 8), torch.inf), torch.zeros(3)
    with pytest.raises(UserError, match=r"diverges with the learning rate 0\.05"):
        train_head(part, part, initial, Draws(1).orders(60), QUICK.head)


def test_what_evar_cannot_score_is_said() -> None:
    features, targets = small(60, 3)
    strict = LinearSettings(QUICK.head, (1,), strict_evar=True)
    with pytest.raises(UserError, match="EVAR cannot score this: in 100 tries, 2 held-out rows of 20 never had all 3"):
        linear(features, targets, list("abc"), strict, splits=["train"] * 20 + ["test"] * 40)
    several = np.eye(3, dtype=bool)[np.arange(60) % 3]
    several[40:50, 2] = False
    several[40:50, 0] = True
    splits = ["train"] * 40 + ["valid"] * 10 + ["test"] * 10
    with pytest.raises(UserError, match="EVAR cannot score this: a split of the task has 2 of the 3 classes"):
        linear(features, several, list("abc"), strict, splits=splits)
    assert linear(features, several, list("abc"), LinearSettings(QUICK.head, (1,)), splits=splits).score is not None
