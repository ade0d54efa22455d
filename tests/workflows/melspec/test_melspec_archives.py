"""Archives as folders: the members of every kind give the arrays of the same files, whatever happens on the way."""

import gzip
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import read_records
from m2dprep.audioprep.archives import forwards
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.decoding.sound import AudioInfo
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.members import ArchiveOptions
from m2dprep.audioprep.source import in_reading_order
from m2dprep.workflows.melspec.job import MelspecOptions, MelspecReport, run_melspec
from tests.audioprep.archives.test_compressed_streams import PACKERS
from tests.audioprep.decoding.made_sounds import NOISE, coded, mp3

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.2)
Clips = dict[str, bytes]


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Twelve clips of mixed formats in folders, each another stretch of noise."""

    def one(number: int) -> bytes:
        samples = NOISE[number * 1000 : number * 1000 + 12000, :2]
        if number % 4 == 3:
            return mp3(samples=11000 + number)
        return coded(samples, ("WAV", "FLAC", "OGG")[number % 4], ("PCM_16", "PCM_16", "VORBIS")[number % 4])

    suffixes = ("wav", "flac", "ogg", "mp3")
    return {f"part{number % 3}/Y{number:011d}_30.000.{suffixes[number % 4]}": one(number) for number in range(12)}


def tar(path: Path, clips: Clips, mode: str = "w", prefix: str = "", **more: int) -> None:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT, **more) as archive:  # type: ignore[call-overload]
        for name, data in clips.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def packed(path: Path, clips: Clips, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in clips.items():
            archive.writestr(name, data)


def hub(path: Path, clips: Clips) -> None:
    """As `datasets` writes it: a struct of bytes and path."""
    rows = [{"bytes": data, "path": name} for name, data in clips.items()]
    table = pa.table({"audio": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    pq.write_table(table, path, row_group_size=5)


def plain_column(path: Path, clips: Clips) -> None:
    names = [name.rpartition(".")[0] for name in clips]
    pq.write_table(pa.table({"caption": ["x"] * len(names), "video_id": names, "flac": list(clips.values())}), path)


MAKERS: dict[str, tuple[str, Callable[[Path, Clips], None]]] = {
    "tar": ("a.tar", tar),
    "tar of .": ("a.tar", lambda path, clips: tar(path, clips, prefix="./")),
    "tar.gz": ("a.tar.gz", lambda path, clips: tar(path, clips, "w:gz")),
    "tgz": ("a.TGZ", lambda path, clips: tar(path, clips, "w:gz")),
    "tar.bz2": ("a.tar.bz2", lambda path, clips: tar(path, clips, "w:bz2", compresslevel=1)),
    "tar.xz": ("a.txz", lambda path, clips: tar(path, clips, "w:xz")),
    "stored zip": ("a.zip", packed),
    "deflated zip": ("a.zip", lambda path, clips: packed(path, clips, zipfile.ZIP_DEFLATED)),
    "bzip2 zip": ("a.zip", lambda path, clips: packed(path, clips, zipfile.ZIP_BZIP2)),
    "Hugging Face's Parquet": ("a.parquet", hub),
    "plain Parquet": ("a.parquet", plain_column),
}


def arrays(lms: Path) -> dict[str, bytes]:
    return {path.relative_to(lms).as_posix(): path.read_bytes() for path in sorted(lms.rglob("*.npy"))}


def rows(lms: Path) -> dict[str, dict]:
    return {row["source"]: row for row in read_records(LmsLayout(lms)).to_pylist()}


def failures(lms: Path) -> dict[str, tuple[str, str]]:
    return {name: (row["reason"], row["message"]) for name, row in rows(lms).items() if row["status"] == "failed"}


def convert(src: Path, lms: Path, **options: object) -> MelspecReport:
    return run_melspec(src, lms, CONFIG, MelspecOptions(**{"workers": 0, "read_timeout": 0.0, **options}))


@pytest.fixture(scope="module")
def as_files(clips: Clips, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log-mels of the clips as files."""
    folder = tmp_path_factory.mktemp("files")
    for name, data in clips.items():
        (folder / "wavs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "wavs" / name).write_bytes(data)
    convert(folder / "wavs", folder / "x_lms")
    return folder / "x_lms"


def made(folder: Path, kind: str, clips: Clips) -> Path:
    name, make = MAKERS[kind]
    folder.mkdir(exist_ok=True)
    make(folder / name, clips)
    return folder / name


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_members_are_converted_as_files(tmp_path: Path, clips: Clips, as_files: Path, kind: str) -> None:
    """The same arrays and records, apart from the source's name and time; the same run again has nothing to do."""
    archive = made(tmp_path / "src", kind, clips)
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert (report.done, report.failed) == (12, 0), failures(tmp_path / "x_lms")
    assert arrays(tmp_path / "x_lms") == arrays(as_files)
    plain = kind == "plain Parquet"
    for name, row in rows(as_files).items():
        member = rows(tmp_path / "x_lms")[f"{archive.name}::{name.rpartition('.')[0] if plain else name}"]
        other = ("source", "source_mtime_ns")
        assert {key: value for key, value in member.items() if key not in other} == {
            key: value for key, value in row.items() if key not in other
        }
    for check in (False, True):
        again = convert(tmp_path / "src", tmp_path / "x_lms", check_sources=check)
        assert (again.done, again.skipped) == (0, 12)
    assert (tmp_path / "files_x.csv").read_text() == (as_files.parent / "files_x.csv").read_text()


@pytest.mark.parametrize("kind", ["tar", "plain Parquet"])
def test_an_archive_alone_is_a_source_too(tmp_path: Path, clips: Clips, as_files: Path, kind: str) -> None:
    archive = made(tmp_path / "src", kind, clips)
    (tmp_path / "src" / "other.wav").write_bytes(b"of no concern")
    assert convert(archive, tmp_path / "x_lms").done == 12
    assert arrays(tmp_path / "x_lms") == arrays(as_files)
    again = convert(tmp_path / "src", tmp_path / "x_lms")
    assert (again.skipped, again.failed) == (12, 1)


def test_the_archive_before_the_arrays(tmp_path: Path, clips: Clips) -> None:
    """Two shards with members of the same names: conflicts, unless the shards' names are put before them."""
    for name in ("s-0.tar", "deep/s-1.tar"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        tar(tmp_path / "src" / name, clips)
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert (report.done, report.reasons) == (12, {"name_conflict": 12})
    report = convert(tmp_path / "src", tmp_path / "y_lms", archives=ArchiveOptions(by_archive=True))
    assert (report.done, report.failed) == (24, 0)
    tops = {name.rsplit("/", 2)[0] for name in arrays(tmp_path / "y_lms")}
    assert tops == {"s-0", "deep/s-1"}


def test_files_come_before_members(tmp_path: Path, clips: Clips) -> None:
    name, data = next(iter(clips.items()))
    (tmp_path / "src" / name).parent.mkdir(parents=True)
    (tmp_path / "src" / name).write_bytes(data)
    tar(tmp_path / "src" / "a.tar", {name: data})
    assert convert(tmp_path / "src", tmp_path / "x_lms").done == 1
    assert failures(tmp_path / "x_lms") == {f"a.tar::{name}": ("name_conflict", f"{name!r} has the same output")}


def test_a_list_names_members_or_whole_archives(tmp_path: Path, clips: Clips) -> None:
    names = list(clips)
    tar(made(tmp_path / "src", "tar", clips).with_name("b.tar"), {"only.wav": clips[names[0]]})
    listed = [f"a.tar::{names[3]}", f"a.tar::{names[5]}", "a.tar::gone.wav", "b.tar", "none.tar::x.wav"]
    (tmp_path / "list.csv").write_text("source\n" + "\n".join(listed) + "\n")
    report = convert(tmp_path / "src", tmp_path / "x_lms", files=tmp_path / "list.csv")
    assert (report.done, report.reasons) == (3, {"not_found": 2})
    assert set(arrays(tmp_path / "x_lms")) == {name.rpartition(".")[0] + ".npy" for name in (names[3], names[5])} | {
        "only.npy"
    }


def test_a_list_names_members_whose_names_are_longer_than_a_files_may_be(tmp_path: Path, clips: Clips) -> None:
    deep = "/".join(["x" * 100] * 3) + "/a.wav"
    archive = made(tmp_path / "src", "tar", {deep: clips[next(iter(clips))]})
    (tmp_path / "list.csv").write_text(f"source\n{archive.name}::{deep}\n{archive.name}::{'y' * 300}.wav\n")
    report = convert(tmp_path / "src", tmp_path / "x_lms", files=tmp_path / "list.csv")
    assert (report.done, report.reasons) == (1, {"not_found": 1})


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_a_damaged_member_is_a_row_and_the_others_are_converted(
    tmp_path: Path, clips: Clips, as_files: Path, kind: str
) -> None:
    names = list(clips)
    bad = {**clips, names[4]: b"RIFF no sound at all" * 20, names[7]: b""}
    made(tmp_path / "src", kind, bad)
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert (report.done, report.failed) == (10, 2)
    assert {reason for reason, _ in failures(tmp_path / "x_lms").values()} == {"malformed", "empty_file"} or {
        reason for reason, _ in failures(tmp_path / "x_lms").values()
    } == {"not_audio", "empty_file"}
    good = {key: value for key, value in arrays(as_files).items() if not key.startswith((names[4][:-4], names[7][:-4]))}
    assert arrays(tmp_path / "x_lms").items() >= good.items()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "stored zip"])
def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path, clips: Clips, kind: str) -> None:
    first, second, *_ = clips.values()
    (tmp_path / "src").mkdir()
    if kind == "stored zip":
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "src" / "a.zip", "w") as archive:
            archive.writestr("x.wav", first)
            archive.writestr("x.wav", second)
    else:
        with tarfile.open(tmp_path / "src" / "a.tar", "w") as archive:
            for data in (first, second):
                info = tarfile.TarInfo("./x.wav" if data is first else "x.wav")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        if kind == "tar.gz":
            with gzip.open(tmp_path / "src" / "a.tar.gz", "wb") as out:
                out.write((tmp_path / "src" / "a.tar").read_bytes())
            (tmp_path / "src" / "a.tar").unlink()
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert (report.done, report.reasons) == (1, {"name_conflict": 1})
    ((name, (_, message)),) = failures(tmp_path / "x_lms").items()
    assert name.endswith("::x.wav (copy 1)")
    assert "a later member of the archive has the same name" in message
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "x.wav").write_bytes(second)
    convert(tmp_path / "y", tmp_path / "y_lms")
    assert arrays(tmp_path / "x_lms") == arrays(tmp_path / "y_lms")


# Names that no array may get, and entries that are no files.
UNSAFE = ["../out.wav", "/etc/out.wav", "a/../../out.wav", "a/..", "_melspec/x.wav"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_never_lead_out(tmp_path: Path, clips: Clips, kind: str) -> None:
    data = next(iter(clips.values()))
    (tmp_path / "src").mkdir()
    names = [name if name.endswith(".wav") else name + "/x.wav" for name in UNSAFE]
    (tar if kind == "tar" else packed)(tmp_path / "src" / f"a.{kind}", {**dict.fromkeys(names, data), "good.wav": data})
    before = set(tmp_path.rglob("*"))
    report = convert(tmp_path / "src", tmp_path / "in" / "x_lms")
    assert (report.done, report.reasons) == (1, {"bad_name": 4, "name_conflict": 1})
    assert {path for path in set(tmp_path.rglob("*")) - before if path.suffix == ".npy"} == {
        tmp_path / "in" / "x_lms" / "good.npy"
    }
    assert all(".." not in row["file_name"].split("/") for row in rows(tmp_path / "in" / "x_lms").values())


def test_entries_of_a_tar_that_are_no_files_are_rows(tmp_path: Path, clips: Clips) -> None:
    (tmp_path / "src").mkdir()
    kinds = {"s.wav": tarfile.SYMTYPE, "f.wav": tarfile.FIFOTYPE, "c.wav": tarfile.CHRTYPE}
    with tarfile.open(tmp_path / "src" / "a.tar", "w") as archive:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("folder.wav")
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    tar(tmp_path / "src" / "b.tar", {"good.wav": next(iter(clips.values()))})
    assert convert(tmp_path / "src", tmp_path / "x_lms").reasons == {"not_a_file": 3}
    said = failures(tmp_path / "x_lms")["a.tar::s.wav"][1]
    assert said == "it is a symbolic link in the archive, to '/etc/passwd', not a file"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_hard_link_is_one_more_name_for_the_sound_before_it(tmp_path: Path, clips: Clips, mode: str) -> None:
    """As tar unpacks it; also through another link, or without a suffix. All else that one may name is a row."""
    first, second, *_ = clips.values()
    links = {
        "link.wav": "./a/x.wav",
        "of the link.wav": "link.wav",
        "without suffix": "a/x.wav",
        "to text.wav": "a/t.txt",
        "to nothing.wav": "gone.wav",
        "to what is bad.wav": "../y.wav",
        "ahead.wav": "later.wav",
    }
    (tmp_path / "src").mkdir()
    name = "a.tar.gz" if mode == "w:gz" else "a.tar"
    with tarfile.open(tmp_path / "src" / name, mode) as archive:  # type: ignore[call-overload]

        def add(member: str, data: bytes) -> None:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        for member, data in (("a/x.wav", first), ("a/t.txt", b"text"), ("../y.wav", first)):
            add(member, data)
        for member, target in links.items():
            info = tarfile.TarInfo(member)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
        add("a/x.wav", second)  # replaces the first, but not what the links name
        add("later.wav", second)
    convert(tmp_path / "src", tmp_path / "x_lms")
    found = arrays(tmp_path / "x_lms")
    assert set(found) == {f"{each}.npy" for each in ("a/x", "link", "of the link", "without suffix", "later")}
    assert found["link.npy"] == found["of the link.npy"] == found["without suffix.npy"] != found["a/x.npy"]
    said = {member.partition("::")[2]: row for member, row in failures(tmp_path / "x_lms").items()}
    assert said["to what is bad.wav"] == (
        "bad_name",
        "it is a hard link to '../y.wav': the name '../y.wav' in the archive leads out of a folder",
    )
    for member in ("to text.wav", "to nothing.wav", "ahead.wav"):
        assert said[member][0] == "not_a_file"
        assert "which is no sound that lies before it" in said[member][1]


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("a.tar.zst", b"", "zstd -d"),
        ("a.TZST", b"", "zstd -d"),
        ("a.tar", b"\x28\xb5\x2f\xfd", "zstd -d"),
        ("a.tar.gz", b"\x04\x22\x4d\x18", "lz4 -d"),
        ("a.tar.lz4", b"", "lz4 -d"),
        ("a.tar.lz", b"", "lzip -d"),
        ("a.tar.Z", b"", "uncompress"),
        ("a.7z", b"", "7z x"),
        ("a.tar", b"7z\xbc\xaf\x27\x1c", "7z x"),
        ("a.rar", b"", "unrar x"),
    ],
)
def test_archives_that_are_not_read_are_rows_that_say_what_to_do(
    tmp_path: Path, clips: Clips, name: str, head: bytes, words: str
) -> None:
    """By their names, or by their first bytes whatever their names say."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.wav").write_bytes(next(iter(clips.values())))
    (tmp_path / "src" / name).write_bytes(head + b"something packed" * 50)
    assert convert(tmp_path / "src", tmp_path / "x_lms").done == 1
    reason, message = failures(tmp_path / "x_lms")[name]
    assert (reason, words in message) == ("unsupported", True)


def test_an_encrypted_member_of_a_zip_is_a_row(tmp_path: Path, clips: Clips) -> None:
    packed(made(tmp_path / "src", "stored zip", clips), dict(list(clips.items())[:2]))
    data = bytearray((tmp_path / "src" / "a.zip").read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1
    (tmp_path / "src" / "a.zip").write_bytes(data)
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert (report.done, report.reasons) == (1, {"unsupported": 1})


@pytest.mark.parametrize("kind", ["stored zip", "deflated zip"])
def test_bytes_that_have_changed_in_a_zip_are_found_by_their_crc(tmp_path: Path, clips: Clips, kind: str) -> None:
    archive = made(tmp_path / "src", kind, clips)
    with zipfile.ZipFile(archive) as opened:
        info = opened.infolist()[0]
    data = bytearray(archive.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0x55
    archive.write_bytes(data)
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert (report.done, report.reasons) == (11, {"malformed": 1})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz", "stored zip", "deflated zip"])
def test_a_truncated_archive_gives_the_members_that_are_there(
    tmp_path: Path, clips: Clips, as_files: Path, kind: str
) -> None:
    """Those before the cut are converted, one cut through fails by its name, and a row says that more is missing."""
    archive = made(tmp_path / "src", kind, clips)
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) * 2 // 3])
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert 4 <= report.done < 12
    assert set(report.reasons) == {"truncated"}
    assert arrays(as_files).items() >= arrays(tmp_path / "x_lms").items()
    assert archive.name in failures(tmp_path / "x_lms")
    archive.write_bytes(data)
    mended = convert(tmp_path / "src", tmp_path / "x_lms", check_sources=True)
    assert (mended.done + mended.skipped, mended.failed) == (12, 0)
    assert arrays(tmp_path / "x_lms") == arrays(as_files)


def test_a_tar_that_was_cut_between_two_members_is_not_taken_for_a_whole_one(tmp_path: Path, clips: Clips) -> None:
    archive = made(tmp_path / "src", "tar", clips)
    with tarfile.open(archive) as opened:
        at = opened.getmembers()[5].offset
    data = archive.read_bytes()
    # The cut; a damaged header; and another archive behind this one.
    damaged = [(data[:at], 5), (data[: at + 200], 5), (data[:at] + b"x" * 512 + data[at + 512 :], 5), (data + data, 12)]
    for number, (content, whole) in enumerate(damaged):
        archive.write_bytes(content)
        report = convert(tmp_path / "src", tmp_path / f"x{number}_lms")
        assert (report.done, report.failed) == (whole, 1), number
        ((name, (reason, message)),) = failures(tmp_path / f"x{number}_lms").items()
        assert (name, reason in ("truncated", "malformed")) == ("a.tar", True)
        assert "what follows is unknown" in message


def test_a_compressed_tar_is_unpacked_once_even_if_threads_are_out_of_order(
    tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "tar.gz", clips)
    sources = in_reading_order(discover(tmp_path))
    begun: list[int] = []
    original = forwards.Unpacked._begin
    monkeypatch.setattr(forwards.Unpacked, "_begin", lambda self: (begun.append(1), original(self))[1])
    mixed = [sources[number] for number in (3, 1, 0, 2, 7, 5, 4, 6, 11, 10, 9, 8)]
    for source in mixed:
        content = source.input().open(AudioInfo())
        assert content.at(0, content.size) == clips[source.relative.partition("::")[2]]
        content.close()
    assert len(begun) == 1


def test_archives_that_are_none(tmp_path: Path, clips: Clips) -> None:
    (tmp_path / "src").mkdir()
    for name in ("text.zip", "text.tar", "text.tgz", "text.parquet"):
        (tmp_path / "src" / name).write_bytes(b"no archive at all " * 50)
    for name in ("empty.tar", "empty.zip"):
        (tmp_path / "src" / name).write_bytes(b"")
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "src" / "captions.parquet")
    os.mkfifo(tmp_path / "src" / "pipe.tar")
    (tmp_path / "src" / "a.wav").write_bytes(next(iter(clips.values())))
    packed(tmp_path / "src" / "outer.zip", {"inner.tar": b"x", "b.wav": next(iter(clips.values())), "n.json": b"{}"})
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    found = {name: reason for name, (reason, _) in failures(tmp_path / "x_lms").items()}
    assert report.done == 2
    assert found.pop("pipe.tar") == "not_a_file"
    assert [found.pop(name) for name in ("empty.tar", "empty.zip")] == ["empty_file"] * 2
    assert found.pop("outer.zip::inner.tar") == "unsupported"
    assert set(found) == {"text.zip", "text.tar", "text.tgz", "text.parquet"}
    assert set(found.values()) <= {"not_audio", "malformed", "truncated"}
    assert report.passed_over.files == {".parquet": 1, ".json": 1}


def test_rows_without_bytes_or_names(tmp_path: Path, clips: Clips) -> None:
    data = next(iter(clips.values()))
    pairs = [{"bytes": data, "path": "a.wav"}, {"bytes": None, "path": "b.wav"}, {"bytes": data, "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "src").mkdir()
    pq.write_table(pa.table({"audio": pa.array(pairs, kind), "n": [7, 8, 9]}), tmp_path / "src" / "a.parquet")
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert (report.done, report.reasons) == (1, {"not_found": 1, "bad_name": 1})
    report = convert(tmp_path / "src", tmp_path / "y_lms", archives=ArchiveOptions(id_column="n"))
    assert (report.done, set(arrays(tmp_path / "y_lms"))) == (2, {"7.npy", "9.npy"})
    report = convert(tmp_path / "src", tmp_path / "z_lms", archives=ArchiveOptions(id_column="missing"))
    assert "no column missing" in failures(tmp_path / "z_lms")["a.parquet"][1]


def test_an_archive_that_was_written_anew_is_converted_again_if_asked(tmp_path: Path, clips: Clips) -> None:
    archive = made(tmp_path / "src", "tar", clips)
    convert(tmp_path / "src", tmp_path / "x_lms")
    names, contents = list(clips), list(clips.values())
    tar(archive, dict(zip(names, contents[4:] + contents[:4], strict=True)))
    os.utime(archive, ns=(1, 1))
    assert convert(tmp_path / "src", tmp_path / "x_lms").done == 0
    assert convert(tmp_path / "src", tmp_path / "x_lms", check_sources=True).done == 12


def test_nothing_is_unpacked_to_disk(tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    temporaries = tmp_path / "tmp"
    temporaries.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporaries))
    made(tmp_path / "src", "deflated zip", clips)
    convert(tmp_path / "src", tmp_path / "x_lms")
    assert not list(temporaries.iterdir())
    assert len(list((tmp_path / "src").iterdir())) == 1


@pytest.mark.slow
def test_kill_in_the_middle(tmp_path: Path, clips: Clips, as_files: Path, warm_python: str) -> None:
    """With two workers; the same command goes on, and all bytes are those of an undisturbed run of the files.

    Archives of four kinds have a quarter of the clips each.
    """
    for number, kind in enumerate(["tar", "tar.gz", "deflated zip", "Hugging Face's Parquet"]):
        archive = made(tmp_path / "src", kind, dict(list(clips.items())[number::4]))
        archive.rename(archive.with_name(f"{number}{archive.name}"))
    command = [sys.executable, "-m", "m2dprep", "melspec", tmp_path / "src", tmp_path / "x_lms", "--min-seconds", "0.2",
               "--workers", "2"]  # fmt: skip
    moment = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 60
        wanted = moment.randrange(1, 8)
        while process.poll() is None and time.monotonic() < deadline and len(arrays(tmp_path / "x_lms")) < wanted:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run([warm_python, *command[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert arrays(tmp_path / "x_lms") == arrays(as_files)
    assert not failures(tmp_path / "x_lms")


@pytest.mark.slow
def test_a_shard_of_webdataset(tmp_path: Path, clips: Clips, as_files: Path) -> None:
    """As its own writer packs it: a key, and sound, text and JSON beside each other."""
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "src").mkdir()
    with webdataset.TarWriter(str(tmp_path / "src" / "shard-000000.tar")) as writer:
        for name, data in clips.items():
            key, _, suffix = name.rpartition(".")
            writer.write({"__key__": key.replace(".", "_"), suffix: data, "txt": "a caption", "json": {"a": 1}})
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert (report.done, report.failed) == (12, 0)
    assert report.passed_over.files == {".txt": 12, ".json": 12}
    assert list(arrays(tmp_path / "x_lms").values()) == list(arrays(as_files).values())


def file_struct(values: list[bytes], kind: pa.DataType | None = None) -> pa.Array:
    return pa.StructArray.from_arrays(
        [pa.array(values, kind or pa.binary()), pa.array(["p"] * len(values))], ["bytes", "path"]
    )


def test_columns_of_any_type_that_holds_bytes_and_names(tmp_path: Path, clips: Clips) -> None:
    """Categories, views and lengths that are fixed; columns of images beside. What may be several sounds is a row."""
    data = [next(iter(clips.values()))] * 2
    columns = {
        "large": {"id": ["large 0", "large 1"], "audio": pa.array(data, pa.large_binary())},
        "view": {"id": pa.array(["view 0", "view 1"], pa.string_view()), "audio": pa.array(data, pa.binary_view())},
        "fixed": {"id": ["fixed 0", "fixed 1"], "audio": pa.array(data, pa.binary(len(data[0])))},
        "list": {"id": ["list 0", "list 1"], "audio": pa.array(map(list, data), pa.list_(pa.uint8()))},
        "signed": {
            "id": ["signed 0", "signed 1"],
            "flac": pa.array([[byte - 256 * (byte > 127) for byte in each] for each in data], pa.large_list(pa.int8())),
        },
        "in a struct": {
            "id": ["in 0", "in 1"],
            "mic": file_struct([list(each) for each in data], pa.list_(pa.uint8())),
        },
        "struct": {"id": ["struct 0", "struct 1"], "mic": file_struct(data, pa.large_binary())},
        "category": {"ytid": pa.array(["category 0", "category 1"]).dictionary_encode(), "audio": data},
        "image": {"id": ["image 0", "image 1"], "image": [b"\x89PNG"] * 2, "clip": data},
        "images": {"id": ["images 0", "images 1"], "image": file_struct(data), "clip": file_struct(data)},
        "two": {"id": ["two 0", "two 1"], "left": file_struct(data), "right": file_struct(data)},
    }
    (tmp_path / "src").mkdir()
    for name, table in columns.items():
        pq.write_table(pa.table(table), tmp_path / "src" / f"{name}.parquet")
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    expected = {f"{name.split()[0]} {row}.npy" for name in columns if name != "two" for row in range(2)}
    assert (set(arrays(tmp_path / "x_lms")), report.done) == (expected, len(expected))
    reason, message = failures(tmp_path / "x_lms")["two.parquet"]
    assert reason == "unsupported"
    assert "(left, right); call one of them audio" in message


def test_columns_of_lists_that_are_no_files(tmp_path: Path, clips: Clips) -> None:
    """Samples are rows of the table's; lists that no name calls sounds are passed over, as captions are."""
    data = list(next(iter(clips.values())))
    samples = [[0.0, 0.5]] * 2
    decoded = pa.StructArray.from_arrays([pa.array(samples), pa.array([16000] * 2)], ["array", "sampling_rate"])
    tables = {
        "holes": {"id": ["a", "b"], "audio": pa.array([data, [82, None, 70]], pa.list_(pa.uint8()))},
        "samples": {"id": ["c", "d"], "audio": samples},
        "decoded": {"id": ["e", "f"], "audio": decoded},
        "pixels": {"id": ["g", "h"], "pixels": pa.array([data] * 2, pa.list_(pa.uint8()))},
        "paths": {"id": ["i", "j"], "audio": ["i.wav", "j.wav"]},
    }
    (tmp_path / "src").mkdir()
    for name, table in tables.items():
        pq.write_table(pa.table(table), tmp_path / "src" / f"{name}.parquet")
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    found = failures(tmp_path / "x_lms")
    assert (report.done, report.passed_over.files) == (1, {".parquet": 2})
    assert {name: reason for name, (reason, _) in found.items()} == {
        "holes.parquet::b": "malformed",
        "samples.parquet": "unsupported",
        "decoded.parquet": "unsupported",
    }
    assert "its column audio holds numbers (list<" in found["samples.parquet"][1]


@pytest.mark.parametrize(
    ("mode", "name"),
    [("w", "a.tar.gz"), ("w", "a.tgz"), ("w:gz", "a.tar"), ("w:xz", "a.tar.gz"), ("w:bz2", "a.tar")],
)
def test_a_tar_is_known_by_its_content(tmp_path: Path, clips: Clips, mode: str, name: str) -> None:
    """Servers and programs unpack .gz on the way, or pack what they send, and leave the name as it is."""
    (tmp_path / "src").mkdir()
    tar(tmp_path / "src" / name, clips, mode)
    assert convert(tmp_path / "src", tmp_path / "x_lms").done == len(clips)


@pytest.mark.parametrize(
    ("kind", "behind"),
    [("gz", b"garbage" * 9), ("gz", bytes(512)), ("bz2", b"garbage" * 9), ("xz", bytes(512)), ("lzma", b"garbage" * 9)],
    ids=lambda one: one if isinstance(one, str) else "zeros" if not one.strip(b"\0") else "garbage",
)
def test_what_follows_a_compressed_tar_costs_no_member(tmp_path: Path, clips: Clips, kind: str, behind: bytes) -> None:
    """It is a row of the archive, unless it is nothing but zeros."""
    (tmp_path / "src").mkdir()
    tar(tmp_path / "tar", dict(list(clips.items())[:2]), "w")
    (tmp_path / f"src/a.tar.{kind}").write_bytes(PACKERS[kind]((tmp_path / "tar").read_bytes()) + behind)
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    assert report.done == 2
    assert set(failures(tmp_path / "x_lms")) == (set() if not behind.strip(b"\0") else {f"a.tar.{kind}"})
