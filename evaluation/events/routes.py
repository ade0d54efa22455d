"""Two ways from what was heard to scores of names: by tags that mean the same, and by the distance to captions.

A score is between 0 and 1. By tags, it is the probability of the tag that speaks most for a name: the tag's own, times
its cosine to the name, of tags that are similar enough. By captions, it says how much nearer a window is to the name's
caption than to those of what is always there (the background), in the scale of the model's training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.encoders import CLAP, ClipEncoder, scale_of
from m2dprep.evaluation.events.listening.ear import TAGS
from m2dprep.evaluation.events.listening.kept import Heard
from m2dprep.evaluation.events.words import Likeness, nearest
from m2dprep.evaluation.protocols.zero_shot import similarities, unit_rows
from m2dprep.evaluation.tagging.scores import Activation, activated

MEAN = "mean"
ROUTES = (TAGS, CLAP, MEAN)
BACKGROUND = ("background noise", "silence")
FIELD = "{label}"


class Route(Protocol):
    """Scores (W, E) of the windows of a recording for E classes."""

    def __call__(self, heard: Heard) -> np.ndarray: ...

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ByTags:
    """Of the ``top`` tags of a window (0: of all), the best of probability × cosine among those of at least
    ``similarity``. A class that no tag is so similar to has its nearest one."""

    likeness: Likeness
    similarity: float = 0.5
    top: int = 0
    activation: Activation = "sigmoid"

    def weights(self) -> np.ndarray:
        """(C, E) what a tag counts for a class, 0 … 1."""
        cosines = self.likeness.cosines
        enough = cosines >= self.similarity
        lonely = ~enough.any(axis=0)
        enough[cosines.argmax(axis=0)[lonely], np.flatnonzero(lonely)] = True
        return np.where(enough, np.clip(cosines, 0.0, 1.0), 0.0)

    def __call__(self, heard: Heard) -> np.ndarray:
        shares = kept(activated(heard.parts[TAGS], self.activation), self.top)
        weights = self.weights()
        return np.stack([(shares * weights[:, number]).max(axis=1) for number in range(weights.shape[1])], axis=1)

    def describe(self) -> dict[str, Any]:
        used = {
            label: [
                {"tag": tag, "cosine": cosine, "counts": bool(self.weights()[self.likeness.tags.index(tag), number])}
                for tag, cosine in self.likeness.nearest_tags(number)
            ]
            for number, label in enumerate(self.likeness.names)
        }
        return {"similarity": self.similarity, "top": self.top, "activation": self.activation, "tags": used}

    @property
    def lonely(self) -> list[str]:
        """What to tell of classes that no tag is similar enough to."""
        found = []
        for number, label in enumerate(self.likeness.names):
            (tag, cosine), *_ = self.likeness.nearest_tags(number, 1)
            if cosine < self.similarity:
                found.append(
                    f"no tag is like {label!r} by a cosine of {self.similarity:g}; the nearest, {tag!r} "
                    f"({cosine:.2f}), stands for it"
                )
        return found


def kept(shares: np.ndarray, top: int) -> np.ndarray:
    """The ``top`` highest shares (W, C) of each window, the others 0; all if it is 0. The first of equal ones stays."""
    if not top or top >= shares.shape[1]:
        return shares
    order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    found = np.zeros_like(shares)
    np.put_along_axis(found, order, np.take_along_axis(shares, order, axis=1), axis=1)
    return found


@dataclass(frozen=True)
class ByCaptions:
    """1 / (1 + exp(−scale · (cosine to the name − cosine to the nearest background)))."""

    texts: np.ndarray
    background: np.ndarray
    names: Mapping[str, Sequence[str]]
    scale: float
    about: Mapping[str, Any]

    @classmethod
    def of(
        cls, encoder: ClipEncoder, names: Mapping[str, Sequence[str]], template: str, background: Sequence[str]
    ) -> ByCaptions:
        if FIELD not in template:
            raise UserError(f"--template {template!r} must hold {FIELD}.")
        flat = [name for own in names.values() for name in own]
        captions = [template.replace(FIELD, name) for name in (*flat, *background)]
        texts = unit_rows(encoder.encode_texts(captions), "captions")
        about = {"template": template, "background": list(background)}
        return cls(texts[: len(flat)], texts[len(flat) :], names, scale_of(encoder), about)

    def cosines(self, heard: Heard) -> np.ndarray:
        """(W, E) of each class's nearest name."""
        return nearest(similarities(heard.parts[CLAP], self.texts), self.names)

    def __call__(self, heard: Heard) -> np.ndarray:
        above = self.cosines(heard)
        if len(self.background):
            above = above - similarities(heard.parts[CLAP], self.background).max(axis=1, keepdims=True)
        with np.errstate(over="ignore"):
            scores: np.ndarray = 1 / (1 + np.exp(-self.scale * above.astype(np.float64)))
        return scores

    def describe(self) -> dict[str, Any]:
        return {**self.about, "scale": self.scale}


@dataclass(frozen=True)
class Both:
    """The mean of both ways."""

    tags: Route
    captions: Route

    def __call__(self, heard: Heard) -> np.ndarray:
        return (self.tags(heard) + self.captions(heard)) / 2

    def describe(self) -> dict[str, Any]:
        return {"of": [TAGS, CLAP]}
