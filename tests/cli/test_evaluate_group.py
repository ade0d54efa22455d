"""``m2dprep evaluate``: each protocol from files to a result, its exit codes, and bad requests in one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep
from m2dprep.evaluation import text_towers
from m2dprep.evaluation.protocols.result import Result as Measured
from tests.evaluation.made_clips import write_checkpoint, write_tones

CLIPS = 24


class FakeEncoder:
    """Gives every text numbers of its own."""

    dim = 16

    def describe(self) -> dict[str, Any]:
        return {"model": "made-up", "weights": "sha256:1"}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [sum(text.encode()) for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=16) for seed in seeds]).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared set: tones of three kinds, of which two thirds are for training; the sounds lie elsewhere."""
    names = write_tones(tmp_path / "audio", CLIPS)
    rows = [["file_name", "label", "split", "group"]]
    rows += [[name, f"kind_{n % 3}", "test" if n >= 16 else "train", str(n // 6)] for n, name in enumerate(names)]
    place = tmp_path / "set"
    place.mkdir()
    with (place / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (place / "task.yaml").write_text("name: tones\nunit_seconds: 0.7\n")
    (place / "prepared.json").write_text(json.dumps({"root": "../audio"}))
    return place


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, ["evaluate", *map(str, arguments)])


def measured(*arguments: object) -> Measured:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return Measured.from_dict(json.loads(result.stdout))


TEXT = ("--text-model", "made-up")


def test_zero_shot_of_a_prepared_folder(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    found = measured("zero-shot", checkpoint, folder, *TEXT, "--predictions", tmp_path / "p.csv")
    assert (found.protocol, found.task, found.n["clips"]) == ("zero-shot", "tones", 8)
    assert set(found.digests) == {"checkpoint", "metadata", "split", "text_model"}
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 8
    assert np.mean([row["correct"] == "true" for row in rows]) == pytest.approx(found.score)
    assert [row["file_name"] for row in rows] == found.details["files"]
    assert len(list((folder / "features").glob("checkpoint-1-*/test-*/meta.json"))) == 1
    text = run("zero-shot", checkpoint, folder, *TEXT)
    assert text.stdout.startswith(f"zero-shot tones: accuracy {found.score:.2%}")


def test_several_templates_are_averaged_and_said_to_be_no_evars(checkpoint: Path, folder: Path) -> None:
    found = measured(
        "zero-shot", checkpoint, folder, *TEXT, "--template", "{label}", "--template", "a sound of {label}"
    )
    assert found.settings["templates"] == ["{label}", "a sound of {label}"]
    assert "2 templates" in found.deviations[0]


@pytest.mark.slow
def test_linear_learns_tones_and_shares_the_test_clips_with_zero_shot(checkpoint: Path, folder: Path) -> None:
    quick = ("--lr", "0.01", "--epochs", "60", "--seeds", "42,43")
    found = measured("linear", checkpoint, folder, *quick)
    assert found.score is not None
    assert found.score >= 0.7
    assert (found.seeds, found.n["train"], found.n["test"]) == ((42, 43), 16, 8)
    assert found.n["dimensions"] == 320
    assert any("whole recordings together" in one for one in found.deviations)
    measured("zero-shot", checkpoint, folder, *TEXT)
    assert len(list((folder / "features").glob("*/*/meta.json"))) == 2
    flat = measured("linear", checkpoint, folder, *quick, "--embedding", "flat")
    assert flat.n["dimensions"] == 64
    assert any("Features are flat" in one for one in flat.deviations)


def test_linear_as_evar_does_it(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    options = ("--lr", "0.01", "--epochs", "5", "--seeds", "42", "--strict-evar", "-o", tmp_path / "r.json")
    table = (folder / "metadata.csv").read_text().replace("test", "valid", 3)
    (folder / "metadata.csv").write_text(table)
    result = run("linear", checkpoint, folder, *options)
    assert result.exit_code == 0, result.stderr
    found = Measured.read(tmp_path / "r.json")
    assert found.strict_evar
    assert "its defects included" in result.stdout
    assert not any("16-bit" in one for one in found.deviations)


@pytest.mark.slow
def test_a_table_with_folds(checkpoint: Path, folder: Path) -> None:
    rows = list(csv.reader((folder / "metadata.csv").open()))
    table = folder.parent / "clips.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "category", "fold"])
        writer.writerows([row[0], row[1], number % 2 + 1] for number, row in enumerate(rows[1:]))
    options = ("--root", folder.parent / "audio", "--unit-seconds", "0.5")
    found = measured("zero-shot", checkpoint, table, *options, *TEXT)
    assert found.n["clips"] == CLIPS
    assert set(found.details["per_fold"]) == {"1", "2"}
    found = measured("linear", checkpoint, table, *options, "--epochs", "2", "--seeds", "1")
    assert len(found.folds[0]) == 2
    assert any("cut at their start" in one for one in found.deviations)
    assert not (folder.parent / "features").exists()


def test_several_labels_per_clip(checkpoint: Path, folder: Path) -> None:
    names = [f"{number:03}.wav" for number in range(CLIPS)]
    table = folder.parent / "audio" / "labels.csv"
    rows = [
        f'{name},"{"a,b" if n % 3 == 0 else "bc"[n % 2]}",{"test" if n > 15 else "train"}'
        for n, name in enumerate(names)
    ]
    table.write_text("file_name,label,split\n" + "\n".join(rows) + "\n")
    found = measured("zero-shot", checkpoint, table, "--multi-label", *TEXT)
    assert (found.metric, found.details["classes"]) == ("mAP", ["a", "b", "c"])
    found = measured("linear", checkpoint, table, "--multi-label", "--epochs", "3", "--seeds", "1")
    assert found.metric == "mAP"


@pytest.mark.slow
def test_retrieval_with_any_number_of_captions(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    names = [f"{number:03}.wav" for number in range(6)]
    table = folder.parent / "audio" / "captions.csv"
    rows = [f"{name},caption {n} of {name}" for name in names for n in range(1 + int(name[:3]) % 3)]
    table.write_text("file_name,caption\n" + "\n".join(rows) + "\n")
    found = measured("retrieval", checkpoint, table, *TEXT, "-o", tmp_path / "r.json")
    assert (found.n["clips"], found.n["captions"]) == (6, 12)
    assert found.details["a2t"]["R@50"] == 1.0
    assert any("five captions" in one for one in found.deviations)
    assert Measured.read(tmp_path / "r.json").to_dict() == found.to_dict()
    shown = run("retrieval", checkpoint, table, *TEXT).stdout
    assert "captions → clips: R@1" in shown
    assert f"split {found.digests['split'][:16]}" in shown
    assert "captions 12" in shown


def test_label_free_of_the_clips_of_a_run(checkpoint: Path, folder: Path) -> None:
    measured("linear", checkpoint, folder, "--epochs", "1", "--seeds", "1")
    store = next((folder / "features").glob("*/train-*"))
    found = measured("label-free", store)
    assert found.n == {"rows": 16, "dimensions": 320, "left_out": 0}
    assert measured("label-free", store, "--embedding", "clap").n["dimensions"] == 64
    assert run("label-free", store).stdout.startswith("label-free")
    assert run("label-free", folder).exit_code == 2


def test_too_many_failures_exit_with_3_after_the_result(checkpoint: Path, folder: Path) -> None:
    (folder.parent / "audio" / "020.wav").write_bytes(b"no sound")
    command = ("zero-shot", checkpoint, folder, *TEXT, "--json")
    result = run(*command)
    assert result.exit_code == 3
    found = Measured.from_dict(json.loads(result.stdout))
    assert (found.n["clips"], found.n["failed"]) == (7, 1)
    assert found.failures[0]["file_name"] == "020.wav"
    assert run(*command, "--max-failures", "1").exit_code == 0
    assert (
        "020.wav" not in measured("linear", checkpoint, folder, "--epochs", "1", "--max-failures", "1").details["files"]
    )


def test_nothing_readable(checkpoint: Path, folder: Path) -> None:
    for path in (folder.parent / "audio").glob("*.wav"):
        path.write_bytes(b"no sound")
    result = run("zero-shot", checkpoint, folder, *TEXT)
    assert result.exit_code == 2
    assert "none of the clips" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zero-shot", "CHECKPOINT"), "Missing argument 'DIR|CSV'"),
        (("zero-shot", "nowhere.pth", "SET", *TEXT), "nowhere.pth"),
        (("zero-shot", "CHECKPOINT", "nowhere", *TEXT), "nowhere"),
        (("zero-shot", "CHECKPOINT", "SET"), "thenlper/gte-base"),
        (("zero-shot", "CHECKPOINT", "SET", "--clap-model", "x"), "not both"),
        (("zero-shot", "SET", "--clap-model", "microsoft/msclap"), "transformers does not have"),
        (("zero-shot", "CHECKPOINT", "SET", "--template", "a sound", *TEXT), "{label}"),
        (("zero-shot", "CHECKPOINT", "SET", "--task", "cars", *TEXT), "there is no task 'cars'"),
        (("zero-shot", "CHECKPOINT", "SET", "--max-failures", "many", *TEXT), "many"),
        (("zero-shot", "CHECKPOINT", "SET", "--unit-seconds", "0", *TEXT), "--unit-seconds"),
        (("zero-shot", "CHECKPOINT", "SET", "--split-column", "s", *TEXT), "no column 's'"),
        (("linear", "CHECKPOINT", "SET", "--seeds", "a,b"), "--seeds 'a,b'"),
        (("linear", "CHECKPOINT", "SET", "--seeds", "1,1"), "none twice"),
        (("linear", "CHECKPOINT", "SET", "--lr", "0"), "--lr"),
        (("retrieval", "CHECKPOINT", "SET", *TEXT), "no column caption"),
        (("label-free", "SET"), "no store"),
    ],
)
def test_bad_requests_exit_with_2(
    checkpoint: Path, folder: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "SET" in arguments and TEXT[0] not in arguments and arguments[1] == "CHECKPOINT":

        def unreachable(name: str, **_: Any) -> None:
            from m2dprep.artifacts.errors import UserError

            raise UserError(f"the hub cannot be reached for {name}")

        monkeypatch.setattr(text_towers, "load_encoder", unreachable)
    places = {"CHECKPOINT": str(checkpoint), "SET": str(folder)}
    result = run(*(places.get(one, one) for one in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""
