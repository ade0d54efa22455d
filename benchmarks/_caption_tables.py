"""Look-alikes of AudioSet's segment lists, Auto-ACD and ACalt4: real sizes, forms of ids and faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

SPLITS = {"eval": 20_371, "balanced_train": 22_160, "unbalanced_train": 2_041_789}
AUTO_ACD_ROWS, VGGSOUND_ROWS, VGGSOUND_IN_AUDIOSET = 1_921_878, 190_000, 0.6
ACALT4_CLIPS = 41_785
LABELS, LABELS_WITH_COMMAS = 527, 75
WRAPPED, UNCLOSED, CURLY, REPEATED, IRREGULAR = 0.02, 0.0005, 0.0005, 0.005, 0.0005
ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)
WRAPPER = "The audio caption for the given information could be: "
WORDS = [
    "rain",
    "dog",
    "bark",
    "wind",
    "blow",
    "man",
    "speak",
    "music",
    "crowd",
    "cheer",
    "engine",
    "idle",
    "water",
    "drip",
    "bell",
    "ring",
    "soft",
    "loud",
    "distant",
]


def make_tables(folder: Path, scale: float = 1.0, seed: int = 0) -> None:
    """Write ``<split>_segments.csv``, ``ontology.json``, ``train.csv``, ``acalt4.csv``, ``scale`` of the real size."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    mids = [f"/m/0{number:05x}" for number in range(LABELS)]
    names = [f"Sound {n}, also {n}" if n < LABELS_WITH_COMMAS else f"Sound {n}" for n in range(LABELS)]
    entries = [{"id": mid, "name": name, "child_ids": []} for mid, name in zip(mids, names, strict=True)]
    (folder / "ontology.json").write_text(json.dumps(entries))
    sizes = {split: max(2, int(size * scale)) for split, size in SPLITS.items()}
    total = sum(sizes.values())
    ids = youtube_ids(rng, total)
    starts = 10 * rng.integers(0, 30, total)
    at = 0
    for split, size in sizes.items():
        write_segments(folder / f"{split}_segments.csv", rng, ids[at : at + size], starts[at : at + size], mids)
        at += size
    write_auto_acd(folder / "train.csv", rng, ids, starts, scale)
    clips = pa.array(ids).take(pa.array(rng.permutation(total)[: int(ACALT4_CLIPS * scale)])).cast(pa.string())
    captions = {f"caption{number}": sentences(rng, len(clips)) for number in range(1, 5)}
    pyarrow.csv.write_csv(pa.table({"youtube_id": clips, **captions}), folder / "acalt4.csv")


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as a single array, made without the package because the result is compared with the package's."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def youtube_ids(rng: np.random.Generator, count: int) -> np.ndarray:
    """bytes (count,): random YouTube ids, about one in 64 with a leading "Y", many with "_" and "-"."""
    return ALPHABET[rng.integers(0, 64, (count, 11))].view("S11").ravel()


def sentences(rng: np.random.Generator, count: int) -> pa.Array:
    """Different texts of about 100 characters, as long as Auto-ACD's."""
    parts = [" ".join(rng.choice(WORDS, 9)) for _ in range(20_000)]
    halves = [pa.array(parts).take(pa.array(rng.integers(0, len(parts), count))) for _ in range(2)]
    return one_array(pc.binary_join_element_wise(*halves, ", while ").cast(pa.string()))


def write_segments(path: Path, rng: np.random.Generator, ids: np.ndarray, starts: np.ndarray, mids: list[str]) -> None:
    """A list as published: three comment lines, comma and space, label ids in quotes; few labels are frequent."""
    count = len(ids)
    lengths = 1 + rng.poisson(0.98, count)
    flat = (LABELS * rng.random(int(lengths.sum())) ** 3).astype(np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    lists = pc.binary_join(pa.ListArray.from_arrays(offsets, pa.array(mids).take(pa.array(flat))), ",")
    seconds = [pa.array(times).cast(pa.string()) for times in (starts, starts + 10)]
    lines = pc.binary_join_element_wise(
        pa.array(ids).cast(pa.string()), ", ", seconds[0], ".000, ", seconds[1], '.000, "', lists, '"\n', ""
    )
    with path.open("wb") as file:
        file.write(b"# Segments csv created\n# num_ytids=1\n# YTID, start_seconds, end_seconds, positive_labels\n")
        for start in range(0, count, 100_000):
            file.write("".join(lines.slice(start, 100_000).to_pylist()).encode())


def write_auto_acd(path: Path, rng: np.random.Generator, ids: np.ndarray, starts: np.ndarray, scale: float) -> None:
    """``Y<id>`` and ``<id>_<start>`` rows mixed, with wrappers, unclosed quotes, repeats and odd white space."""
    vggsound = int(VGGSOUND_ROWS * scale)
    known = int(vggsound * VGGSOUND_IN_AUDIOSET)
    rows = min(int(AUTO_ACD_ROWS * scale), len(ids)) - vggsound
    order = rng.permutation(len(ids))
    audioset = order[:rows].copy()
    repeats = rng.integers(1, rows, int(REPEATED * rows))
    audioset[repeats] = audioset[repeats - 1]
    of_segments = rng.permutation(len(ids))[:known]
    videos = np.concatenate([ids[of_segments], youtube_ids(rng, vggsound - known)])
    second = np.concatenate([starts[of_segments], rng.integers(0, 600, vggsound - known)])
    second[rng.random(vggsound) < 0.01] += 7
    forms = pc.binary_join_element_wise("Y", pa.array(ids[audioset]).cast(pa.string()), "")
    digits = pc.utf8_lpad(pa.array(second).cast(pa.string()), 6, "0")
    timed = pc.binary_join_element_wise(pa.array(videos).cast(pa.string()), digits, "_")
    names = pa.concat_arrays([one_array(forms), one_array(timed)])
    captions = with_faults(sentences(rng, len(names)), rng)
    mixed = pa.array(rng.permutation(len(names)))
    pyarrow.csv.write_csv(pa.table({"youtube_id": names, "caption": captions}).take(mixed), path)


def with_faults(captions: pa.Array, rng: np.random.Generator) -> pa.Array:
    """Some captions wrapped, some of those without their closing quote or in curly quotes, some oddly spaced."""
    chance = rng.random(len(captions))
    limits = np.cumsum([WRAPPED, UNCLOSED, CURLY, IRREGULAR])
    kind = np.searchsorted(limits, chance)
    forms = [(WRAPPER + '"', '"'), (WRAPPER + '"', ""), (WRAPPER + "“", "”"), ("  ", " \t ")]
    for number, (before, after) in enumerate(forms):
        captions = pc.if_else(
            pa.array(kind == number), pc.binary_join_element_wise(before, captions, after, ""), captions
        )
    return captions
