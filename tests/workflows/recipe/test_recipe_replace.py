"""A recipe whose stage finds an output with other settings or captions; the commands are fakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2dprep.artifacts.json_files import write_object
from m2dprep.cli.recipe import stage_kinds
from m2dprep.workflows.recipe import run as recipe_run
from m2dprep.workflows.recipe.plan import Choice
from m2dprep.workflows.recipe.recipe import read_recipe
from m2dprep.workflows.recipe.run import RecipeRun, StageFailedError

KINDS = stage_kinds()
RECIPE = """
data: data
stages:
  embed-captions: {captions: captions.parquet, out: data/capemb_x, dtype: float16}
"""
Calls = list[list[str]]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The command lines of stages, with a fake encoder that compares captions and settings like the real one."""
    made: Calls = []
    store = tmp_path / "data" / "capemb_x"

    def encode(arguments: list[str], *, folder: Path, log: Path, result: Path, **_: Any) -> int:
        made.append(arguments)
        (dtype,) = (argument for argument in arguments if argument.startswith("--dtype"))
        identity = {"captions": (folder / "captions.parquet").read_text(), "dtype": dtype}
        meta = store / "meta.json"
        if meta.exists() and "--overwrite" not in arguments and json.loads(meta.read_text()) != identity:
            return 5
        for argument in arguments:
            if argument.startswith("--reuse="):
                old = json.loads((Path(argument.removeprefix("--reuse=")) / "meta.json").read_text())
                if old["dtype"] != dtype:
                    return 5
        store.mkdir(parents=True, exist_ok=True)
        meta.write_text(json.dumps(identity))
        result.write_text('{"rows": 1}')
        return 0

    monkeypatch.setattr(recipe_run, "run_stage", encode)
    (tmp_path / "captions.parquet").write_text("one")
    (tmp_path / "r.yaml").write_text(RECIPE)
    return made


@pytest.fixture
def run(tmp_path: Path, calls: Calls) -> Callable[..., list[str]]:
    """Run the recipe. Returns the flags of every call that it makes."""

    def run_it(*, overwrite: bool = False, again: tuple[str, ...] = ()) -> list[str]:
        calls.clear()
        recipe = read_recipe(tmp_path / "r.yaml", KINDS)
        RecipeRun(recipe, Choice(again=again), overwrite=overwrite).run()
        return [call[1] for call in calls]

    assert run_it() == ["--json"]
    assert run_it() == []
    return run_it


def change_dtype(folder: Path) -> None:
    (folder / "r.yaml").write_text(RECIPE.replace("float16", "float32"))


def took_long(folder: Path) -> None:
    path = folder / "data/_recipe/r/state.json"
    state = json.loads(path.read_text())
    state["stages"]["embed-captions"]["worked_seconds"] = 4000.0
    write_object(path, state)


def test_other_captions_reuse_the_old_store_however_long_it_took(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    took_long(tmp_path)
    (tmp_path / "captions.parquet").write_text("two")
    assert run() == ["--json", f"--reuse={tmp_path}/data/.capemb_x.before"]
    assert [path.name for path in sorted((tmp_path / "data").iterdir())] == ["_recipe", "capemb_x"]
    assert run() == []


def test_other_settings_replace_a_store_that_took_little(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    change_dtype(tmp_path)
    assert run() == ["--json", f"--reuse={tmp_path}/data/.capemb_x.before", "--overwrite"]
    assert run() == []


def test_what_took_long_stays_unless_asked_for(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    took_long(tmp_path)
    change_dtype(tmp_path)
    before = (tmp_path / "data/capemb_x/meta.json").read_text()
    for _ in range(2):
        with pytest.raises(StageFailedError) as error:
            run()
        assert error.value.exit_code == 5
        assert (tmp_path / "data/capemb_x/meta.json").read_text() == before
    assert run(overwrite=True) == ["--json", "--overwrite"]
    assert run() == []


def test_a_stage_that_is_asked_for_runs_as_it_is_or_anew(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    assert run(again=("embed-captions",)) == ["--json"]
    assert run(again=("embed-captions",), overwrite=True) == ["--overwrite"]


def test_killed_between_setting_aside_and_encoding_the_old_store_is_still_used(
    tmp_path: Path, run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "captions.parquet").write_text("two")
    encode = recipe_run.run_stage

    def killed(arguments: list[str], **others: Any) -> int:
        if any(argument.startswith("--reuse") for argument in arguments):
            raise KeyboardInterrupt
        return encode(arguments, **others)

    monkeypatch.setattr(recipe_run, "run_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (tmp_path / "data/capemb_x").exists()
    monkeypatch.setattr(recipe_run, "run_stage", encode)
    assert run() == [f"--reuse={tmp_path}/data/.capemb_x.before"]
    assert not (tmp_path / "data/.capemb_x.before").exists()


def test_recordings_that_a_stage_makes_are_converted_from_nothing_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays of recordings that are gone would stay in the training list."""
    calls: dict[str, list[str]] = {}
    sounds = tmp_path / "sounds" / "audio"

    def pretend(arguments: list[str], **_: Any) -> int:
        calls[arguments[0]] = arguments
        if arguments[0] == "sound-set":
            sounds.mkdir(parents=True, exist_ok=True)
            (sounds / f"{arguments[2]}.wav").touch()
        return 0

    monkeypatch.setattr(recipe_run, "run_stage", pretend)
    text = "data: d\nstages:\n  sound-set: {out: sounds, seed: 0}\n  melspec: {src: sounds/audio, dst: d/a_lms}\n"
    for seed, flags in ((0, "--json"), (1, "--overwrite")):
        calls.clear()
        (tmp_path / "r.yaml").write_text(text.replace("seed: 0", f"seed: {seed}"))
        RecipeRun(read_recipe(tmp_path / "r.yaml", KINDS), Choice()).run()
        assert calls["melspec"][1] == flags
        assert calls["sound-set"][1] == "--json", "it finds out by itself"
