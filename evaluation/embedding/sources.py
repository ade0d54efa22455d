"""Where a model comes from: a run folder, a checkpoint, a released zip, or a name on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from m2dprep.artifacts.digests import plain_digest
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import sync_folder
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHTS = (".pth", ".pt", ".ckpt")
# What of a repository on the hub may hold a model or say how it was made.
HUB_FILES = ["*.pth", "*.zip", "*.safetensors", "*.json", "*.txt", "*.model", "*.md"]
# Where released zips are unpacked, unless this variable names another folder.
CACHE_VARIABLE, CACHE = "M2DPREP_CACHE", "~/.cache/m2dprep"


def open_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """The checkpoint that a path or a name on the hub means, read. Raises `UserError` if there is none."""
    return Checkpoint.read(checkpoint_file(name_or_path))


def checkpoint_file(name_or_path: str | Path) -> Path:
    """The file of a checkpoint: a file itself, that of a run (`find_checkpoint`), the one in a zip or on the hub.

    A zip is unpacked once, into a cache. Raises `UserError` if there is no such model.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return _local(path)
    if HUB_NAME.fullmatch(str(name_or_path)):
        return _local(_from_hub(str(name_or_path)))
    raise UserError(
        f"{name_or_path}: no such run folder, checkpoint or zip, and no name on the Hugging Face hub (owner/name)."
    )


def _local(path: Path) -> Path:
    if path.is_file() and _is_release(path):
        return find_checkpoint(_unpacked(path))
    if path.is_dir() and not _has_checkpoint(path):
        zips = sorted(file for file in path.glob("*.zip") if _is_release(file))
        if len(zips) == 1:
            return find_checkpoint(_unpacked(zips[0]))
        weights = sorted(file for file in path.glob("*.pth"))
        if len(weights) == 1:
            return weights[0]
    return find_checkpoint(path)


def _has_checkpoint(folder: Path) -> bool:
    try:
        find_checkpoint(folder)
    except UserError:
        return False
    return True


def _is_release(path: Path) -> bool:
    """Whether a zip holds checkpoints as files. PyTorch's own files are zips of tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.lower().endswith(WEIGHTS) for name in archive.namelist())


def _unpacked(path: Path) -> Path:
    """The folder with the content of a zip, which is unpacked if it is not there yet."""
    cache = Path(os.environ.get(CACHE_VARIABLE) or CACHE).expanduser() / "released"
    place = cache / f"{path.stem}-{plain_digest(path)}"
    if place.is_dir():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=cache))
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename)
                if name.is_absolute() or ".." in name.parts:
                    raise UserError(f"{path}: its member {member.filename!r} leads out of its folder.")
                archive.extract(member, new)
        new.rename(place)
        sync_folder(cache)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged, or of a kind that cannot be unpacked: {first_line(error)}") from error
    except OSError:
        if not place.is_dir():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return place


def _from_hub(name: str) -> Path:
    """The folder of a repository on the hub; without a network, the one in the hub's cache."""
    from huggingface_hub import snapshot_download  # seconds to import, for names on the hub alone

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's client raises the errors of several libraries
        raise UserError(
            f"{name} is neither a path here nor a model that can be had from the Hugging Face hub: {first_line(error)}"
        ) from error
