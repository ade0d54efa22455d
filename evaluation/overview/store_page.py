"""The page of a store of embeddings: of sounds (durations, failures, a map, neighbours to hear), or of captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.embeddings.audio_store import AudioStore, is_audio_store
from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.errors import Failure
from m2dprep.artifacts.pages.charts import counted, histogram
from m2dprep.artifacts.pages.document import document, figures, section, side_by_side, with_title
from m2dprep.artifacts.pages.markup import Markup, rows_of, table, tag
from m2dprep.artifacts.settings import build
from m2dprep.audioprep.config import PRESETS, LogMelConfig
from m2dprep.captions.embedding.inspect import captions_of, inspect_store
from m2dprep.evaluation.overview.cards import Card, Sounds, cards
from m2dprep.evaluation.overview.conversion import EXAMPLES
from m2dprep.evaluation.overview.data_page import Drawing, place_name
from m2dprep.evaluation.overview.maps import drawn_map, groups_of
from m2dprep.evaluation.overview.parts import TOP, failures_section, hours

# Rows of which a map is drawn.
MAPPED = 1000
NEIGHBOURS = 4
BLOCK_ROWS = 65536
# What the metadata holds for programs.
UNSHOWN = ("proof", "digest", "digests")


def store_page(folder: Path, drawing: Drawing) -> str:
    """The page of a finished store. Raises `UserError` if it is damaged or none."""
    name = place_name(folder)
    if is_audio_store(folder):
        return document(f"Store: {name}", [tag("h1", f"Store: {name}"), *_audio(AudioStore.open(folder), drawing)])
    store = EmbeddingStore.open(folder)
    return document(f"Captions: {name}", [tag("h1", f"Captions: {name}"), *_captions(store, drawing)])


def _audio(store: AudioStore, drawing: Drawing) -> list[Markup]:
    index = store.index
    files = pc.unique(index["file"])
    seconds = index["seconds"].to_numpy()
    reasons = Counter({one["values"]: one["counts"] for one in pc.value_counts(store.failures["reason"]).to_pylist()})
    examples: dict[str, list[Failure]] = {}
    for row in store.failures.slice(0, 10_000).to_pylist():
        shown = examples.setdefault(row["reason"], [])
        if len(shown) < EXAMPLES:
            shown.append(Failure(row["file"], row["reason"], row["message"]))
    numbers = figures(
        [
            (f"{len(files):,}", "sounds"),
            (f"{len(store):,}", "rows"),
            (f"{store.dim:,}", f"dimensions, {store.meta.get('dtype')}"),
            (hours(float(seconds.sum())), "covered by the rows"),
            (f"{store.failures.num_rows:,}", "failed"),
        ]
    )
    counts, edges = np.histogram(seconds, bins=40) if len(seconds) else (np.zeros(0, int), np.zeros(0))
    rng = np.random.default_rng(drawing.seed)
    rows = np.sort(rng.choice(len(store), min(MAPPED, len(store)), replace=False)) if len(store) else np.zeros(0, int)
    mapped = index.take(pa.array(rows))
    vectors = store.rows().take(rows).astype(np.float32)
    by, groups = groups_of(mapped["file"].to_pylist())
    titles = [
        f"{file}, {start:.1f} s"
        for file, start in zip(mapped["file"].to_pylist(), mapped["start"].to_pylist(), strict=True)
    ]
    return [
        numbers,
        _neighbours(store, drawing, rng),
        section(f"Map (t-SNE), by {by}", drawn_map(vectors, groups, titles, drawing.seed)),
        section(
            "Sounds",
            side_by_side(
                with_title("Durations of rows", histogram(edges.tolist(), counts.tolist(), "seconds")),
                with_title("Folders", _folders(index["file"])),
            ),
        ),
        failures_section(reasons, examples, store.folder),
        section("How it was made", table(["what", "value"], rows_of(store.meta, without=UNSHOWN))),
    ]


def _folders(files: pa.ChunkedArray) -> Markup:
    found = pc.struct_field(pc.extract_regex(files, r"^(?P<folder>.*)/[^/]*$"), "folder")
    counts = pc.value_counts(pc.fill_null(found, "."))
    order = pc.sort_indices(counts.field("counts"), sort_keys=[("", "descending")])
    top = counts.take(order.slice(0, TOP)).to_pylist()
    left = len(counts) - len(top)
    return counted(
        ["folder", "rows"], [(one["values"], one["counts"]) for one in top], f"and {left:,} others" if left else ""
    )


def _neighbours(store: AudioStore, drawing: Drawing, rng: np.random.Generator) -> Markup:
    """Some sounds to hear, each with the names of the nearest other sounds."""
    if not drawing.clips or not len(store):
        return Markup("")
    rows = np.sort(rng.choice(len(store), min(drawing.clips, len(store)), replace=False))
    files, starts = store.index["file"], store.index["start"]
    nearest = _nearest(store, rows)
    front_end = _front_end(store)
    sounds = Sounds([drawing.audio] if drawing.audio is not None else _roots(store), front_end)
    shown = []
    for row, near in zip(rows.tolist(), nearest, strict=True):
        own, start = files[row].as_py(), starts[row].as_py()
        others = [f"{cosine:.2f} {files[other].as_py()}" for other, cosine in near]
        log_mel, sound = sounds.with_log_mel(own, start) or (None, None)
        changed = [words] if sound is not None and (words := sounds.change(own, store.stamp(row))) else []
        shown.append(Card(f"{own}, from {start:g} s" if start else own, [*others, *changed], log_mel, sound))
    told = tag("p", "Below each sound the cosines of the nearest sounds.", class_="quiet")
    return section("Some of the sounds", told, cards(shown, front_end))


def _front_end(store: AudioStore) -> LogMelConfig:
    values = store.meta.get("front_end")
    return build(LogMelConfig, values, f"{store.folder}: its front_end") if values else PRESETS["16k"]


def _roots(store: AudioStore) -> list[Path]:
    """Folders to which the names of sounds may be relative: of several places, names begin with what was given."""
    given = [Path(one) for one in store.meta.get("sounds", []) if isinstance(one, str)]
    if len(given) == 1:
        return [given[0] if given[0].is_dir() else given[0].parent, *given[0].parents]
    return list(dict.fromkeys(parent for one in given for parent in one.parents))


def _nearest(store: AudioStore, rows: np.ndarray) -> list[list[tuple[int, float]]]:
    """The nearest rows of other files for each of the ``rows``, one for each file, with their cosines."""
    wanted = store.rows().take(rows).astype(np.float32)
    wanted /= np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)
    cosines = np.empty((len(rows), len(store)), np.float32)
    for start, block in store.blocks(BLOCK_ROWS):
        values = block.astype(np.float32)
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        cosines[:, start : start + len(block)] = wanted @ values.T
    files = store.index["file"]
    return [_others(own, files, files[row].as_py()) for own, row in zip(cosines, rows.tolist(), strict=True)]


def _others(cosines: np.ndarray, files: pa.ChunkedArray, own: str) -> list[tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for row in np.argsort(-cosines, kind="stable")[:1000].tolist():
        name = files[row].as_py()
        if name != own and name not in found:
            found[name] = row, float(cosines[row])
            if len(found) == NEIGHBOURS:
                break
    return list(found.values())


def _captions(store: EmbeddingStore, drawing: Drawing) -> list[Markup]:
    found = inspect_store(store)
    captions = captions_of(store, None)
    rng = np.random.default_rng(drawing.seed)
    rows = np.sort(rng.choice(found.rows, min(MAPPED, found.rows), replace=False))
    vectors = store.rows().take(rows).astype(np.float32)
    sources = store.index()["source"].take(pa.array(rows)).to_pylist()
    texts: Sequence[str] = sources if captions is None else captions["caption"].take(pa.array(rows)).to_pylist()
    finite = np.isfinite(vectors).all(axis=1)
    keep = np.flatnonzero(finite).tolist()
    drawn = drawn_map(vectors[finite], [sources[at] for at in keep], [texts[at] for at in keep], drawing.seed)
    numbers = figures(
        [
            (f"{found.rows:,}", "captions"),
            (f"{found.dim:,}", f"dimensions, {found.dtype}"),
            (f"{found.mean_cosine:.3f}", "mean cosine of two"),
            (f"{found.repeated_texts:,}", "repeat an earlier text"),
            (f"{len(found.dead_dimensions):,}", "dead dimensions"),
        ]
    )
    return [
        numbers,
        section("Map (t-SNE), by source", drawn),
        section("What was found", tag("ul", *(tag("li", line) for line in found.lines()))),
        section("How it was made", table(["what", "value"], rows_of(store.meta, without=UNSHOWN))),
    ]
