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


def in_float64(given: dict[str, torch.Tensor], x: np.ndarray, kind: str, longer: np.ndarray) -> np.ndarray:
    """The published embedding of channels (B, 4, F, T), computed once more, in float64 and with NumPy alone."""
    w = {name: value.numpy().astype(np.float64) for name, value in given.items()}

    def patches(image: np.ndarray, name: str) -> np.ndarray:
        f, t = w[f"{name}.weight"].shape[2:]
        rows, columns = image.shape[1] // f, image.shape[2] // t
        cut = image[:, : rows * f, : columns * t].reshape(-1, rows, f, columns, t)
        found: np.ndarray = np.einsum("brfct,dft->bdrc", cut, w[f"{name}.weight"][:, 0], optimize=True)
        return found + w[f"{name}.bias"][:, None, None]

    def branch(name: str, image: np.ndarray) -> np.ndarray:
        first = 1 if name.startswith("global") else 0
        image = image.mean(axis=(2, 3), keepdims=True) if first else image
        for layer in (first, first + 3):
            at, norm = f"fusion_model.{name}.{layer}", f"fusion_model.{name}.{layer + 1}"
            image = np.einsum("dc,bcrt->bdrt", w[f"{at}.weight"][:, :, 0, 0], image)
            scale = w[f"{norm}.weight"] / np.sqrt(w[f"{norm}.running_var"] + 1e-5)
            shift = (w[f"{at}.bias"] - w[f"{norm}.running_mean"]) * scale + w[f"{norm}.bias"]
            image = image * scale[:, None, None] + shift[:, None, None]
            image = np.maximum(image, 0) if layer == first else image
        return image

    def share(local: str, image: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-branch(local, image) - branch("global_att", image)))

    whole = patches(x[:, 0].astype(np.float64), "proj")
    parts = np.concatenate([patches(x[:, part].astype(np.float64), "mel_conv2d") for part in (1, 2, 3)], axis=3)
    parts = np.pad(parts, [(0, 0)] * 3 + [(0, whole.shape[3] - parts.shape[3])])
    fused = whole + parts
    if kind != "daf_2d":
        first = share("local_att", fused)
        fused = 2 * (whole * first + parts * (1 - first))
    if kind == "iaff_2d":
        second = share("local_att2", fused / 2)
        fused = whole * second + parts * (1 - second)
    return np.where(longer[:, None, None, None], fused, whole)


@pytest.mark.parametrize(("case", "kind"), MAPS)
def test_fused_patches(case: str, kind: str) -> None:
    """As near as the file's own float32 allows: in float64, our maps are those of the original to 1e-13, while the file
    is up to 7e-5 away from these at patch 16, where a value is the sum of 256 products and reaches 58."""
    geometry = json.loads(str(GOLDEN[f"pe/{case}/geometry"]))
    patch, expected = geometry["patch"], GOLDEN[f"pe/{case}/{kind}"]
    x = torch.from_numpy(normal(f"pe_{case}", (len(expected), 4, *geometry["img"])).astype(np.float32))
    shapes = json.loads(str(GOLDEN[f"pe/shapes_{kind}_{patch}"]))
    embed = FusedPatchEmbed.of_laion((patch, patch), expected.shape[1], kind.removesuffix("_2d"))
    given = weights(f"pe_{kind}_{patch}/", shapes)
    load(embed, given)
    longer = torch.zeros(len(x), dtype=torch.bool)
    longer[geometry["longer"]] = True
    exact = in_float64(given, x.numpy(), kind, longer.numpy())
    largest = np.abs(exact).max()
    rounding = 4e-6 * largest if patch == 16 else 2e-5
    with torch.inference_mode():
        found = embed.maps(x, longer)
        assert found.shape[2:] == tuple(geometry["grid"])
        assert np.abs(found.numpy() - expected).max() < rounding
        for rounded in (found.numpy(), expected):
            assert np.abs(rounded - exact).max() < rounding
        assert np.abs(embed.double().maps(x.double(), longer).numpy() - exact).max() < 1e-12 * largest
        embed.float()
        plain = embed.proj(x[:, :1])
        assert torch.equal(found[~longer], plain[~longer])
        local = embed.parts(x[:, 1:], geometry["grid"][1])
        assert not local[..., geometry["local_columns"] :].any()
        assert torch.equal(embed(x, longer), found.flatten(2).transpose(1, 2))
