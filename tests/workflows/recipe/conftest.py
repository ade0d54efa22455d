"""``m2dprep run`` with made-up commands that start quickly, as a user would run it, in a folder of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from m2dprep.cli.main import COMMANDS, m2dprep
from m2dprep.workflows.recipe import stage_process
from tests.workflows.recipe import made_up


class Project:
    """A folder with a recipe, and what the commands around recipes say of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "data/_recipe/recipe"

    def write(self, **texts: str) -> None:
        for name, text in texts.items():
            self.path(name).write_text(text)

    def path(self, name: str) -> Path:
        """``recipe`` is recipe.yaml, and every other name a text."""
        return self.folder / (f"{name}.yaml" if name == "recipe" else f"{name}.txt")

    def change(self, old: str, new: str) -> None:
        """Edit the recipe."""
        text = self.path("recipe").read_text()
        assert old in text
        self.path("recipe").write_text(text.replace(old, new))

    def invoke(self, *words: object) -> Result:
        return CliRunner().invoke(m2dprep, [*map(str, words)])

    def run(self, *words: object) -> Result:
        return self.invoke("run", *words)

    def ran(self, *words: object, code: int = 0) -> dict[str, str]:
        """The outcome of every stage in a run."""
        result = self.run("--json", *words)
        assert result.exit_code == code, result.output
        return {stage["stage"]: stage["status"] for stage in json.loads(result.stdout)["stages"]}

    def done(self, *words: object, code: int = 0) -> list[str]:
        """The stages that a run has done; all others were skipped or left out."""
        outcomes = self.ran(*words, code=code)
        assert set(outcomes.values()) <= {"done", "skipped", "left out"}, outcomes
        return [name for name, status in outcomes.items() if status == "done"]

    def plan(self, *words: object) -> dict[str, tuple[str, str]]:
        result = self.run("--dry-run", "--json", *words)
        assert result.exit_code == 0, result.output
        return {item["stage"]: (item["action"], item["reason"]) for item in json.loads(result.stdout)["plan"]}

    def states(self) -> dict[str, dict[str, Any]]:
        result = self.invoke("status", "--json")
        assert result.exit_code == 0, result.output
        return {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}

    def record(self, name: str) -> dict[str, Any]:
        """What the state says of a stage."""
        try:
            found: dict[str, Any] = json.loads((self.state / "state.json").read_text())["stages"].get(name, {})
        except FileNotFoundError:
            return {}
        return found

    def contents(self) -> dict[str, bytes]:
        """Every file but the recipe's state."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and "_recipe" not in path.parts]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


RECIPE = """
data: data
stages:
  ab: {stage: join, texts: [a.txt, b.txt], output: ab.txt}
  abc: {stage: join, texts: [ab.txt, c.txt], output: abc.txt}
  letters: {stage: count-letters, text: abc.txt, output: data/letters.txt}
  alone: {stage: join, texts: c.txt, mark: x, output: alone.txt}
"""


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: str) -> Project:
    """A folder with texts and a recipe in which nothing has run."""
    for name, row in made_up.commands("tests.workflows.recipe.made_up").items():
        monkeypatch.setitem(COMMANDS, name, row)
    monkeypatch.setattr(stage_process, "PROGRAM", [warm_python, *made_up.PROGRAM[1:]])
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    monkeypatch.chdir(folder)
    project = Project(folder)
    project.write(a="a", b="b", c="c", recipe=RECIPE)
    return project


@pytest.fixture(scope="session")
def _finished() -> dict[str, Path]:
    return {}


@pytest.fixture
def project(
    empty: Project,
    _finished: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    """A folder in which everything has run once; a copy in another place, since states have relative paths."""
    if "folder" not in _finished:
        assert set(empty.ran().values()) == {"done"}
        _finished["folder"] = tmp_path_factory.mktemp("finished") / "project"
        shutil.copytree(empty.folder, _finished["folder"])
    shutil.rmtree(empty.folder)
    shutil.copytree(_finished["folder"], empty.folder)
    monkeypatch.chdir(empty.folder)
    return empty
