"""``--length`` of commands that evaluate: what each way gives, that features are kept apart, and wrong requests."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from m2dprep.audioprep.config import PRESETS as FRONT_ENDS
from m2dprep.cli.main import m2dprep
from m2dprep.evaluation import text_towers
from m2dprep.m2dclap.model import M2DCLAP
from tests.cli.test_evaluate_group import FakeEncoder
from tests.tiny import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model without fusion and one with it, whose gate is open."""
    found = {}
    for fusion in ("none", "aff"):
        torch.manual_seed(0)
        made = M2DCLAP(replace(TINY, fusion=fusion))
        weights = made.state_dict()
        if fusion != "none":
            weights["patch_embed.gate"] = torch.ones(32)
        args = {"model_config": made.config.to_dict(), "front_end": asdict(FRONT_ENDS["16k"])}
        found[fusion] = tmp_path_factory.mktemp(fusion) / "checkpoint-1.pth"
        torch.save({"model": weights, "args": args}, found[fusion])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of log-mels, of which some are longer than the model's 48 frames."""
    place = tmp_path_factory.mktemp("sets") / "long"
    place.mkdir()
    rng = np.random.default_rng(0)
    rows = [["file_name", "label", "split"]]
    for number in range(12):
        frames = (1, 30, 60, 300)[number % 4]
        np.save(place / f"{number}.npy", rng.normal(-7, 4, (1, 80, frames)).astype(np.float32))
        rows.append([f"{number}.npy", f"kind_{number % 3}", "test"])
    with (place / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (place / "task.yaml").write_text("name: long\n")
    (place / "prepared.json").write_text('{"root": "."}')
    return place


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, [*map(str, arguments), "--text-model", "made-up"])


def measured(*arguments: object) -> dict[str, Any]:
    result = run("evaluate", "zero-shot", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_each_way_is_named_and_keeps_its_own_features(checkpoints: dict[str, Path], folder: Path) -> None:
    ways: list[tuple[str, list[str], str | None]] = [
        ("none", [], None),
        ("none", ["--length", "whole"], "whole"),
        ("none", ["--length", "whole", "--positions", "chunked"], "whole"),
        ("aff", [], "fused"),
        ("aff", ["--length", "chunks"], None),
        ("aff", ["--length", "whole"], "whole"),
    ]
    stores = set()
    for fusion, options, length in ways:
        found = measured(checkpoints[fusion], folder, *options)
        assert found["n"]["clips"] == 12
        assert found["model"].get("length") == length
        assert found["deviations"] == (
            [] if length is None else [f"Longer clips are encoded {length}; EVAR averages their chunks."]
        )
        new = {path.parent for path in folder.glob("features/*/*/meta.json")} - stores
        assert len(new) == 1, "features of another way are another store"
        stores |= new
    assert measured(checkpoints["none"], folder, "--length", "chunks")["deviations"] == []
    assert len(list(folder.glob("features/*/*/meta.json"))) == len(ways), "chunks are the default without fusion"


def test_the_short_form_and_all(checkpoints: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    table = folder / "metadata.csv"
    for options in ([], ["--length", "whole"]):
        assert run("zero-shot", checkpoints["none"], table, *options).exit_code == 0
    out = ["-o", tmp_path / "report", "--protocol", "zero-shot"]
    for options in ([], ["--length", "whole"]):
        result = run("evaluate", "all", checkpoints["aff"], folder.parent, *out, "--task", "long", *options)
        assert result.exit_code == 0, result.stderr
        assert "finished before" not in result.stderr, "another way is another result"


@pytest.mark.parametrize(
    ("fusion", "options", "words"),
    [
        ("none", ["--length", "fused"], "is for checkpoints with fusion"),
        ("none", ["--length", "long"], "'long' is not one of"),
        ("none", ["--positions", "chunked"], "--positions chunked is for --length whole alone"),
        ("aff", ["--length", "chunks", "--positions", "chunked"], "is for --length whole alone"),
    ],
)
def test_wrong_requests(
    checkpoints: dict[str, Path], folder: Path, fusion: str, options: list[str], words: str
) -> None:
    for command, place in ((["evaluate", "zero-shot"], folder), (["zero-shot"], folder / "metadata.csv")):
        result = run(*command, checkpoints[fusion], place, *options)
        assert result.exit_code == 2
        assert words in result.stderr
    result = run("evaluate", "zero-shot", folder, "--clap-model", "a/b", "--length", "whole")
    assert result.exit_code == 2
