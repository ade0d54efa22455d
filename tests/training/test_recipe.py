"""Settings files are read strictly, and a run's own makes the same run; wandb and matplotlib are asked for by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.yaml_files import read_settings
from m2dprep.cli.main import m2dprep
from m2dprep.cli.train import train
from m2dprep.training.config import SETTINGS
from m2dprep.training.log import read_log


@pytest.fixture
def data(tmp_path: Path, make_data: Callable[..., Path]) -> Path:
    return make_data(tmp_path / "data", clips=8, frames=60)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, ["train", *map(str, arguments)])


SMALL = {"input_size": [80, 48], "embed-dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 16,
         "decoder_depth": 1, "decoder_num_heads": 2}  # fmt: skip


def settings(tmp_path: Path, **values: Any) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({"model": "tiny", **SMALL, **values}))
    return path


def test_flags_win_over_a_file_that_wins_over_the_model(data: Path, tmp_path: Path) -> None:
    path = settings(tmp_path, data=str(data), epochs=3, batch_size=4, betas=[0.9, 0.98], keep=1, log_every=1)
    result = run("--config", path, "--epochs", 1, "--output", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["steps"] == 2
    begun = json.loads((tmp_path / "run/config.json").read_text())["settings"]
    assert begun["model"]["embed_dim"] == 32
    assert begun["train"]["betas"] == [0.9, 0.98]
    assert (begun["train"]["epochs"], begun["train"]["weight_decay"]) == (1, 0.05)


@pytest.mark.slow
def test_a_runs_own_recipe_makes_the_same_run(data: Path, tmp_path: Path) -> None:
    path = settings(tmp_path, epochs=1, batch_size=4, seed=5, patch_size=[80, 2], log_every=1)
    assert run(data, "--config", path, "--output", tmp_path / "run", "--loss-clap", 0.5).exit_code == 0
    recipe = tmp_path / "run/train.yaml"
    again = run("--config", recipe)
    assert again.exit_code == 0, again.stderr
    assert "train: 8 files listed" in again.stderr
    assert run("--config", recipe, "--output", tmp_path / "other").exit_code == 0
    logs = [[line["loss"] for line in read_log(tmp_path / name / "log.jsonl")] for name in ("run", "other")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown setting 'epoch'; did you mean 'epochs'"),
        ("epochs: 3\nepochs: 4", "sets epochs twice"),
        ("- epochs", "holds no settings"),
        ("epochs: [", "is not YAML"),
        ("size: tiny", "unknown setting 'size'"),
        ("off_emb_dim: 3", "unknown setting 'off_emb_dim'"),
    ],
)
def test_files_that_are_refused(data: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    result = run(data, "--config", tmp_path / "bad.yaml", "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_values_in_files_are_checked_as_flags_are(data: Path, tmp_path: Path) -> None:
    for value, message in (({"epochs": "many"}, "many"), ({"input_size": 80}, "80x608"), ({"model": "huge"}, "huge")):
        result = run(data, "--config", settings(tmp_path, **value), "--output", tmp_path / "run")
        assert result.exit_code == 2
        assert message in result.stderr
    assert run(data, "--config", tmp_path / "nowhere.yaml").exit_code == 2


def test_empty_files_and_nulls_set_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("")
    assert read_settings(tmp_path / "a.yaml", ["epochs"]) == {}
    (tmp_path / "a.yaml").write_text("save-every: null\nepochs: 2\n")
    assert read_settings(tmp_path / "a.yaml", ["epochs", "save_every"]) == {"epochs": (2, f"{tmp_path}/a.yaml, line 2")}
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not YAML"):
        read_settings(tmp_path / "a.yaml", ["epochs"])


def test_dry_run_measures_a_step_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    path = settings(tmp_path, epochs=5, batch_size=4)
    command = (data, "--config", path, "--output", tmp_path / "run", "--dry-run")
    value = json.loads(run(*command, "--json").stdout)
    assert (value["clips"], value["steps_per_epoch"], value["steps"]) == (8, 2, 10)
    assert 0 < value["trained_parameters"] < value["parameters"]
    assert min(value["memory_gib"], value["measured_gib"], value["step_seconds"], value["samples_per_second"]) > 0
    shown = run(*command)
    assert "steps       10 (2 per epoch)" in shown.stdout
    assert f"parameters  {value['parameters']:,}" in shown.stdout
    assert not (tmp_path / "run").exists()
    assert run(*command, "--batch-size", 16).exit_code == 2


def test_noise_needs_both_its_options(data: Path, tmp_path: Path) -> None:
    for options in (("--noise-ratio", 0.2), ("--noise-files", data / "files_made.csv")):
        result = run(data, "--output", tmp_path / "run", *options)
        assert result.exit_code == 2
        assert "go together" in result.stderr


@pytest.mark.slow
def test_wandb_gets_every_line_and_is_asked_for_where_it_is_missing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (data, "--config", settings(tmp_path, epochs=1, batch_size=4, log_every=1), "--wandb", "sounds")
    monkeypatch.setitem(sys.modules, "wandb", None)
    missing = run(*command, "--output", tmp_path / "run")
    assert missing.exit_code == 2
    assert "m2dprep[wandb]" in missing.stderr
    sent: list[dict[str, Any]] = []
    begun: list[dict[str, Any]] = []
    remote = SimpleNamespace(log=sent.append, finish=lambda: sent.append({}), define_metric=lambda *_, **__: None)
    fake = SimpleNamespace(init=lambda **options: begun.append(options) or remote)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert run(*command, "--output", tmp_path / "run").exit_code == 0
    assert sent[:-1] == read_log(tmp_path / "run/log.jsonl")
    assert sent[-1] == {}
    assert (begun[0]["project"], begun[0]["resume"]) == ("sounds", "allow")


def test_plots_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "epoch": 1.0, "loss": 2.0}\n')
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(m2dprep, ["plot", str(tmp_path)])
    assert result.exit_code == 2
    assert "m2dprep[viz]" in result.stderr


# Every key that a settings file may have, and what it must never be taken for.
NUMBERS = ["many", ".nan", ".inf", "-.inf", '"3"', "true", "[1]", "{a: 1}", "1e400", "-1e9", "1" * 400, "2020-01-01"]
WHOLE = [*NUMBERS, "1.5", "3.0", "1e3"]
WRONG_BY_KEYS: dict[str, list[str]] = {
    "draws epochs batch_size accumulate seed depth num_heads embed_dim": WHOLE,
    "sem_mode text_tokens audio_frames hint_start block_length": WHOLE,
    "decoder_depth decoder_embed_dim decoder_num_heads": WHOLE,
    "save_every save_steps keep log_every valid_every features_every probe_every loader_workers": WHOLE,
    "blr min_lr warmup_epochs weight_decay clip_grad mask_ratio loss_clap loss_m2d noise_ratio": NUMBERS,
    "ema_decay_init ema_decay_end layer_norm_eps save_minutes loss_m2d_end loss_clap_end audio_mask hint_power "
    "hint_ratio block_adjust": NUMBERS,
    "weighted distinct shuffle_captions compile random_mask strict_original antialias": [
        "1",
        "maybe",
        '"true"',
        "[true]",
        ".nan",
    ],
    "input_size patch_size": ["80", "80 x", "[80]", "[80.5, 608]", "[true, 8]", "[0, 8]", ".nan"],
    "betas": ["0.9, 0.95", "[0.9]", "[.nan, 0.9]", '["0.9", 0.95]', "[0.9, 1.0]", "0.9", "[-1, 0.9]"],
    "model device amp objective text_pooling heads masking mask_weight fusion fusion_fill": [
        "1",
        "true",
        "[tiny]",
        "nothing",
    ],
    "data output init wandb captions text_model": ["1", "true", "[a]", "{a: b}"],
    "probe probe_clips probe_root probe_text_model probe_template": ["1", "true", "[a]"],
    "files valid_files noise_files embeddings m2d_embeddings": ["1", "[1]", "{a: b}"],
}
WRONG = {key: values for keys, values in WRONG_BY_KEYS.items() for key in keys.split()}


def test_the_table_of_wrong_values_has_every_key() -> None:
    assert {*SETTINGS, "output"} == set(WRONG)
    flags = {option.name for option in train.params} - {"config", "recipe", "as_json", "dry_run", "overwrite"}
    assert flags <= set(WRONG)


@pytest.mark.slow
@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_refused_with_key_file_and_line(tmp_path: Path, key: str) -> None:
    path = tmp_path / "settings.yaml"
    for value in WRONG[key]:
        others = "" if key in ("data", "output") else f"output: {tmp_path / 'run'}\n"
        path.write_text(f"# a comment\n{others}{key.replace('_', '-')}: {value}\n")
        line = 2 + len(others.splitlines())
        arguments = [] if key == "data" else [tmp_path]
        result = run(*arguments, "--config", path)
        assert result.exit_code == 2, (value, result.output)
        assert f"{path}, line {line}" in result.stderr, (value, result.stderr)
        assert key in result.stderr.replace("-", "_"), (value, result.stderr)
        assert isinstance(result.exception, SystemExit)
        assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit_together_name_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("model: tiny\nepochs: 3\nwarmup_epochs: 4\n")
    result = run(tmp_path, "--config", path, "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert f"(epochs: {path}, line 2; warmup_epochs: {path}, line 3)" in result.stderr


FINITE_FLAGS = ("--blr", "--min-lr", "--warmup-epochs", "--weight-decay", "--clip-grad", "--mask-ratio", "--loss-clap")


@pytest.mark.parametrize("flag", [*FINITE_FLAGS, "--loss-m2d", "--save-minutes", "--noise-ratio"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "many"])
def test_flags_are_finite_numbers(tmp_path: Path, flag: str, value: str) -> None:
    result = run(tmp_path, "--output", tmp_path / "run", f"{flag}={value}")
    assert result.exit_code == 2
    assert flag in result.stderr or flag[2:].replace("-", "_") in result.stderr
    assert not (tmp_path / "run").exists()


def test_numbers_as_yaml_12_writes_them(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("layer_norm_eps: 1e-6\nblr: 3E-4\nbetas: [0.9, 95e-2]\n")
    values = {key: setting.value for key, setting in read_settings(path, ["layer_norm_eps", "blr", "betas"]).items()}
    assert values == {"layer_norm_eps": 1e-6, "blr": 3e-4, "betas": [0.9, 0.95]}
