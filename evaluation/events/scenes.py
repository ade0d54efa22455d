"""Names the scene of a recording blindly, by what is heard in it: nothing is known of the set but its scenes' names.

Tags are counted over windows: the highest few of each window count one each, without ``Silence``. Tags whose cosine
lies in a range are merged into the commonest of them, and the largest groups speak for the scenes that they are like.
Scenes are ranked in several ways: by how much speaks for them (``count``), the same times the cosine (``count x
cosine``), by the cosine to all tags joined to one text (``joined``), and by the distance of the recording to captions
(``clap``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2dprep.evaluation.encoders import CLAP
from m2dprep.evaluation.events.listening.ear import TAGS
from m2dprep.evaluation.events.listening.kept import Heard
from m2dprep.evaluation.events.routes import ByCaptions
from m2dprep.evaluation.events.words import Likeness, Words, nearest
from m2dprep.evaluation.protocols.zero_shot import unit_rows

COUNT, WEIGHTED, JOINED = "count", "count x cosine", "joined"
WAYS = (WEIGHTED, COUNT, JOINED, CLAP)
IGNORED = ("silence",)


@dataclass(frozen=True)
class SceneSettings:
    """``top`` tags per window; groups of tags that are alike by a cosine in ``merge`` (from, below); the ``groups``
    largest; which speak for scenes that they are like by at least ``similarity``."""

    top: int = 5
    merge: tuple[float, float] = (0.6, 1.0)
    groups: int = 5
    similarity: float = 0.1
    forward: bool = False
    """As the original merges: a tag takes up those after it in the order of first hearing, not the commonest."""

    def to_dict(self) -> dict[str, Any]:
        return {"top": self.top, "merge": list(self.merge), "groups": self.groups, "similarity": self.similarity,
                "forward": self.forward}  # fmt: skip


def counted(logits: np.ndarray, tags: Sequence[str], top: int) -> Counter[int]:
    """How many windows (W, C) have each tag among their ``top`` highest; equal numbers keep the order of hearing."""
    order = np.argsort(-logits, axis=1, kind="stable")
    ignored = [number for number, tag in enumerate(tags) if tag.casefold() in IGNORED]
    found: Counter[int] = Counter()
    for row in order:
        found.update(row[~np.isin(row, ignored)][:top].tolist())
    return found


def merged(counts: Counter[int], vectors: np.ndarray, settings: SceneSettings) -> list[tuple[int, int]]:
    """(tag, count) of groups of similar tags, the largest first; a group bears the name of its first tag."""
    waiting = list(counts.items()) if settings.forward else counts.most_common()
    low, high = settings.merge
    groups: list[tuple[int, int]] = []
    while waiting:
        (tag, count), *rest = waiting
        cosines = vectors[[other for other, _ in rest]] @ vectors[tag] if rest else np.zeros(0)
        alike = (cosines >= low) & (cosines < high)
        groups.append((tag, count + sum(number for (_, number), same in zip(rest, alike, strict=True) if same)))
        waiting = [one for one, same in zip(rest, alike, strict=True) if not same]
    return sorted(groups, key=lambda one: -one[1])


@dataclass(frozen=True)
class SceneScores:
    """Scores (S,) of a recording's scenes by each way, and the counts of its tags."""

    name: str
    by_way: dict[str, np.ndarray]
    tags: Counter[int]


@dataclass
class SceneRanker:
    """Ranks scenes by tags (``likeness``), by captions, or both."""

    settings: SceneSettings
    likeness: Likeness | None
    words: Words | None
    captions: ByCaptions | None
    names: Mapping[str, Sequence[str]]

    @property
    def ways(self) -> list[str]:
        return [way for way in WAYS if (self.captions if way == CLAP else self.likeness) is not None]

    def score(self, heard: Sequence[Heard]) -> list[SceneScores]:
        """Scores of recordings; texts of all of them are encoded together."""
        tags = [self._counts(one) for one in heard]
        joined = self._joined(tags) if self.likeness is not None else [None] * len(heard)
        return [
            SceneScores(one.name, self._by_way(one, own, cosines), own)
            for one, own, cosines in zip(heard, tags, joined, strict=True)
        ]

    def _counts(self, heard: Heard) -> Counter[int]:
        if self.likeness is None:
            return Counter()
        return counted(heard.parts[TAGS], self.likeness.tags, self.settings.top)

    def _joined(self, tags: Sequence[Counter[int]]) -> list[np.ndarray]:
        """Cosines (S,) of each recording's tags, joined to one text, and the names of scenes."""
        assert self.words is not None
        assert self.likeness is not None
        said = [", ".join(self.likeness.tags[tag] for tag, _ in own.most_common()) or "silence" for own in tags]
        flat = [name for own in self.names.values() for name in own]
        vectors = unit_rows(self.words.encode([*said, *flat]), "names")
        return list(nearest(vectors[: len(said)] @ vectors[len(said) :].T, self.names))

    def _by_way(self, heard: Heard, tags: Counter[int], joined: np.ndarray | None) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        if self.likeness is not None:
            assert joined is not None
            count, weighted = self._of_groups(tags)
            # Counts are often equal: what is more alike, then all tags together, decide.
            found[WEIGHTED] = in_order(weighted, joined)
            found[COUNT] = in_order(count, weighted, joined)
            found[JOINED] = in_order(joined)
        if self.captions is not None:
            mean = heard.parts[CLAP].astype(np.float64).mean(axis=0, keepdims=True)
            whole = Heard(heard.name, heard.seconds, heard.starts[:1], heard.ends[:1], {CLAP: mean})
            found[CLAP] = in_order(self.captions.cosines(whole)[0])
        return found

    def _of_groups(self, tags: Counter[int]) -> tuple[np.ndarray, np.ndarray]:
        assert self.likeness is not None
        count, weighted = np.zeros(len(self.names)), np.zeros(len(self.names))
        for tag, number in merged(tags, self.likeness.tag_vectors, self.settings)[: self.settings.groups]:
            cosines = self.likeness.cosines[tag]
            speaks = cosines >= self.settings.similarity
            count += np.where(speaks, number, 0)
            weighted += np.where(speaks, number * cosines, 0.0)
        return count, weighted

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.likeness is not None:
            found[TAGS] = {**self.settings.to_dict(), "words": self.words.describe() if self.words else None}
        if self.captions is not None:
            found[CLAP] = self.captions.describe()
        return found


def in_order(*scores: np.ndarray) -> np.ndarray:
    """Places (S,), the highest the best: by the first scores, equal ones by the next; all equal ones share a place."""
    keys = np.stack(scores)
    order = np.lexsort(keys[::-1])
    steps = np.any(keys[:, order][:, 1:] != keys[:, order][:, :-1], axis=0)
    places = np.concatenate([[0], np.cumsum(steps)])
    found = np.empty(keys.shape[1], np.float64)
    found[order] = places
    return found
