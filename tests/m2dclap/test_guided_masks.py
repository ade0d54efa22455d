"""Masks that follow the clip hide as many patches as random ones, those that their rule names, and a random share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.config import Hints, ModelConfig
from m2dprep.m2dclap.guided_masks import Draws, block_marks, centre_scores, guided_mask, patch_weights, weighted_keys
from m2dprep.m2dclap.masking import random_mask
from m2dprep.m2dclap.model import M2DCLAP
from tests.tiny import TINY

GUIDED = ["weighted", "object", "blocks"]
WIDE = replace(TINY, input_size=(80, 208))  # 5 x 13 patches


def hidden_by(config: ModelConfig, clips: int, hint: float, seed: int = 0) -> torch.Tensor:
    """(B, L): 1 where a patch is hidden, of random log-mels and latents."""
    torch.manual_seed(seed)
    log_mel, latent = torch.randn(clips, 1, *config.input_size), torch.randn(clips, config.num_patches, 8)
    mask = guided_mask(config, log_mel, torch.rand(clips, config.mask_numbers), hint, latent)
    both = torch.cat([mask.visible, mask.masked], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(config.num_patches).expand(clips, -1))
    assert torch.equal(both.gather(1, mask.restore), torch.arange(config.num_patches).expand(clips, -1))
    assert mask.visible.shape == (clips, config.num_visible)
    return mask.hidden


@pytest.mark.slow
@pytest.mark.parametrize("masking", GUIDED)
@pytest.mark.parametrize("hint", [0.0, 0.01, 0.3, 0.999, 1.0])
@pytest.mark.parametrize(("size", "ratio"), [((80, 48), 0.7), ((80, 208), 0.7), ((80, 608), 0.5), ((16, 64), 0.75)])
def test_every_clip_has_as_many_hidden_patches(masking: str, hint: float, size: tuple[int, int], ratio: float) -> None:
    config = replace(TINY, input_size=size, mask_ratio=ratio, masking=masking)
    hidden = hidden_by(config, 16, hint)
    assert (hidden.sum(dim=1) == config.num_patches - config.num_visible).all()


@pytest.mark.parametrize("masking", GUIDED)
def test_a_hint_of_one_is_the_plain_random_mask(masking: str) -> None:
    config = replace(WIDE, masking=masking)
    noise = torch.rand(5, config.mask_numbers)
    mask = guided_mask(config, torch.randn(5, 1, 80, 208), noise, 1.0)
    plain = random_mask(noise[:, : config.num_patches], config.num_visible)
    assert all(torch.equal(one, other) for one, other in zip(mask, plain, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("masking", "clips"), [("weighted", 4000), ("object", 400)])
def test_the_swap_changes_no_more_than_its_share_and_chance_decides_where(masking: str, clips: int) -> None:
    config = replace(TINY, input_size=(10, 26), patch_size=(2, 2), masking=masking)  # 5 x 13 patches, as in `WIDE`
    count = config.num_patches - config.num_visible
    guided = hidden_by(config, clips, 0.0)
    for hint in (0.1, 0.5, 0.9):
        revealed = int(hint * count)
        swapped = hidden_by(config, clips, hint)
        left = ((guided == 1) & (swapped == 0)).sum(dim=1)
        assert left.max() <= revealed
        # of `revealed` patches, those stay revealed that are not drawn among all that can be seen
        pool = config.num_visible + revealed
        expected = revealed * (1 - revealed / pool)
        assert abs(float(left.float().mean()) - expected) < 0.1 * (4000 / clips) ** 0.5


@pytest.mark.parametrize(("hint", "hidden", "swapped"), [(0.25, 100, 25), (0.5, 7, 3), (0.999, 10, 9), (0.0, 5, 0)])
def test_so_many_are_swapped(hint: float, hidden: int, swapped: int) -> None:
    """If those are hidden again that could be seen anyway, all that was revealed stays revealed."""
    assert int(hint * hidden) == swapped
    patches = 2 * hidden
    config = replace(TINY, input_size=(16, 16 * patches), mask_ratio=0.5, masking="object")
    torch.manual_seed(1)
    log_mel, latent = torch.zeros(1, 1, 16, 16 * patches), torch.randn(1, patches, 8)
    noise = torch.rand(1, config.mask_numbers)
    before = guided_mask(config, log_mel, noise, 0.0, latent).hidden
    noise[:, 2 * patches :] = 0.5 * before + 0.4 * Draws.of(noise, patches).hide
    after = guided_mask(config, log_mel, noise, hint, latent).hidden
    assert ((before == 1) & (after == 0)).sum() == int(hint * hidden)


def test_patches_are_drawn_in_proportion_to_their_weights() -> None:
    weights = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0]).expand(200_000, -1)
    torch.manual_seed(0)
    order = weighted_keys(weights, torch.rand(weights.shape)).argsort(dim=1)
    first = torch.bincount(order[:, 0], minlength=5) / len(order)
    torch.testing.assert_close(first, torch.tensor([8.0, 4, 2, 1, 1]) / 16, atol=0.004, rtol=0)
    second = torch.bincount(order[order[:, 0] == 0, 1], minlength=5) / (order[:, 0] == 0).sum()
    torch.testing.assert_close(second, torch.tensor([0.0, 4, 2, 1, 1]) / 8, atol=0.006, rtol=0)


@pytest.mark.parametrize("weight", ["deviation", "variance"])
def test_weights_are_those_of_the_patches_values(weight: str) -> None:
    config = replace(WIDE, input_size=(87, 215), patch_size=(16, 16), masking="weighted", mask_weight=weight)
    log_mel = torch.randn(3, 1, 87, 215) * torch.rand(3, 1, 87, 215)
    found = patch_weights(log_mel, config)
    for clip, (row, column) in ((0, (0, 0)), (1, (4, 12)), (2, (2, 7))):
        patch = log_mel[clip, 0, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        expected = patch.var() if weight == "variance" else (patch - patch.mean()).abs().mean()
        torch.testing.assert_close(found[clip, row * 13 + column], expected + 1e-12)


def test_what_varies_is_hidden_and_silence_only_when_nothing_else_is_left() -> None:
    config = replace(WIDE, masking="weighted", mask_ratio=0.2)
    log_mel = torch.zeros(50, 1, 80, 208)
    log_mel[..., :48] = torch.randn(50, 1, 80, 48)  # 15 patches of 65, and 13 are hidden
    hidden = guided_mask(config, log_mel, torch.rand(50, config.mask_numbers), 0.0).hidden.view(50, 5, 13)
    assert hidden[:, :, :3].sum() == hidden.sum() == 50 * 13
    more = guided_mask(replace(config, mask_ratio=0.5), log_mel, torch.rand(50, config.mask_numbers), 0.0).hidden
    assert (more.view(50, 5, 13)[:, :, :3] == 1).all()


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_blocks_are_squares_around_their_centres_cut_at_the_edges(length: int) -> None:
    grid = (5, 13)
    centres = torch.tensor([[0, 30], [64, 12]])
    marks = block_marks(centres, grid, length).view(2, *grid)
    for clip, of_clip in enumerate(centres.tolist()):
        expected = torch.zeros(grid, dtype=torch.bool)
        for centre in of_clip:
            for down in range(length):
                for right in range(length):
                    row = min(max(centre // 13 + down - length // 2, 0), 4)
                    expected[row, min(max(centre % 13 + right - length // 2, 0), 12)] = True
        assert torch.equal(marks[clip], expected)


def test_blocks_are_seen_and_the_rest_is_hidden() -> None:
    config = replace(TINY, input_size=(80, 608), masking="blocks")
    assert config.num_blocks == int(190 * (1 - 0.7 + 0.07) / 25) == 2
    noise = torch.rand(40, config.mask_numbers)
    seen = 1 - guided_mask(config, torch.zeros(40, 1, 80, 608), noise, 0.0).hidden
    centres = (noise[:, -2:] * 190).long()
    marks = block_marks(centres, (5, 38), 5)
    for clip in range(40):
        inside = int((seen[clip] * marks[clip]).sum())
        assert inside == min(57, int(marks[clip].sum()))  # all of the blocks, then others until 57 are seen


def test_object_scores_are_cosines_to_the_centres_of_two_groups() -> None:
    torch.manual_seed(5)
    latent = torch.randn(6, 40, 12) + 3 * torch.randn(6, 1, 12)
    latent[:, ::3] += 2 * torch.randn(6, 1, 12)
    found = centre_scores(latent)
    for clip in range(6):
        tokens = torch.nn.functional.normalize(latent[clip].double(), dim=-1)
        centred = tokens - tokens.mean(dim=0)
        axis = torch.linalg.svd(centred, full_matrices=False).Vh[0]
        upper = centred @ axis > 0
        centres = torch.stack([tokens[upper].mean(dim=0), tokens[~upper].mean(dim=0)])
        expected = (tokens @ torch.nn.functional.normalize(centres, dim=-1).T).amax(dim=1)
        torch.testing.assert_close(found[clip].double(), expected, atol=1e-5, rtol=0)
    assert centre_scores(torch.ones(1, 5, 4)).isfinite().all()


@pytest.mark.parametrize("masking", GUIDED)
def test_a_mask_does_not_depend_on_the_batch(masking: str) -> None:
    torch.manual_seed(2)
    config = replace(TINY, masking=masking)
    model = M2DCLAP(config)
    log_mel, noise = torch.randn(6, 1, 80, 48), torch.rand(6, config.mask_numbers)
    tokens = model.embed_patches(log_mel)
    whole = model.draw_mask(log_mel, tokens, noise, 0.4)
    parts = [model.draw_mask(*(x[at] for x in (log_mel, tokens, noise)), 0.4) for at in (slice(0, 3), slice(3, 6))]
    assert torch.equal(whole.hidden, torch.cat([part.hidden for part in parts]))
    output = model(log_mel, torch.randn(6, 16), noise, hint=0.4)
    assert torch.equal(output.mask, whole.hidden)
    assert not torch.equal(output.mask, model(log_mel, torch.randn(6, 16), noise).mask)


@pytest.mark.parametrize(
    ("settings", "ratios"),
    [
        ({}, {0: 1, 49: 1, 50: 1 - (50 / 300) ** 2, 150: 0.75, 299: 1 - (299 / 300) ** 2}),
        ({"hint_power": 1.0, "hint_start": 0}, {0: 1, 150: 0.5, 299: 1 / 300}),
        ({"hint_ratio": 0.25}, {0: 0.25, 299: 0.25}),
    ],
)
def test_the_hint_ratio_falls_with_the_epochs(settings: dict[str, float], ratios: dict[int, float]) -> None:
    hints = Hints.of(ModelConfig(masking="weighted", **settings), 300)  # type: ignore[arg-type]
    assert hints is not None
    assert {epoch: hints.ratio(epoch) for epoch in ratios} == pytest.approx(ratios)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hint_power": 1.0}, "hint_power"),
        ({"hint_ratio": 0.0}, "hint_ratio"),
        ({"mask_weight": "variance"}, "mask_weight"),
        ({"masking": "blocks", "mask_weight": "variance"}, "mask_weight"),
        ({"masking": "weighted", "block_length": 3}, "block_length"),
        ({"masking": "weighted", "hint_ratio": 0.5, "hint_start": 1}, "hint_start"),
        ({"masking": "wild"}, "masking"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ModelConfig(**settings)  # type: ignore[arg-type]


def test_masks_that_would_be_random_until_the_end_are_refused() -> None:
    with pytest.raises(UserError, match="hint_start 50 is not within the 30 epochs"):
        Hints.of(ModelConfig(masking="blocks"), 30)
    assert Hints.of(ModelConfig(), 30) is None


def test_settings_are_recorded_only_if_they_are_set() -> None:
    assert not {"masking", "hint_power"} & set(ModelConfig().to_dict())
    weighted = ModelConfig(masking="weighted", hint_power=1.0)
    assert weighted.to_dict()["hint_power"] == 1.0
    assert ModelConfig.from_dict(weighted.to_dict()) == weighted
