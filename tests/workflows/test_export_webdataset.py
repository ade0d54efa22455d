"""Shards that we pack: read by `webdataset`, `datasets` and ourselves, with equal ids; resumed, with the same bytes."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions, write_file_list
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.pack import pack
from m2dprep.captions.sources.readers import ReadOptions, read_kind
from m2dprep.workflows import export_webdataset as module
from m2dprep.workflows.export_webdataset import ExportOptions, export_webdataset
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec
from tests.audioprep.decoding.made_sounds import NOISE, coded

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.2)
# Names with dots, which WebDataset takes for suffixes, and with signs that packing uses.
KEYS = ["a/Y-abcdefghij_30.000_40.000", "a/100%2E", "b.c/plain", "b.c/é ü", "z"]
TEXTS = {KEYS[0]: ["a dog barks", "dogs"], KEYS[1]: ["rain"], KEYS[2]: ["wind"], KEYS[3]: ["Ä bell"], KEYS[4]: ["z"]}


@pytest.fixture
def src(tmp_path: Path) -> Path:
    for number, key in enumerate(KEYS):
        path = tmp_path / "src" / f"{key}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(coded(NOISE[number * 900 : number * 900 + 6000, :1], "WAV", "PCM_16"))
    rows = [(key, text, number) for key, texts in TEXTS.items() for number, text in enumerate(texts)]
    table = pa.table(
        {
            "clip_id": [key for key, _, _ in rows],
            "caption": [text for _, text, _ in rows],
            "source": ["made"] * len(rows),
            "caption_index": pa.array([number for *_, number in rows], pa.int32()),
            "split": ["train"] * len(rows),
            "labels": pa.array([[]] * len(rows), pa.list_(pa.string())),
        }
    )
    write_captions(
        tmp_path / "captions.parquet", pa.table([table[n] for n in CAPTIONS_SCHEMA.names], CAPTIONS_SCHEMA.names)
    )
    return tmp_path / "src"


def packed(src: Path, **options: object) -> Path:
    more = {"captions": src.parent / "captions.parquet", "clips_per_shard": 2, **options}
    report = export_webdataset(src, src.parent / "out", ExportOptions(**more))  # type: ignore[arg-type]
    assert (report.done + report.skipped, report.failed, report.uncaptioned) == (5, 0, 0)
    return src.parent / "out"


def arrays(lms: Path) -> dict[str, bytes]:
    return {path.relative_to(lms).as_posix(): path.read_bytes() for path in sorted(lms.rglob("*.npy"))}


def test_we_read_our_own_shards_with_the_same_ids(tmp_path: Path, src: Path) -> None:
    out = packed(src)
    assert sorted(path.name for path in out.glob("*.tar")) == [f"shard-00000{number}.tar" for number in range(3)]
    for folder, lms in ((src, "x_lms"), (out, "y_lms")):
        report = run_melspec(folder, tmp_path / lms, CONFIG, MelspecOptions(workers=0))
        assert (report.done, report.failed) == (5, 0)
    assert arrays(tmp_path / "x_lms") == arrays(tmp_path / "y_lms")
    read = read_kind("webdataset", [out], ReadOptions()).rows.to_pylist()
    assert {(row["id"], row["caption"]) for row in read} == {(key, text) for key in KEYS for text in TEXTS[key]}


@pytest.mark.parametrize("out", ["src/out", "src", "src/b.c/../out", "link/out"])
def test_shards_never_lie_among_the_sounds(tmp_path: Path, src: Path, out: str) -> None:
    (tmp_path / "link").symlink_to(src)
    with pytest.raises(UserError, match="whose sounds it would be counted among"):
        export_webdataset(src, tmp_path / out, ExportOptions(captions=tmp_path / "captions.parquet"))
    assert not (src / "out").exists()


def test_shards_may_lie_beside_an_archive_of_sounds(tmp_path: Path, src: Path) -> None:
    shard = min(packed(src).glob("*.tar"))
    options = ExportOptions(captions=tmp_path / "captions.parquet")
    report = export_webdataset(shard, shard.parent / "again", options)
    assert (report.done, report.failed) == (2, 0)


def test_webdataset_reads_them(src: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    out = packed(src)
    shards = [str(path) for path in sorted(out.glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert [json.loads(sample["json"])["clip_id"] for sample in samples] == sorted(KEYS)
    assert [sample["txt"].decode() for sample in samples] == [TEXTS[key][0] for key in sorted(KEYS)]
    assert [sample["wav"] for sample in samples] == [(src / f"{key}.wav").read_bytes() for key in sorted(KEYS)]


def without_torchcodec(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`datasets`, which imports torchcodec for sounds that it neither encodes nor decodes here."""
    datasets = pytest.importorskip("datasets")
    if importlib.util.find_spec("torchcodec") is None:
        encoders = types.ModuleType("torchcodec.encoders")
        encoders.AudioEncoder = None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders)
    return datasets


@pytest.mark.slow
def test_datasets_reads_them(tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = without_torchcodec(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = packed(src)
    found = datasets.load_dataset(
        "webdataset", data_files=str(out / "*.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    found = found.cast_column("wav", datasets.Audio(decode=False))
    rows = {row["json"]["clip_id"]: row for row in found}
    assert rows.keys() == set(KEYS)
    for key, row in rows.items():
        assert row["wav"]["bytes"] == (src / f"{key}.wav").read_bytes()
        assert row["json"]["text"] == TEXTS[key]


@pytest.mark.slow
def test_a_parquet_of_datasets_is_read(tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = without_torchcodec(monkeypatch)
    names = [f"{key}.wav" for key in KEYS]
    rows = {"audio": [{"bytes": (src / name).read_bytes(), "path": name} for name in names], "text": ["x"] * 5}
    features = datasets.Features({"audio": datasets.Audio(decode=False), "text": datasets.Value("string")})
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "hub/train-00000-of-00001.parquet"))
    for folder, lms in ((src, "x_lms"), (tmp_path / "hub", "y_lms")):
        assert run_melspec(folder, tmp_path / lms, CONFIG, MelspecOptions(workers=0)).done == 5
    assert arrays(tmp_path / "x_lms") == arrays(tmp_path / "y_lms")


def test_the_same_bytes_after_a_stop_and_from_another_form(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = packed(src)
    expected = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    packed(src, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == expected

    def stop(*_: object) -> bytes:
        raise KeyboardInterrupt

    original, count = module._content, iter(range(100))
    monkeypatch.setattr(module, "_content", lambda *a: original(*a) if next(count) < 3 else stop())
    with pytest.raises(KeyboardInterrupt):
        packed(src, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == expected  # until the new one is complete
    monkeypatch.setattr(module, "_content", original)
    packed(src, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == expected
    for path in out.glob("*.tar"):
        path.unlink()
    with pytest.raises(FingerprintConflictError, match="not there any more"):
        packed(src)
    monkeypatch.setattr(module, "_content", lambda *a: original(*a) if next(count) < 7 else stop())
    (out / "_export" / "state.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        packed(src)
    monkeypatch.setattr(module, "_content", original)
    assert len(list(out.glob("*.tar"))) == 1
    packed(src)
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == expected
    with pytest.raises(FingerprintConflictError, match="clips_per_shard"):
        packed(src, clips_per_shard=3)
    again = export_webdataset(out, tmp_path / "again", ExportOptions(tmp_path / "captions.parquet", clips_per_shard=2))
    assert (again.done, {path.name: path.read_bytes() for path in (tmp_path / "again").glob("*.tar")}) == (5, expected)


def test_shards_have_the_size_that_was_asked_for_and_faults_are_rows(tmp_path: Path, src: Path) -> None:
    (src / "empty.wav").write_bytes(b"")
    (src / "b.c/plain.mp4").write_bytes(b"of the same array")
    report = export_webdataset(src, tmp_path / "out", ExportOptions(bytes_per_shard=30_000))
    assert (report.done, report.failed, report.reasons) == (5, 2, {"empty_file": 1, "name_conflict": 1})
    assert all(path.stat().st_size <= 30_000 + 10240 for path in (tmp_path / "out").glob("*.tar"))
    assert report.shards == 3
    assert "empty.wav,empty_file" in (tmp_path / "out/_export/failures.csv").read_text()
    again = export_webdataset(src, tmp_path / "out", ExportOptions(bytes_per_shard=30_000))
    assert (again.done, again.skipped, again.failed) == (0, 5, 2)
    with pytest.raises(UserError, match="not one of the sounds is a clip"):
        (tmp_path / "one").mkdir()
        (tmp_path / "one/q.wav").write_bytes(io.BytesIO(b"x").read())
        export_webdataset(tmp_path / "one", tmp_path / "o", ExportOptions(tmp_path / "captions.parquet"))


@pytest.fixture
def lms(tmp_path: Path, src: Path) -> Path:
    folder = tmp_path / "data/x_lms"
    assert run_melspec(src, folder, CONFIG, MelspecOptions(workers=0)).done == 5
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("is_packed", [False, True])
def test_log_mels_take_the_place_of_sounds(tmp_path: Path, src: Path, lms: Path, is_packed: bool) -> None:
    """Their arrays as webdataset decodes them, in float16 from a pack, whether their files are still there or not."""
    webdataset = pytest.importorskip("webdataset")
    arrays_before = {key: np.load(lms / f"{key}.npy") for key in KEYS}
    if is_packed:
        pack(lms)
        for key in KEYS:
            (lms / f"{key}.npy").unlink()
    out = tmp_path / "out"
    report = export_webdataset(lms, out, ExportOptions(tmp_path / "captions.parquet", clips_per_shard=2))
    assert (report.inputs, report.done, report.failed, report.uncaptioned, report.shards) == (5, 5, 0, 0, 3)
    shards = [str(path) for path in sorted(out.glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode())
    assert [sample["json"]["clip_id"] for sample in samples] == sorted(KEYS)
    assert [sample["txt"] for sample in samples] == [TEXTS[key][0] for key in sorted(KEYS)]
    for key, sample in zip(sorted(KEYS), samples, strict=True):
        assert sample["npy"].dtype == (np.float16 if is_packed else np.float32)
        assert (sample["npy"] == arrays_before[key].astype(sample["npy"].dtype)).all()
    before = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    (out / "shard-000002.tar").unlink()
    with pytest.raises(FingerprintConflictError, match="shards that are not there any more"):
        export_webdataset(lms, out, ExportOptions(tmp_path / "captions.parquet", clips_per_shard=2))
    again = export_webdataset(lms, out, ExportOptions(tmp_path / "captions.parquet", clips_per_shard=2, overwrite=True))
    assert again.done == 5
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == before


def test_log_mels_that_are_damaged_gone_or_unknown_are_rows(tmp_path: Path, lms: Path) -> None:
    damaged, gone = lms / f"{KEYS[1]}.npy", lms / f"{KEYS[2]}.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x77")
    gone.unlink()
    listed = tmp_path / "data/files_some.csv"
    write_file_list(listed, [f"x_lms/{key}.npy" for key in (*KEYS, "b.c/unknown")])
    report = export_webdataset(lms, tmp_path / "out", ExportOptions(files=listed))
    assert (report.inputs, report.done) == (6, 3)
    assert report.reasons == {"malformed": 1, "not_found": 2}
    rows = (tmp_path / "out/_export/failures.csv").read_text()
    assert "b.c/unknown.npy,not_found,it has no record as a log-mel" in rows
    assert f"{KEYS[2]}.npy,not_found,it has gone since it was converted" in rows


def test_an_export_of_other_log_mels_is_another_one(tmp_path: Path, src: Path, lms: Path) -> None:
    export_webdataset(lms, tmp_path / "out", ExportOptions())
    other = tmp_path / "data/y_lms"
    assert run_melspec(src, other, ConvertConfig(PRESETS["16k"], min_seconds=0.3), MelspecOptions(workers=0)).done == 5
    for folder in (other, src):
        with pytest.raises(FingerprintConflictError, match="log_mels"):
            export_webdataset(folder, tmp_path / "out", ExportOptions())
