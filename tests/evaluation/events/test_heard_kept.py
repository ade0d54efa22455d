"""What was heard is kept within bounds: of what no run has used for a week, the longest unused goes first."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.locks import exclusive
from m2dprep.evaluation.events.listening import prune as pruning
from m2dprep.evaluation.events.listening.kept import Heard, Kept
from m2dprep.evaluation.tagging.inputs import Item
from m2dprep.evaluation.tagging.sounds import Sound

DAY = 24 * 3600


def heard_by(place: Path, *files: str) -> None:
    """Files of a byte, each called by the days since it was last used, and a letter."""
    place.mkdir(parents=True)
    (place / "run.json").write_text("{}")
    for name in files:
        path = place / f"{name}.npz"
        path.write_bytes(b"x")
        used = time.time() - int(name[:-1]) * DAY
        os.utime(path, (used, used))


def kept_in(folder: Path) -> dict[str, list[str]]:
    return {one.name: sorted(path.stem for path in one.glob("*.npz")) for one in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("room", "left"),
    [
        pytest.param(9, {"now": ["0a", "20a"], "old": ["30a", "9a"], "older": ["40a", "50a"]}, id="all fit"),
        pytest.param(3, {"now": ["0a", "20a"], "old": ["30a", "9a"]}, id="a folder that is empty then goes too"),
        pytest.param(2, {"now": ["0a", "20a"], "old": ["9a"]}, id="the longest unused first, whichever folder"),
        pytest.param(0, {"now": ["0a"]}, id="what was used within a week stays"),
    ],
)
def test_the_longest_unused_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, left: object) -> None:
    monkeypatch.setattr(pruning, "MOST_UNUSED_BYTES", room)
    heard_by(tmp_path / "now", "0a", "20a")
    heard_by(tmp_path / "old", "9a", "30a")
    heard_by(tmp_path / "older", "40a", "50a")
    pruning.prune(tmp_path)
    assert kept_in(tmp_path) == left


@pytest.mark.parametrize("runs", [True, False])
def test_nothing_goes_where_a_run_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool) -> None:
    monkeypatch.setattr(pruning, "MOST_UNUSED_BYTES", 0)
    heard_by(tmp_path / "old", "30a")
    held: AbstractContextManager[None] = exclusive(tmp_path / "old") if runs else nullcontext()
    with held:
        pruning.prune(tmp_path)
    assert (tmp_path / "old").exists() == runs
    pruning.prune(tmp_path / "not there")


def test_what_a_run_uses_is_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the files of its recordings; they stay, and can be read."""
    monkeypatch.setattr(pruning, "MOST_UNUSED_BYTES", 0)

    def nothing() -> Sound:
        raise AssertionError

    one, other = (Item(name, "1 1", 1, nothing) for name in ("one.wav", "other.wav"))
    (tmp_path / "model").mkdir()
    kept = Kept(tmp_path / "model", {"tags": 2})
    for item in (one, other):
        kept.write([item], [Heard(item.name, 1.0, np.zeros(1), np.ones(1), {"tags": np.ones((1, 2), np.float32)})])
    for path in tmp_path.rglob("*.npz"):
        os.utime(path, (0, 0))
    kept.note_use([one])
    pruning.prune(tmp_path)
    again = Kept(tmp_path / "model", {"tags": 2})
    assert (again.has(one), again.has(other)) == (True, False)
    assert again.read(one).parts["tags"].tolist() == [[1, 1]]
