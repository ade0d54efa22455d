"""`m2dprep search`: words and sounds find rows, with captions and labels; what cannot be searched is explained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import m2dprep
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.evaluation import text_towers
from m2dprep.evaluation.search.command import Hit
from tests.cli.invocation import refused, run
from tests.evaluation.made_clips import write_checkpoint, write_tones
from tests.evaluation.search.fake_words import FakeEncoder

pytestmark = pytest.mark.slow

COUNT = 9


@pytest.fixture(autouse=True)
def text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, two stores of its embeddings, one by windows, and captions and labels of the clips."""
    folder = tmp_path_factory.mktemp("search")
    write_checkpoint(folder / "run")
    names = write_tones(folder / "wavs", COUNT)
    shutil.copytree(folder / "wavs", folder / "again")
    assert run("embed-audio", folder / "run", folder / "wavs", folder / "store", "--device", "cpu").exit_code == 0
    windows = ("--window", 0.3, "--device", "cpu")
    assert run("embed-audio", folder / "run", folder / "again", folder / "windows", *windows).exit_code == 0
    clips = [name.removesuffix(".wav") for name in names]
    columns = {
        "clip_id": [clip for clip in clips for _ in range(2)],
        "caption": [f"{said} tone {clip}" for clip in clips for said in ("a", "one")],
        "source": ["made"] * (2 * COUNT),
        "caption_index": [0, 1] * COUNT,
        "split": ["train"] * (2 * COUNT),
        "labels": [[f"Kind {number % 3}", "Tone"] for number in range(COUNT) for _ in range(2)],
    }
    write_captions(folder / "captions.parquet", pa.table(columns, schema=CAPTIONS_SCHEMA))
    rows = [f"{name},kind {number % 2}" for number, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join(["file_name,label", *rows]))
    return folder


def found(*words: object) -> dict[str, Any]:
    done = run("search", "--device", "cpu", "--json", *words)
    assert done.exit_code == 0, done.output
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def test_words_find_the_rows_with_the_largest_cosine(place: Path) -> None:
    result = found(place / "store", "a dog barks", "--top", 4)
    model = m2dprep.load(place / "run", device="cpu")
    store = m2dprep.AudioStore.open(place / "store")
    cosines = np.asarray(store.embeddings, np.float64) @ model.encode_text("a dog barks")[0].astype(np.float64)
    assert [hit["row"] for hit in result["results"]] == np.argsort(-cosines, kind="stable")[:4].tolist()
    np.testing.assert_allclose([hit["score"] for hit in result["results"]], np.sort(cosines)[::-1][:4], atol=1e-5)
    assert (result["query"], result["rows"], result["exact"]) == ("a dog barks", COUNT, True)
    assert [hit["rank"] for hit in result["results"]] == [1, 2, 3, 4]


def test_a_sound_finds_itself(place: Path) -> None:
    hit = found(place / "store", "--by-audio", place / "wavs/004.wav")["results"][0]
    assert (hit["file"], hit["clip_id"], round(hit["score"], 2)) == ("004.wav", "004", 1.0)


def test_stores_of_one_model_are_searched_together(place: Path) -> None:
    apart = [hit for name in ("store", "windows") for hit in found(place / name, "rain", "--top", 99)["results"]]
    together = found(place / "store", place / "windows", "rain", "--top", 99)["results"]
    key = lambda hit: (-hit["score"], hit["store"] != str(place / "store"), hit["row"])  # noqa: E731
    assert [(hit["store"], hit["row"]) for hit in together] == [
        (hit["store"], hit["row"]) for hit in sorted(apart, key=key)
    ]


def test_one_row_of_every_sound(place: Path) -> None:
    everything = found(place / "windows", "rain", "--top", 99)["results"]
    best: dict[str, int] = {}
    for hit in everything:
        best.setdefault(hit["file"], hit["row"])
    for top in (2, 5, 99):
        hits = found(place / "windows", "rain", "--top", top, "--one-per-file")["results"]
        assert [(hit["file"], hit["row"]) for hit in hits] == list(best.items())[:top]


def test_labels_choose_clips_and_captions_are_shown(place: Path) -> None:
    hits = found(place / "store", "rain", "--captions", place, "--label", "Kind 1")["results"]
    assert sorted(hit["clip_id"] for hit in hits) == ["001", "004", "007"]
    assert hits[0]["captions"] == [f"{said} tone {hits[0]['clip_id']}" for said in ("a", "one")]
    assert hits[0]["labels"] == ["Kind 1", "Tone"]
    both = ("--label", "Kind 1", "--label", "Kind 2")
    assert len(found(place / "store", "rain", "--captions", place / "captions.parquet", *both)["results"]) == 6
    odd = found(place / "windows", "rain", "--labels", place / "labels.csv", "--label", "kind 1", "--top", 99)
    assert {hit["clip_id"] for hit in odd["results"]} == {"001", "003", "005", "007"}


@pytest.mark.parametrize("text", ["x" * 5000, "/", "-", "a\tb", "雨", "a" * 300 + " rain"])
def test_any_text_can_be_looked_for(place: Path, text: str) -> None:
    if text == "/":
        refused(run("search", place / "store", text), 2, "is a folder")
    else:
        assert found(place / "store", "--", text)["query"] == text


def test_lines_for_people(place: Path) -> None:
    done = run("search", place / "store", "rain", "--top", 2, "--captions", place, "--device", "cpu")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[0] == "1"
    assert ".wav  0.00–" in lines[0]
    assert "a tone" in lines[0]


@pytest.mark.parametrize("name", ["store", "windows"])
def test_an_index_of_faiss_gives_rows_of_the_store(place: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("faiss")
    shutil.copytree(place / name, tmp_path / "store")
    exact, by_index = (found(tmp_path / "store", "rain", *more) for more in ((), ("--index",)))
    assert by_index["results"] == exact["results"]
    assert not by_index["exact"]
    [index] = (tmp_path / "store").glob("faiss-*.index")
    before = index.read_bytes()
    assert found(tmp_path / "store", "rain", "--index")["results"] == exact["results"]
    assert index.read_bytes() == before
    index.write_bytes(before[: len(before) // 2])
    refused(run("search", tmp_path / "store", "rain", "--index"), 2, str(index), "Remove it")


def of_another_model(place: Path, folder: Path) -> list[object]:
    run("embed-audio", place / "run", place / "wavs", folder / "other", "--device", "cpu")
    meta = folder / "other/meta.json"
    value = json.loads(meta.read_text())
    value["checkpoint_digest"] = "0" * 64
    meta.write_text(json.dumps({key: one for key, one in value.items() if key not in ("proof", "digest")}))
    return [place / "store", folder / "other", "rain"]


def of_features(place: Path, folder: Path) -> list[object]:
    run("embed-audio", place / "run", place / "wavs", folder / "other", "--contents", "features", "--device", "cpu")
    return [folder / "other", "rain"]


def moved(place: Path, folder: Path) -> list[object]:
    shutil.copytree(place, folder / "copy")
    value = json.loads((folder / "copy/store/meta.json").read_text())
    value["checkpoint"] = str(folder / "gone.pth")
    left = {key: one for key, one in value.items() if key not in ("proof", "digest")}
    (folder / "copy/store/meta.json").write_text(json.dumps(left))
    return [folder / "copy/store", "rain"]


def no_labels(place: Path, folder: Path) -> list[object]:
    (folder / "odd.csv").write_text("foo,bar\n1,2\n")
    return [place / "store", "rain", "--labels", folder / "odd.csv"]


def test_a_hit_is_one_line_whatever_its_name() -> None:
    hit = Hit(1, 0.5, "store", 0, "a\nb\x1b.wav", "a", 0.0, 1.0, ["it\nrains"], ["Rain\t"])
    assert hit.line(named=True).isprintable()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (of_another_model, "was made by another checkpoint"),
        (of_features, "conventional embeddings alone"),
        (moved, "--checkpoint says where"),
        (lambda place, folder: [place / "wavs", "rain"], "embed-audio"),
        (lambda place, folder: [folder / "gone", "rain"], "gone"),
        (lambda place, folder: [place / "store"], "is alone"),
        (lambda place, folder: [place / "store", place / "windows"], "is a folder"),
        (lambda place, folder: [place / "store", " "], "empty"),
        (lambda place, folder: [place / "store", place / "windows", place / "store", "rain"], "store is given twice"),
        (lambda place, folder: [place / "store", place / "run/../store", "rain"], "is given twice"),
        (no_labels, "It may be called file_name"),
        (lambda place, folder: [place / "store", "rain", "--label", "Tone"], "--captions or --labels"),
        (lambda place, folder: [place / "store", "rain", "--captions", place, "--label", "kind 1"], "'Kind 1'"),
        (lambda place, folder: [place / "store", "rain", "--captions", folder], "captions.parquet"),
        (lambda place, folder: [place / "store", "--by-audio", place / "labels.csv"], "not_audio"),
        (lambda place, folder: [place / "store", "--by-audio", folder / "gone.wav"], "gone.wav"),
        (
            lambda place, folder: [place / "store", "rain", "--captions", place, "--label", "Tone", "--index"],
            "exclude each other",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(place: Path, tmp_path: Path, words: Any, said: str) -> None:
    done = run("search", *words(place, tmp_path), "--device", "cpu")
    assert (done.exit_code, done.stdout, said in done.stderr) == (2, "", True), done.stderr


def test_a_checkpoint_that_has_moved(place: Path, tmp_path: Path) -> None:
    words = moved(place, tmp_path)
    assert found(*words, "--checkpoint", place / "run")["results"] == [
        {**hit, "store": str(tmp_path / "copy/store")} for hit in found(place / "store", "rain")["results"]
    ]


def test_no_text_encoder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(place / "no cache"))
    done = run("search", place / "store", "rain", "--device", "cpu", "--text-model", str(place / "no folder"))
    assert (done.exit_code, "no folder" in done.stderr) == (2, True), done.stderr
