"""Embeddings on a plane: t-SNE, as in the notebooks of the original's authors, with some groups in colour."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.pages.charts import COLOURS, scatter
from m2dprep.artifacts.pages.markup import Markup

# scikit-learn's default, which the original's notebooks take.
PERPLEXITY = 30.0
FEWEST = 5
MANY_POINTS = 3000
OTHERS = "others"
# Letters at the beginning of a name.
BEGINNING = re.compile(r"[^\W\d_]*")


@contextmanager
def without_waiting(points: int) -> Iterator[None]:
    """Keep t-SNE of few points in one thread. Two gain little there, and wait for each other at every one of thousands
    of steps: on a machine that is busy, that takes minutes in place of a second."""
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with threadpool_limits(1 if points < MANY_POINTS else None):
        yield


def tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Vectors (N, D) → places (N, 2), with scikit-learn's defaults and a seed; N must be at least `FEWEST`."""
    try:
        from sklearn.manifold import TSNE  # a second to import
    except ImportError as error:
        raise UserError("maps need scikit-learn: pip install 'm2dprep[viz]'.") from error
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    with without_waiting(len(vectors)):
        places: np.ndarray = TSNE(n_components=2, perplexity=perplexity, random_state=seed, init="pca").fit_transform(
            np.asarray(vectors, np.float32)
        )
    return places


def commonest(labels: Sequence[str], most: int = COLOURS) -> list[str]:
    """The commonest labels; of equal counts by name."""
    counts = Counter(label for label in labels if label)
    return [label for label, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]]


def groups_of(files: Sequence[str]) -> tuple[str, list[str]]:
    """What tells sounds apart, and the group of each: their folders or, in one folder, how their names begin."""
    folders = [name.rpartition("/")[0] for name in files]
    if len(set(folders)) > 1:
        return "folder", folders
    return "the beginnings of names", [BEGINNING.match(name.rpartition("/")[2])[0].lower() for name in files]  # type: ignore[index]


def drawn_map(vectors: np.ndarray, labels: Sequence[str], titles: Sequence[str], seed: int) -> Markup:
    """A map of at most ten groups, each in a colour: the commonest labels, and all others together if there are more.

    Nothing if there are too few vectors for a map.
    """
    if len(vectors) < FEWEST:
        return Markup("")
    names = commonest(labels)
    if set(labels) - set(names):
        names = [*names[: COLOURS - 1], OTHERS]
    number = {name: at for at, name in enumerate(names)}
    places = [(float(x), float(y)) for x, y in tsne(vectors, seed)]
    return scatter(places, [number.get(label, number.get(OTHERS, 0)) for label in labels], names, titles)
