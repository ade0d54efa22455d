"""Claim: an archive of 70,000 members is listed in seconds, and its members are converted as fast as files are.

Writes tar, tar.gz, zip (stored) and Parquet files with 70,000 small members, and prints the seconds and the growth of
memory that listing each of them takes, in a process of its own: from the archive, and again from its index. Then
converts the same clips of 10 s as files and from each kind, also from tar.bz2 and tar.xz, taking turns in one process,
and prints the CPU milliseconds per clip and the ratio to files.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
from _clips import make_clips
from _machine import machine, restart_with, table
from melspec_floor import cpu_milliseconds

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.members import ArchiveOptions
from m2dprep.audioprep.source import in_reading_order
from m2dprep.workflows.engine.dask_workers import WORKER_ENVIRONMENT

MEMBERS, CLIPS, ROUNDS = 70_000, 40, 5
KINDS = ("tar", "tar.gz", "zip", "parquet")
SLOW_KINDS = ("tar.bz2", "tar.xz")
Members = Iterable[tuple[str, bytes]]


def pack(path: Path, kind: str, members: Members) -> None:
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members:
                archive.writestr(name, data)
    elif kind == "parquet":
        names, contents = zip(*members, strict=True)
        pq.write_table(pa.table({"video_id": names, "audio": contents}), path, row_group_size=100, compression="none")
    else:
        with tarfile.open(path, "w" + kind.removeprefix("tar").replace(".", ":")) as out:  # type: ignore[call-overload]
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))


def listed(folder: str) -> None:
    """Print the number of sources in ``folder``, and the seconds and the memory that finding them takes."""
    discover(Path(folder) / "warm", archives=ArchiveOptions(index=Path(folder) / "warm index"))
    before, started, worked = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        time.perf_counter(),
        time.process_time(),
    )
    sources = discover(Path(folder) / "cold", archives=ArchiveOptions(index=Path(folder) / "cold index"))
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([len(sources), seconds, cpu, (after - before) / 1024]))


def listing(root: Path, kind: str) -> list[str]:
    folder = root / f"listing {kind}"
    for name, count in (("warm", 10), ("cold", MEMBERS)):
        (folder / name).mkdir(parents=True)
        pack(folder / name / f"a.{kind}", kind, ((f"{number:06d}.wav", b"x" * 2000) for number in range(count)))
    command = [sys.executable, __file__, str(folder)]
    found = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    assert [each[0] for each in found] == [MEMBERS] * 2
    return [kind, *(text for each in found for text in (f"{each[1]:.2f}", f"{each[2]:.2f}", f"{each[3]:.0f}"))]


def converting(root: Path) -> list[list[str]]:
    paths = make_clips(root / "clips/files", CLIPS)
    for kind in (*KINDS, *SLOW_KINDS):
        (root / "clips" / kind).mkdir()
        pack(root / "clips" / kind / f"a.{kind}", kind, ((path.name, path.read_bytes()) for path in paths))
    config = ConvertConfig(PRESETS["16k"])
    folders = {name: root / "clips" / name for name in ("files", *KINDS, *SLOW_KINDS)}
    sources = {name: in_reading_order(discover(folder)) for name, folder in folders.items()}

    def one(name: str) -> float:
        def work() -> None:
            records = convert_shard(sources[name], folders[name], root / "lms", config)
            assert all(record["status"] == "ok" for record in records), records[0]["message"]

        return cpu_milliseconds(work, root / "lms", CLIPS)

    rounds = [{name: one(name) for name in folders} for _ in range(ROUNDS + 1)][1:]
    return [
        [
            name,
            f"{median(found[name] for found in rounds):.2f}",
            f"{median(found[name] / found['files'] for found in rounds):.2f}",
        ]
        for name in folders
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        print(machine())
        print(f"\nListing {MEMBERS:,} members\n")
        heads = ["", "seconds", "CPU seconds", "MiB more", "again: seconds", "CPU seconds", "MiB more"]
        print(table(heads, [listing(root, kind) for kind in KINDS]))
        print(f"\nConverting {CLIPS} clips of 10 s (WAV), median of {ROUNDS} rounds\n")
        rows = converting(root)
        print(table(["", "CPU ms per clip", "ratio"], rows))
        print(f"\nload {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        listed(sys.argv[1])
    else:
        restart_with(WORKER_ENVIRONMENT)
        main()
