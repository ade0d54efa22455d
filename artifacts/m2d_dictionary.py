"""The original's caption embeddings: a dictionary {clip id: (D,) or (n, D) array} pickled inside a ``.npy`` file.

Such a file is read by an unpickler of our own (`artifacts.m2d_unpickler`), which never calls what the file names and
holds a few MB of it at a time. Anything but arrays, strings and dictionaries is refused.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.atomic import atomic_file
from artifacts.digest import plain_digest
from artifacts.errors import UserError, first_line
from artifacts.layout import require_file
from artifacts.m2d_pickle import write_pickle
from artifacts.m2d_unpickler import StreamUnpickler, shown
from artifacts.npy_file import LARGEST_HEADER
from artifacts.steady import RegularFile, open_regular, read_at


def write_dictionary(
    path: Path,
    embeddings: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
    whole: Callable[[str], object] | None = None,
) -> int:
    """Write {clip id: (D,) or (n, D)} as ``np.save`` writes a dictionary, which is what the original trainer loads.

    Pairs may come one by one, so that they need never be in memory together. ``whole`` is called with the digest of the
    file just before it gets its name. Returns how many pairs there were.
    """
    items = embeddings.items() if isinstance(embeddings, Mapping) else embeddings
    with atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        count = write_pickle(file, items)
        if whole is not None:
            file.flush()
            whole(plain_digest(Path(file.name)))
    return count


def read_dictionary(path: Path) -> dict[str, np.ndarray]:
    """Read such a file into {clip id: float array (D,) or (n, D)}, read-only.

    Raises `UserError` where the file is anything else, above all where its pickle asks for more than plain arrays.
    """
    return dict(read_items(path))


def read_items(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The same one by one, in the order of the file, which takes no memory for those that have been.

    An array is a view of some MB of the file: who keeps many should copy them. A key that occurs twice is given twice.
    Raises `UserError` as `read_dictionary` does, and `OSError`, naming the file, where the disk cannot read it.
    """
    require_file(path, "a dictionary of caption embeddings")
    try:
        with open_regular(path) as file:
            for key, value in StreamUnpickler(file, _end_of_header(file)).items():
                yield _plain(path, key, value)
    except (UserError, OSError):
        raise
    except Exception as error:  # bytes made to harm can raise anything here, also MemoryError: all of it is a refusal
        raise UserError(f"{path} is refused as a dictionary of caption embeddings: {first_line(error)}") from error


def _end_of_header(file: RegularFile) -> int:
    """Where the pickle begins. Raises as numpy does where the header is not that of a dictionary."""
    head = np.empty(min(file.size, LARGEST_HEADER), np.uint8)
    stream = io.BytesIO(head[: read_at(file, head.data, 0)].tobytes())
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"unknown .npy version {version}")
    shape, _, dtype = reader(stream)
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"it holds an array of shape {shape} and type {dtype}, not a dictionary")
    return stream.tell()


def _plain(path: Path, key: Any, value: Any) -> tuple[str, np.ndarray]:
    if not isinstance(key, str):
        raise UserError(f"{path}: a key is {shown(key)}, not a string.")
    if not isinstance(value, np.ndarray) or value.ndim not in (1, 2):
        raise UserError(f"{path}: the value of {key[:60]!r} is not an array of shape (D,) or (n, D).")
    return key, value
