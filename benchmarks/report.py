"""`m2dprep report` of a data directory with as many clips as AudioSet: its time and memory, and the size of the page.

Records and captions are made up. There are no sounds and no arrays, so the page has no pictures.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from _machine import machine

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.record_file import RECORD_SCHEMA, ROW_GROUP_ROWS
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions, write_file_list, write_parquet

CLIPS = 2_084_320
WORDS = np.array(
    [
        "a",
        "dog",
        "barks",
        "while",
        "the",
        "rain",
        "falls",
        "on",
        "tin",
        "roof",
        "and",
        "engine",
        "idles",
        "far",
        "away",
        "loudly",
    ]
)


def write_records(folder: Path, ids: np.ndarray, rng: np.random.Generator) -> None:
    """A hundredth of the sources failed; some are silent, clipped, padded or there twice."""
    count = len(ids)
    failed = rng.random(count) < 0.01
    good = {
        "sample_rate": rng.choice([44100, 48000], count), "channels": rng.choice([1, 2], count),
        "seconds": rng.gamma(20, 0.5, count), "padded": rng.random(count) < 0.02, "silent": rng.random(count) < 0.002,
        "clipped": rng.random(count) < 0.1, "peak": rng.random(count), "decoder": np.full(count, "pcm"),
        "source_digest": np.char.mod("%016x", rng.integers(0, count * 40, count)),
    }  # fmt: skip
    columns: dict[str, pa.Array] = {name: pa.array(values, mask=failed) for name, values in good.items()}
    columns |= {
        "file_name": pa.array(np.char.add(np.char.add("unbalanced/", ids), ".npy")),
        "source": pa.array(np.char.add(np.char.add("unbalanced/", ids), ".wav")),
        "clip_id": pa.array(ids), "status": pa.array(np.where(failed, "failed", "ok")),
        "reason": pa.array(np.full(count, "truncated"), mask=~failed),
        "message": pa.array(np.full(count, "the file ends in the middle"), mask=~failed),
        "source_bytes": pa.array(np.full(count, 1_700_000)),
    }  # fmt: skip
    nothing = {field.name: pa.nulls(count, field.type) for field in RECORD_SCHEMA if field.name not in columns}
    table = pa.table({**columns, **nothing}).select(RECORD_SCHEMA.names).cast(RECORD_SCHEMA).sort_by("source")
    layout = LmsLayout(folder)
    layout.melspec.mkdir(parents=True)
    write_parquet(layout.melspec / "records-000000.parquet", table, row_group_size=ROW_GROUP_ROWS)
    write_file_list(layout.files_csv, [f"{layout.folder}/unbalanced/{one}.npy" for one in ids.tolist()])


def write_captioned(path: Path, ids: np.ndarray, rng: np.random.Generator) -> None:
    """A caption of eight words and two labels for each clip."""
    count = len(ids)
    texts = pa.array([" ".join(row) for row in WORDS[rng.integers(0, len(WORDS), (count, 8))].tolist()])
    names = pa.array(np.char.mod("label %d", np.arange(527)).tolist())
    labels = names.take(pa.array(rng.integers(0, 527, 2 * count)))
    columns = {
        "clip_id": pa.array(ids), "caption": texts, "caption_index": pa.array(np.zeros(count, np.int32)),
        "source": pa.array(np.where(rng.random(count) < 0.9, "auto_acd", "label")),
        "split": pa.array(np.full(count, "unbalanced_train")),
        "labels": pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * 2), labels),
    }  # fmt: skip
    write_captions(path, pa.table(columns).select(CAPTIONS_SCHEMA.names).cast(CAPTIONS_SCHEMA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=CLIPS)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    ids = np.char.mod("%011x", np.arange(given.clips) * 7919)
    with tempfile.TemporaryDirectory() as name:
        data, page = Path(name) / "data", Path(name) / "page.html"
        write_records(data / "audioset_lms", ids, rng)
        write_captioned(data / "captions.parquet", ids, rng)
        words = [sys.executable, "-P", "-m", "m2dprep", "report", str(data), "-o", str(page), "--verbose"]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stderr
        cost = re.search(r"took .*", said)
        print(f"{machine()}; load {os.getloadavg()[0]:.1f}; {given.clips:,} clips with one caption each\n")
        print(f"report {cost[0] if cost else ''} The page has {page.stat().st_size:,} bytes.")


if __name__ == "__main__":
    main()
