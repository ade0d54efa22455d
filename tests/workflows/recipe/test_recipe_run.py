"""Recipes that run: which stages are skipped or repeated and why, failures, conflicts; on the command line.

The commands are made up (`made_up`), so that a run takes a second; the last test runs real ones.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from m2dprep.artifacts.json_files import write_object
from tests.workflows.recipe.conftest import RECIPE, Project

pytestmark = pytest.mark.slow

ALL = ["ab", "abc", "letters", "alone"]


def test_a_plan_leaves_nothing(empty: Project) -> None:
    assert {action for action, _ in empty.plan().values()} == {"run"}
    assert empty.path("ab").exists() is False
    assert list((empty.folder / "data").iterdir()) == []
    assert {stage["state"] for stage in empty.states().values()} == {"remaining"}


def test_what_is_done_is_skipped(project: Project) -> None:
    first = project.contents()
    assert first["abc.txt"] == b"ab.c."
    assert first["data/letters.txt"] == b"5\n"
    assert project.ran() == dict.fromkeys(ALL, "skipped")
    assert {stage["state"] for stage in project.states().values()} == {"done"}
    assert project.states()["abc"]["figures"] == {"letters": 5}
    assert project.contents() == first


def test_a_changed_option_is_done_again_with_what_depends_on_it(project: Project) -> None:
    project.change("output: ab.txt", "ending: '!', output: ab.txt")
    assert project.plan()["ab"] == ("redo", "ending: the default → !")
    assert project.plan()["abc"] == ("redo", "after ab, unless that leaves all as it was")
    assert project.states()["ab"]["state"] == "outdated"
    assert project.done() == ["ab", "abc", "letters"]
    assert project.path("abc").read_text() == "ab!c."


def test_if_the_same_comes_out_nothing_after_it_is_done_again(project: Project) -> None:
    project.change("texts: [a.txt, b.txt], output", "texts: [b.txt], mark: a, output")
    first = project.contents()
    assert project.done() == ["ab"]
    assert {**project.contents(), "recipe.yaml": b""} == {**first, "recipe.yaml": b""}
    assert project.done() == []


def test_a_changed_source_is_done_again_and_a_touched_one_is_not(project: Project) -> None:
    os.utime(project.path("c"))
    assert project.done() == []
    project.write(c="C")
    assert project.plan()["alone"] == ("redo", "c.txt has changed")
    assert project.plan()["ab"][0] == "skip"
    assert project.done() == ["abc", "letters", "alone"]
    assert project.path("abc").read_text() == "ab.C."


def test_settings_that_do_not_decide_the_result_are_no_change(project: Project) -> None:
    project.change("output: ab.txt", "pause: 0.01, bars: true, upper: false, output: ./ab.txt")
    assert project.done() == []


def test_an_output_that_was_removed_is_made_again(project: Project) -> None:
    project.path("abc").unlink()
    assert project.plan()["abc"] == ("run", "abc.txt is missing")
    assert project.done() == ["abc"]
    (project.folder / "data/letters.txt").unlink()
    assert project.done() == ["letters"]


def test_some_stages_may_be_asked_for(project: Project) -> None:
    assert project.done("--redo", "letters") == ["letters"]
    project.write(a="A")
    project.write(c="C")
    assert project.ran("--until", "ab") == dict(zip(ALL, ["done", *["left out"] * 3], strict=True))
    assert project.plan("--until", "ab")["alone"] == ("left out", "though it would redo: c.txt has changed")
    assert project.ran("--from", "abc") == dict(zip(ALL, ["left out", "done", "done", "left out"], strict=True))
    assert project.done("--from", "alone", "--until", "alone") == ["alone"]
    unknown = project.run("--from", "leters")
    assert unknown.exit_code == 2
    assert "no stage 'leters'; did you mean 'letters'?" in unknown.stderr


def test_a_missing_input_stops_a_run_before_it_begins(empty: Project) -> None:
    empty.path("c").unlink()
    refused = empty.run()
    assert refused.exit_code == 2
    line = f"{empty.path('recipe')}, line 5: abc reads {empty.path('c')}, which is missing, and no stage makes it."
    assert line in refused.stderr
    assert not empty.path("ab").exists()
    assert "ab makes it and is left out" in empty.run("--from", "abc").stderr


def test_a_failure_stops_what_depends_on_it_and_its_code_passes_through(empty: Project) -> None:
    empty.change("output: abc.txt", "refuse: 3, output: abc.txt")
    result = empty.run("--json")
    assert result.exit_code == 3
    value = {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}
    assert [value[name]["status"] for name in ALL] == ["done", "failed", "blocked", "done"]
    assert value["abc"]["exit_code"] == 3
    assert "abc (exit code 3: too many failures)" in result.stderr
    assert "letters waits for it" in result.stderr
    assert "joining" in (empty.state / "abc.log").read_text()
    assert empty.states()["abc"]["state"] == "failed"
    assert empty.plan()["abc"][1].startswith("tries again: it ended with 3")
    empty.change("refuse: 3", "refuse: 0")
    assert empty.done() == ["abc", "letters"]


def test_a_stage_that_lost_its_machine_is_no_failure(empty: Project) -> None:
    """A batch system may start the recipe again, which goes on with that stage."""
    empty.change("output: abc.txt", "refuse: 75, output: abc.txt")
    result = empty.run()
    assert result.exit_code == 75
    assert "stopped (exit code 75: told to stop, or the machine was lost) in stage abc; `m2dprep run" in result.stderr
    assert f"Its words are in {empty.state / 'abc.log'}." in result.stderr
    empty.change("refuse: 75", "refuse: 0")
    assert empty.done()[0] == "abc"


def change_record(project: Project, name: str, **changes: object) -> None:
    """Change what the state says of a stage."""
    state = project.state / "state.json"
    value = json.loads(state.read_text())
    value["stages"][name] |= changes
    write_object(state, value)


def worked(project: Project, name: str, seconds: float) -> None:
    """Let a stage have taken that long."""
    change_record(project, name, worked_seconds=seconds)


def test_what_took_more_than_an_hour_is_replaced_only_if_the_user_says_so(project: Project) -> None:
    worked(project, "alone", 7200.0)
    project.change("mark: x", "mark: y")
    for _ in range(2):
        refused = project.run()
        assert refused.exit_code == 5
        assert "took 2:00:0" in refused.stderr
        assert "m2dprep run recipe.yaml --overwrite" in refused.stderr
        assert project.path("alone").read_text() == "xc."
    assert project.done("--overwrite") == ["alone"]
    assert project.path("alone").read_text() == "yc."
    project.change("mark: y", "mark: z")
    assert project.done() == ["alone"], "the new output took little"


LONG = """
data: data
stages:
  train: {stage: join, texts: [a.txt], output: run.txt}
  embed: {stage: update, texts: [a.txt], output: store.txt}
"""


def test_other_inputs_replace_long_work_only_if_none_of_it_is_lost(empty: Project) -> None:
    empty.write(recipe=LONG)
    empty.ran()
    worked(empty, "train", 7200.0)
    worked(empty, "embed", 7200.0)
    empty.write(a="A")
    assert empty.ran(code=5) == {"train": "failed", "embed": "done"}
    assert (empty.path("run").read_text(), empty.path("store").read_text()) == ("a.", "A.")
    worked(empty, "embed", 7200.0)
    empty.change("output: store", "mark: other model, output: store")
    empty.write(a="B")
    for _ in range(2):
        assert empty.ran(code=5) == {"train": "failed", "embed": "failed"}
    empty.change("mark: other model, ", "")
    assert empty.ran(code=5) == {"train": "failed", "embed": "failed"}, "it may have been begun with other settings"
    assert empty.done("--overwrite") == ["train", "embed"]


@pytest.mark.parametrize("first", ["theirs", "xc.", None])
def test_what_the_recipe_did_not_make_is_never_replaced_by_itself(empty: Project, first: str | None) -> None:
    """Nor what it found done with its own settings (``xc.``), nor what somebody has changed since (None)."""
    until = ("--until", "alone")
    if first is not None:
        empty.write(alone=first)
    empty.ran(*until, code=5 if first == "theirs" else 0)
    there = first or "changed by hand"
    empty.write(alone=there)
    for mark in "yz":  # the second time, the recipe has tried already, and failed
        empty.change("mark: x", f"mark: {mark}")
        refused = empty.run(*until)
        assert refused.exit_code == 5, refused.output
        assert "is not just this recipe's work" in refused.stderr
        assert empty.path("alone").read_text() == there
        empty.change(f"mark: {mark}", "mark: x")
    empty.change("mark: x", "mark: q")
    assert empty.done(*until, "--overwrite") == ["alone"]
    empty.change("mark: q", "mark: r")
    assert empty.done(*until) == ["alone"], "now it is the recipe's"
    assert empty.path("alone").read_text() == "rc."


def test_redo_with_overwrite_starts_a_stage_over(project: Project) -> None:
    for words, flag in ((["--redo", "ab"], 0), (["--redo", "ab", "--overwrite"], 1)):
        assert project.done(*words) == ["ab"]
        assert json.loads((project.state / "ab.json").read_text())["overwrite"] == flag


GATHER = """
data: data
stages:
  parts: {stage: make-parts, out: parts, parts: 3}
  gather: {sources: parts, output: made.txt}
  mine: {stage: gather, sources: sources, output: mine.txt}
"""


def test_sources_that_a_stage_makes_are_gathered_from_nothing_when_they_change(empty: Project) -> None:
    empty.write(recipe=GATHER)
    (empty.folder / "sources").mkdir()
    for name in "abc":
        (empty.folder / "sources" / name).touch()
    assert empty.done() == ["parts", "gather", "mine"]
    (empty.folder / "sources/a").unlink()
    empty.change("parts: 3", "parts: 2")
    assert empty.done() == ["parts", "gather", "mine"]
    assert empty.path("made").read_text().split() == ["0.txt", "1.txt"]
    assert empty.path("mine").read_text().split() == ["a", "b", "c"], "what a person removes stays in what was made"
    for status, names in (("running", ["0.txt", "1.txt"]), ("failed", ["0.txt", "1.txt", "old.txt"])):
        empty.write(made="0.txt old.txt")
        change_record(empty, "gather", status=status)
        assert empty.record("gather")["command"][2] == "--overwrite"
        assert empty.done() == ["gather"]
        assert empty.path("made").read_text().split() == names, "killed while it began anew, it begins anew"


def test_state_may_be_removed(project: Project) -> None:
    first = project.contents()
    shutil.rmtree(project.folder / "data/_recipe")
    assert project.done() == ALL
    assert project.contents() == first
    (project.state / "state.json").write_text("{")
    refused = project.run()
    assert refused.exit_code == 2
    assert "state.json" in refused.stderr
    assert "Remove it" in refused.stderr
    (project.state / "state.json").unlink()
    assert project.done() == ALL


def test_status_of_a_data_directory_and_of_a_recipe_that_is_gone(project: Project) -> None:
    nothing = project.folder / "nothing"
    nothing.mkdir()
    empty = project.invoke("status", nothing)
    assert empty.exit_code == 2
    assert "no recipe has run here" in empty.stderr
    for _ in range(2):
        shown = project.invoke("status", "data")
        assert shown.exit_code == 0, shown.output
        assert "recipe.yaml" in shown.stdout
        lines = [line.split() for line in shown.stdout.splitlines() if line.startswith("abc")]
        assert [line[:2] for line in lines] == [["abc", "done"]]
        assert shown.stdout.count("letters 5") == 2
        project.path("recipe").unlink(missing_ok=True)


def test_a_recipe_of_another_folder_runs_in_its_own(
    empty: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert empty.ran("here/recipe.yaml") == dict.fromkeys(ALL, "done")
    assert empty.path("abc").read_text() == "ab.c."
    empty.write(recipe=RECIPE.replace("ab.txt, c.txt", "../here/ab.txt, c.txt"))
    assert empty.done("here/recipe.yaml") == [], "the same path in other words"
