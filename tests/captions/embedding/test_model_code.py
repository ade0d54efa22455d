"""Code in a model's folder runs only if asked for, whatever the library's release, and even if a prompt is answered
"y"."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding import loading
from m2dprep.captions.embedding.encoder import load_encoder
from m2dprep.captions.embedding.model_files import ModelFiles, require_no_code
from m2dprep.cli.main import m2dprep
from tests.captions.embedding.test_encoder_models import bert

pytestmark = pytest.mark.slow  # models are made with transformers, which takes seconds to import

CANARY = """
from pathlib import Path
Path({marker!r}).write_text("it ran")
import torch
class Evil(torch.nn.Module):
    @classmethod
    def load(cls, *given, **named):
        return cls()
    def forward(self, features):
        return features
"""


def evil_modules(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "", "type": "evil_mod.Evil"})
    (folder / "modules.json").write_text(json.dumps(modules))


def modules_of_another_package(folder: Path) -> None:
    evil_modules(folder)
    (folder / "modules.json").write_text((folder / "modules.json").read_text().replace("evil_mod.Evil", "os.system"))


def a_function_of_the_library(folder: Path) -> None:
    text = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(text.replace("models.Pooling", "util.import_from_string"))


def nested_in_a_router(folder: Path) -> None:
    (folder / "2_Router").mkdir()
    config = {"types": {"a": "evil_mod.Evil"}, "structure": {"a": ["a"]}, "parameters": {}}
    (folder / "2_Router" / "router_config.json").write_text(json.dumps(config))


def nested_the_old_way(folder: Path) -> None:
    nested_in_a_router(folder)
    (folder / "2_Router" / "router_config.json").rename(folder / "2_Router" / "config.json")


def an_activation(folder: Path) -> None:
    (folder / "2_Dense").mkdir()
    config = {"in_features": 32, "out_features": 4, "activation_function": "evil_mod.Evil"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))


def a_tokenizer_of_words(folder: Path) -> None:
    (folder / "0_WordEmbeddings").mkdir()
    (folder / "0_WordEmbeddings" / "wordembedding_config.json").write_text('{"tokenizer_class": "evil_mod.Evil"}')


@pytest.mark.parametrize(
    "plant",
    [
        evil_modules, modules_of_another_package, a_function_of_the_library, nested_in_a_router, nested_the_old_way,
        an_activation, a_tokenizer_of_words,
    ],
)  # fmt: skip
def test_classes_outside_the_library_are_refused_before_the_library_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Path], None]
) -> None:
    folder, marker = bert(tmp_path / "own"), tmp_path / "marker"
    (folder / "evil_mod.py").write_text(CANARY.format(marker=str(marker)))
    plant(folder)

    def loaded(*given: Any) -> None:
        raise AssertionError("the library was asked")

    monkeypatch.setattr(loading, "_loaded", loaded)
    monkeypatch.syspath_prepend(str(folder))  # as if a model is loaded from within its folder
    with pytest.raises(UserError, match=r"code of its own: .*json names '.*--trust-remote-code"):
        load_encoder(str(folder), "cpu")
    assert not marker.exists()


def test_they_run_when_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder, marker = bert(tmp_path / "own"), tmp_path / "marker"
    (folder / "evil_mod.py").write_text(CANARY.format(marker=str(marker)))
    evil_modules(folder)
    load_encoder(str(folder), "cpu", trust_remote_code=True)
    assert marker.exists()


def test_ordinary_folders_are_let_through(tmp_path: Path, minilm: Path) -> None:
    for folder in (minilm, bert(tmp_path / "bert")):
        files = ModelFiles("", folder, None)
        assert require_no_code(files) is files


def with_auto_map(folder: Path, marker: Path) -> Path:
    (folder / "evil_mod.py").write_text(CANARY.format(marker=str(marker)))
    names = {f"Auto{kind}": "evil_mod.Evil" for kind in ("Config", "Model", "ModelForSeq2SeqLM")}
    for file, kind in (("config.json", "own"), ("tokenizer_config.json", "")):
        values = json.loads((folder / file).read_text()) | {
            "auto_map": names | {"AutoTokenizer": ["evil_mod.Evil"] * 2}
        }
        values |= {"model_type": kind, "architectures": ["Evil"]} if kind else {"tokenizer_class": "EvilTokenizer"}
        (folder / file).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["captions", "check", "{captions}", "--text-model", "{model}"],
        ["captions", "keywords", "{captions}", "--keyword-model", "{model}", "--work", "{work}", "-o", "{out}"],
        ["embed-captions", "{captions}", "{out}", "--text-model", "{model}", "--device", "cpu"],
    ],
)
def test_a_yes_on_standard_input_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """transformers asks there if nobody has decided."""
    import pyarrow as pa

    from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    rows = [{"clip_id": "a", "caption": "a dog", "source": "s", "caption_index": 0, "split": None, "labels": ["Dog"]}]
    write_captions(tmp_path / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    marker = tmp_path / "marker"
    places = {"captions": "captions.parquet", "model": "own", "work": "work", "out": "out"}
    with_auto_map(bert(tmp_path / "own"), marker)
    arguments = [part.format(**{key: str(tmp_path / name) for key, name in places.items()}) for part in command]
    result = CliRunner().invoke(m2dprep, arguments, input="y\ny\ny\ny\n")
    assert result.exit_code == 2, result.output
    assert "code of its own" in result.output
    assert not marker.exists()
