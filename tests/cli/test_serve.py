"""The command serve refuses what it cannot serve in one line, with exit code 2. That it serves is tested over HTTP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.invocation import refused, run
from tests.evaluation.serving.made_store import captions_of, embeddings_of, write_map, write_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "store"
    write_map(write_store(folder, ["a.wav", "b.wav"], embeddings_of([0, 1])), [0, 1])
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--audio", "nowhere"], ["nowhere: no such folder"]),
        (["--captions", "nowhere.parquet"], ["nowhere.parquet: no such file"]),
        (["--labels", "nowhere.csv"], ["nowhere.csv: no such file"]),
        (["--log-mels", "nowhere_lms"], ["nowhere_lms: no such folder"]),
        (["--host", "192.0.2.1"], ["cannot listen at 192.0.2.1"]),
        (["--host", "no host at all"], ["cannot listen at"]),
        (["--port", "70000"], ["0<=x<=65535"]),
        (["--map-points", "0"], ["1<=x<=200000"]),
        (["--audio", "https://example.org/sounds"], ["is an address"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_is_not_there_is_refused(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("serve", store, "--port", "0", *words), 2, *said)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    refused(run("serve", tmp_path / "none"), 2, "no such folder")
    refused(run("serve", tmp_path), 2, "embed-audio")
    captions_of(tmp_path / "captions.parquet", [])
    refused(run("serve", tmp_path / "captions.parquet"), 2, "is not a folder")


def test_a_store_without_rows_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "empty", [], np.zeros((0, 16)))
    refused(run("serve", tmp_path / "empty", "--port", "0"), 2, "has no rows")
