"""Channels, operators and fused patches are LAION-CLAP's, on its own shapes and with its weights under its names."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from m2dprep.m2dclap.fusion.channels import ChannelRule, channels_of, resized, runs, starts
from m2dprep.m2dclap.fusion.operators import new_fusion
from m2dprep.m2dclap.fusion.patches import FusedPatchEmbed

pytestmark = pytest.mark.slow

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "laion_fusion.npz")
SALT = str(GOLDEN["salt"])
WIDTH = 1001
MAPS = [name.split("/")[1:] for name in GOLDEN.files if name.startswith("pe/") and name.endswith("_2d")]


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32((name + SALT).encode())).standard_normal(shape)


def weights(prefix: str, shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The weights that the file describes by a formula."""
    found = {}
    for name, shape in shapes.items():
        z, last = normal(prefix + name, tuple(shape)), name.rpartition(".")[2]
        if last == "running_mean":
            value = 0.1 * z
        elif last == "running_var":
            value = np.exp(0.3 * z)
        else:
            value = 1 + 0.2 * z if last == "weight" and len(shape) == 1 else 0.3 * z
        found[name] = torch.from_numpy(value.astype(np.float32))
    return found


def load(module: torch.nn.Module, given: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Every weight of the file has its name, and the module has no others."""
    missing, unexpected = module.load_state_dict(given, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return module.eval()


@pytest.fixture(scope="module")
def mel() -> np.ndarray:
    """(F, T)."""
    seconds, frames = float(GOLDEN["mel/seconds"]), int(GOLDEN["mel/frames"])
    t, m = np.arange(frames)[:, None], np.arange(64)
    smooth = -30 + 20 * np.sin(2 * np.pi * t / (37 + m)) * np.cos(0.1 * m)
    made = (smooth + 6 * normal(f"mel{seconds}", (frames, 64))).astype(np.float32)
    return made.T


@pytest.mark.parametrize("name", ["noantialias", "antialias"])
def test_the_whole_clip(mel: np.ndarray, name: str) -> None:
    away = np.abs(resized(mel, WIDTH, antialias=name == "antialias") - GOLDEN[f"mel/global_{name}"].T)
    assert away.max() < (1e-2 if name == "noantialias" else 5e-3)
    assert away.mean() < 5e-4


def test_the_parts(mel: np.ndarray) -> None:
    found = runs(mel.shape[1], WIDTH)
    assert [[run[0], run[-1]] for run in found] == GOLDEN["mel/runs_first_last"].tolist()
    drawn = GOLDEN["mel/starts"].tolist()
    shares = [(start - run[0] + 0.5) / len(run) for start, run in zip(drawn, found, strict=True)]
    assert starts(mel.shape[1], WIDTH, shares) == drawn
    stack, filled = channels_of(mel, ChannelRule(WIDTH), shares)
    assert (filled.frames, filled.longer) == (WIDTH, True)
    assert np.array_equal(stack[1:, :, [0, 500, 1000]].swapaxes(1, 2), GOLDEN["mel/channel_rows"])


@pytest.mark.parametrize("row", GOLDEN["mel/length_table"].tolist(), ids=lambda row: str(row[0]))
def test_lengths(row: list[int]) -> None:
    samples, frames, longer, equal, *drawn = row
    assert frames == 1 + max(samples, 480_000) // 480  # the original repeats or pads a shorter sound
    stack, filled = channels_of(np.arange(frames, dtype=np.float32)[None], ChannelRule(WIDTH))
    assert filled == (WIDTH, bool(longer))
    assert bool((stack == stack[0]).all()) == bool(equal)
    if longer:
        assert all(start in run for start, run in zip(drawn, runs(frames, WIDTH), strict=True))


@pytest.mark.parametrize("kind", ["daf", "aff", "iaff"])
@pytest.mark.parametrize("batch", ["B3", "B1"])
def test_operators(kind: str, batch: str) -> None:
    shapes = json.loads(str(GOLDEN[f"ops/{kind}_shapes"]))
    x, y = (torch.from_numpy(GOLDEN[f"ops/{name}_{batch}"]) for name in "xy")
    operator = load(new_fusion(kind, x.shape[1], "batch", published=True), weights(f"{kind}/", shapes))
    with torch.inference_mode():
        found = operator(x, y)
        assert np.abs(found.numpy() - GOLDEN[f"ops/{kind}_{batch}"]).max() < 1e-5
        if kind == "iaff":  # the published second round has the first one's global branch; ours has its own
            operator.published = False  # type: ignore[assignment]
            assert (operator(x, y) - found).abs().max() > 0.1


@pytest.mark.parametrize(("case", "kind"), MAPS)
def test_fused_patches(case: str, kind: str) -> None:
    geometry = json.loads(str(GOLDEN[f"pe/{case}/geometry"]))
    patch, expected = geometry["patch"], GOLDEN[f"pe/{case}/{kind}"]
    x = torch.from_numpy(normal(f"pe_{case}", (len(expected), 4, *geometry["img"])).astype(np.float32))
    shapes = json.loads(str(GOLDEN[f"pe/shapes_{kind}_{patch}"]))
    embed = FusedPatchEmbed.of_laion((patch, patch), expected.shape[1], kind.removesuffix("_2d"))
    load(embed, weights(f"pe_{kind}_{patch}/", shapes))
    longer = torch.zeros(len(x), dtype=torch.bool)
    longer[geometry["longer"]] = True
    with torch.inference_mode():
        found = embed.maps(x, longer)
        assert found.shape[2:] == tuple(geometry["grid"])
        assert np.abs(found.numpy() - expected).max() < (3e-4 if patch == 16 else 2e-5)
        plain = embed.proj(x[:, :1])
        assert torch.equal(found[~longer], plain[~longer])
        local = embed.parts(x[:, 1:], geometry["grid"][1])
        assert not local[..., geometry["local_columns"] :].any()
        assert torch.equal(embed(x, longer), found.flatten(2).transpose(1, 2))
