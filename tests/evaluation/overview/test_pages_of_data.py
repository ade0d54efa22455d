"""Pages of data, runs and stores: whole, escaped, bounded, and needing nothing from elsewhere."""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions
from m2dprep.audioprep.config import PRESETS
from m2dprep.evaluation.overview.cards import SECONDS, encoded, thumbnail
from m2dprep.evaluation.overview.maps import commonest, drawn_map, groups_of
from m2dprep.training.reports.report import ReportOptions, write_report
from tests.cli.invocation import refused, run
from tests.evaluation.reports.test_pages import Reader

pytestmark = pytest.mark.slow
HOSTILE = '<script>alert("1")</script>'
RATE = 16000
LABELS = ("Dog", "Rain")


def a_sound(path: Path, seconds: float, hertz: float, level: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(path, wave.astype(np.float32), RATE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory of a few sounds, with odd names, captions and embeddings; a run on it; a store of its sounds."""
    root = tmp_path_factory.mktemp("world")
    for number in range(12):
        a_sound(root / f"wavs/part{number % 2}/{number}_{LABELS[number % 2]}.wav", 1.0 + number / 4, 200 + 100 * number)
    a_sound(root / "wavs/part0/silence.wav", 1.0, 1.0, level=0.0)
    a_sound(root / "wavs/part0/loud.wav", 1.0, 100.0, level=1.0)
    (root / "wavs/part0/copy.wav").write_bytes((root / "wavs/part0/0_Dog.wav").read_bytes())
    (root / "wavs/part1" / "<b>bad & broken.wav").write_bytes(b"no sound at all")
    data = root / "data"
    done = run("melspec", root / "wavs", data / "x_lms", "--workers", "0", "--max-failures", "1")
    assert done.exit_code == 0, done.output
    assert "failed: part1/<b>bad & broken.wav: not_audio" in done.stderr
    assert run("stats", data / "x_lms").exit_code == 0
    rows = [
        {"clip_id": f"part{n % 2}/{n}_{LABELS[n % 2]}", "caption": f"{HOSTILE} number {n}", "source": "made",
         "caption_index": 0, "split": None, "labels": [LABELS[n % 2]]}
        for n in range(12)
    ]  # fmt: skip
    write_captions(data / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    captions, rng = read_captions(data / "captions.parquet"), np.random.default_rng(0)
    writer = EmbeddingStoreWriter(data / "capemb_made", index_of(captions), 384, "float16", {"model": "made"})
    writer.write_shard(np.arange(12), rng.standard_normal((12, 384)).astype(np.float16), np.arange(12))
    writer.finish({})
    trained = run("train", data, "--model", "tiny", "--epochs", 2, "--batch-size", 6, "-o", root / "run", "-q")
    assert trained.exit_code == 0, trained.output
    stored = run("embed-audio", root / "run", root / "wavs", root / "store", "--max-failures", 1, "-q")
    assert stored.exit_code == 0, stored.output
    yield root


Pages = Callable[[str], tuple[str, Reader]]
# What each page is made with; several tests read the same one.
OPTIONS: dict[str, dict[str, object]] = {
    "data": {"clips": 12}, "data/x_lms": {"clips": 3}, "store": {"clips": 4}, "data/capemb_made": {},
    "run": {"clips": 3, "encoded": 12, "device": "cpu"},
}  # fmt: skip


@pytest.fixture(scope="module")
def pages(world: Path) -> Pages:
    """The page of a part of the world, made once."""
    return functools.cache(lambda name: page_of(world, name, **OPTIONS[name]))


def page_of(world: Path, name: str, **options: object) -> tuple[str, Reader]:
    made = write_report(world / name, world / "page.html", ReportOptions(**options))  # type: ignore[arg-type]
    text = made.output.read_text()
    assert made.bytes == len(text.encode())
    assert "<script" not in text
    assert HOSTILE not in text
    reader = Reader(text.replace("<img", "<meta").replace(" />", ">"))
    assert all(link.startswith("data:") for link in reader.links)
    assert not re.search(r"url\(|@import|https?://", text)
    return text, reader


@pytest.mark.parametrize("name", OPTIONS)
def test_every_page_is_whole_and_needs_nothing_else(name: str, pages: Pages) -> None:
    pages(name)


def test_the_page_of_data_says_what_the_records_say(pages: Pages) -> None:
    text, reader = pages("data")
    words = " ".join(reader.text.split())
    for said in ("15 sounds converted", "1 failed", "12 of 15 listed files have captions (80.0%)", "bad & broken.wav",
                 "its content is of no known audio format", "silence.wav", "loud.wav", "part0/0_Dog.wav",
                 "part0/copy.wav", "2 in 1 group", "Mean spectrum", "number 3", "capemb_made"):  # fmt: skip
        assert said in words, said
    assert text.count("<audio") == text.count("<img") == 12


def test_players_hold_ten_seconds_of_the_sound_at_most(pages: Pages) -> None:
    text, _ = pages("data/x_lms")
    sounds = re.findall(r'<audio[^>]*src="data:(audio/\w+);base64,([^"]*)"', text)
    assert len(sounds) == 3
    for kind, content in sounds:
        decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
        assert kind in ("audio/mpeg", "audio/wav")
        assert 0.9 < len(decoded) / rate <= SECONDS + 0.2
        assert np.abs(decoded).max() > 0.3


@pytest.mark.parametrize("seconds", [0.3, 9.99, 10.0, 25.0])
def test_long_sounds_are_cut_and_faded(seconds: float) -> None:
    content, _ = encoded(np.full(round(seconds * RATE), 0.5, np.float32), RATE)
    decoded, rate = soundfile.read(io.BytesIO(content))
    assert min(seconds, SECONDS) <= len(decoded) / rate + 0.01 <= min(seconds, SECONDS) + 0.2


@pytest.mark.parametrize("frames", [1, 3, 481, 5000])
def test_thumbnails_of_any_length_are_small(frames: int) -> None:
    log_mel = np.random.default_rng(0).standard_normal((80, frames)).astype(np.float16)
    for given in (log_mel, np.full((80, frames), -15.9424, np.float32)):
        picture = thumbnail(given, PRESETS["16k"])
        assert picture.startswith(b"\xff\xd8")
        assert len(picture) < 40_000


def test_the_page_of_a_run_shows_what_it_hears(pages: Pages) -> None:
    _, reader = pages("run")
    words = " ".join(reader.text.split())
    for said in ("of 2 epochs", "loss", "What the model hears", "12 clips of those that are trained on",
                 "Nearest captions", "Map of the clips", "Its own caption is the nearest for"):  # fmt: skip
        assert said in words, said
    assert "no_captions" in words, "files without captions are left out"


def test_a_run_whose_data_are_gone_is_reported_without(world: Path, tmp_path: Path) -> None:
    _, reader = page_of(world, "run", encoded=0)
    assert "What the model hears" not in reader.text
    refused(run("report", world / "run", "-o", tmp_path / "a.html", "--data", tmp_path / "none"), 2, "no such folder")


def test_the_page_of_a_store_shows_neighbours_and_failures(world: Path, pages: Pages) -> None:
    text, reader = pages("store")
    words = " ".join(reader.text.split())
    store = AudioStore.open(world / "store")
    assert f"{len(store):,} rows" in words
    assert "by folder" in words
    assert "not_audio" in words
    assert text.count("<audio") == 4
    assert "since it was embedded" not in words


@pytest.mark.parametrize(
    ("files", "by", "groups"),
    [
        (["a/1.wav", "b/2.wav"], "folder", ["a", "b"]),
        (["ambi_choir.flac", "BD_808.flac", "9.wav"], "the beginnings of names", ["ambi", "bd", ""]),
        (["x.tar::Dog/1.wav"], "the beginnings of names", [""]),
    ],
)
def test_sounds_are_grouped_by_folder_or_name(files: list[str], by: str, groups: list[str]) -> None:
    assert groups_of(files) == (by, groups)


def test_a_map_has_ten_colours_at_most() -> None:
    labels = [f"label {n % 14}" for n in range(60)]
    vectors = np.random.default_rng(0).standard_normal((60, 8))
    drawn = drawn_map(vectors, labels, labels, 0)
    assert len(commonest(labels)) == 10
    assert "others" in drawn
    assert drawn == drawn_map(vectors, labels, labels, 0), "a seed gives one map"
    assert drawn_map(vectors[:3], labels[:3], labels[:3], 0) == ""


@pytest.mark.parametrize("what", ["nothing", "empty", "a_file"])
def test_what_cannot_be_reported_is_refused(what: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_file").write_text("text")
    refused(run("report", tmp_path / what, "-o", tmp_path / "page.html"), 2, what)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["captions.parquet", "page", "page.txt", "folder", "folder.html"])
def test_a_page_replaces_nothing_but_a_page(name: str, tmp_path: Path) -> None:
    (tmp_path / "captions.parquet").write_bytes(b"a table")
    for folder in ("folder", "folder.html"):
        (tmp_path / folder).mkdir()
    refused(run("report", tmp_path, "-o", tmp_path / name), 2, "name a")
    assert (tmp_path / "captions.parquet").read_bytes() == b"a table"


@pytest.mark.parametrize("option", [("--encoded", 3), ("--data", ".")])
def test_what_only_a_run_can_show_is_refused_elsewhere(option: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "captions.parquet").write_bytes(b"a table")
    refused(run("report", tmp_path, "-o", tmp_path / "page.html", *option), 2, f"{option[0]}: only the page of a run")
    assert not (tmp_path / "page.html").exists()


def test_the_page_of_an_evaluation_is_named(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events/report.html").write_text("the page")
    refused(run("report", tmp_path / "events", "-o", tmp_path / "page.html"), 2, "events/report.html")
