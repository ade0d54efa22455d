"""Reads the files of checkpoints: which one a run means, whether it is whole, and what it holds, without running code.

A run means its newest checkpoint. A finished fine-tuning means the weights that its result is about, those of the best
epoch, so that whoever loads, tags, embeds, exports or goes on from it has the model whose score is known. Such weights
are a flat file of EVAR's form; ``args.json`` beside it says what the ``args`` of a checkpoint say.

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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.reading import named, with_retries
from m2dprep.m2dclap.proof import DamagedError, proven_place
from m2dprep.m2dclap.safetensors_file import SUFFIX, WEIGHTS, read_safetensors

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)(?:-(\d+))?\.pth")
# The weights of the best epoch of a fine-tuning, as EVAR calls them; epochs count from 0.
BEST_NAME = re.compile(r"weights_ep(\d+)it\d+-[\d.]+_loss[\d.]+\.pth")
RESULT, ARGS = "result.json", "args.json"
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
    """``path`` itself if it is a file. Of a run, or of the folder of its checkpoints: the weights that its result is
    about, if it is a finished fine-tuning, else its newest checkpoint. Of a folder as the Hugging Face hub has it: its
    ``model.safetensors``.

    Raises `UserError` if there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint or run folder.")
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
    found = [one for folder in folders if (one := _chosen_in(folder)) is not None]
    if not found and (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if not found:
        raise UserError(f"{path} holds no checkpoint-<epoch>.pth, neither itself nor in a folder in it.")
    if len(found) > 1:
        listed = ", ".join(sorted(str(one.parent) for one in found))
        raise UserError(f"{path} holds checkpoints of several models; name one of {listed}.")
    return found[0]


def _chosen_in(folder: Path) -> Path | None:
    return judged_in(folder) or next(reversed(checkpoints_in(folder)), None)


def judged_in(folder: Path) -> Path | None:
    """The weights in a folder of checkpoints that the result of their run is about; None if there are none.

    Raises `UserError` if the result is damaged.
    """
    if not any(BEST_NAME.fullmatch(path.name) for path in folder.glob("weights_ep*")):
        return None
    model = (read_object(folder.absolute().parent / RESULT) or {}).get("model")
    name = Path(str(model.get("checkpoint"))).name if isinstance(model, Mapping) else ""
    place = folder / name
    return place if BEST_NAME.fullmatch(name) and place.is_file() else None


def args_of(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint, which was read as ``value``, says of itself; for weights of a fine-tuning, ``args.json``."""
    args = value.get("args")
    if args is None and BEST_NAME.fullmatch(path.name):
        args = read_object(path.parent / ARGS)
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return dict(args) if isinstance(args, Mapping) else {}


def read_file(path: Path) -> dict[str, Any]:
    """The dictionary in a checkpoint file, on the CPU, read without running any code that the file names.

    An ``argparse.Namespace`` of plain values is allowed, since the original stores its arguments as one. Raises
    `DamagedError` if a member is not what was written, and `UserError` if the file is anything else.
    """
    require_file(path, "a checkpoint")
    if path.stat().st_size == 0:
        raise DamagedError(f"{path} is not a checkpoint: it is empty.")
    if path.suffix == SUFFIX:
        return read_safetensors(path)
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
