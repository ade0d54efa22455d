"""A new option of training is declared in one line: the flag, files, checks, train.yaml and resuming follow from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from m2dprep.cli.main import m2dprep

pytestmark = pytest.mark.slow

# In the declarations of `TrainConfig`; nothing else of the package is changed.
LINE = '    calm: Share = option(0.25, "Be this calm.", later=True)\n'
# Runs commands of m2dprep, given as JSON on stdin, with one more line in the module of declarations.
SCRIPT = f"""
import importlib.util, json, pathlib, sys
import m2dprep.training
from click.testing import CliRunner
spec = importlib.util.find_spec("m2dprep.training.config")
source = pathlib.Path(spec.origin).read_text()
at = source.index("    betas: ")
module = m2dprep.training.config = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
exec(compile(source[:at] + {LINE!r} + source[at:], spec.origin, "exec"), module.__dict__)
from m2dprep.cli.main import m2dprep
results = [CliRunner().invoke(m2dprep, command) for command in json.load(sys.stdin)]
json.dump([(one.exit_code, one.output) for one in results], sys.stdout)
"""
SMALL = {"model": "tiny", "input_size": [80, 48], "embed_dim": 32, "depth": 1, "num_heads": 2, "epochs": 1,
         "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "batch_size": 4}  # fmt: skip


def run(*commands: list[Any]) -> list[tuple[int, str]]:
    text = json.dumps([["train", *map(str, command)] for command in commands])
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=text, capture_output=True, text=True, check=True)
    return [(code, output) for code, output in json.loads(done.stdout)]


@pytest.fixture
def command(tmp_path: Path, make_data: Callable[..., Path]) -> list[Any]:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return [make_data(tmp_path / "data", clips=8, frames=60), "--config", tmp_path / "small.yaml"]


def test_flag_file_and_checks_follow(command: list[Any], tmp_path: Path) -> None:
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


def test_a_run_records_and_compares_it(command: list[Any], tmp_path: Path) -> None:
    first, again, other = run(
        [*command, "-o", tmp_path / "run", "--calm", 0.5],
        ["--config", tmp_path / "run/train.yaml"],
        [*command, "-o", tmp_path / "run", "--calm", 0.75],
    )
    assert [first[0], again[0], other[0]] == [0, 0, 5], (first, again, other)
    assert yaml.safe_load((tmp_path / "run/train.yaml").read_text())["calm"] == 0.5
    assert json.loads((tmp_path / "run/config.json").read_text())["settings"]["train"]["calm"] == 0.5
    assert "train.calm: 0.5 → 0.75" in other[1]


def test_runs_begun_before_it_go_on(command: list[Any], tmp_path: Path) -> None:
    before = CliRunner().invoke(m2dprep, ["train", *map(str, command), "-o", str(tmp_path / "run")])
    assert before.exit_code == 0, before.output
    begun = (tmp_path / "run/config.json").read_bytes()
    same, other = run([*command, "-o", tmp_path / "run"], [*command, "-o", tmp_path / "run", "--calm", 0.5])
    assert (same[0], other[0]) == (0, 5), (same, other)
    assert (tmp_path / "run/config.json").read_bytes() == begun
