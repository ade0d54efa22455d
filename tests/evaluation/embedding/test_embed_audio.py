"""`m2dprep embed-audio`: rows are those of the model, in the order of the sounds, and runs continue."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import m2dprep
from m2dprep.artifacts.embeddings.audio_writer import AudioStoreWriter, SourceRows
from m2dprep.artifacts.npy_files import RowFile
from m2dprep.audioprep.config import PRESETS
from m2dprep.evaluation.embedding.command import EmbedRequest, after_worker_death, embed_audio
from m2dprep.evaluation.embedding.rows import Numbered, RowRequest, make_shard
from m2dprep.evaluation.tagging import opening
from m2dprep.m2dclap.model import M2DCLAP
from tests.cli.invocation import refused, run
from tests.evaluation.made_clips import write_checkpoint, write_tones
from tests.evaluation.tagging.made_classifiers import write_classifier
from tests.tiny import TINY

pytestmark = pytest.mark.slow

COUNT = 7


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and sounds as files, an archive, a list, log-mels and a pack."""
    folder = tmp_path_factory.mktemp("embed")
    write_checkpoint(folder / "run")
    write_tones(folder / "wavs/more", COUNT)
    with tarfile.open(folder / "wavs.tar", "w") as archive:
        for path in sorted((folder / "wavs").rglob("*.wav")):
            archive.add(path, path.relative_to(folder / "wavs").as_posix())
    names = sorted(path.relative_to(folder / "wavs").as_posix() for path in (folder / "wavs").rglob("*.wav"))
    (folder / "wavs.csv").write_text("\n".join(["file_name", *names]))
    options = ("--workers", 0, "--min-seconds", 0.1)
    assert run("melspec", folder / "wavs", folder / "data/made_lms", *options).exit_code == 0
    shutil.copytree(folder / "data", folder / "packed")
    assert run("pack", folder / "packed/made_lms", "--dtype", "float32").exit_code == 0
    for path in (folder / "packed/made_lms/more").glob("*.npy"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def expected(place: Path) -> np.ndarray:
    """The CLAP embeddings of all sounds."""
    return m2dprep.load(place / "run", device="cpu").encode_audio(sorted((place / "wavs").rglob("*.wav")))


def embed(place: Path, out: Path, *sounds: object, options: tuple[object, ...] = ()) -> m2dprep.AudioStore:
    done = run("embed-audio", place / "run", *(sounds or (place / "wavs",)), out, "--device", "cpu", *options)
    assert done.exit_code == 0, done.output
    return m2dprep.AudioStore.open(out)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize(
    ("sounds", "options", "first"),
    [
        (["wavs"], [], "more/000.wav"),
        (["wavs.tar"], [], "wavs.tar::more/000.wav"),
        (["wavs.csv"], ["--root", "wavs"], "more/000.wav"),
        (["data/made_lms"], [], "more/000.npy"),
        (["packed/made_lms"], [], "more/000.npy"),
    ],
)
def test_whatever_holds_the_sounds(
    place: Path, expected: np.ndarray, tmp_path: Path, sounds: list[str], options: list[str], first: str
) -> None:
    given = [place / name for name in sounds]
    where = [place / one if one == "wavs" else one for one in options]
    store = embed(place, tmp_path / "store", *given, options=(*where, "--dtype", "float32"))
    np.testing.assert_allclose(store.embeddings, expected, atol=2e-5)
    assert store.index["file"][0].as_py() == first
    assert store.index["clip_id"].to_pylist() == [f"{number:03}" for number in range(COUNT)]
    assert store.index["start"].to_pylist() == [0.0] * COUNT
    assert store.meta["checkpoint_digest"] == store.checkpoint != ""


def test_several_arguments_have_their_names_before_those_of_their_sounds(place: Path, tmp_path: Path) -> None:
    one = Path(shutil.copy(place / "wavs/more/003.wav", tmp_path / "one.wav"))
    store = embed(place, tmp_path / "store", place / "wavs", place / "data/made_lms", one)
    first, second = f"{place}/wavs/more/000.wav", f"{place}/data/made_lms/more/000.npy"
    assert store.index["file"].to_pylist()[::COUNT] == [first, second, str(one)]


@pytest.mark.parametrize(
    ("contents", "kind", "dtype"),
    [
        ("clap", "stacked", "float16"),
        ("features", "stacked", "float16"),
        ("features", "flat", "float32"),
        ("both", "stacked", "float32"),
        ("both", "flat", "float16"),
    ],
)
def test_contents(place: Path, tmp_path: Path, contents: str, kind: str, dtype: str) -> None:
    chosen = () if contents == "clap" else ("--features", kind)
    store = embed(place, tmp_path / "store", options=("--contents", contents, "--dtype", dtype, *chosen))
    model = m2dprep.load(place / "run", device="cpu")
    sounds = sorted((place / "wavs").rglob("*.wav"))
    tolerance = {"atol": 2e-3, "rtol": 2e-3} if dtype == "float16" else {"atol": 2e-5}
    clap, features = store.embeddings, store.features
    if contents == "features":
        clap, features = None, store.embeddings  # type: ignore[assignment]
    if clap is not None:
        np.testing.assert_allclose(clap, model.encode_audio(sounds), **tolerance)
    assert (features is None) == (contents == "clap")
    if features is not None:
        np.testing.assert_allclose(features, model.encode_audio(sounds, kind=kind), **tolerance)  # type: ignore[arg-type]
    assert store.embeddings.dtype == dtype


@pytest.mark.parametrize("prepared", [20_000, 10])
def test_a_window_is_a_clip_of_its_own(
    place: Path, tmp_path: Path, prepared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a sound that is long, whose log-mel is not made by the threads that read it."""
    monkeypatch.setattr(opening, "PREPARED_FRAMES", prepared)
    store = embed(place, tmp_path / "store", options=("--window", 0.4, "--hop", 0.25, "--dtype", "float32"))
    rows = store.index.to_pylist()
    one = [row for row in rows if row["file"] == "more/003.wav"]  # 0.9 s
    assert [(row["start"], row["seconds"]) for row in one] == [(0.0, 0.4), (0.25, 0.4), (0.5, 0.4)]
    samples, rate = soundfile.read(place / "wavs/more/003.wav", dtype="float32")
    cut = [samples[round(row["start"] * rate) :][: round(row["seconds"] * rate)] for row in one]
    expected = m2dprep.load(place / "run", device="cpu").encode_audio(cut, rate)
    first = rows.index(one[0])
    np.testing.assert_allclose(store.embeddings[first : first + 3], expected, atol=2e-5)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SHARD_SOUNDS", 2)


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.usefixtures("small_shards")
def test_a_run_that_was_stopped_gives_the_same_bytes(
    place: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(place, tmp_path / "whole")
    write, written = AudioStoreWriter.write_shard, [0]

    def stop(self: AudioStoreWriter, rows: Any) -> None:
        if written[0] == after:
            raise KeyboardInterrupt
        written[0] += 1
        write(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(AudioStoreWriter, "write_shard", stop)
        assert run("embed-audio", place / "run", place / "wavs", tmp_path / "store").exit_code == 130
    done = run("embed-audio", place / "run", place / "wavs", tmp_path / "store", "--device", "cpu", "--json")
    assert json.loads(done.stdout)["skipped"] == 2 * after
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_a_store_is_brought_up_to_date(place: Path, tmp_path: Path) -> None:
    sounds = tmp_path / "wavs"
    shutil.copytree(place / "wavs/more", sounds)
    embed(place, tmp_path / "store", sounds)
    write_tones(tmp_path / "other", COUNT + 1, seconds=0.8)
    shutil.copy(tmp_path / "other/007.wav", sounds)  # new
    shutil.copy(tmp_path / "other/002.wav", sounds)  # another sound
    (sounds / "005.wav").unlink()
    (sounds / "004.wav").write_text("no sound any more")
    words = (
        "embed-audio",
        place / "run",
        sounds,
        tmp_path / "store",
        "--device",
        "cpu",
        "--max-failures",
        "1",
        "--json",
    )
    done = run(*words)
    report = json.loads(done.stdout)
    assert {key: report[key] for key in ("inputs", "done", "skipped", "failed", "gone", "rows")} == {
        "inputs": 7, "done": 2, "skipped": 4, "failed": 1, "gone": 1, "rows": 6,
    }  # fmt: skip
    assert "1 of the earlier store are gone" in done.stderr
    fresh = run("embed-audio", place / "run", sounds, tmp_path / "fresh", "--device", "cpu", "--max-failures", "1")
    assert fresh.exit_code == 0
    ours, other = (m2dprep.AudioStore.open(tmp_path / name) for name in ("store", "fresh"))
    assert ours.index.equals(other.index)
    assert ours.failures.to_pylist() == other.failures.to_pylist()
    assert ours.failures["file"].to_pylist() == ["004.wav"]
    np.testing.assert_allclose(ours.embeddings, other.embeddings, atol=1e-3)
    assert json.loads(run(*words).stdout)["skipped"] == 6, "nothing is left to do"


def test_a_store_of_other_sounds_and_a_folder_of_other_things_stay(place: Path, tmp_path: Path) -> None:
    store, device = tmp_path / "store", ("--device", "cpu")
    embed(place, store)
    before = files(store)
    refused(
        run("embed-audio", place / "run", place / "wavs/more", store, *device), 5, "of 7 other sounds (more/000.wav"
    )
    assert files(store) == before
    embed(place, store, place / "wavs/more", options=("--overwrite",))
    for option in ((), ("--overwrite",)):
        refused(run("embed-audio", place / "run", place / "wavs", place / "data", *device, *option), 2, "but no store")


@pytest.mark.usefixtures("small_shards")
def test_workers_give_the_same_bytes(place: Path, tmp_path: Path) -> None:
    """Their sounds and log-mels are opened in processes of their own. One process is enough to show that."""
    sounds = (place / "wavs", place / "packed/made_lms", place / "data/made_lms")
    alone = embed(place, tmp_path / "alone", *sounds)
    shared = embed(place, tmp_path / "shared", *sounds, options=("--workers", 1))
    np.testing.assert_array_equal(alone.embeddings, shared.embeddings)
    assert alone.index.equals(shared.index)


@pytest.mark.usefixtures("small_shards")
def test_workers_may_finish_in_any_order_and_die(place: Path, tmp_path: Path) -> None:
    """Shards come in parts, the last ones first; a sound that killed its worker again and again has failed."""

    def last_first(request: RowRequest, shards: Iterable[Sequence[Numbered]]) -> Iterator[list[SourceRows]]:
        found = [one for shard in shards for one in make_shard(shard, request)]
        for one in reversed(found):
            yield [one]

    def deadly(request: RowRequest, shards: Iterable[Sequence[Numbered]]) -> Iterator[list[SourceRows]]:
        for shard in shards:
            for one, numbered in zip(make_shard(shard, request), shard, strict=True):
                yield [after_worker_death(numbered) if numbered[0] == 3 else one]

    asked = EmbedRequest(place / "run", [place / "wavs"], tmp_path / "alone", device="cpu")
    embed_audio(asked, quiet=True)
    embed_audio(replace(asked, output=tmp_path / "shared"), last_first, quiet=True)
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    report = embed_audio(replace(asked, output=tmp_path / "deadly"), deadly, quiet=True)
    assert (report.failed, report.rows, report.reasons) == (1, COUNT - 1, {"worker_died": 1})


def test_failures_are_rows_and_count(place: Path, tmp_path: Path) -> None:
    sounds = tmp_path / "wavs"
    shutil.copytree(place / "wavs/more", sounds)
    (sounds / "003.wav").write_bytes(b"")
    done = run("embed-audio", place / "run", sounds, tmp_path / "store", "--device", "cpu")
    assert done.exit_code == 3
    assert "failures.parquet" in done.stderr
    store = m2dprep.AudioStore.open(tmp_path / "store")
    assert store.failures.to_pylist() == [
        {"file": "003.wav", "reason": "empty_file", "message": "the file has 0 bytes"}
    ]
    assert "003.wav" not in store.index["file"].to_pylist()


def _no_head(place: Path) -> list[object]:
    return [write_classifier(place / "classifier"), place / "wavs", place / "store"]


def _inside(place: Path) -> list[object]:
    return [place / "run", place / "wavs", place / "wavs/embeddings"]


def _a_file(place: Path) -> list[object]:
    return [place / "run", place / "wavs", place / "wavs.csv"]


def _nothing(place: Path) -> list[object]:
    (place / "empty").mkdir(exist_ok=True)
    return [place / "run", place / "empty", place / "store"]


def _twice(place: Path) -> list[object]:
    return [place / "run", place / "wavs/more/000.wav", place / "wavs/more/000.wav", place / "store"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (_no_head, "no head for captions"),
        (_inside, "choose a folder elsewhere"),
        (_a_file, "is a file"),
        (_nothing, "holds no sound"),
        (_twice, "given twice"),
    ],
)
def test_what_cannot_be_embedded_is_refused(place: Path, words: Callable[[Path], list[object]], said: str) -> None:
    refused(run("embed-audio", *words(place), "--device", "cpu"), 2, said)
    assert not (place / "store/meta.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hop", 1], "--window"),
        (["--features", "flat"], "--contents"),
        (["--window", 0], "0"),
        (["--dtype", "int8"], "int8"),
    ],
)
def test_options_that_do_not_fit(place: Path, tmp_path: Path, options: list[object], said: str) -> None:
    done = run("embed-audio", place / "run", place / "wavs", tmp_path / "store", *options)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


def test_other_settings_are_a_conflict(place: Path, tmp_path: Path) -> None:
    embed(place, tmp_path / "store")
    words = ("embed-audio", place / "run", place / "wavs", tmp_path / "store", "--device", "cpu", "--window", 0.5)
    refused(run(*words), 5, "window", "--overwrite")
    assert run(*words, "--overwrite").exit_code == 0
    assert m2dprep.AudioStore.open(tmp_path / "store").meta["window"] == 0.5


def test_a_store_can_be_read_while_it_is_replaced(place: Path, tmp_path: Path) -> None:
    store = embed(place, tmp_path / "store")
    rows, before = store.rows(), np.array(store.embeddings)
    embed(place, tmp_path / "store", options=("--overwrite", "--dtype", "float32"))
    np.testing.assert_array_equal(store.embeddings, before)
    np.testing.assert_array_equal(rows.take(np.arange(len(before))), before)
    with pytest.raises(m2dprep.UserError, match="replaced"):
        RowFile(tmp_path / "store/embeddings.npy", store.identities["embeddings.npy"])


@pytest.fixture(scope="module")
def fusing(place: Path) -> Path:
    """A checkpoint with fusion, whose gate is open."""
    torch.manual_seed(0)
    made = M2DCLAP(replace(TINY, fusion="aff"))
    weights = {**made.state_dict(), "patch_embed.gate": torch.ones(TINY.embed_dim)}
    args = {"model_config": made.config.to_dict(), "front_end": asdict(PRESETS["16k"])}
    torch.save({"model": weights, "args": args}, place / "checkpoint-1.pth")
    return place / "checkpoint-1.pth"


@pytest.mark.parametrize("length", ["chunks", "whole", "fused"])
def test_sounds_longer_than_the_input(place: Path, fusing: Path, tmp_path: Path, length: str) -> None:
    """All ways give rows of their own; a sound finds itself among those that were encoded as it is."""
    options = () if length == "fused" else ("--length", length)  # the default of such a checkpoint
    words = ("--device", "cpu", "--dtype", "float32", *options)
    assert run("embed-audio", fusing, place / "wavs", tmp_path / "store", *words).exit_code == 0
    store = m2dprep.AudioStore.open(tmp_path / "store")
    sounds = sorted((place / "wavs").rglob("*.wav"))
    ways = ("chunks", "whole", None)
    rows = {way: m2dprep.load(fusing, device="cpu", length=way).encode_audio(sounds) for way in ways}
    np.testing.assert_allclose(store.embeddings, rows[None if length == "fused" else length], atol=2e-5)
    assert np.abs(rows["chunks"] - rows["whole"]).max() > 1e-3 < np.abs(rows["whole"] - rows[None]).max()
    assert store.meta["length"] == length
    found = run("search", store.folder, "--by-audio", sounds[-1], "--top", 1, "--device", "cpu", "--json")
    (first,) = json.loads(found.stdout)["results"]
    assert (first["file"], round(first["score"], 4)) == (sounds[-1].relative_to(place / "wavs").as_posix(), 1.0)
    other = "whole" if length == "chunks" else "chunks"
    assert run("embed-audio", fusing, place / "wavs", tmp_path / "other", "--length", other).exit_code == 0
    refused(run("search", store.folder, tmp_path / "other", "--by-audio", sounds[-1]), 2, "--length")
