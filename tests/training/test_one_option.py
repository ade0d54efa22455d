"""A new option of training is declared in one line: the flag, files, checks, train.yaml and resuming follow from it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from m2dprep.cli.main import m2dprep
from tests.forks import ended, start

pytestmark = pytest.mark.slow

Run = Callable[..., list[tuple[int, str]]]
# In the declarations of `TrainConfig`; nothing else of the package is changed.
LINE = '    calm: Share = option(0.25, "Be this calm.", later=True)\n'
SMALL = {"model": "tiny", "input_size": [80, 48], "embed_dim": 32, "depth": 1, "num_heads": 2, "epochs": 1,
         "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "batch_size": 4}  # fmt: skip


def _run(commands: list[list[Any]], answer: Path) -> None:
    """Run commands with one more line in the module of declarations; nothing of ours has been imported before."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "m2dprep"]:
        del sys.modules[name]
    import m2dprep.training

    spec = importlib.util.find_spec("m2dprep.training.config")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text()
    at = source.index("    betas: ")
    module = m2dprep.training.config = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    exec(compile(source[:at] + LINE + source[at:], spec.origin, "exec"), module.__dict__)  # noqa: S102
    program = importlib.import_module("m2dprep.cli.main").m2dprep
    results = [CliRunner().invoke(program, ["train", *map(str, command)]) for command in commands]
    answer.write_text(json.dumps([(one.exit_code, one.output) for one in results]))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*commands: list[Any]) -> list[tuple[int, str]]:
        answer, written = tmp_path / "answer.json", tmp_path / "written"
        assert ended(start(_run, list(commands), answer, output=written)) == 0, written.read_text()
        return [(code, output) for code, output in json.loads(answer.read_text())]

    return run


@pytest.fixture
def command(tmp_path: Path, make_data: Callable[..., Path]) -> list[Any]:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return [make_data(tmp_path / "data", clips=8, frames=60), "--config", tmp_path / "small.yaml"]


def test_flag_file_and_checks_follow(run: Run, command: list[Any], tmp_path: Path) -> None:
    for name, text in {"wrong": "\ncalm: 2", "near": "clam: 0.5"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    here = [tmp_path, "-o", tmp_path / "run"]
    (_, shown), flag, word, wrong, near = run(
        ["--help"],
        [*here, "--calm", 2],
        [*here, "--calm", "much"],
        [*here, "--config", tmp_path / "wrong.yaml"],
        [*here, "--config", tmp_path / "near.yaml"],
    )
    assert " ".join(shown.split("--calm NUMBER")[1].split()).startswith("Be this calm. [default: 0.25; 0<=x<=1]")
    assert [code for code, _ in (flag, word, wrong, near)] == [2, 2, 2, 2]
    assert "'--calm': calm is 2.0; it must be a finite number from 0 to 1" in flag[1]
    assert "'much' is not a valid float" in word[1]
    assert f"{tmp_path}/wrong.yaml, line 2: calm is 2; it must be a finite number from 0 to 1" in wrong[1]
    assert f"{tmp_path}/near.yaml, line 1: unknown setting 'clam'; did you mean 'calm'?" in near[1]


def test_a_run_records_and_compares_it(run: Run, command: list[Any], tmp_path: Path) -> None:
    first, again, other = run(
        [*command, "-o", tmp_path / "run", "--calm", 0.5],
        ["--config", tmp_path / "run/train.yaml"],
        [*command, "-o", tmp_path / "run", "--calm", 0.75],
    )
    assert [first[0], again[0], other[0]] == [0, 0, 5], (first, again, other)
    assert yaml.safe_load((tmp_path / "run/train.yaml").read_text())["calm"] == 0.5
    assert json.loads((tmp_path / "run/config.json").read_text())["settings"]["train"]["calm"] == 0.5
    assert "train.calm: 0.5 → 0.75" in other[1]


def test_runs_begun_before_it_go_on(run: Run, command: list[Any], tmp_path: Path) -> None:
    before = CliRunner().invoke(m2dprep, ["train", *map(str, command), "-o", str(tmp_path / "run")])
    assert before.exit_code == 0, before.output
    begun = (tmp_path / "run/config.json").read_bytes()
    same, other = run([*command, "-o", tmp_path / "run"], [*command, "-o", tmp_path / "run", "--calm", 0.5])
    assert (same[0], other[0]) == (0, 5), (same, other)
    assert (tmp_path / "run/config.json").read_bytes() == begun
