"""What a checkpoint makes of clips of a data directory: the captions nearest to each, confusions of labels, and a map.

Captions are those of the clips themselves, in the embeddings on disk: no text encoder is loaded, unless the checkpoint
holds its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from m2dprep.artifacts.clips.matching import NO_CLIP, match_files
from m2dprep.artifacts.embeddings.store import META, EmbeddingStore
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import EVALUATION_FOLDER, DataLayout, LmsLayout, is_evaluation_clip, require_folder
from m2dprep.artifacts.log_mels.array import OK
from m2dprep.artifacts.log_mels.records import iter_records, record_parts
from m2dprep.artifacts.log_mels.store import LogMels, find_log_mels
from m2dprep.artifacts.pages.charts import matrix
from m2dprep.artifacts.pages.document import section, side_by_side, with_title
from m2dprep.artifacts.pages.markup import Markup, tag
from m2dprep.artifacts.tables import read_captions, read_file_list
from m2dprep.evaluation.encoders import CLAP, STACKED, CheckpointEncoder, split_parts
from m2dprep.evaluation.front_ends import require_front_end
from m2dprep.evaluation.overview.cards import Card, cards
from m2dprep.evaluation.overview.data_page import Drawing
from m2dprep.evaluation.overview.maps import commonest, drawn_map
from m2dprep.m2dclap.encode import embed_texts

NEAREST, SHOWN = 3, 8
# Clips are encoded so many at a time.
BATCH = 16
# Labels of the table of confusions and of the map.
LABELS = 10


@dataclass(frozen=True)
class Heard:
    """Clips with one caption each: names, labels, captions, and embeddings of both (n, D), of unit length.

    ``features`` (n, D2) are the conventional ones; ``log_mels`` are the clips', in this order.
    """

    names: list[str]
    labels: list[str]
    captions: list[str]
    audio: np.ndarray
    text: np.ndarray
    features: np.ndarray
    log_mels: LogMels
    unheard: bool

    def nearest(self) -> np.ndarray:
        """The rows of captions (n, n) by their cosine to each clip, the nearest first."""
        return np.argsort(-(self.audio @ self.text.T), axis=1, kind="stable")

    def ranks(self) -> np.ndarray:
        """The rank (n,) of each clip's own caption among the different ones, from 1."""
        different = list(dict.fromkeys(self.captions))
        first = [self.captions.index(text) for text in different]
        cosines = self.audio @ self.text[first].T
        own = cosines[np.arange(len(cosines)), [different.index(text) for text in self.captions]]
        ranks: np.ndarray = (cosines > own[:, None]).sum(axis=1) + 1
        return ranks


def heard_sections(run: Path, root: Path, drawing: Drawing, count: int, device: str) -> list[Markup]:
    """The sections about ``count`` clips of the data directory ``root`` and the newest checkpoint of ``run``.

    Raises `UserError` if the directory is not there, or its captions do not fit the checkpoint.
    """
    encoder = CheckpointEncoder(run, device=device)
    encoder.checkpoint.require_clap_head()
    found = heard(encoder, DataLayout(require_folder(root, "the data directory of the run")), drawing.seed, count)
    which = "of eval_segments, which training never saw" if found.unheard else "of those that are trained on"
    told = f"{len(found.names)} clips {which}, drawn by the seed {drawing.seed}, and one caption of each."
    order = found.nearest()
    ranks = found.ranks()
    first, five, ten = (f"{np.mean(ranks <= k):.1%}" for k in (1, 5, 10))
    recall = f"Its own caption is the nearest for {first} of the clips, among five for {five}, and among ten for {ten}."
    titles = [f"{name}: {caption}" for name, caption in zip(found.names, found.captions, strict=True)]
    maps = side_by_side(
        with_title("By the embeddings for captions", drawn_map(found.audio, found.labels, titles, drawing.seed)),
        with_title("By the conventional ones", drawn_map(found.features, found.labels, titles, drawing.seed)),
    )
    return [
        section(
            "What the model hears",
            tag("p", told, class_="quiet"),
            tag("p", recall),
            _cards(found, order, encoder),
            with_title("Labels of clips, and of the nearest captions of other clips", _confusions(found, order)),
        ),
        section("Map of the clips (t-SNE)", maps),
    ]


def heard(encoder: CheckpointEncoder, layout: DataLayout, seed: int, count: int) -> Heard:
    """``count`` clips that are drawn, preferably of those that are kept out of training, with one caption each."""
    listed = [name for path in layout.file_lists() for name in read_file_list(path)]
    kept_out = _evaluation_clips(layout)
    store, rows = _captions(encoder, layout)
    ids = pc.unique(rows["clip_id"])
    names, own = _drawn(list(dict.fromkeys(kept_out)), ids, seed, count)
    unheard = len(names) >= min(count, 2 * LABELS)
    if not unheard:
        names, own = _drawn(list(dict.fromkeys(listed)), ids, seed, count)
    if len(names) < 2:
        raise UserError(f"{layout.root}: fewer than two listed clips have captions.")
    chosen = _first_rows(rows["clip_id"], own)
    some = rows.take(pa.array(chosen))
    require_front_end({(layout.root / name).parent for name in names}, encoder.checkpoint.front_end)
    log_mels = find_log_mels(layout.root, names)
    encoded = _encoded(encoder, log_mels)
    captions = some["caption"].to_pylist()
    return Heard(
        names=names,
        labels=[labels[0] if labels else "" for labels in some["labels"].to_pylist()],
        captions=captions,
        audio=_unit(split_parts(encoded, encoder.parts, CLAP)),
        text=_texts(encoder, store, chosen, captions),
        features=split_parts(encoded, encoder.parts, STACKED),
        log_mels=log_mels,
        unheard=unheard,
    )


def _evaluation_clips(layout: DataLayout) -> list[str]:
    """The arrays of the evaluation part, which are in no list."""
    found = []
    for folder in map(LmsLayout, layout.lms_folders()):
        for table_ in iter_records(folder, ["file_name", "status"]) if record_parts(folder) else ():
            some = pc.and_(pc.equal(table_["status"], OK), pc.match_substring(table_["file_name"], EVALUATION_FOLDER))
            names = (f"{folder.folder}/{name}" for name in table_["file_name"].filter(some).to_pylist())
            found += [name for name in names if is_evaluation_clip(name)]
    return found


def _first_rows(clip_ids: pa.ChunkedArray, wanted: Sequence[str]) -> list[int]:
    """The first row of each of the ``wanted`` clips."""
    rows = np.flatnonzero(pc.is_in(clip_ids, value_set=pa.array(wanted, pa.string())).to_numpy())
    first: dict[str, int] = {}
    for row, clip in zip(rows.tolist(), clip_ids.take(pa.array(rows)).to_pylist(), strict=True):
        first.setdefault(clip, row)
    return [first[clip] for clip in wanted]


def _captions(encoder: CheckpointEncoder, layout: DataLayout) -> tuple[EmbeddingStore | None, pa.Table]:
    """The store whose rows the checkpoint can take, and the table of captions, row by row.

    Raises `UserError` if there is none, and the checkpoint has no text encoder of its own.
    """
    table_ = read_captions(layout.captions)
    if encoder.checkpoint.text_weights:
        return None, table_
    for folder in layout.embedding_stores():
        if (folder / META).exists():
            store = EmbeddingStore.open(folder)
            if store.embeddings.shape[1] == encoder.checkpoint.config.off_emb_dim and _made_by(store, encoder):
                store.verify(table_)
                return store, table_
    raise UserError(
        f"{layout.root} has no store of caption embeddings that {encoder.checkpoint.path} was trained with."
    )


def _made_by(store: EmbeddingStore, encoder: CheckpointEncoder) -> bool:
    """Whether store and checkpoint name the same text encoder, as far as both name one."""
    known = encoder.checkpoint.text_model.get("weights"), store.meta.get("weights")
    return None in known or known[0] == known[1]


def _drawn(names: Sequence[str], ids: pa.Array, seed: int, count: int) -> tuple[list[str], list[str]]:
    """``count`` of the names that have captions, sorted, and their clips."""
    if not names:
        return [], []
    clip = match_files(names, ids).clip
    with_captions = np.flatnonzero(clip != NO_CLIP)
    size = min(count, len(with_captions))
    rows = np.sort(np.random.default_rng(seed).choice(with_captions, size, replace=False)) if size else with_captions
    return [names[row] for row in rows.tolist()], ids.take(pa.array(clip[rows])).to_pylist()


def _encoded(encoder: CheckpointEncoder, log_mels: LogMels) -> np.ndarray:
    parts = []
    for start in range(0, len(log_mels), BATCH):
        rows = range(start, min(start + BATCH, len(log_mels)))
        parts.append(encoder.encode([np.array(log_mels[row], np.float32)[None] for row in rows]))
    return np.concatenate(parts)


def _texts(
    encoder: CheckpointEncoder, store: EmbeddingStore | None, rows: Sequence[int], captions: Sequence[str]
) -> np.ndarray:
    if store is None:
        return encoder.encode_texts(captions)
    with torch.inference_mode():
        return embed_texts(encoder.model, store.rows().take(np.array(rows)).astype(np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return found


def _cards(found: Heard, order: np.ndarray, encoder: CheckpointEncoder) -> Markup:
    """Some clips with their own caption and the nearest ones."""
    shown = []
    for row in range(0, len(found.names), max(1, len(found.names) // SHOWN))[:SHOWN]:
        own = f"own: {found.captions[row]}"
        different = {found.captions[other]: other for other in order[row, ::-1].tolist()}
        nearest = sorted(different.items(), key=lambda one: int(np.flatnonzero(order[row] == one[1])[0]))[:NEAREST]
        near = [
            f"{found.audio[row] @ found.text[other]:.2f} {'★ ' if text == found.captions[row] else ''}{text}"
            for text, other in nearest
        ]
        shown.append(Card(found.names[row], [own, *near], np.array(found.log_mels[row])))
    told = "Cosines of the nearest captions; a star is the clip's own."
    return with_title(
        "Nearest captions", Markup(tag("p", told, class_="quiet") + cards(shown, encoder.checkpoint.front_end))
    )


def _confusions(found: Heard, order: np.ndarray) -> Markup:
    """A row of counts for each of the commonest labels: the labels of the nearest captions of other clips."""
    names = commonest(found.labels, LABELS)
    if len(names) < 2:
        return Markup("")
    number = {name: at for at, name in enumerate(names)}
    counts = np.zeros((len(names), len(names) + 1), int)
    for row, label in enumerate(found.labels):
        if label in number:
            other = next(one for one in order[row].tolist() if one != row)
            counts[number[label], number.get(found.labels[other], len(names))] += 1
    if not counts[:, -1].any():
        return matrix("label \\ nearest caption's", names, counts[:, :-1].tolist())
    square = [*counts.tolist(), [0] * (len(names) + 1)]
    return matrix("label \\ nearest caption's", [*names, "others"], square)
