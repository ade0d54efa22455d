"""The caption embeddings that training takes from a data directory: which, and whether they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from artifacts.embedding_store import EmbeddingStore
from artifacts.errors import UserError
from artifacts.layout import DataLayout
from artifacts.tables import read_captions
from m2dclap.pairing import CaptionSource, common_text_model

# What makes two rows the same caption: its clip and its text.
CAPTION_KEYS = ["clip_id", "caption_digest"]


def caption_sources(
    layout: DataLayout, stores: Sequence[Path], dictionaries: Sequence[Path]
) -> tuple[list[CaptionSource], dict[str, Any] | None, list[str]]:
    """The sources named, or all stores of the data directory where none is.

    Also their text encoder (None: unknown), and lines that say what is taken and what is odd about it. Raises
    `UserError` where there is no source, one is empty, they are of different encoders, or two stores that nobody named
    hold the same captions: training would see these twice as often as others.
    """
    named = bool(stores or dictionaries)
    stores = list(stores) if named else layout.embedding_stores()
    if not stores and not dictionaries:
        raise UserError(f"{layout.root} has no capemb_<model>/ folder; `m2dprep embed-captions` makes one.")
    sources = [CaptionSource.from_store(store) for store in stores]
    sources += [CaptionSource.from_dictionary(path) for path in dictionaries]
    if empty := [source.name for source in sources if not len(source.embeddings)]:
        raise UserError(f"{', '.join(empty)} holds no embeddings.")
    text_model = common_text_model(sources)
    shared = _shared_captions(stores)
    if shared and not named:
        raise UserError(f"{shared[0]}; say which to train on with --embeddings (given twice: on both).")
    used = ", ".join(f"{source.name} ({len(source.embeddings):,} rows)" for source in sources)
    return sources, text_model, [f"captions of {used}", *shared, *_not_of_the_captions(layout, stores)]


def _shared_captions(stores: Sequence[Path]) -> list[str]:
    """A line for every two stores that hold the same captions of the same clips."""
    opened = [EmbeddingStore.open(folder) for folder in (stores if len(stores) > 1 else ())]
    known = [(store.folder, store.index().select(CAPTION_KEYS)) for store in opened if store.has_captions]
    lines = []
    for (first, ours), (second, theirs) in combinations(known, 2):
        both = theirs.join(ours, keys=CAPTION_KEYS, join_type="left semi")
        if both.num_rows:
            lines.append(
                f"{first.name} and {second.name} hold {both.num_rows:,} captions both, one of clip {both['clip_id'][0]}"
            )
    return lines


def _not_of_the_captions(layout: DataLayout, stores: Sequence[Path]) -> list[str]:
    """A line for every store in the data directory whose rows are not those of its ``captions.parquet``."""
    here = [store for store in stores if store.resolve().parent == layout.root.resolve()]
    if not here or not layout.captions.exists():
        return []
    lines = []
    try:
        captions = read_captions(layout.captions)
    except UserError as error:
        return [f"the embeddings cannot be compared with the captions: {error}"]
    for folder in here:
        store = EmbeddingStore.open(folder)
        try:
            if store.has_captions:
                store.verify(captions)
        except UserError as error:
            lines.append(
                f"{folder.name} is not of {layout.captions.name} as it is now, and is trained on as it is: {error} "
                "`m2dprep embed-captions --reuse` embeds what is new, --embeddings chooses a store."
            )
    return lines
