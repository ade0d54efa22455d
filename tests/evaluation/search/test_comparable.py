"""Stores are searched and served together only if their rows can be compared: one model made them in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import PRESETS
from m2dprep.evaluation.search.command import open_stores
from m2dprep.evaluation.search.shelf import Shelf, require_front_end_of
from tests.evaluation.serving.made_store import embeddings_of, write_store

Made = dict[str, Any]
PRESET = PRESETS["16k"]
FRONT_END = asdict(PRESET)
USUAL: Made = {"checkpoint": "one", "length": "chunks", "positions": None, "front_end": FRONT_END, "features": None}
FEATURES: Made = {**USUAL, "contents": "features", "features": "stacked"}


def stores(folder: Path, *made: Made) -> list[Path]:
    return [
        write_store(folder / str(number), [f"{number}.wav"], embeddings_of([0]), **settings)
        for number, settings in enumerate(made)
    ]


def of_shelf(folders: Sequence[Path]) -> Sequence[AudioStore]:
    return Shelf.open(folders).stores


@pytest.mark.parametrize("opened", [open_stores, of_shelf], ids=["search", "serve"])
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"checkpoint": "other"}, "another checkpoint"),
        ({"length": "whole", "positions": "interpolated"}, "--length (whole, not chunks)|--length (chunks, not whole)"),
        ({"length": "fused"}, "another --length"),
        ({"front_end": {**FRONT_END, "n_mels": 128, "f_min": 20}}, "another front end (f_min 20, not"),
        ({"front_end": {**FRONT_END, "hop_length": 80}}, "hop_length"),
        ({"contents": "features", "features": "flat"}, "conventional embeddings alone"),
    ],
    ids=str,
)
def test_rows_that_cannot_be_compared_are_refused(
    tmp_path: Path, opened: Callable[[Sequence[Path]], object], other: Made, said: str
) -> None:
    pair = stores(tmp_path, USUAL, {**USUAL, **other})
    told = []
    for order in permutations(pair):
        with pytest.raises(UserError) as refused:
            opened(order)
        told.append(str(refused.value))
    assert any(one in words for words in told for one in said.split("|")), told


def test_positions_of_whole_clips_and_kinds_of_features(tmp_path: Path) -> None:
    whole = {**USUAL, "length": "whole"}
    chunked = stores(tmp_path / "a", {**whole, "positions": "chunked"}, {**whole, "positions": "interpolated"})
    with pytest.raises(UserError, match=r"--positions \(interpolated, not chunked\)"):
        Shelf.open(chunked)
    with pytest.raises(UserError, match=r"kind of features \(flat, not stacked\)"):
        Shelf.open(stores(tmp_path / "b", FEATURES, {**FEATURES, "features": "flat"}))


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"window": 10.0, "hop": 5.0},
        {"max_seconds": 60.0, "ffmpeg": True},
        {"contents": "clap", "features": "flat"},
        {"length": None},  # it does not say
    ],
    ids=str,
)
def test_rows_that_can_be_compared_are_one_shelf(tmp_path: Path, other: Made) -> None:
    pair = stores(tmp_path, USUAL, {**USUAL, **other})
    assert len(Shelf.open(pair)) == len(open_stores(pair)) == 2


def test_a_store_that_does_not_say_hides_no_difference(tmp_path: Path) -> None:
    three = stores(tmp_path, {**USUAL, "length": None}, USUAL, {**USUAL, "length": "fused"})
    for order in permutations(three):
        with pytest.raises(UserError, match="another --length"):
            Shelf.open(order)


def test_a_store_is_given_once(tmp_path: Path) -> None:
    (one,) = stores(tmp_path, USUAL)
    with pytest.raises(UserError, match="given twice"):
        open_stores([one, tmp_path / "0/../0"])


def test_a_sound_is_encoded_from_the_log_mel_that_the_store_was_made_of(tmp_path: Path) -> None:
    (store,) = map(AudioStore.open, stores(tmp_path, USUAL))
    require_front_end_of(store, PRESET, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"another front end than .*a\.pth has here .n_mels 80, here 128"):
        require_front_end_of(store, replace(PRESET, n_mels=128), tmp_path / "a.pth")
