"""What was heard of each sound, in files of some sounds each; a sound is found by its name and stamp.

```
<digest>.npz    the digest is of its sounds' names and stamps; counts of windows, their times, a row of numbers each
```

So a sound that is as it was need not be heard again, whatever else was added, changed or taken away.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from m2dprep.artifacts.digests import texts_digest
from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.files import write_bytes
from m2dprep.artifacts.reading import named
from m2dprep.audioprep.decoding.sound import TRANSIENT
from m2dprep.evaluation.tagging.inputs import Item

SUFFIX = ".npz"
# Files whose numbers are in memory: sounds of a few files may follow one another by turns.
OPEN_FILES = 4


@dataclass
class Heard:
    """A recording of ``seconds``: ``starts`` and ``ends`` (W,) of its windows, and ``parts``, a row per window each."""

    name: str
    seconds: float
    starts: np.ndarray
    ends: np.ndarray
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    digest: str = ""
    """Of what the model was given: equal sounds have one, whatever their files are."""


class _Place(NamedTuple):
    """Where a sound lies: a file, and its number there among those that were heard, with its digest; or why it was not
    heard."""

    path: Path
    number: int
    failure: Failure | None
    digest: str

    @property
    def is_final(self) -> bool:
        return self.failure is None or self.failure.reason not in TRANSIENT


class Kept:
    """The files of a folder. ``parts`` are the names and lengths of what was heard of each window."""

    def __init__(self, folder: Path, parts: dict[str, int]) -> None:
        """Raises `UserError` if a file is damaged."""
        self._folder, self._parts = folder, parts
        self._places: dict[tuple[str, str], _Place] = {}
        self._load = lru_cache(maxsize=OPEN_FILES)(self._loaded)
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            self._note(path)

    def _note(self, path: Path) -> None:
        """Remember where the sounds of a file lie. What failed by the machine's fault gives way."""
        number = 0
        for name, stamp, failure, digest in _about(path):
            place = _Place(path, number, None if failure is None else Failure(name, *failure), digest)
            number += failure is None
            if place.is_final or (name, stamp) not in self._places:
                self._places[name, stamp] = place

    def has(self, item: Item) -> bool:
        """Whether a sound need not be heard: it was, or cannot be, and not by the machine's fault."""
        place = self._places.get((item.name, item.stamp))
        return place is not None and place.is_final

    def failure(self, item: Item) -> Failure | None:
        """Why a sound could not be heard."""
        return self._places[item.name, item.stamp].failure

    def read(self, item: Item) -> Heard:
        """What was heard of a sound that could be."""
        place = self._places[item.name, item.stamp]
        starts, ends, values = self._load(place.path)
        own = slice(int(starts[place.number]), int(ends[place.number]))
        return Heard(
            item.name, float(values["seconds"][place.number]), values["starts"][own], values["ends"][own],
            {part: values[f"part_{part}"][own] for part in self._parts}, place.digest,
        )  # fmt: skip

    def _loaded(self, path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        with _arrays(path) as file:
            ends = np.cumsum(file["counts"])
            names = ("seconds", "starts", "ends", *(f"part_{part}" for part in self._parts))
            return ends - file["counts"], ends, {name: file[name] for name in names}

    def write(self, items: Sequence[Item], results: Sequence[Heard | Failure]) -> None:
        """Keep what became of some sounds, in a file."""
        path = self._folder / (_digest(items) + SUFFIX)
        heard = [one for one in results if isinstance(one, Heard)]
        about = [
            [item.name, item.stamp, *([one[1:], ""] if isinstance(one, Failure) else [None, one.digest])]
            for item, one in zip(items, results, strict=True)
        ]
        arrays = {
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
            "seconds": np.array([one.seconds for one in heard], np.float64),
            "counts": np.array([len(one.starts) for one in heard], np.int64),
            "starts": np.concatenate([np.zeros(0), *(one.starts for one in heard)]),
            "ends": np.concatenate([np.zeros(0), *(one.ends for one in heard)]),
        }
        for name, length in self._parts.items():
            empty = np.zeros((0, length), np.float32)
            arrays[f"part_{name}"] = np.concatenate([empty, *(one.parts[name] for one in heard)])
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        write_bytes(path, content.getbuffer())
        self._note(path)

    def note_use(self, items: Sequence[Item]) -> None:
        """Give the files of these sounds the present time, so that `prune` leaves them."""
        for path in {self._places[item.name, item.stamp].path for item in items}:
            os.utime(path)

    def sweep(self, items: Sequence[Item]) -> None:
        """Remove the files of which every sound has changed since."""
        stamps = {item.name: item.stamp for item in items}
        files: dict[Path, bool] = {}
        for (name, stamp), place in self._places.items():
            files[place.path] = files.get(place.path, False) or stamps.get(name, stamp) == stamp
        for path in self._folder.glob(f"*{SUFFIX}"):
            if not files.get(path, False):
                path.unlink()


def _digest(items: Sequence[Item]) -> str:
    return texts_digest(text for item in items for text in (item.name, item.stamp))[:24]


@contextmanager
def _arrays(path: Path) -> Iterator[Any]:
    """The arrays of a file, each read when it is asked for. Raises `UserError` if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise named(error, path) from error
        raise UserError(f"{path} is damaged; remove it, and the same command hears its sounds again.") from error


def _about(path: Path) -> list[tuple[str, str, tuple[str, str] | None, str]]:
    """Name, stamp, reason and message of a failure, and digest of every sound of a file."""
    with _arrays(path) as file:
        rows = json.loads(file["about"].tobytes())
        return [(name, stamp, None if why is None else (why[0], why[1]), digest) for name, stamp, why, digest in rows]
