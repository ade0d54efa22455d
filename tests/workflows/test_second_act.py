"""The demo's second act from end to end on four clips per class and one epoch of each stage; its tables and figures."""

import csv
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from m2dprep.cli.main import m2dprep
from m2dprep.workflows.demo import DemoSettings, bundled_text_model
from m2dprep.workflows.recipe import stage_process
from m2dprep.workflows.second_act import MODELS, TASKS, markdown, recipe_of, score_table, write_tables
from m2dprep.workflows.sound_set import CLASSES, make_sound_set

SIZES = ("--clips", "4", "--held-out", "1", "--epochs", "1", "--workers", "0")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_stages_run_and_the_same_command_has_nothing_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], warm_python: str
) -> None:
    settings = DemoSettings(tmp_path, 4, 1, 0, 0, 1, bundled_text_model(), False)
    make_sound_set(tmp_path / "source", train_per_class=4, held_out_per_class=1, seed=0, workers=0)
    write_tables(tmp_path / "source", tmp_path / "second_generation" / "tables")
    recipe = tmp_path / "second_generation.yaml"
    recipe.write_text(recipe_of(settings))
    monkeypatch.setattr(sys, "executable", warm_python)
    monkeypatch.setattr(stage_process, "PROGRAM", [warm_python, "-P", "-m", "m2dprep"])
    ran = CliRunner().invoke(m2dprep, ["run", str(recipe), "--json"])
    assert ran.exit_code == 0, ran.output
    assert {stage["status"] for stage in json.loads(ran.stdout)["stages"]} == {"done"}
    before = _times(tmp_path / "second_generation")

    result = CliRunner().invoke(m2dprep, ["demo", "--second-generation", "-o", str(tmp_path), *SIZES, "--json"])
    assert result.exit_code == 0, result.output
    assert capfd.readouterr().out == "", "what the stages print on stdout belongs to no result"
    after = _times(tmp_path / "second_generation")
    assert {name for name in after if before.get(name) != after[name]} == {"report.md"}
    scores = json.loads(result.stdout)["scores"]
    assert {name: set(figures) for name, figures in scores.items()} == {name: set(TASKS) for name in MODELS}
    assert all(0 <= value <= 1 for figures in scores.values() for value in figures.values())
    report = (tmp_path / "second_generation" / "report.md").read_text()
    assert f"| stage 2.1 | {scores['stage2.1']['sounds']:.1%} |" in report
    assert (tmp_path / "second_generation" / "side_by_side.html").is_file()
    for stage in ("stage2", "stage2.1"):
        assert list((tmp_path / "second_generation" / stage).glob("*/text_encoder/config.json"))


def _times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_tables_have_each_sound_once_and_all_labels(tmp_path: Path) -> None:
    make_sound_set(tmp_path / "source", train_per_class=4, held_out_per_class=2, seed=1, workers=0)
    write_tables(tmp_path / "source", tmp_path / "tables")
    labels = _rows(tmp_path / "tables" / "labels.csv")
    assert len({row["file_name"] for row in labels}) == len(labels) == 6 * len(CLASSES)
    sounds = [row["file_name"].replace("audioset_lms", "source/audio").replace(".npy", ".wav") for row in labels]
    assert all((tmp_path / sound).is_file() for sound in sounds), "log-mels have their sounds' names"
    assert {mid for row in labels for mid in row["label"].split(",")} == {sound.mid for sound in CLASSES}
    held_out = {row["file_name"] for row in labels if row["split"] == "test"}
    held_out = {name.removeprefix("audioset_lms/") for name in held_out}
    assert {row["file"] for row in _rows(tmp_path / "tables" / "sounds.csv")} == held_out
    texts = sum(len(sound.descriptions) for sound in CLASSES)
    for name, clips in (("descriptions", len(CLASSES)), ("all_descriptions", 2 * len(CLASSES))):
        rows = _rows(tmp_path / "tables" / f"{name}.csv")
        assert len({row["file"] for row in rows}) == clips
        assert len(rows) == texts * clips // len(CLASSES)
        assert {row["file"] for row in rows} <= held_out


def test_the_table_shows_every_model_and_a_dash_for_what_is_missing() -> None:
    scores = {name: dict.fromkeys(TASKS, 0.5) for name in MODELS}
    scores["stage2"] = {"sounds": 0.125}
    assert score_table(scores).splitlines()[3].split() == ["stage", "2", "12.5%", "–", "–"]
    assert "| stage 2 | 12.5% | – | – |" in markdown(scores)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
