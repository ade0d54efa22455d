"""Stores of one model as one: their rows are counted on from store to store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import LogMelConfig

SHORT = 12
ROWS_AT_ONCE = 4096
# Settings that change the rows of one checkpoint so that they cannot be compared.
WAYS = {"features": "kind of features", "length": "--length", "positions": "--positions", "front_end": "front end"}


class Shelf:
    """Row r of the shelf is row ``r - firsts[k]`` of ``stores[k]``, the store whose rows it lies among."""

    def __init__(self, stores: Sequence[AudioStore]) -> None:
        """Raises `UserError` unless there are stores, and one model made all of them."""
        require_one_model(stores)
        self.stores = tuple(stores)
        self.firsts = np.cumsum([0, *map(len, stores)])

    @classmethod
    def open(cls, folders: Sequence[Path]) -> Shelf:
        """Open the stores in these folders. Raises `UserError` also for a folder that is given twice."""
        require_different(folders)
        return cls([AudioStore.open(folder) for folder in folders])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def dim(self) -> int:
        return self.stores[0].dim

    @property
    def has_clap(self) -> bool:
        """Whether the embeddings can be compared with words."""
        return self.stores[0].has_clap

    def parts(self, values: np.ndarray) -> list[np.ndarray]:
        """``values`` (N, …) of all rows, those of each store on their own."""
        return [values[first:stop] for first, stop in pairwise(self.firsts.tolist())]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings float32 (n, D) of ascending ``rows``."""
        found = np.empty((len(rows), self.dim), np.float32)
        numbers = np.searchsorted(self.firsts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            for start in range(0, len(places), ROWS_AT_ONCE):
                some = places[start : start + ROWS_AT_ONCE]
                found[some] = self.stores[number].embeddings[rows[some] - self.firsts[number]]
        return found


def require_different(folders: Sequence[Path]) -> None:
    """Raise `UserError` for a folder that is given twice, whatever its names."""
    known: set[Path] = set()
    for folder in folders:
        if folder.resolve() in known:
            raise UserError(f"{folder} is given twice.")
        known.add(folder.resolve())


def require_one_model(stores: Sequence[AudioStore]) -> None:
    """Raise `UserError` unless one checkpoint made all stores in one way, and their embeddings are of one kind."""
    if not stores:
        raise UserError("no store is given.")
    first, *others = stores
    for number, store in enumerate(others):
        if store.has_clap != first.has_clap:
            without, has = (first, store) if store.has_clap else (store, first)
            raise UserError(
                f"{without.folder} holds conventional embeddings alone, {has.folder} those that are compared with "
                "words; stores that are searched together hold the same."
            )
        if store.dim != first.dim:
            raise UserError(
                f"{store.folder} has embeddings of {store.dim:,} numbers, {first.folder} of {first.dim:,}; stores that "
                "are searched together are of one model."
            )
        if store.checkpoint != first.checkpoint:
            raise UserError(
                f"{store.folder} was made by another checkpoint ({_made_by(store)}) than {first.folder} "
                f"({_made_by(first)}); stores that are searched together are of one model."
            )
        for earlier in (first, *others[:number]):
            if unlike := _unlike(earlier, store):
                raise UserError(
                    f"{store.folder} was made with another {unlike} than {earlier.folder}: their rows cannot be "
                    "compared. Search or serve each of them alone, or make one of them again as the other was made."
                )


def _unlike(one: AudioStore, other: AudioStore) -> str:
    """What the rows of two stores of one checkpoint differ in, if it makes them incomparable, with both values.

    A store that says nothing of a setting is taken to have the other's.
    """
    for key, name in WAYS.items():
        if key == "features" and one.has_clap:  # these lie beside what is compared
            continue
        has, had = other.meta.get(key), one.meta.get(key)
        if None in (has, had) or has == had:
            continue
        if isinstance(has, dict) and isinstance(had, dict):
            parts = sorted(part for part in {*has, *had} if has.get(part) != had.get(part))
            told = "; ".join(f"{part} {has.get(part)}, not {had.get(part)}" for part in parts)
        else:
            told = f"{has}, not {had}"
        return f"{name} ({told})"
    return ""


def require_front_end_of(store: AudioStore, front_end: LogMelConfig, checkpoint: Path) -> None:
    """Raise `UserError` if a model that sounds are to be encoded with hears another log-mel than a store was made of.

    The weights of a released checkpoint do not say which that is: its folder's name does.
    """
    made_with = store.meta.get("front_end")
    if isinstance(made_with, dict) and made_with != asdict(front_end):
        parts = [part for part, value in asdict(front_end).items() if made_with.get(part) != value]
        told = "; ".join(f"{part} {made_with.get(part)}, here {getattr(front_end, part)}" for part in parts)
        raise UserError(
            f"{store.folder} was made with another front end than {checkpoint} has here ({told}): a sound is compared "
            "with sounds that were encoded as it is. A released checkpoint belongs in a folder of its own name."
        )


def _made_by(store: AudioStore) -> str:
    return f"{store.meta.get('checkpoint')}, {store.checkpoint[:SHORT]}"


def names_of(folders: Sequence[Path]) -> list[str]:
    """What to call each of some folders: the end of its path, as far as it takes to tell it from the others."""
    paths = [folder.absolute() for folder in folders]
    longest = max((len(path.parts) for path in paths), default=1)
    for length in range(1, longest + 1):
        names = [str(Path(*path.parts[-length:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
