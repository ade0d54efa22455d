"""The habits of the original blind classification (TMRL), by name, so that differences to ours can be shown.

The original tags windows of exactly 4 s, one every second, with softmax over all classes, keeps the 20 highest tags,
and names a window after the event that a tag is like by a cosine of 0.5, or whose name is part of the tag's. The last
match wins, not the nearest. docs/events.md lists what of it is a defect; those are not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2dprep.evaluation.events.listening.ear import TAGS
from m2dprep.evaluation.events.listening.kept import Heard
from m2dprep.evaluation.events.words import Likeness
from m2dprep.evaluation.tagging.scores import activated

TMRL = "tmrl"
PRESETS = (TMRL,)
TMRL_WINDOW, TMRL_HOP = 4.0, 1.0
TMRL_SCENE_WINDOW = 6.0
TMRL_TOP, TMRL_SIMILARITY = 20, 0.5
# Every match is an event, however small the share of its tag.
TMRL_THRESHOLD = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class LastMatch:
    """A window's score for the event of its last match is the share of the matching tag; for all others it is 0.

    Tags are gone through from the highest down, events in the order of the classes.
    """

    likeness: Likeness
    similarity: float = TMRL_SIMILARITY
    top: int = TMRL_TOP

    def matches(self) -> np.ndarray:
        """bool (C, E): which tags match which events."""
        return (self.likeness.cosines >= self.similarity) | self._within()

    def _within(self) -> np.ndarray:
        """The substring rule."""
        found = np.zeros(self.likeness.cosines.shape, bool)
        for number, names in enumerate(self.likeness.names.values()):
            for tag, text in enumerate(self.likeness.tags):
                found[tag, number] = any(name.casefold() in text.casefold() for name in names)
        return found

    def __call__(self, heard: Heard) -> np.ndarray:
        shares = activated(heard.parts[TAGS], "softmax")
        matches = self.matches()
        scores = np.zeros((len(shares), matches.shape[1]))
        for window, own in enumerate(shares):
            for tag in reversed(_highest(own, self.top)):
                events = np.flatnonzero(matches[tag])
                if len(events):
                    scores[window, events[-1]] = own[tag]
                    break
        return scores

    def describe(self) -> dict[str, Any]:
        nearest = {
            label: [{"tag": tag, "cosine": cosine} for tag, cosine in self.likeness.nearest_tags(number)]
            for number, label in enumerate(self.likeness.names)
        }
        return {"preset": TMRL, "similarity": self.similarity, "top": self.top, "activation": "softmax",
                "rule": "last match wins; cosine, or the name within the tag", "tags": nearest}  # fmt: skip


def _highest(shares: np.ndarray, top: int) -> Sequence[int]:
    found: list[int] = np.argsort(-shares, kind="stable")[:top].tolist()
    return found
