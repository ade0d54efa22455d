"""The demo from end to end on four clips per class, with the real commands and the real text encoder."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.tables import read_captions, read_file_list
from m2dprep.cli.main import m2dprep
from m2dprep.workflows.demo import artifact_tree, curve, human_size
from m2dprep.workflows.demo_report import evaluation_table
from m2dprep.workflows.recipe import stage_process
from m2dprep.workflows.recipe.template import demo_recipe
from m2dprep.workflows.sound_set import CLASSES

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_every_stage_runs_and_leaves_what_it_promises(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, warm_python: str
) -> None:
    monkeypatch.setattr(sys, "executable", warm_python)
    monkeypatch.setattr(stage_process, "PROGRAM", [warm_python, "-P", "-m", "m2dprep"])
    arguments = [
        "demo",
        "--output",
        str(tmp_path),
        "--clips",
        "4",
        "--held-out",
        "1",
        "--epochs",
        "1",
        "--workers",
        "0",
    ]
    result = CliRunner().invoke(m2dprep, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert capfd.readouterr().out == "", "what the stages print on stdout belongs to no result"
    assert value["clips"] == len(CLASSES)
    assert 0 <= value["accuracy"] <= 1
    data = tmp_path / "data"
    assert len(read_file_list(data / "files_audioset.csv")) == 4 * len(CLASSES)
    captions = read_captions(data / "captions.parquet")
    assert set(captions["source"].to_pylist()) == {"auto_acd", "label", "acalt4"}
    EmbeddingStore.open(data / "capemb_minilm").verify(captions)
    assert list((tmp_path / "run").rglob("checkpoint-1.pth"))
    assert "norm_stats.json" in artifact_tree(tmp_path)
    _the_report_has_all_protocols_with_controls(value)
    _the_recipe_gives_the_same(tmp_path, value)


def _the_report_has_all_protocols_with_controls(demo: dict[str, Any]) -> None:
    rows = {(row["task"], row["protocol"]): row["score"] for row in demo["evaluation"]["rows"]}
    wanted = [("sounds", "zero-shot"), ("sounds", "linear"), ("descriptions", "retrieval")]
    assert set(rows) == {(task + control, protocol) for task, protocol in wanted for control in ("", "_control")}
    assert rows[("sounds", "zero-shot")] == pytest.approx(demo["accuracy"], abs=0.2), "EVAR pads otherwise"
    assert "Published" not in (page := Path(demo["evaluation"]["report"]).read_text())
    assert page.count("<a ") == len(rows)
    shown = evaluation_table(demo["evaluation"])
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == ["retrieval", "zero-shot", "linear", "fine-tune"]
    found = demo["evaluation"]["found_by_words"]["sounds"]
    assert set(found["classes"]) == {sound.name for sound in CLASSES}
    assert found["mean"] == pytest.approx(0.1), "each of ten clips is among the ten nearest to every caption"
    assert "precision@10" in shown
    assert (demo["evaluation"]["fine_tuned"]["clips"], demo["evaluation"]["fine_tuned"]["metric"]) == (10, "accuracy")


def _the_recipe_gives_the_same(folder: Path, demo: dict[str, object]) -> None:
    """The demo as a recipe, with the sizes of this test, gives the same arrays, embeddings, weights and confusions.

    Its recordings exist already, because making them takes longest; the stage for them notices that.
    """
    recipe = folder / "recipe" / "demo.yaml"
    recipe.parent.mkdir()
    text = demo_recipe().replace("clips: 40", "clips: 4").replace("held_out: 10", "held_out: 1")
    text = text.replace("demo/source", str(folder / "source"))
    recipe.write_text(
        text.replace("seed: 0", "seed: 0\nworkers: 0").replace("model: tiny", "model: tiny\n    epochs: 1")
    )
    result = CliRunner().invoke(m2dprep, ["run", str(recipe), "--json"])
    assert result.exit_code == 0, result.output
    stages = json.loads(result.stdout)["stages"]
    assert {stage["status"] for stage in stages} == {"done"}
    assert stages[-1]["figures"]["accuracy"] == demo["accuracy"]
    zero_shot = json.loads((recipe.parent / "demo/data/_recipe/demo/zero-shot.json").read_text())
    assert zero_shot["confusion"] == demo["confusion"]
    ours, theirs = ((root / "data") for root in (recipe.parent / "demo", folder))
    for path in theirs.rglob("*"):
        if path.suffix in (".npy", ".csv") or path.name == "captions.parquet":
            assert (ours / path.relative_to(theirs)).read_bytes() == path.read_bytes(), path
    weights = [next(root.rglob("checkpoint-1.pth")) for root in (recipe.parent / "demo/run", folder / "run")]
    first, second = (torch.load(path, weights_only=True)["model"] for path in weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_curves_and_sizes_for_people() -> None:
    assert curve([3, 2, 1], width=3) == "█▅▁"
    assert curve([1.0] * 10, width=5) == "▁▁▁▁▁"
    assert curve([]) == ""
    assert [human_size(size) for size in (0, 1023, 2048, 5 * 2**30)] == ["0 B", "1023 B", "2.0 KiB", "5.0 GiB"]
