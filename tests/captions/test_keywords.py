"""Labels → sentences with a tiny random T5: inputs, decoding, resuming, and refusals."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.captions import keywords
from m2dprep.captions.keywords import DECODING, KeywordModel, KeywordOptions, model_inputs, write_sentences

WORDS = "Speech Dog Male speech , man speaking | sound of the a wind".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A T5 of two small layers with random weights, and a tokenizer of a few words, made here."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    made = T5ForConditionalGeneration(config)
    made.generation_config.max_length = 12
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights hardly ever end a sentence."""
    monkeypatch.setitem(DECODING, "max_length", 10)


CLIPS = pa.table(
    {
        "clip_id": ["a", "b", "a", "c", "d", "e"],
        "labels": [["Dog"], ["Dog", "Speech"], ["Dog"], None, ["Dog"], ["Wind. Speech"]],
    }
)


def test_decoding_is_as_documented() -> None:
    assert {name: value for name, value in DECODING.items() if name != "max_length"} == {
        "num_beams": 4,
        "length_penalty": 1.5,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
    }


@pytest.mark.parametrize(
    ("labels", "separator", "inputs"),
    [
        (["Dog"], "|", ["Dog"]),
        (["Male speech, man speaking", "Grunt (sound)"], "|", ["Male speech|man speaking|Grunt sound"]),
        (["Male speech, man speaking", '"Bow-wow"'], " ", ["Male speech man speaking Bow-wow"]),
        (["St. Bernard", "Dog"], "|", ["St", "Bernard|Dog"]),
    ],
)
def test_inputs_of_the_model(labels: list[str], separator: str, inputs: list[str]) -> None:
    assert model_inputs(labels, separator) == inputs


@pytest.mark.slow
def test_a_sentence_for_every_clip_with_labels_once_per_list(model: str, tmp_path: Path) -> None:
    options = KeywordOptions(model, batch_size=2)
    run = write_sentences(CLIPS, tmp_path, options, "cpu", overwrite=False)
    rows = {row["id"]: row["caption"] for row in run.rows.to_pylist()}
    assert list(rows) == ["a", "b", "d", "e"]
    assert rows["a"] == rows["d"] != ""
    alone = KeywordModel(model, "cpu")
    assert rows["a"] == alone.sentences(["Dog"])[0]
    assert rows["e"] == " ".join(alone.sentences([text])[0] for text in ("Wind", "Speech")).strip()
    assert (run.done, run.skipped, run.without_labels) == (4, 0, 1)


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = KeywordOptions(model, batch_size=1)
    whole = write_sentences(CLIPS, tmp_path / "whole", options, "cpu", overwrite=False)
    sentences, calls = KeywordModel.sentences, []

    def interrupted(self: KeywordModel, inputs: list[str]) -> list[str]:
        calls.append(inputs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sentences(self, inputs)

    monkeypatch.setattr(KeywordModel, "sentences", interrupted)
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        write_sentences(CLIPS, work, options, "cpu", overwrite=False)
    run = write_sentences(CLIPS, work, options, "cpu", overwrite=False)
    assert (run.done, run.skipped) == (2, 2)
    assert run.rows.equals(whole.rows)
    assert len(calls) == 5
    again = write_sentences(CLIPS, work, options, "cpu", overwrite=False)
    assert (again.done, again.skipped) == (0, 4)
    with pytest.raises(FingerprintConflictError, match=r"separator.*--overwrite"):
        write_sentences(CLIPS, work, KeywordOptions(model, " ", 1), "cpu", overwrite=False)
    assert write_sentences(CLIPS, work, KeywordOptions(model, " ", 1), "cpu", overwrite=True).done == 4


@pytest.fixture(scope="module")
def written(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with the sentences of earlier options and of new ones."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DECODING, "max_length", 10)
        folders = tuple(tmp_path_factory.mktemp("sentences") / name for name in ("earlier", "new"))
        for folder, separator in zip(folders, "| ", strict=True):
            write_sentences(CLIPS, folder, KeywordOptions(model, separator, 2), "cpu", overwrite=False)
    return folders[0], folders[1]


@pytest.mark.slow
@pytest.mark.parametrize("stops", ["first batch", "second batch", "the new options", "the first removal", "nowhere"])
def test_finished_batches_stay_until_all_that_replace_them_are_there(
    model: str, written: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: str
) -> None:
    earlier, new = KeywordOptions(model, "|", 2), KeywordOptions(model, " ", 2)
    work = tmp_path / "work"
    shutil.copytree(written[0], work)
    before = {path: path.read_bytes() for path in work.iterdir()}
    place, name, number = {
        "first batch": (KeywordModel, "sentences", 0),
        "second batch": (KeywordModel, "sentences", 1),
        "the new options": (keywords, "write_object", 0),
        "the first removal": (Path, "unlink", 0),
        "nowhere": (keywords, "write_object", 99),
    }[stops]
    calls, original = itertools.count(), getattr(place, name)

    def stop(*given: Any, **named: Any) -> Any:
        part = place is not Path or given[0].name.startswith("part-")
        if part and next(calls) == number:
            raise KeyboardInterrupt
        return original(*given, **named)

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(place, name, stop)
        write_sentences(CLIPS, work, new, "cpu", overwrite=True)
    if stops in ("first batch", "second batch", "the new options"):
        assert before.items() <= {path: path.read_bytes() for path in work.iterdir()}.items()
        if stops != "first batch":  # and those options can be gone on with
            assert write_sentences(CLIPS, work, earlier, "cpu", overwrite=False).done == 0
    run = write_sentences(CLIPS, work, new, "cpu", overwrite=True)
    expected = write_sentences(CLIPS, written[1], new, "cpu", overwrite=False)
    assert expected.skipped == 4
    assert run.rows.equals(expected.rows)
    assert len(list(work.glob("part-*.parquet"))) == 2


def test_a_model_that_cannot_be_loaded_replaces_nothing(model: str, tmp_path: Path) -> None:
    write_sentences(CLIPS, tmp_path, KeywordOptions(model, batch_size=2), "cpu", overwrite=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="cannot be loaded as a seq2seq model"):
        write_sentences(CLIPS, tmp_path, KeywordOptions(str(tmp_path / "nowhere")), "cpu", overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_damaged_options_are_told(model: str, tmp_path: Path) -> None:
    options = KeywordOptions(model, batch_size=2)
    write_sentences(CLIPS, tmp_path, options, "cpu", overwrite=False)
    meta = tmp_path / "meta.json"
    meta.write_text(meta.read_text().replace('"num_beams": 4', '"num_beams": 5'))
    with pytest.raises(UserError, match=r"meta\.json is damaged, or was edited"):
        write_sentences(CLIPS, tmp_path, options, "cpu", overwrite=False)
    assert write_sentences(CLIPS, tmp_path, options, "cpu", overwrite=True).done == 4


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded as a seq2seq model"):
        write_sentences(CLIPS, tmp_path, KeywordOptions(str(tmp_path / "nowhere")), "cpu", overwrite=False)
    with pytest.raises(UserError, match="no clip has labels"):
        write_sentences(CLIPS.slice(3, 1), tmp_path, KeywordOptions("x"), "cpu", overwrite=False)
