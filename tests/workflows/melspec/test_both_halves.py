"""One download feeds both halves: captions in archives have the clips whose arrays `melspec` makes of the archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2dprep.artifacts.clips.matching import match_files
from m2dprep.artifacts.layout import LMS_FILE_SUFFIX
from m2dprep.audioprep.members import ArchiveOptions, member_sources
from m2dprep.captions.build import add
from m2dprep.captions.sources.readers import ReadOptions, read_kind

# Sounds by their names, each with a text that says which it is.
SOUNDS = [
    "1.flac", "a/1.wav", "b/1.opus", "Y-abcdefghi1_30.000_40.000.wav", "7.left.mp3", "7.right.mp3", "a b/Ü: x?.ogg",
    "abcdefghij__000110.m4a", "v1.0.wav",
]  # fmt: skip


def tar(path: Path, names: list[str], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            for member, content in ((name, b"sound"), (name.rpartition(".")[0] + ".txt", name.encode())):
                info = tarfile.TarInfo(f"./{member}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def zipped(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"sound")
            archive.writestr(name.rpartition(".")[0] + ".txt", name)


def hub(path: Path, names: list[str], columns: dict[str, list[str]] | None = None) -> None:
    audio = [{"bytes": b"sound", "path": name} for name in names]
    pq.write_table(pa.table({"audio": audio, "text": names, **(columns or {})}), path)


def with_ids(path: Path, names: list[str]) -> None:
    hub(path, names, {"path": ["no"] * len(names), "ytid": [name.rpartition(".")[0] for name in names]})


ARCHIVES: dict[str, Callable[[Path, list[str]], None]] = {
    "s.tar": tar,
    "s.tar.gz": lambda path, names: tar(path, names, "w:gz"),
    "s.zip": zipped,
    "path.parquet": hub,
    "ids.parquet": with_ids,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "by_archive"),
    [(name, layout) for name in ARCHIVES for layout in (False, True) if not (layout and name.endswith("parquet"))],
)
def test_captions_in_archives_are_those_of_their_arrays(tmp_path: Path, name: str, by_archive: bool) -> None:
    kind = "parquet" if name.endswith("parquet") else "webdataset"
    shards = [name.replace(".", f"{number}.", 1) for number in range(2)]
    half = len(SOUNDS) // 2
    for shard, some in zip(shards, (SOUNDS[:half], SOUNDS[half:]), strict=True):
        ARCHIVES[name](tmp_path / shard, some)
    sources = member_sources(str(tmp_path), shards, ArchiveOptions(by_archive=by_archive), Counter())
    assert [source.reason for source in sources] == [""] * len(SOUNDS)
    listed = [f"w_lms/{source.array}" for source in sources]
    assert all(file.endswith(LMS_FILE_SUFFIX) for file in listed)
    rows = read_kind(kind, [tmp_path], ReadOptions(by_archive=by_archive)).rows
    captions = add(None, rows, "mine").captions
    found = match_files(listed, captions["clip_id"].combine_chunks())
    said = [captions["caption"][int(row)].as_py() for row in found.clip]
    assert sorted(said) == sorted(SOUNDS)
    for source, text in zip(sources, said, strict=True):
        assert source.array.endswith(text.rpartition(".")[0] + LMS_FILE_SUFFIX)
