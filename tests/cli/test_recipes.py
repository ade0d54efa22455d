"""Recipes on the command line: every option of every command, the recipes that ship, and bad ones."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep
from m2dprep.cli.recipe import all_stage_kinds
from m2dprep.workflows.demo import DemoSettings, _commands, _zero_shot_command
from m2dprep.workflows.engine.job_settings import read_job_settings
from m2dprep.workflows.recipe.plan import Choice, make_plan, missing_inputs
from m2dprep.workflows.recipe.recipe import Recipe, read_recipe
from m2dprep.workflows.recipe.state import RecipeState
from m2dprep.workflows.recipe.template import audioset_recipe, demo_recipe
from m2dprep.workflows.second_act import recipe_of

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes"
KINDS = all_stage_kinds()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(m2dprep, [*arguments])


def read(path: Path, text: str) -> Recipe:
    path.write_text(text)
    return read_recipe(path, KINDS, {"bundled_text_model": lambda: "the-model"})


NO_STAGES = {
    "demo",
    "run",
    "status",
    "init",
    "plot",
    "serve",
    "search",
    "export checkpoint",
    "submit",
    *(
        f"evaluate {name}"
        for name in (
            "zero-shot",
            "linear",
            "retrieval",
            "label-free",
            "list",
            "prepare",
            "all",
            "report",
            "compare",
        )
    ),
    "captions show",
    "report",
    "failures",
    "export hf",
    "export portable",
    "embeddings inspect",
    "embeddings check",
}


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def test_every_command_is_a_stage_or_no_stage_on_purpose() -> None:
    assert {name for name, _ in commands(m2dprep)} == {*KINDS, *NO_STAGES}


def test_encode_is_a_stage_under_both_its_names(tmp_path: Path) -> None:
    for name in ("embed-captions", "embeddings encode"):
        (stage,) = read(tmp_path / "r.yaml", f"data: d\nstages:\n  {name}: {{captions: c, out: o}}").stages
        assert (stage.kind.name, stage.kind.arguments(stage.values)) == ("embed-captions", ["embed-captions", "c", "o"])


# Every path that is not read, or read by no other stage.
WRITTEN = {
    "sound-set": {"out"}, "melspec": {"dst"}, "stats": {"output"}, "unpack": {"output"},
    "captions fill": {"output", "unmatched"}, "captions add": {"output", "unmatched"}, "captions merge": {"output"},
    "captions keywords": {"output"}, "captions check": {"output", "findings"}, "captions training-list": {"output"},
    "captions exclude-list": {"output"}, "captions join-lists": {"output"}, "check": {"leaks_csv"},
    "embed-captions": {"out"}, "embeddings encode": {"out"}, "embeddings import": {"out"},
    "embeddings export m2d": {"file"}, "embeddings export parquet": {"file"}, "train": {"output"},
    "fine-tune": {"output"}, "captions weights": {"output"}, "export webdataset": {"out"}, "tag": {"output", "plot"},
    "embed-audio": {"out"},
    "evaluate tagging": {"output", "predictions"},
    "evaluate zero-shot": {"output", "predictions"}, "evaluate linear": {"output"}, "evaluate retrieval": {"output"},
    "evaluate label-free": {"output"}, "evaluate prepare": {"output"}, "evaluate all": {"output"},
    "evaluate report": {"output"}, "evaluate compare": {"output"}, "evaluate events": {"output"},
    "events": {"output"}, "scenes": {"output"},
}  # fmt: skip
PLACES = {
    "check": {"data"}, "fine-tune": {"data"}, "train": {"data", "probe_root"},
    "zero-shot": {"root"}, "captions keywords": {"work"}, "tag": {"root"}, "evaluate tagging": {"root", "features"},
    "evaluate zero-shot": {"root", "features"}, "evaluate linear": {"root", "features"},
    "evaluate retrieval": {"root", "features"}, "evaluate report": {"root"}, "embed-audio": {"root"},
    "events": {"root"}, "scenes": {"root"},
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_what_a_command_writes_is_not_taken_for_what_it_reads(name: str) -> None:
    def keys(role: str) -> set[str]:
        return {option.key for option in KINDS[name].options if option.role == role}

    assert keys("output") == WRITTEN.get(name, set())
    assert keys("place") == PLACES.get(name, set())
    assert keys("setting") <= {"scheduler_file", "cluster_config"}
    assert all("model" in option.key for option in KINDS[name].options if option.role == "model")
    looks_written = {key for key in keys("input") if re.search("^out|output|^dst$|findings|unmatched", key)}
    assert not looks_written


@pytest.mark.parametrize("name", KINDS)
def test_what_is_declared_of_a_command_names_its_options(name: str) -> None:
    kind = KINDS[name]
    keys = {option.key for option in kind.options}
    assert set(kind.declared.how) <= keys
    assert {kind.declared.remade_from} - {None} <= keys
    for word in ("workers", "threads", "max_failures"):
        assert word not in keys - kind.how, f"{word} decides nothing"


@pytest.mark.parametrize("name", KINDS)
def test_what_a_stage_types_is_what_the_command_reads(name: str, tmp_path: Path) -> None:
    """Every option of a command passes, with some value, through a recipe's text and Click's own parser."""
    kind = KINDS[name]
    samples = {option.key: _sample(option.key, tuple(option.choices), option.is_flag) for option in kind.options}
    lines = [f"    {key}: {json.dumps(value)}" for key, value in samples.items()]
    recipe = read(tmp_path / "r.yaml", f"data: d\nstages:\n  {name}:\n" + "\n".join(lines) + "\n")
    (stage,) = recipe.stages
    arguments = kind.arguments(stage.values)
    group: click.Command = m2dprep
    context = click.Context(group)
    for word in kind.words:
        assert isinstance(group, click.Group)
        command = group.get_command(context, word)
        assert command is not None
        group = command
    parser = group.make_parser(click.Context(group))
    parsed, _, _ = parser.parse_args(arguments[len(kind.words) :])
    for parameter in group.params:
        if parameter.name in ("as_json", "overwrite", "help") or parameter.name not in parsed:
            continue
        value = parsed[parameter.name]
        texts = value if isinstance(value, list | tuple) else [value]
        assert texts, parameter.name
        assert all(isinstance(text, bool) or str(text) in map(str, samples.values()) for text in texts), parameter.name


def _sample(key: str, choices: tuple[str, ...], is_flag: bool) -> object:
    if is_flag:
        return True
    if choices:
        return choices[-1]
    if key == "audio_mask":
        return 0.5
    if key == "draws":  # at least a hundred
        return 1000
    if key == "momentum":  # below 1
        return 0
    if key in ("added", "window", "hop", "top", "threshold", "similarity", "groups", "merge_from"):
        return 1
    if key in ("join", "shortest", "most", "collar", "segment", "length", "pictures"):
        return 2
    if key in ("input_size", "patch_size"):
        return "80x208"
    numbers = (
        "seconds",
        "size",
        "epochs",
        "ratio",
        "loss",
        "lr",
        "decay",
        "frames",
        "bins",
        "mixup",
        "momentum",
        "grad",
        "steps",
        "minutes",
        "every",
        "seed",
    )
    words = ("workers", "threads", "shard", "length", "tokens", "keep", "accumulate", "jobs", "clips", "held", "rows")
    others = ("patience", "nodes", "gpus", "check", "port", "timeout", "hint", "sem_mode", "audio_frames")
    number = any(word in key for word in (*numbers, *words, *others)) and not key.endswith(("clips_csv", "probe_clips"))
    return (1 if "ratio" in key else 4) if number else f"-{key}"


BAD = [
    ("stages: {melspec: {src: a, dst: b}}", "line 1: a recipe needs data"),
    ("data: d", "needs stages"),
    ("data: d\nstage: {}", "line 2: a recipe has no 'stage'; did you mean 'stages'?"),
    (
        "data: d\nstages:\n  melspecs: {src: a, dst: b}",
        "line 3: 'melspecs' is no kind of stage; did you mean 'melspec'?",
    ),
    ("data: d\nstages:\n  a: {stage: melspek}", "line 3: there is no stage 'melspek'; did you mean 'melspec'?"),
    ("data: d\nstages:\n  melspec:\n    src: a\n    dts: b", "line 5: melspec has no 'dts'; did you mean 'dst'?"),
    ("data: d\nstages:\n  melspec:\n    src: a", "line 3: melspec needs dst"),
    ("data: d\nstages:\n  stats:\n    lms: l\n    recompute: 1", "line 5: recompute must be true or false, not 1"),
    ("data: d\nstages:\n  stats:\n    lms: [a, b]", "line 4: lms takes one value, not a list"),
    ("data: d\nstages:\n  stats:\n    lms: {a: b}", "line 4: lms must be a path, not keys with values"),
    ("data: d\nstages:\n  pack: {lms: l, threads: two}", "line 3: threads: 'two' is not a valid integer"),
    ("data: d\nstages:\n  pack: {lms: l, threads: 0}", "threads: 0 is not in the range x>=1"),
    ("data: d\nstages:\n  pack: {lms: l, dtype: float64}", "dtype: 'float64' is not one of"),
    ("data: d\nstages:\n  pack: {lms: l, dtype: yes}", "dtype must be one of float32, float16, not true"),
    ("data: d\nstages:\n  pack: {lms: l, overwrite: true}", "overwrite is not for recipes: `m2dprep run --overwrite`"),
    ("data: d\nstages:\n  pack: {lms: l}\n  pack: {lms: m}", "line 4: 'pack' is set twice, first in line 3"),
    ("data: d\nstages:\n  pack: {lms: l, clips-per-shard: 1, clips_per_shard: 2}", "clips_per_shard is set twice"),
    ("data: d\nstages:\n  pack: {lms: '${NO_SUCH_VARIABLE}/l'}", "${NO_SUCH_VARIABLE} is not set"),
    (
        "data: d\nstages:\n  pack: {lms: l, after: stat}\n  stats: {lms: l}",
        "'stat', which is no stage; did you mean 'stats'?",
    ),
    ("data: d\nstages:\n  pack: {lms: l, after: stats}\n  stats: {lms: l, after: pack}", "stages wait for each other"),
    ("data: d\nstages:\n  stats: {lms: l}\n  again: {stage: stats, lms: l}", "both write"),
    ("data: d\nworkers: many\nstages:\n  check: {}", "line 2: workers: 'many' is not a valid integer"),
    ("data: d\ncluster: {clustre: slurm}\nstages:\n  check: {}", "cluster has no 'clustre'; did you mean 'cluster'?"),
    ("data: d\nstages:\n  embed-captions: {captions: c}", "embed-captions needs out"),
    ("data: d\nstages:\n  captions add: {captions: c, acalt4: a}", "line 3: captions add needs output"),
    ("data: d\nstages:\n  captions add: {captions: c, acalt4: a, output: ./c}", "both reads and writes"),
    ("data: d\nstages:\n  captions check: {captions: c}\n  captions-check: {captions: c}", "would share a log"),
    ("data: [d", "is not YAML"),
    ("- data", "a recipe must be keys with values, not a list"),
    ("data: d\nstages:\n  stats: {lms: nowhere}", "stats reads"),
    ("data: d\ncluster: {cluster: slurm, cluster_config: no.yaml}\nstages:\n  check: {}", "no.yaml, which is missing"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_recipes_are_refused_with_file_line_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text + "\n")
    result = run("run", "r.yaml")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "r.yaml" in result.stderr
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_settings_for_all_stages_reach_those_that_know_them(tmp_path: Path) -> None:
    text = """
data: d
seed: 7
workers: 3
cluster: {cluster: slurm, jobs: 2}
stages:
  melspec: {src: wavs, dst: "${data}/a_lms"}
  check: {workers: 1}
  held-out: {stage: melspec, src: wavs, dst: b_lms, cluster: null}
  elsewhere: {stage: melspec, src: wavs, dst: c_lms, scheduler: "tcp://host:1"}
  train: {output: run, seed: 1}
"""
    values = {stage.name: stage.values for stage in read(tmp_path / "r.yaml", text).stages}
    assert values["melspec"] == {"src": ["wavs"], "dst": ["d/a_lms"], "cluster": ["slurm"], "jobs": ["2"]}
    assert values["check"] == {"data": ["d"], "workers": ["1"]}  # its own workers are on this machine
    assert values["held-out"] == {"src": ["wavs"], "dst": ["b_lms"], "workers": ["3"]}
    assert values["elsewhere"] == {"src": ["wavs"], "dst": ["c_lms"], "scheduler": ["tcp://host:1"]}
    assert values["train"] == {
        "data": ["d"],
        "output": ["run"],
        "seed": ["1"],
    }  # whose loader_workers are another thing


def test_values_are_taken_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVS", "/nfs/wavs")
    monkeypatch.setenv("HOME", "/home/me")
    text = """
data: d
stages:
  melspec: &common {src: "${WAVS}/a", dst: a_lms, min_seconds: 2.10, name: 2024, files: ~/list.csv, ignore_space: true}
  other: {<<: *common, stage: melspec, dst: "${DST:-b_lms}", name: b, ignore_space: false}
"""
    first, second = read(tmp_path / "r.yaml", text).stages
    line = ["melspec", "--files=/home/me/list.csv", "--min-seconds=2.10", "--name=2024", "--ignore-space"]
    assert first.kind.arguments(first.values) == [*line, "/nfs/wavs/a", "a_lms"]
    assert second.kind.arguments(second.values) == [*line[:3], "--name=b", "/nfs/wavs/a", "b_lms"]


def test_the_demo_as_a_recipe_types_what_the_demo_types(tmp_path: Path) -> None:
    assert (RECIPES / "demo.yaml").read_text() == demo_recipe(), "write docs/recipes/demo.yaml anew"
    recipe = read(tmp_path / "demo.yaml", demo_recipe())
    settings = DemoSettings(Path("demo"), 40, 10, 0, 2, None, "the-model", False)
    source, data, trained = Path("demo/source"), Path("demo/data"), Path("demo/run")
    wanted = [*_commands(settings, source, data, trained), _zero_shot_command(settings, source, trained)]
    assert [_meaning(stage.kind.arguments(stage.values)) for stage in recipe.stages[1:]] == list(map(_meaning, wanted))
    assert _meaning(recipe.stages[0].kind.arguments(recipe.stages[0].values)) == (
        "sound-set", {"clips": 40, "held_out": 10, "seed": 0, "out": Path("demo/source")},
    )  # fmt: skip


def test_the_second_acts_recipe_trains_the_four_stages_one_after_another(tmp_path: Path) -> None:
    settings = DemoSettings(tmp_path, 8, 2, 5, 1, 3, "the-model", False)
    recipe = read(tmp_path / "second_generation.yaml", recipe_of(settings))
    needs = {stage.name: set(stage.needs) for stage in recipe.stages}
    assert "stage-1" in needs["stage-1.1"]
    assert "stage-1.1" in needs["stage-2"]
    assert "stage-2" in needs["stage-2.1"]
    assert {"control", "sounds", "descriptions", "all-descriptions"} <= needs["evaluate-control"]
    values = {stage.name: stage.values for stage in recipe.stages}
    differing = {key for key, value in values["control"].items() if values["stage-1"].get(key) != value}
    assert differing == {"shuffle_captions", "output"}, "the control differs in nothing else"
    assert {value["seed"][0] for value in values.values() if "seed" in value} == {"5"}
    assert {value["epochs"][0] for value in values.values() if "epochs" in value} == {"3"}
    assert (values["sound-set"]["clips"], values["sound-set"]["held_out"]) == (["8"], ["2"])
    assert values["stage-2"]["text_model"] == values["embed-captions"]["text_model"] == ["the-model"]


def test_a_folder_that_stages_fill_is_not_missing_but_its_tables_are(tmp_path: Path) -> None:
    (tmp_path / "the-model").mkdir()
    settings = DemoSettings(tmp_path, 8, 2, 0, 1, None, str(tmp_path / "the-model"), False)
    recipe = read(tmp_path / "second_generation.yaml", recipe_of(settings))
    missing = missing_inputs(recipe, make_plan(recipe, RecipeState.of(recipe), Choice()))
    found = {path for line in missing for path in re.findall(r"reads (\S+),", line)}
    names = ("", "/labels.csv", "/sounds.yaml", "/descriptions.yaml", "/all_descriptions.yaml")
    assert found == {f"{tmp_path}/second_generation/tables{name}" for name in names}


def _meaning(line: list[str]) -> tuple[str, dict[str, object]]:
    """A command line as its command parses it, without settings that do not change the result."""
    command: click.Command = m2dprep
    words = []
    while isinstance(command, click.Group):
        words.append(line[len(words)])
        found = command.get_command(click.Context(command), words[-1])
        assert found is not None
        command = found
    values = command.make_context(words[-1], list(line[len(words) :]), resilient_parsing=False).params
    return " ".join(words), {
        key: value for key, value in values.items() if value and key not in ("workers", "as_json")
    } | ({"seed": values["seed"]} if "seed" in values else {})


def test_the_audioset_recipe_is_planned_as_it_should_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, files in {
        "audioset": [
            "balanced_train_segments.csv",
            "unbalanced_train_segments.csv",
            "eval_segments.csv",
            "ontology.json",
        ],
        "captions": ["auto_acd/train.csv", "ACalt4.csv"],
        "esc50": ["clips.csv"],
    }.items():
        monkeypatch.setenv(folder.upper(), str(tmp_path / folder))
        for name in files:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
    (tmp_path / "audioset" / "wavs").mkdir()
    monkeypatch.setenv("M2DPREP_DATA", str(tmp_path / "data"))
    planned = run("run", str(RECIPES / "audioset.yaml"), "--dry-run", "--json")
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    order = [decision["stage"] for decision in plan["plan"]]
    assert {decision["action"] for decision in plan["plan"]} == {"run"}
    assert order.index("fill") < order.index("lint") < order.index("embed-captions")
    assert order[-3:] == ["check", "train", "zero-shot"]
    recipe = read_recipe(RECIPES / "audioset.yaml", KINDS)
    assert set(recipe.stage("train").needs) == {"melspec", "stats", "pack", "training-list", "embed-captions", "check"}
    assert recipe.stage("melspec").values["cluster"] == ["slurm"]
    assert recipe.stage("embed-captions").values["cluster_config"] == ["slurm-gpu.yaml"]
    assert read_job_settings(RECIPES / "slurm.yaml").walltime == "12:00:00"
    assert read_job_settings(RECIPES / "slurm-gpu.yaml").gpu
    (tmp_path / "captions" / "ACalt4.csv").unlink()
    missing = run("run", str(RECIPES / "audioset.yaml"), "--dry-run")
    assert missing.exit_code == 2
    assert re.search(r"audioset\.yaml, line \d+: fill reads .*ACalt4\.csv, which is missing", missing.stderr)


def test_init_writes_a_recipe_of_all_options_and_never_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init").exit_code == 0
    text = Path("recipe.yaml").read_text()
    assert text == audioset_recipe(KINDS)
    recipe = read_recipe(Path("recipe.yaml"), KINDS)
    assert [stage.name for stage in recipe.stages] == ["melspec", "stats", "fill", "embed-captions", "check", "train"]
    again = run("init")
    assert again.exit_code == 2
    assert "there already" in again.stderr
    assert run("init", "demo.yaml", "--demo").exit_code == 0
    assert Path("demo.yaml").read_text() == demo_recipe()


def test_every_line_in_comments_of_a_new_recipe_is_valid_when_uncommented(tmp_path: Path) -> None:
    text = audioset_recipe(KINDS)
    commented = re.sub(r"^    # (\w+:)", r"    \1", text, flags=re.MULTILINE)
    recipe = read(tmp_path / "options.yaml", commented)
    plain = read(tmp_path / "plain.yaml", text)
    offered = {
        stage.name: set(re.findall(r"^    (\w+):", part, re.MULTILINE)) for stage, part in _parts(recipe, commented)
    }
    for stage in recipe.stages:
        keys = {option.key for option in stage.kind.options if not option.of_cluster} - {"seed", "data"}
        assert offered[stage.name] - {"stage", "after"} == keys, stage.name
        defaults = {key: texts for key, texts in stage.values.items() if key not in plain.stage(stage.name).values}
        for key, texts in defaults.items():
            option = stage.kind.option(key)
            assert option is not None
            assert texts in ([option.default], []), key
    stages = re.sub(r"^# ( {2}\S| {4}\S)", r"\1", text.partition("stages:")[2], flags=re.MULTILINE)
    whole = read(tmp_path / "stages.yaml", "data: data\nstages:" + stages)
    assert {"pack", "lint", "training-list", "zero-shot"} < {stage.name for stage in whole.stages}


def _parts(recipe: Recipe, text: str) -> list[tuple[object, str]]:
    lines = text.splitlines()
    starts = [*sorted(stage.where.line for stage in recipe.stages), len(lines) + 1]
    by_line = {stage.where.line: stage for stage in recipe.stages}
    return [(by_line[start], "\n".join(lines[start : end - 1])) for start, end in pairwise(starts)]


def test_examples_in_help_are_commands() -> None:
    for name in ("run", "status", "init"):
        for line in re.findall(r"^ +(m2dprep .*)", run(name, "-h").stdout, re.MULTILINE):
            assert shlex.split(line)[1] == name
