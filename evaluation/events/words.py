"""Which tags mean which names: cosines of sentence embeddings, by any model of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols.zero_shot import unit_rows

DEFAULT_MODEL = "sentence-transformers/all-mpnet-base-v2"


class Words(Protocol):
    """Encodes texts to (N, D)."""

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...

    def describe(self) -> dict[str, Any]: ...


def load_words(model: str, device: str = "auto", *, trust_remote_code: bool = False) -> Words:
    """A sentence encoder by its name or folder, with the model's own pooling."""
    from m2dprep.captions.embedding.encoder import load_encoder  # seconds to import

    return load_encoder(model, device=device, pooling="model", trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class Likeness:
    """Cosines (C, E) of C tags and E classes: of several names of a class, the nearest counts."""

    tags: Sequence[str]
    names: Mapping[str, Sequence[str]]
    cosines: np.ndarray
    tag_vectors: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, words: Words, tags: Sequence[str], names: Mapping[str, Sequence[str]]) -> Likeness:
        """Raises `UserError` if the model tells two classes not apart."""
        flat = [name for own in names.values() for name in own]
        vectors = unit_rows(words.encode([*tags, *flat]), "names")
        tag_vectors, name_vectors = vectors[: len(tags)], vectors[len(tags) :]
        return cls(tags, names, nearest(tag_vectors @ name_vectors.T, names), tag_vectors)

    def nearest_tags(self, number: int, most: int = 5) -> list[tuple[str, float]]:
        """The tags that are most like a class, and their cosines."""
        order = np.argsort(-self.cosines[:, number], kind="stable")[:most]
        return [(self.tags[tag], float(self.cosines[tag, number])) for tag in order.tolist()]


def nearest(cosines: np.ndarray, names: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Cosines (N, all names) → (N, E), the largest of each class's names."""
    ends = np.cumsum([len(own) for own in names.values()])
    if not len(ends):
        raise UserError("there are no names to look for.")
    starts = [0, *ends[:-1].tolist()]
    return np.stack([cosines[:, start:end].max(axis=1) for start, end in zip(starts, ends, strict=True)], axis=1)
