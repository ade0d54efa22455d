"""The map is made in a process of its own, which ends with the server, and whose failure is said."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from m2dprep.evaluation.search.projection import FILE, MapSettings
from m2dprep.evaluation.search.shelf import Shelf
from m2dprep.evaluation.serving.mapping import MapInTheMaking
from tests.evaluation.serving.made_store import embeddings_of, write_store

pytestmark = pytest.mark.slow


def made(folder: Path, embeddings: np.ndarray) -> MapInTheMaking:
    names = [f"{number}.wav" for number in range(len(embeddings))]
    return MapInTheMaking(Shelf.open([write_store(folder, names, embeddings)]), MapSettings())


def ended(making: MapInTheMaking) -> MapInTheMaking:
    end = time.monotonic() + 240
    while making.state == "making" and time.monotonic() < end:
        time.sleep(0.1)
    return making


def test_it_is_made_and_kept(tmp_path: Path) -> None:
    making = ended(made(tmp_path / "store", embeddings_of([0, 1, 2, 3] * 3)))
    assert (making.state, making.reason) == ("ready", "")
    assert making.map is not None
    assert making.map.rows.tolist() == list(range(12))
    assert 50 <= making.steps <= making.most_steps == 1000, "as far as it came"
    assert (tmp_path / "store" / FILE).exists()


def test_why_there_is_none_is_said(tmp_path: Path) -> None:
    embeddings = embeddings_of([0, 1, 2, 3])
    embeddings[2, 5] = np.inf
    making = ended(made(tmp_path / "store", embeddings))
    assert making.state == "none"
    assert making.steps == 0
    assert making.reason.startswith("The map could not be made: the embeddings have values that are not finite")


def test_its_process_ends_with_the_server(tmp_path: Path) -> None:
    making = made(tmp_path / "store", embeddings_of([number % 4 for number in range(3000)]))
    making.close()
    assert making.state == "none"
    process = making._process
    if process is not None:
        assert process.wait(60) != 0
