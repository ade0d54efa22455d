"""`m2dprep check` reads stores of embeddings of sounds: alone, and in a data directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from m2dprep.artifacts.embeddings.audio_store import NAMES
from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.check.sounds import check_sounds
from tests.cli.invocation import run
from tests.evaluation.serving.made_store import embeddings_of, write_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "sounds_emb"
    return write_store(folder, ["a.wav", "b.wav"], embeddings_of([0, 1, 2]), windows=[[0.0, 0.5], [0.0]], window=1.0)


def test_a_whole_store(made: Path) -> None:
    for root in (made, made.parent):
        (found,) = check_sounds(root, quick=False)
        assert (found.check, found.checked, found.state) == ("embeddings of sounds", 3, "ok")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "features.npy"])
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_damage_of_any_file_is_found(made: Path, tmp_path: Path, name: str, damage: str) -> None:
    store = Path(shutil.copytree(made, tmp_path / "sounds_emb"))
    content = bytearray((store / name).read_bytes())
    content[len(content) // 2] ^= 1
    (store / name).write_bytes(content if damage == "flipped" else content[:-1])
    (found,) = check_sounds(store, quick=False)
    assert found.state == "FAILED"
    assert found.problems[0].item == str(store)


def test_the_command_takes_a_store(made: Path, tmp_path: Path) -> None:
    done = run("check", made)
    assert (done.exit_code, "embeddings of sounds   3 checked" in done.stdout) == (0, True), done.output
    store = Path(shutil.copytree(made, tmp_path / "sounds_emb"))
    (store / "index.parquet").write_bytes(b"PAR1")
    assert run("check", store).exit_code == 4


def test_nothing_to_check(tmp_path: Path) -> None:
    assert check_sounds(tmp_path, quick=True) == []
    with pytest.raises(UserError, match="no such folder"):
        check_sounds(tmp_path / "gone", quick=True)
