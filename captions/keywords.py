"""Turns label names into a sentence with a keyword-to-text model (T5 or another seq2seq model), as LAION did.

Decoding: 4 beams, length penalty 1.5, no repeated trigrams, at most 1024 tokens, early stopping. Input: quotes and
brackets are removed, commas replaced by a separator (``|``; a space for models made with common_gen), and the text is
split at full stops; the sentences of its parts are joined. Every different list of labels is decoded once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import differing_keys, fingerprint
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.files import sweep_temporaries
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.tables import read_parquet, write_parquet
from m2dprep.captions.embedding.loading import surely, weights_are_read
from m2dprep.captions.embedding.model_files import unloadable
from m2dprep.captions.sources.caption_rows import CAPTION_ROWS

DECODING = {
    "num_beams": 4,
    "length_penalty": 1.5,
    "no_repeat_ngram_size": 3,
    "max_length": 1024,
    "early_stopping": True,
}
REMOVED = re.compile(r"[\"'“”‘’«»()\[\]{}]")
SENTENCES = pa.schema(
    [pa.field("keywords", pa.string(), nullable=False), pa.field("caption", pa.string(), nullable=False)]
)
META = "meta.json"
# The batches of a folder's first options are numbered; the names of others have a digest of their options as well.
PART, PARTS = "part-{}{:06d}.parquet", "part-{}*.parquet"


@dataclass(frozen=True)
class KeywordOptions:
    """``separator`` stands between keywords; ``batch_size`` inputs are decoded together and saved when done."""

    model: str
    separator: str = "|"
    batch_size: int = 32


@dataclass(frozen=True)
class KeywordRun:
    """The captions (`CAPTION_ROWS`), one per clip with labels, and how many inputs were decoded now and before."""

    rows: pa.Table
    done: int
    skipped: int
    without_labels: int


class KeywordModel:
    """A seq2seq model and its tokenizer, from a folder or the hub. Raises `UserError` if it cannot be loaded."""

    def __init__(self, name_or_path: str, device: str) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: there is no GPU here.")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"

        def load() -> tuple[Any, Any]:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
            with weights_are_read():
                model = AutoModelForSeq2SeqLM.from_pretrained(name_or_path, trust_remote_code=False)
            return tokenizer, model.eval().to(device)

        try:
            self._tokenizer, self._model = surely(load, name_or_path)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"{name_or_path!r} cannot be loaded as a seq2seq model: {unloadable(error)}") from error

    @torch.inference_mode()
    def sentences(self, inputs: Sequence[str]) -> list[str]:
        """One sentence per input."""
        batch = self._tokenizer(list(inputs), return_tensors="pt", padding=True).to(self._model.device)
        batch.pop("token_type_ids", None)
        decoded = self._model.generate(**batch, **DECODING)
        return [text.strip() for text in self._tokenizer.batch_decode(decoded, skip_special_tokens=True)]


def model_inputs(labels: Sequence[str], separator: str) -> list[str]:
    """The inputs for a list of labels: its parts between full stops, with separators between keywords."""
    text = REMOVED.sub("", ", ".join(labels))
    parts = (part.strip(" ,") for part in text.split("."))
    return [separator.join(word.strip() for word in part.split(",") if word.strip()) for part in parts if part]


def write_sentences(
    captions: pa.Table, work: Path, options: KeywordOptions, device: str, *, overwrite: bool
) -> KeywordRun:
    """Write a sentence for every clip of ``captions`` (columns clip_id, labels) that has labels.

    ``work`` is a folder for the finished batches, so that the same call continues where it was interrupted and gives
    the same result; equal inputs make equal batches. Raises `FingerprintConflictError` if it was begun with other
    options or labels. With ``overwrite``, those batches stay until all new ones are there, and damaged ones are made
    anew.
    """
    clips, keys = _keyed(captions)
    unique = sorted(set(keys) - {""})
    if not unique:
        raise UserError("no clip has labels, so there are no keywords to make captions of.")
    texts = {key: model_inputs(json.loads(key), options.separator) for key in unique}
    needed = sorted({text for parts in texts.values() for text in parts}, key=lambda text: (len(text), text))
    work.mkdir(parents=True, exist_ok=True)
    with exclusive(work):
        settings = {**asdict(options), **DECODING, "inputs": fingerprint({"inputs": needed})}
        begun = _is_begun(work, settings, overwrite)
        earlier = not begun and any(work.glob(PARTS.format("")))
        if not begun and not earlier:
            write_object(work / META, settings)
        own = f"{fingerprint(settings)[:8]}-"
        kind = own if earlier or any(work.glob(PARTS.format(own))) else ""
        sentences, done = _decode(needed, work, kind, options, device, overwrite)
        if kind:  # these batches replace others
            if not begun:
                write_object(work / META, settings)
            for part in set(work.glob(PARTS.format(""))).difference(work.glob(PARTS.format(own))):
                part.unlink()
    made = {key: " ".join(filter(None, (sentences[text] for text in parts))) for key, parts in texts.items()}
    pairs = [(clip, made[key]) for clip, key in zip(clips, keys, strict=True) if key]
    rows = pa.Table.from_arrays(
        [pa.array(column, pa.string()) for column in zip(*pairs, strict=True)], schema=CAPTION_ROWS
    )
    return KeywordRun(rows, done, len(needed) - done, len(clips) - len(pairs))


def _keyed(captions: pa.Table) -> tuple[list[str], list[str]]:
    """The clips, each once, and their labels as JSON; "" for clips without labels."""
    ids = captions["clip_id"].combine_chunks()
    first = np.sort(np.unique(ids.dictionary_encode().indices.to_numpy(zero_copy_only=False), return_index=True)[1])
    clips = captions.take(pa.array(first))
    return clips["clip_id"].to_pylist(), [json.dumps(names) if names else "" for names in clips["labels"].to_pylist()]


def _is_begun(work: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Whether the batches in ``work`` are of these settings. Others, unless ``overwrite`` is set, are a conflict."""
    sweep_temporaries(work)
    try:
        there = read_object(work / META)
    except UserError:
        if not overwrite:
            raise
        return False
    if there is not None and there != settings and not overwrite:
        lines = "; ".join(differing_keys(there, settings))
        raise FingerprintConflictError(f"{work} was begun otherwise ({lines}). Choose another --work, or --overwrite.")
    return there == settings


def _decode(
    inputs: list[str], work: Path, kind: str, options: KeywordOptions, device: str, overwrite: bool
) -> tuple[dict[str, str], int]:
    """The sentence of each input, and the number decoded now. Each slice of ``inputs`` is saved as a file.

    ``kind`` is in the names of these files.
    """
    model: KeywordModel | None = None
    size, decoded = options.batch_size, 0
    sentences: dict[str, str] = {}
    with Progress(len(inputs), "keywords to captions", "inputs") as progress:
        for number, start in enumerate(range(0, len(inputs), size)):
            batch, part = inputs[start : start + size], work / PART.format(kind, number)
            table = _finished(part, batch, overwrite)
            if table is None:
                model = model or KeywordModel(options.model, device)
                columns = [pa.array(batch, pa.string()), pa.array(model.sentences(batch), pa.string())]
                table = pa.Table.from_arrays(columns, schema=SENTENCES)
                write_parquet(part, table)
                decoded += len(batch)
            sentences.update(zip(batch, table["caption"].to_pylist(), strict=True))
            progress.advance(len(batch))
    return sentences, decoded


def _finished(part: Path, batch: list[str], overwrite: bool) -> pa.Table | None:
    """The sentences in a batch's file; None if it is missing, or damaged and to be replaced."""
    if not part.exists():
        return None
    try:
        table = read_parquet(part, SENTENCES, "a batch of sentences")
        if pc.all(pc.equal(table["keywords"], pa.array(batch, pa.string()))).as_py():
            return table
        raise UserError(f"{part} holds other inputs; --overwrite makes it anew.")
    except UserError:
        if overwrite:
            return None
        raise
