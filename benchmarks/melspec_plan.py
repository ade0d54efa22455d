"""Claim: planning, recording, resuming and summing up all of AudioSet takes seconds to minutes, and less than 2 GB.

Scans 200,000 real files. Then takes the records of 2,084,320 clips, made up but with all their columns: they are
written in parts, merged, compared with the sources as on resuming a finished run, listed, and summed to statistics. The
resume excludes the scan of the two million sources and arrays, which the first lines measure.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine, table

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import append_records, compact_records
from m2dprep.artifacts.tables import write_csv
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.stats import norm_stats
from m2dprep.workflows.melspec import plan as melspec_plan
from m2dprep.workflows.melspec import results as file_list
from m2dprep.workflows.melspec import results as record_buffer

FILES = int(os.environ.get("BENCH_FILES", "200000"))
CLIPS = int(os.environ.get("BENCH_ROWS", "2084320"))
FILES_PER_FOLDER = 1000
N_MELS = 80
# A window of shards is in flight, so rows come nearly in order.
WINDOW = 3000


def measured(label: str, work: Callable[[], Any], rows: list[list[str]]) -> Any:
    """Run ``work``, and note its seconds and the process's peak memory during it."""
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    rows.append([label, f"{seconds:.1f}", f"{int(peak.split()[1]) / 2**20:.2f}"])
    return result


def name_of(number: int) -> str:
    return f"unbalanced_train_segments/{number // FILES_PER_FOLDER:05d}/Y{number:011d}"


def make_files(folder: Path, suffix: str) -> None:
    for number in range(FILES):
        path = folder / f"{name_of(number)}{suffix}"
        if number % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"tiny")


def record(number: int, rng: np.random.Generator) -> dict[str, Any]:
    name = name_of(number)
    moments = {"n": N_MELS * 1001, "mean": -7.0, "m2": 1e6}
    bins = {"bin_mean": rng.normal(-7, 1, N_MELS), "bin_m2": rng.uniform(1e4, 2e4, N_MELS)}
    source = {"sample_rate": 44100, "channels": 2, "seconds": 10.0, "frames": 1001, "peak": 0.5, "decoder": "pcm"}
    flags = {"padded": False, "silent": False, "clipped": False, "source_bytes": 1764044, "source_mtime_ns": number}
    names = {"file_name": f"{name}.npy", "source": f"{name}.wav", "clip_id": name[-11:], "status": "ok"}
    return {**names, **source, **flags, **moments, **bins}


def parts() -> Iterator[list[dict[str, Any]]]:
    """Parts of records as a run writes them: in the order in which the shards finished."""
    rng = np.random.default_rng(0)
    order = np.argsort(np.arange(CLIPS) + rng.uniform(0, WINDOW, CLIPS))
    for start in range(0, CLIPS, record_buffer.PART_ROWS):
        yield [record(number, rng) for number in order[start : start + record_buffer.PART_ROWS].tolist()]


def write_records(layout: LmsLayout) -> None:
    for rows in parts():
        append_records(layout, rows)


def main() -> None:
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_files(root / "wavs", ".wav")
        make_files(root / "some_lms", ".npy")
        found = measured(f"scan of {FILES:,} sources", lambda: discover(root / "wavs"), rows)
        arrays = measured(f"scan of {FILES:,} arrays", lambda: melspec_plan.arrays_below(root / "some_lms"), rows)
        assert len(found) == len(arrays) == FILES
        del found, arrays
        layout = LmsLayout(root / "audioset_lms")
        layout.melspec.mkdir(parents=True)
        measured(f"{CLIPS:,} records written in parts", lambda: write_records(layout), rows)
        measured("records merged", lambda: compact_records(layout), rows)
        listed = root / "list.csv"
        write_csv(listed, ["source"], ([f"{name_of(number)}.wav"] for number in range(CLIPS)))
        sources = measured(
            "sources from a list (--files)", lambda: melspec_plan.find_sources(root, layout.root, listed), rows
        )
        melspec_plan.arrays_below = lambda folder: [f"{name_of(number)}.npy" for number in range(CLIPS)]

        def resume() -> int:
            plan = melspec_plan.make_plan(layout, sources, retry_failed=True, check_sources=False, same_root=True)
            compact_records(layout, {source.relative for source in sources})
            return len(plan.pending) + file_list.write_list(layout, layout.files_csv, [])

        assert measured("resume of the finished run", resume, rows) == CLIPS
        measured("statistics", lambda: norm_stats(layout.root), rows)
    print(machine())
    print(table(["", "seconds", "peak memory GiB"], rows))


if __name__ == "__main__":
    main()
