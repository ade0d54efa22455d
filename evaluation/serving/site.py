"""What the page asks for, as functions: lists of clips, one clip, its sound, the map, the state of the stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.search.shelf import Shelf
from m2dprep.evaluation.serving.catalogue import Catalogue
from m2dprep.evaluation.serving.mapping import MapInTheMaking, points_as_bytes
from m2dprep.evaluation.serving.media import Media, Served
from m2dprep.evaluation.serving.nearest import nearest
from m2dprep.evaluation.serving.words import Words

# What one request may ask for.
MOST_AT_ONCE, MOST_RANKED, MOST_WORDS = 200, 2000, 2000
LABELS_LISTED = 500


@dataclass(frozen=True)
class Question:
    """Which clips are wanted: like words (``text``) or a row (``like``), else all in their order.

    ``words`` must occur in names or captions, one of the ``labels`` must be a clip's, which must be of one of the
    ``stores`` (numbers; none means all). ``rows`` are asked for by number.
    """

    text: str = ""
    like: int | None = None
    words: str = ""
    labels: tuple[str, ...] = ()
    stores: tuple[int, ...] = ()
    rows: tuple[int, ...] | None = None
    offset: int = 0
    limit: int = 60


@dataclass(frozen=True)
class Site:
    """Everything that is served. ``media`` are the sounds and pictures of each store."""

    shelf: Shelf
    catalogue: Catalogue
    media: Sequence[Media]
    words: Words
    map: MapInTheMaking

    def state(self) -> dict[str, Any]:
        """What the page shows around the clips."""
        labels = self.catalogue.labels
        return {
            "rows": len(self.catalogue),
            "stores": [self._store(number) for number in range(len(self.media))],
            "words": {"state": self.words.state, "reason": self.words.reason},
            "map": {
                "state": self.map.state,
                "reason": self.map.reason,
                "steps": self.map.steps,
                "most_steps": self.map.most_steps,
            },
            "labels": [label._asdict() for label in labels[:LABELS_LISTED]],
            "more_labels": max(0, len(labels) - LABELS_LISTED),
        }

    def _store(self, number: int) -> dict[str, Any]:
        part, media = self.catalogue.parts[number], self.media[number]
        return {
            "name": part.name,
            "first": int(self.catalogue.firsts[number]),
            "rows": part.index.num_rows,
            "sounds": len(part.said.files),
            "windows": part.windows,
            "sound": media.has_sound,
            "pictures": media.has_pictures,
        }

    def clips(self, question: Question) -> dict[str, Any]:
        """A part of a list of clips, and how long the list is. Raises `UserError`."""
        if not 0 <= question.limit <= MOST_AT_ONCE or question.offset < 0:
            raise UserError(f"at most {MOST_AT_ONCE} clips are listed at once, from 0 on.")
        if len(question.text) + len(question.words) > MOST_WORDS:
            raise UserError(f"more than {MOST_WORDS:,} letters are no question.")
        place = slice(question.offset, question.offset + question.limit)
        if question.rows is not None:
            rows = [self.require_row(row) for row in question.rows]
            return _listed([self.catalogue.entry(row) for row in rows[place]], len(rows))
        allowed = self.catalogue.rows_of(question.labels, question.words, question.stores)
        query = self._query(question)
        if query is None:
            count = len(self.catalogue) if allowed is None else len(allowed)
            numbers = range(count)[place] if allowed is None else allowed[place]
            return _listed([self.catalogue.entry(int(row)) for row in numbers], count)
        return self._ranked(query, allowed, question, place)

    def _ranked(
        self, query: np.ndarray, allowed: np.ndarray | None, question: Question, place: slice
    ) -> dict[str, Any]:
        like = question.like
        own = like is not None and (allowed is None or like in allowed)  # it is no neighbour of itself
        count = len(self.catalogue) if allowed is None else len(allowed)
        top = min(count, MOST_RANKED, place.stop + own)
        rows, scores = nearest(self.shelf, query, top, allowed)
        found = [pair for pair in zip(rows.tolist(), scores.tolist(), strict=True) if pair[0] != like]
        entries = [{**self.catalogue.entry(row), "score": round(score, 4)} for row, score in found[place]]
        return _listed(entries, min(count - own, MOST_RANKED))

    def _query(self, question: Question) -> np.ndarray | None:
        if question.like is not None:
            query: np.ndarray = self.shelf.take(np.array([self.require_row(question.like)]))[0]
            return query
        return self.words.query(question.text.strip()) if question.text.strip() else None

    def require_row(self, row: int) -> int:
        """``row``; raises `NoSuchRowError` unless the stores have it."""
        if not 0 <= row < len(self.catalogue):
            raise NoSuchRowError(f"there is no row {row}; there are {len(self.catalogue):,}.")
        return row

    def sound(self, row: int, *, transcode: bool) -> Served:
        """The sound of a row. Raises `DecodeError`."""
        return self.media[self.catalogue.place(row)[0]].sound(self.catalogue.row(row), transcode=transcode)

    def log_mel(self, row: int) -> Served:
        """The picture of a row. Raises `DecodeError`."""
        return self.media[self.catalogue.place(row)[0]].log_mel(self.catalogue.row(row))

    def changes(self, row: int) -> list[str]:
        """What of a row is no longer what was embedded. Raises `UserError` if the store has been replaced."""
        store, own = self.catalogue.place(row)
        return self.media[store].changes(self.catalogue.row(row), self.shelf.stores[store].stamp(own))

    def points(self) -> bytes | None:
        """The map for the page; None if there is none (yet)."""
        made = self.map.map
        return None if made is None else points_as_bytes(made, self.catalogue.colouring(made.rows))

    def close(self) -> None:
        self.map.close()


class NoSuchRowError(UserError):
    """A row that the stores do not have."""


def _listed(clips: Sequence[dict[str, Any]], total: int) -> dict[str, Any]:
    return {"clips": list(clips), "total": total}
