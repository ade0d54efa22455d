"""A sound that is no longer what was embedded is played with a word about it: its size, or else its time, tells."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.embeddings.audio_writer import AudioStoreWriter, SourceRows, StoredSource
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.array import write_lms
from m2dprep.artifacts.log_mels.records import append_records
from m2dprep.artifacts.reading import stamp_of
from m2dprep.audioprep.config import PRESETS
from m2dprep.evaluation.overview.cards import Sounds
from m2dprep.evaluation.serving.excerpts import Stretch
from m2dprep.evaluation.serving.media import Media, Row
from m2dprep.evaluation.serving.sources import Sources
from m2dprep.evaluation.serving.stored import StoredLogMels
from m2dprep.evaluation.tagging.stamps import how_changed, stamp_of_source

DAY = 86_400 * 10**9
NOON = 1_700_000_000 * 10**9


def write(path: Path, content: bytes, time_ns: int = NOON) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(time_ns, time_ns))
    return path


def write_tar(path: Path, content: bytes, time_ns: int = NOON) -> Path:
    member = write(path.parent / "member", content)
    with tarfile.open(path, "w") as archive:
        archive.add(member, "b.wav")
    os.utime(path, ns=(time_ns, time_ns))
    return path


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("4 1", "4 1", ""),
        ("4 1", "5 1", "The sound has changed since it was embedded: it had 4 bytes, and now has 5."),
        ("4 1", "5 2", "The sound has changed since it was embedded: it had 4 bytes, and now has 5."),
        (
            f"4000 {NOON}",
            f"4000 {NOON + DAY}",
            "The sound may have changed since it was embedded: its size is the same, but not its time: "
            "2023-11-14 22:13:20 UTC, now 2023-11-15 22:13:20 UTC.",
        ),
        ("4 1", "4 2", "The sound may have changed since it was embedded: its size is the same, but not its time."),
        ("4 -77", "4 -78", "The sound may have changed since it was embedded: its size is the same, but not its time."),
        ("None 1", "None 2", "The sound may have changed since it was embedded: its time is another."),
        ("None 1", "5 1", ""),
        ("missing", "4 1", ""),  # it was not a file: what it was is not known
        ("4 1", "missing", ""),  # playing it says so
        ("name_conflict", "4 1", ""),
        ("", "4 1", ""),
    ],
)
def test_what_stamps_say(then: str, now: str, said: str) -> None:
    assert how_changed("The sound", then, now) == said


@pytest.mark.parametrize("name", ["a.wav", "all.tar::b.wav"])
@pytest.mark.parametrize(
    ("content", "time_ns", "said"),
    [
        (b"then", NOON, []),
        (b"now: longer", NOON + DAY, ["The sound has changed"]),
        (b"thus", NOON + DAY, ["The sound may have changed"]),
        (b"then", NOON + DAY, ["The sound may have changed"]),  # copied, or written anew
    ],
)
def test_a_file_or_member_that_is_replaced_while_it_is_served(
    tmp_path: Path, name: str, content: bytes, time_ns: int, said: list[str]
) -> None:
    make: Callable[[Path, bytes, int], Path] = write_tar if "::" in name else write
    make(tmp_path / name.partition("::")[0], b"then", NOON)
    sources = Sources(tmp_path)
    then, _ = stamp_of_source(sources.find(name))
    media, row = Media(sources, None, PRESETS["16k"]), Row(name, Stretch())
    assert media.changes(row, then) == []
    make(tmp_path / name.partition("::")[0], content, time_ns)
    assert [words[: len(start)] for words, start in zip(media.changes(row, then), said, strict=True)] == said


def test_a_report_says_it_too(tmp_path: Path) -> None:
    then = stamp_of(write(tmp_path / "b/a.wav", b"then"))
    sounds = Sounds([tmp_path / "a", tmp_path / "b"], PRESETS["16k"])
    assert sounds.change("a.wav", then) == sounds.change("gone.wav", then) == ""
    write(tmp_path / "b/a.wav", b"now: longer")
    assert sounds.change("a.wav", then).startswith("The sound has changed since it was embedded")


def log_mels_of(folder: Path, name: str, size: int, time_ns: int) -> StoredLogMels:
    """A folder of log-mels with one, made from a sound of this size and time."""
    layout = LmsLayout(folder)
    layout.melspec.mkdir(parents=True)
    write_lms(folder / f"{name}.npy", np.zeros((1, 80, 20), np.float32), folder)
    record = {
        "source": f"{name}.wav", "clip_id": name, "file_name": f"{name}.npy", "status": "failed",
        "reason": "made", "message": "made", "source_bytes": size, "source_mtime_ns": time_ns,
    }  # fmt: skip
    append_records(layout, [record])
    return StoredLogMels(folder)


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ((4, NOON), []),
        ((9, NOON), ["The log-mel that is shown was made from another version of the sound than was embedded."]),
        ((4, NOON + 1), ["The log-mel that is shown was made from another version of the sound than was embedded."]),
    ],
)
def test_a_log_mel_of_another_version_is_told(tmp_path: Path, recorded: tuple[int, int], said: list[str]) -> None:
    then = stamp_of(write(tmp_path / "sounds/a.wav", b"then"))
    stored = log_mels_of(tmp_path / "x_lms", "a", *recorded)
    media = Media(Sources(tmp_path / "sounds"), stored, PRESETS["16k"])
    assert media.changes(Row("a.wav", Stretch()), then) == said


def test_a_store_of_log_mels_compares_these_and_the_sounds_they_were_made_from(tmp_path: Path) -> None:
    write(tmp_path / "sounds/a.wav", b"then")
    stored = log_mels_of(tmp_path / "x_lms", "a", 4, NOON)
    array, row = tmp_path / "x_lms/a.npy", Row("a.npy", Stretch())
    then = stamp_of(array)
    media = Media(Sources(tmp_path / "sounds"), stored, PRESETS["16k"])
    assert media.changes(row, then) == []
    write(tmp_path / "sounds/a.wav", b"now: longer")
    os.utime(array, ns=(NOON, NOON))
    told = ["The sound has changed since it was embedded", "The log-mel may have changed since it was embedded"]
    assert [words.partition(":")[0] for words in media.changes(row, then)] == told


def test_a_row_has_the_stamp_of_its_own_sound(tmp_path: Path) -> None:
    """Sounds have several rows, or none."""
    settings = {"contents": "clap", "dtype": "float32", "dim": 2, "feature_dim": None}
    sources = [StoredSource(name, f"{number} {number}") for number, name in enumerate("abcd")]
    rows = [2, 0, 3, 1]
    with AudioStoreWriter(tmp_path / "store", settings, sources) as writer:
        made = [SourceRows(n, [0.0] * count, [1.0] * count, np.ones((count, 2))) for n, count in enumerate(rows)]
        made[1] = SourceRows(1, failure=("made", "made"))
        writer.write_shard(made)
        writer.finish({})
    store = AudioStore.open(tmp_path / "store")
    assert [store.stamp(row) for row in range(6)] == ["0 0", "0 0", "2 2", "2 2", "2 2", "3 3"]
