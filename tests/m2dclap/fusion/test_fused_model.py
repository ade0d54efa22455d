"""A model that fuses begins as the one without, leaves short clips alone, and learns from few long clips in a batch."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import PRESETS as FRONT_ENDS
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.fusion.patches import FusedPatchEmbed
from m2dprep.m2dclap.layouts import fusion_of
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.reuse.exporting import LAYOUTS, laid_out
from m2dprep.m2dclap.reuse.initialise import initialise
from tests.tiny import TINY_INFERABLE

pytestmark = pytest.mark.slow

KINDS = ("daf", "aff", "iaff")
CPU = torch.device("cpu")


def model(fusion: str = "none", seed: int = 0, **changes: Any) -> M2DCLAP:
    torch.manual_seed(seed)
    return M2DCLAP(replace(TINY_INFERABLE, fusion=fusion, **changes))


def opened(fusion: str) -> M2DCLAP:
    """A model whose gate is no longer closed."""
    made = model(fusion)
    assert isinstance(made.patch_embed, FusedPatchEmbed)
    assert made.patch_embed.gate is not None
    torch.nn.init.normal_(made.patch_embed.gate)
    return made


def save(path: Path, made: M2DCLAP, config: ModelConfig | None = None) -> Path:
    path = path / "checkpoint-1.pth"
    path.parent.mkdir(exist_ok=True)
    args = {"model_config": (config or made.config).to_dict(), "front_end": asdict(FRONT_ENDS["16k"])}
    torch.save({"model": made.state_dict(), "args": args}, path)
    return path


def inputs(clips: int = 4, frames: int = 48) -> dict[str, Any]:
    made = torch.Generator().manual_seed(1)
    channels = torch.randn(clips, 4, 80, frames, generator=made)
    text, noise = torch.randn(clips, 16, generator=made), torch.rand(clips, 15, generator=made)
    return {"log_mel": channels, "text_embedding": text, "noise": noise}


@pytest.mark.parametrize("kind", KINDS)
def test_step_0_is_the_unfused_checkpoint(kind: str, tmp_path: Path) -> None:
    plain, begun = model(seed=1), model(kind, seed=2)
    words = initialise(begun, save(tmp_path, plain))
    assert f"fusion {kind} begins closed" in words
    given = inputs()
    longer = torch.tensor([True, False, True, True])
    found = begun(**given, longer=longer)
    expected = plain(**{**given, "log_mel": given["log_mel"][:, :1]})
    for name in ("loss", "latent", "pred", "target", "audio_embedding"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights_with_fusion_and_without(kind: str) -> None:
    plain, fused = model().state_dict(), model(kind).state_dict()
    assert all(torch.equal(value, fused[key]) for key, value in plain.items())
    assert all("patch_embed." in key for key in set(fused) - set(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_only_longer_clips_are_fused_each_by_itself(kind: str) -> None:
    made = opened(kind)
    channels = inputs()["log_mel"]
    longer = torch.tensor([True, False, True, False])
    with torch.no_grad():
        found, plain = made.patch_embed(channels, longer), made.patch_embed(channels)
        assert torch.equal(found[~longer], plain[~longer])
        assert all((found[longer] - plain[longer]).abs().amax(dim=(1, 2)) > 1e-3)
        for clip in (0, 2):
            alone = made.patch_embed(channels[clip : clip + 1], torch.tensor([True]))
            torch.testing.assert_close(alone[0], found[clip])


@pytest.mark.parametrize("kind", KINDS)
def test_one_long_clip_in_a_batch_is_enough_to_learn_from(kind: str) -> None:
    made = opened(kind)
    losses = made(**inputs(), longer=torch.tensor([False, False, True, False]))
    losses.loss.backward()
    for name, parameter in made.patch_embed.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_long_clips_leaves_no_parameter_without_a_gradient(kind: str) -> None:
    """Processes that train together wait for the gradients of every parameter."""
    made = model(kind)
    made(**inputs(), longer=torch.zeros(4, dtype=torch.bool)).loss.backward()
    assert all(parameter.grad is not None for parameter in made.patch_embed.parameters())


@pytest.mark.parametrize(
    ("frames", "patch", "grid", "local"),
    [
        (608, (16, 16), (5, 38), 36),
        (608, (16, 4), (5, 152), 150),
        (1008, (16, 16), (5, 63), 63),
        (1008, (16, 4), (5, 252), 252),
        (1001, (16, 16), (5, 62), 60),
        (624, (16, 16), (5, 39), 39),
        (608, (80, 2), (1, 304), 303),
    ],
)
def test_columns_of_parts(frames: int, patch: tuple[int, int], grid: tuple[int, int], local: int) -> None:
    embed = FusedPatchEmbed(patch, 8, "daf")
    embed.begin_as_plain()
    channels = torch.randn(1, 4, 80, frames)
    with torch.no_grad():
        whole = embed.maps(channels)
        assert whole.shape[2:] == grid
        parts = embed.parts(channels[:, 1:], grid[1])
        assert parts.shape == whole.shape
        assert not parts[..., local:].any()
        # A long patch begins as the average of three plain ones, and parts are in the order of time.
        for part in range(3):
            plain = embed.proj(channels[:, part + 1 : part + 2])[..., : local // 3 * 3]
            averaged = plain.unflatten(-1, (-1, 3)).mean(dim=-1)
            own = parts[..., part * local // 3 : (part + 1) * local // 3]
            torch.testing.assert_close(own, averaged, atol=1e-5, rtol=1e-4)


def test_checkpoints_say_how_they_fuse(tmp_path: Path) -> None:
    for kind in ("none", *KINDS):
        made = model(kind, fusion_fill="pad" if kind == "none" else "repeat", antialias=kind == "aff")
        path = save(tmp_path / kind, made)
        assert Checkpoint.read(path).config == made.config
        assert Checkpoint.read(path).load_audio_model(CPU).config.fusion == kind
        assert fusion_of(made.state_dict()) == kind
        (tmp_path / "plain").mkdir(exist_ok=True)
        torch.save(made.state_dict(), tmp_path / "plain" / f"{kind}.pth")  # as an encoder from elsewhere
        assert Checkpoint.read(tmp_path / "plain" / f"{kind}.pth").config.fusion == kind


@pytest.mark.parametrize("held", ["none", *KINDS])
@pytest.mark.parametrize("said", ["none", *KINDS])
def test_weights_and_configuration_must_agree(held: str, said: str, tmp_path: Path) -> None:
    made = model(held)
    path = save(tmp_path, made, replace(made.config, fusion=said))
    if held == said:
        Checkpoint.read(path).load_model(CPU)
        return
    with pytest.raises(UserError, match=f"has fusion {said}, its weights have {held}"):
        Checkpoint.read(path)


def test_a_fused_checkpoint_lacks_nothing_unnoticed(tmp_path: Path) -> None:
    made = model("aff")
    weights = made.state_dict()
    for key in ("patch_embed.gate", "patch_embed.fusion_model.global_att.1.weight", "patch_embed.mel_conv2d.bias"):
        path = tmp_path / "checkpoint-1.pth"
        left = {name: value for name, value in weights.items() if name != key}
        torch.save({"model": left, "args": {"model_config": made.config.to_dict()}}, path)
        for load in (Checkpoint.load_model, Checkpoint.load_audio_model):
            with pytest.raises(UserError, match=key):
                load(Checkpoint.read(path), CPU)


@pytest.mark.parametrize(("held", "asked"), [("aff", "none"), ("iaff", "aff"), ("daf", "iaff")])
def test_a_fused_checkpoint_starts_only_its_like(held: str, asked: str, tmp_path: Path) -> None:
    path = save(tmp_path, opened(held))
    with pytest.raises(UserError, match=f"fusion {held}.*fusion {asked}.*choose --fusion {held}"):
        initialise(model(asked), path)
    begun = model(held, seed=5)
    initialise(begun, path)
    weights = opened(held).state_dict()
    assert all(torch.equal(begun.state_dict()[key], weights[key]) for key in weights if key.startswith("patch_embed."))


def test_what_knows_nothing_of_fusion_refuses_it(tmp_path: Path) -> None:
    checkpoint = Checkpoint.read(save(tmp_path, model("aff")))
    for layout in LAYOUTS:
        with pytest.raises(UserError, match=r"no layout of the original has a place for that.*export portable` keep"):
            laid_out(checkpoint, layout)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fusion": "AFF"}, "one of aff, daf, iaff, none"),
        ({"fusion": True}, "fusion is True"),
        ({"fusion": "aff", "fusion_fill": "cycle"}, "one of pad, repeatpad, repeat"),
        ({"fusion_fill": "repeat"}, "fusion_fill is repeat, which only fusion aff, daf, iaff uses"),
        ({"antialias": True}, "antialias is True, which only fusion aff, daf, iaff uses"),
        ({"fusion": "aff", "antialias": "yes"}, "antialias is 'yes'"),
        ({"fusion": "daf", "input_size": (80, 47), "mask_ratio": 0.5}, "needs 3 patches along time or more"),
    ],
)
def test_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(TINY_INFERABLE, **settings)


def test_unfused_models_are_recorded_as_before() -> None:
    assert not {"fusion", "fusion_fill", "antialias"} & set(TINY_INFERABLE.to_dict())
    assert replace(TINY_INFERABLE, fusion="aff").to_dict()["fusion"] == "aff"
