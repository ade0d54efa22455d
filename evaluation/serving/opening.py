"""Opens what is served: the stores, and for each of them its sounds, log-mels, captions and labels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.embeddings.store import META
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import build
from m2dprep.audioprep.config import PRESETS, LogMelConfig
from m2dprep.evaluation.described import Described
from m2dprep.evaluation.search.projection import MapSettings
from m2dprep.evaluation.search.shelf import Shelf, names_of
from m2dprep.evaluation.serving.catalogue import Catalogue, Part
from m2dprep.evaluation.serving.mapping import MapInTheMaking
from m2dprep.evaluation.serving.media import Caches, Media
from m2dprep.evaluation.serving.nearest import nearest
from m2dprep.evaluation.serving.site import Site
from m2dprep.evaluation.serving.sources import Sources
from m2dprep.evaluation.serving.stored import StoredLogMels
from m2dprep.evaluation.serving.words import TextSide, Words

# What stands for nothing, among options that are given for each store.
NOTHING = Path("-")


@dataclass(frozen=True)
class Shown:
    """What to show: ``stores``, and where their sounds, log-mels, captions and labels are.

    Each of these is given not at all, once for all stores, or once for each store in their order, `NOTHING` for a
    store that has none.
    """

    stores: Sequence[Path]
    audio: Sequence[Path] = ()
    log_mels: Sequence[Path] = ()
    captions: Sequence[Path] = ()
    labels: Sequence[Path] = ()
    id_column: str | None = None
    checkpoint: Path | None = None
    text_model: str | None = None
    trust_remote_code: bool = False
    device: str = "auto"
    map_points: int = 10_000
    seed: int = 0


def open_site(shown: Shown, note: Callable[[str], None] = lambda words: None) -> Site:
    """Open everything that is served. ``note`` is told what a user may have overlooked, later on from other threads.

    Raises `UserError` if something of it is not there.
    """
    shelf, names = Shelf.open(shown.stores), names_of(shown.stores)
    if not len(shelf):
        raise UserError(f"{' '.join(map(str, shown.stores))} has no rows: none of its sounds could be embedded.")
    count = len(shelf.stores)
    captions, labels = for_each(count, shown.captions, "--captions"), for_each(count, shown.labels, "--labels")
    tables = {pair: Described(*pair) for pair in set(zip(captions, labels, strict=True))}
    parts = [
        Part(store.index, tables[pair].of_store(store.index), store.meta.get("window") is not None, name)
        for store, pair, name in zip(shelf.stores, zip(captions, labels, strict=True), names, strict=True)
    ]
    for part in parts:
        for gap in part.said.gaps:
            note(f"{gap} of {part.name}." if count > 1 else f"{gap}.")
    media = _media(shelf, shown, note)
    threading.Thread(target=_warm, args=[shelf], name="m2dprep-warms", daemon=True).start()
    made = MapInTheMaking(shelf, MapSettings(shown.map_points, shown.seed), note)
    return Site(shelf, Catalogue(parts), media, _words(shelf, shown), made)


def for_each(count: int, given: Sequence[Path], option: str) -> list[Path | None]:
    """An option's value for each of ``count`` stores. Raises `UserError` if it is given neither once nor for each."""
    if len(given) not in (0, 1, count):
        raise UserError(
            f"{option} is given {len(given)} times, and there are {count} stores: give it once for all of them, or "
            f"once for each in their order (- for a store that has none)."
        )
    values = list(given) if len(given) == count else list(given) * count if given else [NOTHING] * count
    return [None if value == NOTHING else value for value in values]


def _media(shelf: Shelf, shown: Shown, note: Callable[[str], None]) -> list[Media]:
    """The sounds and pictures of each store."""
    count, caches = len(shelf.stores), Caches()
    roots, log_mels = for_each(count, shown.audio, "--audio"), for_each(count, shown.log_mels, "--log-mels")
    if missing := next((root for root in roots if root is not None and not root.exists()), None):
        raise UserError(f"{missing}: no such folder (the sounds of the store).")
    found = []
    for store, root, folder in zip(shelf.stores, roots, log_mels, strict=True):
        sources = None if root is None else Sources(root, shown.id_column)
        _note_sounds(store, sources, note)
        stored = None if folder is None else StoredLogMels(folder)
        found.append(Media(sources, stored, _front_end(store), caches))
    return found


def _note_sounds(store: AudioStore, sources: Sources | None, note: Callable[[str], None]) -> None:
    """What a user may have forgotten, or mistaken."""
    made_from = ", ".join(map(str, store.meta.get("sounds") or []))
    if sources is None:
        if made_from:
            note(f"No sound without --audio; {store.folder} was made from {made_from}.")
    elif len(store):
        first = str(store.index["file"][0].as_py())
        if not sources.may_have(first):
            whence = f"; the store was made from {made_from}" if made_from else ""
            note(f"{sources.root} does not have {first}, the first sound of {store.folder}{whence}.")


def _warm(shelf: Shelf) -> None:
    """Search once, so that what a search imports is there when somebody asks."""
    with suppress(UserError, OSError):
        nearest(shelf, shelf.take(np.zeros(1, np.int64))[0], 1)


def _front_end(store: AudioStore) -> LogMelConfig:
    """The front end that the store was made with, as far as it says."""
    said = store.meta.get("front_end")
    if not isinstance(said, dict):
        return PRESETS["16k"]
    return build(LogMelConfig, said, f"{store.folder / META}", "front_end.")


def _words(shelf: Shelf, shown: Shown) -> Words:
    """The text side of the stores' checkpoint; it is loaded while the page is served."""
    if not shelf.has_clap:
        return Words(None, "The store holds conventional embeddings alone, which cannot be compared with words.")
    noted = [Path(said) for store in shelf.stores if isinstance(said := store.meta.get("checkpoint"), str) and said]
    places = [shown.checkpoint] if shown.checkpoint else noted
    checkpoint = next((place for place in places if place.exists()), None)
    if checkpoint is None:
        where = f"{places[0]} is not there" if places else "the store does not say which checkpoint made it"
        return Words(None, f"Words cannot be searched for: {where}. Start with --checkpoint.")

    def load() -> TextSide:
        from m2dprep.evaluation.encoders import CheckpointEncoder  # imports torch, which takes seconds

        encoder = CheckpointEncoder(
            checkpoint, device=shown.device, text_model=shown.text_model,
            trust_remote_code=shown.trust_remote_code,
        )  # fmt: skip
        made_by = shelf.stores[0].checkpoint
        if encoder.digest != made_by and made_by:
            raise UserError(f"{checkpoint} is not the checkpoint that made the store: their digests differ.")
        return encoder

    return Words(load)
