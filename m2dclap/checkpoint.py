"""Reads checkpoints, ours and the original's in all their forms, and builds models from them.

PyTorch writes a zip archive in which every member has a CRC-32, but never compares these checksums when it loads. We
compare all of them: a damaged file would otherwise be trained on or classify clips without any warning.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.reading import named, with_retries
from m2dprep.artifacts.settings import Range, build, shown, typed
from m2dprep.audioprep.config import PRESETS, LogMelConfig
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import DEFAULT_NORM_STATS, M2DCLAP
from m2dprep.m2dclap.proof import DamagedError, proven_place

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)(?:-(\d+))?\.pth")
LOCAL_HEADER = struct.Struct("<4s22xHH")
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
UTF8_NAMES = 0x800
READ_BYTES = 1 << 22
THREADS = 4
BEGINNING = 256
WRONG_FILES = (
    (b"version https://git-lfs", "a pointer of git-lfs that stands for it; fetch the file itself with `git lfs pull`"),
    (b"<!doctype", "a web page; fetch the file itself"),
    (b"<html", "a web page; fetch the file itself"),
)
TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints directly in a folder, the newest last."""
    names = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ())]
    return [path for _, path in sorted(((int(match[1]), int(match[2] or 0)), path) for match, path in names if match)]


def find_checkpoint(path: Path) -> Path:
    """``path`` itself if it is a file; the newest checkpoint in it if it is a run or checkpoint folder.

    Raises `UserError` if there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint or run folder.")
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
    found = [checkpoints for folder in folders if (checkpoints := checkpoints_in(folder))]
    if not found:
        raise UserError(f"{path} holds no checkpoint-<epoch>.pth, neither itself nor in a folder in it.")
    if len(found) > 1:
        listed = ", ".join(sorted(str(checkpoints[0].parent) for checkpoints in found))
        raise UserError(f"{path} holds checkpoints of several models; name one of {listed}.")
    return found[0][-1]


def read_file(path: Path) -> dict[str, Any]:
    """The dictionary in a checkpoint file, on the CPU, read without running any code that the file names.

    An ``argparse.Namespace`` of plain values is allowed, since the original stores its arguments as one. Raises
    `DamagedError` if a member is not what was written, and `UserError` if the file is anything else.
    """
    require_file(path, "a checkpoint")
    if path.stat().st_size == 0:
        raise DamagedError(f"{path} is not a checkpoint: it is empty.")
    with path.open("rb") as file:
        beginning = file.read(BEGINNING)
    _require_kind(path, beginning)
    if beginning.startswith(ZIP):
        require_whole(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace, pathlib.PosixPath]):
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except OSError:
        raise
    except Exception as error:  # PyTorch's unpickler raises any kind of error on bytes that are no pickle
        raise UserError(f"{path} is not a checkpoint that can be read: {_reason(error)}") from error
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(value).__name__}.")
    return dict(value)


def require_whole(path: Path) -> bool:
    """Compare a zip with our digest and return True; without one, compare every member with its checksum.

    Raises `DamagedError`, naming the first member that differs. If no member has a checksum, the file was written with
    PyTorch's checksums turned off; then there is nothing to compare.
    """
    if proven_place(path) is not None:
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError, struct.error) as error:
        raise DamagedError(
            f"{path} is not a checkpoint that can be read: it is cut off or damaged ({first_line(error)})."
        ) from error
    if not any(member.CRC for member in members):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for member, right in zip(members, pool.map(lambda one: _is_whole(descriptor, one), members), strict=True):
                if not right:
                    raise DamagedError(
                        f"{path} is damaged: its member {member.filename} is not what was written (CRC-32). Take "
                        "another copy of it, or an earlier checkpoint."
                    )
    except OSError as error:
        raise named(error, path) from error
    finally:
        os.close(descriptor)
    return False


def _is_whole(descriptor: int, member: zipfile.ZipInfo) -> bool:
    """Whether a member, read from where PyTorch reads it, is stored uncompressed and matches its checksum."""
    if member.header_offset < 0:
        return False
    header = _read(descriptor, LOCAL_HEADER.size, member.header_offset)
    if len(header) < LOCAL_HEADER.size:
        return False
    encoding = "utf-8" if member.flag_bits & UTF8_NAMES else "cp437"
    magic, name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)
    start = member.header_offset + LOCAL_HEADER.size
    name = _read(descriptor, name_bytes, start)
    stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
    if magic != ZIP or not stored or name != member.orig_filename.encode(encoding):
        return False
    start, left, checksum = start + name_bytes + extra_bytes, member.file_size, 0
    while left:
        read = _read(descriptor, min(left, READ_BYTES), start)
        if not read:
            return False
        checksum = zlib.crc32(read, checksum)
        start, left = start + len(read), left - len(read)
    return checksum == member.CRC


def _read(descriptor: int, size: int, start: int) -> bytes:
    return with_retries(lambda: os.pread(descriptor, size, start))


def _require_kind(path: Path, beginning: bytes) -> None:
    """Raise `UserError`, saying what a file seems to be, if it does not begin as checkpoints do."""
    if beginning.startswith((ZIP, PICKLE)):
        return
    said = next((what for start, what in WRONG_FILES if beginning.lstrip().lower().startswith(start)), None)
    if said is None and TEXT.fullmatch(beginning):
        said = f"a text that begins with {beginning.decode().strip()[:40]!r}"
    raise UserError(f"{path} is not a checkpoint but {said}." if said else f"{path} is not a checkpoint, or damaged.")


def _reason(error: Exception) -> str:
    """PyTorch's complaint without its advice to load the file unsafely."""
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds an object of {named[1]}, and only tensors and plain values are read from files."
    text = first_line(error)
    return (
        "it is damaged or holds no tensors and plain values." if "weights_only" in text or "Weights" in text else text
    )


# Prefixes of a fine-tuned encoder, as the original's evaluation saves it.
FINE_TUNED_PREFIX, BACKBONE_PREFIX = "module.ar.runtime.backbone.", "backbone."
# Weights that only training needs; a checkpoint without them can still encode.
TRAINING_ONLY = ("norm_stats", "logit_scale", "mask_token", "decoder_", "target_")
DEFAULT_MEL_BINS = 80
HEAD_DIM, DECODER_HEAD_DIM = 64, 32
SHAPE_FIELD = re.compile(r"(\d+)x(\d+)p(\d+)x(\d+)(?:p.*)?")


# The numbers of dimensions of the weights from which sizes are read.
DIMENSIONS = {
    "cls_token": 3,
    "patch_embed.proj.weight": 4,
    "pos_embed": 3,
    "mask_token": 3,
    "text_proj.weight": 2,
    "audio_proj.0.weight": 2,
}
TEXT_MODEL_KINDS: dict[str, Any] = {
    **dict.fromkeys(("model", "revision", "model_path", "weights", "pooling", "prefix"), str),
    "normalized": bool,
    "max_length": Annotated[int, Range(1, 1_000_000)],
}


@dataclass(frozen=True)
class Checkpoint:
    """Weights read from a file, ours or the original's, and the configuration of their model."""

    path: Path
    config: ModelConfig
    weights: dict[str, torch.Tensor]
    args: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read weights at the top level or under ``model``. Raises `UserError` if they are not an M2D encoder's."""
        value = read_file(path)
        args = value.get("args", {})
        args = vars(args) if isinstance(args, argparse.Namespace) else args
        weights = _tensors(value["model"] if isinstance(value.get("model"), Mapping) else value)
        weights = _strip_prefixes(weights)
        if "cls_token" not in weights or "patch_embed.proj.weight" not in weights:
            raise UserError(f"{path} holds no M2D encoder (no cls_token and patch_embed among its keys).")
        _require_shapes(weights, path)
        if isinstance(args, Mapping) and isinstance(args.get("model_config"), Mapping):
            config = _own_config(args["model_config"], weights, path)
        else:
            config = infer_config(weights, path)
        return cls(path, config, weights, dict(args) if isinstance(args, Mapping) else {})

    @property
    def has_clap_head(self) -> bool:
        return "audio_proj.0.weight" in self.weights

    def require_clap_head(self) -> None:
        """Raise `UserError` if the weights are an encoder alone, without a head for captions."""
        if "audio_proj.sem_token" in self.weights:
            raise UserError(
                f"{self.path} is an M2D-CLAP of 2025: its audio_proj is a transformer with a semantic token "
                "(audio_proj.sem_token), which this version does not know; take a model of 2024, or the encoder alone."
            )
        if not self.has_clap_head:
            raise UserError(f"{self.path} has no audio_proj: it is an encoder without captions and cannot classify.")

    @property
    def text_model(self) -> dict[str, Any]:
        """How the training captions were encoded; empty if the checkpoint does not say."""
        value = self.args.get("text_model")
        if not isinstance(value, Mapping):
            return {}
        for key, kind in TEXT_MODEL_KINDS.items():
            try:
                typed(kind | None, value.get(key), key)
            except UserError as error:
                raise UserError(f"{self.path}: its text_model: {error}") from error
        return dict(value)

    @property
    def front_end(self) -> LogMelConfig:
        """The front end of the training log-mels; for a foreign checkpoint, the preset in its folder's name."""
        value = self.args.get("front_end")
        if isinstance(value, Mapping):
            return build(LogMelConfig, value, f"{self.path}: its front_end")
        fields = self.path.resolve().parent.name.split("-")
        sizes = fields[1].split("p") if len(fields) > 1 else []
        return PRESETS["32k" if "32k" in sizes else "16k"]

    def load_model(self, device: torch.device) -> M2DCLAP:
        """The model for encoding, on ``device``, in evaluation mode.

        Weights that only training needs may be missing, and then keep their initial values; ``norm_stats`` falls back
        to the original's. Extra weights are ignored. Raises `UserError` if any other weight is missing or misshapen, or
        if a weight that encoding needs is not finite.
        """
        model = M2DCLAP(self.config)
        own = model.state_dict()
        wanted = {key: value for key, value in self.weights.items() if key in own}
        for key, value in wanted.items():
            if value.shape != own[key].shape:
                raise UserError(f"{self.path}: {key} is {list(value.shape)}, its model needs {list(own[key].shape)}.")
        self.require_finite([key for key in wanted if not key.startswith(TRAINING_ONLY)])
        optional = TRAINING_ONLY if self.has_clap_head else (*TRAINING_ONLY, "audio_proj.", "text_proj.")
        missing = [key for key in own if key not in wanted and not key.startswith(optional)]
        if missing:
            raise UserError(f"{self.path} lacks {len(missing)} of its model's weights: {', '.join(missing[:5])} ….")
        model.load_state_dict(wanted, strict=False)
        return model.to(device).eval()

    def require_finite(self, keys: Iterable[str]) -> None:
        """Raise `UserError` if one of these weights is NaN or infinite."""
        bad = [key for key in keys if not bool(self.weights[key].isfinite().all())]
        if bad:
            raise UserError(
                f"{self.path}: {len(bad)} of its weights are not finite ({bad[0]} first): its training has "
                "diverged. Take an earlier checkpoint."
            )

    @property
    def norm_stats(self) -> Normalization:
        """The statistics to normalise with; the original's if the weights bring none."""
        stats = self.weights.get("norm_stats", torch.tensor(DEFAULT_NORM_STATS))
        if stats.shape != (2,) or not bool(stats.isfinite().all()) or stats[1] <= 0:
            raise UserError(f"{self.path}: its norm_stats {shown(stats.tolist())} are no mean and standard deviation.")
        return Normalization(*stats.tolist())


def _require_shapes(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise `UserError` if weights from which sizes are read have an unexpected number of dimensions."""
    for key, dimensions in DIMENSIONS.items():
        if key in weights and (weights[key].ndim != dimensions or 0 in weights[key].shape):
            raise UserError(
                f"{path}: {key} is {list(weights[key].shape)}, not of {dimensions} dimensions as in an M2D."
            )


def _own_config(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor], path: Path) -> ModelConfig:
    """The configuration stored in a checkpoint of ours.

    Raises `UserError` if it is invalid or does not describe the weights, since the model is built from it.
    """
    try:
        config = ModelConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: its model_config: {error}") from error
    held = {
        "embed_dim": weights["cls_token"].shape[-1],
        "patch_size": tuple(weights["patch_embed.proj.weight"].shape[-2:]),
        "depth": _depth(weights, "blocks."),
    }
    if "mask_token" in weights:
        held["decoder_embed_dim"] = weights["mask_token"].shape[-1]
        held["decoder_depth"] = _depth(weights, "decoder_blocks.") or config.decoder_depth
    if "text_proj.weight" in weights:
        held["off_emb_dim"] = weights["text_proj.weight"].shape[1]
    if "pos_embed" in weights:
        held["num_patches"] = weights["pos_embed"].shape[1] - 1
    for name, size in held.items():
        if getattr(config, name) != size:
            raise UserError(f"{path}: its model_config has {name} {getattr(config, name)}, its weights have {size}.")
    return config


def infer_config(weights: Mapping[str, torch.Tensor], path: Path) -> ModelConfig:
    """The configuration of a foreign checkpoint, from its shapes and, as in the original, its folder's name.

    Neither gives the numbers of heads, so they follow from the original's 64 dimensions per head (32 in the predictor).
    """
    dim = weights["cls_token"].shape[-1]
    patch_size = weights["patch_embed.proj.weight"].shape[-2:]
    decoder_dim = weights["mask_token"].shape[-1] if "mask_token" in weights else ModelConfig.decoder_embed_dim
    text = weights.get("text_proj.weight")
    return ModelConfig(
        input_size=_input_size(weights, patch_size, path),
        patch_size=(patch_size[0], patch_size[1]),
        embed_dim=dim,
        depth=_depth(weights, "blocks."),
        num_heads=max(dim // HEAD_DIM, 1),
        decoder_embed_dim=decoder_dim,
        decoder_depth=max(_depth(weights, "decoder_blocks."), 1),
        decoder_num_heads=max(decoder_dim // DECODER_HEAD_DIM, 1),
        off_emb_dim=dim if text is None else text.shape[1],
    )


def _input_size(weights: Mapping[str, torch.Tensor], patch_size: torch.Size, path: Path) -> tuple[int, int]:
    """The size in the folder's name if it gives as many patches as the weights have, else one of 80 mel bins that
    does."""
    patches = weights["pos_embed"].shape[1] - 1 if "pos_embed" in weights else 0
    fields = path.resolve().parent.name.split("-")
    if len(fields) > 1 and (named := SHAPE_FIELD.fullmatch(fields[1])):
        size = int(named[1]), int(named[2])
        if (size[0] // patch_size[0]) * (size[1] // patch_size[1]) == patches:
            return size
    rows = DEFAULT_MEL_BINS // patch_size[0]
    if rows == 0 or patches < rows or patches % rows:
        raise UserError(f"{path}: its {patches} positions fit no input of {DEFAULT_MEL_BINS} mel bins.")
    return rows * patch_size[0], patches // rows * patch_size[1]


def _depth(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in weights if key.startswith(prefix)})


def _tensors(value: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in value.items() if isinstance(tensor, torch.Tensor)}


def _strip_prefixes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder within a larger model's weights, by the original's rules; other weights stay as they are."""
    weights = {key.removeprefix(FINE_TUNED_PREFIX): value for key, value in weights.items()}
    if any(key.startswith(BACKBONE_PREFIX) for key in weights):
        weights = {
            key.removeprefix(BACKBONE_PREFIX): value
            for key, value in weights.items()
            if key.startswith(BACKBONE_PREFIX)
        }
    return weights
