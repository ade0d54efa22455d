"""Writes a trained encoder as two files: ``m2d_portable.py``, which needs only torch, and ``weights.pt`` beside it.

The Python file is put together from the source of the modules that m2dprep itself encodes with.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2dprep.artifacts.files import atomic_file, write_text
from m2dprep.artifacts.folders import new_folder, require_new_folder
from m2dprep.audioprep.logmel import mel_filters, periodic_hann
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.portable.runtime import WEIGHTS_FILE, Sizes
from m2dprep.m2dclap.reuse.classifier import load_head
from m2dprep.m2dclap.reuse.saving import save_tensors

MODULE = "m2d_portable.py"
# What the file takes from which module, in an order in which each part finds what it needs.
PARTS = {
    "m2dprep.m2dclap.fusion.kinds": ("AFF", "PAD", "CHANNELS"),
    "m2dprep.m2dclap.fusion.operators": (
        "REDUCTION", "NORM_EPS", "ChannelNorm", "NORMS", "_branch", "DirectFusion", "AttentionalFusion",
        "IterativeFusion", "new_fusion",
    ),
    "m2dprep.m2dclap.fusion.patches": ("FusedPatchEmbed",),
    "m2dprep.m2dclap.fusion.channels": ("MIDDLE", "runs", "starts"),
    "m2dprep.m2dclap.vit": (
        "MLP_RATIO", "PatchEmbed", "patch_embedding", "Attention", "Mlp", "Block", "blocks", "sincos_positions",
        "Encoder",
    ),
    "m2dprep.m2dclap.layouts": ("has_clap_head", "semantic_size", "depth_of"),
    "m2dprep.m2dclap.heads": (
        "WEIGHT_SPREAD", "SEMANTIC_NORM_EPS", "SemanticSize", "SemanticHead", "project_tokens", "ClassifierHead",
    ),
    "m2dprep.m2dclap.audio_model": ("AudioModel", "_audio_head", "_text_head", "_mlp"),
    "m2dprep.m2dclap.portable.runtime": (
        "WEIGHTS_FILE", "TOKENS_AT_ONCE", "FRAMES_PER_BLOCK", "MOST_CHANNELS", "Sizes", "Embeddings", "_Piece",
        "channels_of", "_resized", "_taps", "PortableEncoder",
    ),
}  # fmt: skip
HEAD = '''"""A trained M2D encoder that needs only torch. Written by m2dprep {version} (Apache License 2.0).

from m2d_portable import PortableEncoder

encoder = PortableEncoder.load()      # {weights} beside this file
encoder(waveform)                     # float (n,) or (B, n), mono, from -1 to 1, at encoder.sample_rate Hz
encoder.encode([log_mel])             # (1, n_mels, T), natural logarithm of mel power, not normalised
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
'''


@dataclass(frozen=True)
class Portable:
    """What was written: the module, and the weights, so many ``parameters``."""

    module: Path
    weights: Path
    parameters: int


def write_portable(checkpoint: Checkpoint, folder: Path, classes: Sequence[str] = ()) -> Portable:
    """Write the encoder of ``checkpoint``, with its heads and its classifier, to the new folder ``folder``.

    Raises `UserError` if there is something in the folder already, or a weight is missing or not finite.
    """
    require_new_folder(folder)
    state = portable_state(checkpoint, classes)
    with new_folder(folder) as filling:
        with atomic_file(filling / WEIGHTS_FILE) as file:
            save_tensors(state, file)
        write_text(filling / MODULE, portable_source())
    return Portable(folder / MODULE, folder / WEIGHTS_FILE, sum(one.numel() for one in state["weights"].values()))


def portable_state(checkpoint: Checkpoint, classes: Sequence[str] = ()) -> dict[str, Any]:
    """What the file of weights holds: tensors and plain values, which ``torch.load(weights_only=True)`` reads."""
    front_end, cpu = checkpoint.front_end, torch.device("cpu")
    model = checkpoint.load_audio_model(cpu)
    window = np.zeros(front_end.n_fft, np.float32)
    start = (front_end.n_fft - front_end.win_length) // 2
    window[start : start + front_end.win_length] = periodic_hann(front_end.win_length)
    sizes = {name: getattr(checkpoint.config, name) for name in Sizes._fields}
    return {
        "sizes": {key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()},
        "norm_stats": list(checkpoint.norm_stats),
        "front_end": asdict(front_end),
        "window": torch.from_numpy(window),
        "filters": torch.from_numpy(mel_filters(front_end)),
        "classes": list(classes),
        "weights": _plain(model.state_dict()),
        "head": _plain(load_head(checkpoint, cpu).state_dict()) if checkpoint.head_weights else {},
    }


def _plain(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone().contiguous() for key, value in weights.items()}


def portable_source() -> str:
    """The source of the module."""
    parts = [HEAD.format(version=version("m2dprep"), weights=WEIGHTS_FILE)]
    for module, names in PARTS.items():
        parts += _pieces(module, names)
    return "\n\n".join(part.strip("\n") + "\n" for part in parts)


def _pieces(module: str, names: Sequence[str]) -> list[str]:
    """The source of the functions, classes and constants of a module, in the order of ``names``."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    lines, found = text.splitlines(), dict[str, str]()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            own = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id: own for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return [found[name] for name in names]
