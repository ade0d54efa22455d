"""`m2dprep search` as a function: words or a sound → the nearest rows of stores, with what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.console import one_line
from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.text_files import require_text
from m2dprep.evaluation.described import Described, DescribedRows
from m2dprep.evaluation.search.shelf import SHORT, Shelf, require_front_end_of
from m2dprep.evaluation.search.top import Found, top_rows
from m2dprep.m2dclap.fusion.kinds import INTERPOLATED

DIGITS = 6
# From so many rows on, exact search takes seconds and an index pays.
MANY_ROWS = 10_000_000


@dataclass(frozen=True)
class SearchRequest:
    """What to look for, and where: ``text`` or ``by_audio``, a file.

    ``labels`` are the labels of which a clip must have one; they are those of ``captions`` (a captions.parquet or its
    data directory) and of the table ``labels_of``. With ``one_per_file`` only the best row of every sound is found.
    ``index`` searches with FAISS indexes, which are made if there are none yet.
    """

    stores: Sequence[Path]
    text: str | None = None
    by_audio: Path | None = None
    top: int = 10
    labels: Sequence[str] = ()
    captions: Path | None = None
    labels_of: Path | None = None
    one_per_file: bool = False
    index: bool = False
    checkpoint: Path | None = None
    text_model: str | None = None
    trust_remote_code: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class Hit:
    """A row that was found: its cosine to the query, and which part of which sound it is."""

    rank: int
    score: float
    store: str
    row: int
    file: str
    clip_id: str
    start: float
    seconds: float
    captions: list[str]
    labels: list[str]

    def line(self, *, named: bool) -> str:
        """The hit in a line; ``named``: with its store, since there are several."""
        where = f"{self.store}: {self.file}" if named else self.file
        said = "; ".join([*self.captions[:1], *([", ".join(self.labels)] if self.labels else [])])
        place = f"{self.start:.2f}–{self.start + self.seconds:.2f} s"
        return one_line(f"{self.rank:>3}  {self.score:+.3f}  {where}  {place}" + (f"  {said}" if said else ""))


@dataclass(frozen=True)
class SearchResult:
    """The hits, the best first; of equal scores the earlier store comes first, then the lower row."""

    query: str
    rows: int
    kept: int
    exact: bool
    hits: list[Hit]

    def to_dict(self) -> dict[str, Any]:
        value = {**asdict(self), "results": [asdict(hit) for hit in self.hits]}
        del value["hits"]
        return value

    @property
    def advice(self) -> str | None:
        """What makes the next search quicker, if anything does."""
        if self.rows < MANY_ROWS or not self.exact:
            return None
        return (
            f"all of {self.rows:,} rows were compared; --index searches with a FAISS index, which takes a fraction of "
            "the time and may miss a row (extra 'faiss')."
        )


def search(request: SearchRequest) -> SearchResult:
    """Search the stores. Raises `UserError` if a store has no CLAP embeddings, they are of different models, the model
    or its text encoder is not to be found, or a label is unknown."""
    if (request.text is None) == (request.by_audio is None):
        raise UserError("search needs either words or a sound (by_audio).")
    if request.labels and request.captions is None and request.labels_of is None:
        raise UserError("--label needs --captions or --labels, which say which clip has which label.")
    if request.index and request.labels:
        raise UserError("--index and --label exclude each other: an index is of all rows.")
    stores = open_stores(request.stores)
    described = Described(request.captions, request.labels_of)
    described.require_labels(request.labels)
    rows = [described.of_store(store.index) for store in stores] if described else []
    keep = [own.keep(request.labels) for own in rows] if request.labels else None
    found = _found(request, stores, query_of(request, stores), keep)
    return SearchResult(
        request.text if request.text is not None else str(request.by_audio),
        sum(map(len, stores)),
        sum(int(mask.sum()) for mask in keep) if keep is not None else sum(map(len, stores)),
        not request.index,
        _hits(found, stores, rows),
    )


def open_stores(folders: Sequence[Path]) -> Sequence[AudioStore]:
    """The stores, which one model must have made in one way. Raises `UserError` if one has no CLAP embeddings, too."""
    return [store.require_clap() for store in Shelf.open(folders).stores]


def query_of(request: SearchRequest, stores: Sequence[AudioStore]) -> np.ndarray:
    """The embedding (D,) of the words or the sound, by the model that made the stores."""
    if request.text is not None:
        require_text(request.text, "the words")
        if not request.text.strip():
            raise UserError("the words are empty.")
    place = model_of(stores[0], request.checkpoint)
    from m2dprep.evaluation.embedding.model import load  # seconds: it brings PyTorch

    model = load(
        place,
        device=request.device,
        text_model=request.text_model,
        trust_remote_code=request.trust_remote_code,
        length=_said(stores, "length"),
        positions=_said(stores, "positions") or INTERPOLATED,
    )
    found: np.ndarray
    if request.text is not None:
        found = model.encode_text([request.text])[0]
    else:
        assert request.by_audio is not None
        for store in stores:
            require_front_end_of(store, model.checkpoint.front_end, place)
        found = model.encode_audio([request.by_audio])[0]
    return found


def _said(stores: Sequence[AudioStore], key: str) -> str | None:
    """A setting that all stores share which say it."""
    return next((str(value) for store in stores if (value := store.meta.get(key)) is not None), None)


def model_of(store: AudioStore, given: Path | None = None) -> Path:
    """The checkpoint that made a store: where it was then, or the one that is ``given``.

    Raises `UserError` if it is not there, or is another one.
    """
    from m2dprep.evaluation.embedding.sources import checkpoint_file

    if given is None:
        place = Path(str(store.meta.get("checkpoint")))
        if not place.is_file():
            raise UserError(
                f"{store.folder} was made by {place}, which is not there; --checkpoint says where that model is now."
            )
    else:
        place = checkpoint_file(given)
    digest = file_digest(place)
    if digest != store.checkpoint:
        raise UserError(
            f"{place} is not the checkpoint that made {store.folder} (its digest is {digest[:SHORT]}, not "
            f"{store.checkpoint[:SHORT]}): its embeddings cannot be compared with those of another."
        )
    return place


def _found(
    request: SearchRequest, stores: Sequence[AudioStore], query: np.ndarray, keep: Sequence[np.ndarray] | None
) -> Found:
    """The best rows; with ``one_per_file`` more and more are taken until they are of enough sounds."""
    if request.index:
        from m2dprep.evaluation.search.faiss_index import top_by_index

        look = top_by_index
    else:
        look = None
    wanted = request.top
    while True:
        found = look(stores, query, wanted) if look is not None else top_rows(stores, query, wanted, keep)
        if not request.one_per_file:
            return found
        firsts = _first_of_files(found, stores)
        if len(firsts) >= request.top or len(found) < wanted:
            places = firsts[: request.top]
            return replace(found, stores=found.stores[places], rows=found.rows[places], scores=found.scores[places])
        wanted *= 4


def _first_of_files(found: Found, stores: Sequence[AudioStore]) -> list[int]:
    seen: set[tuple[int, str]] = set()
    places = []
    for place, entry in enumerate(_entries(found, stores)):
        key = (int(found.stores[place]), entry["file"])
        if key not in seen:
            seen.add(key)
            places.append(place)
    return places


def _entries(found: Found, stores: Sequence[AudioStore]) -> list[dict[str, Any]]:
    """The index of each row that was found. The whole of it takes memory that a search does without."""
    entries: dict[int, dict[str, Any]] = {}
    for number, store in enumerate(stores):
        places = np.flatnonzero(found.stores == number)
        entries |= dict(zip(places.tolist(), store.entries(found.rows[places].tolist()), strict=True))
    return [entries[place] for place in range(len(found))]


def _hits(found: Found, stores: Sequence[AudioStore], described: Sequence[DescribedRows]) -> list[Hit]:
    hits = []
    for place, entry in enumerate(_entries(found, stores)):
        number, row = int(found.stores[place]), int(found.rows[place])
        own = described[number] if described else None
        captions, labels = ([], []) if own is None else (own.captions(row), own.labels(row))
        score = round(float(found.scores[place]), DIGITS)
        hits.append(Hit(place + 1, score, str(stores[number].folder), row, **entry, captions=captions, labels=labels))
    return hits
