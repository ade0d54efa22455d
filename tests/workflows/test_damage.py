"""Random damage: whatever happens to the bytes of any file in a data directory, `check` reports it."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from m2dprep.cli.main import m2dprep

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/damage.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_damage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


damage = load()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    damage.make_directory(folder)
    return folder


def check(data: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(m2dprep, ["check", str(data), "--workers", "0", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.output


def test_a_whole_directory_is_proven_without_a_note(root: Path) -> None:
    code, output = check(root / "data")
    assert code == 0, output
    assert "note" not in output


def test_quick_says_what_it_did_not_do(root: Path) -> None:
    code, output = check(root / "data", "--quick")
    assert code == 0, output
    assert "note: files: --quick: headers, sizes and JSON files only; values and tables were not read" in output


@pytest.mark.parametrize("seed", range(2))
def test_every_damage_is_told(root: Path, seed: int) -> None:
    outcomes = list(damage.run_damages(root, 2 * len(damage.KINDS) + 5, 1000 + seed))
    assert [outcome for outcome in outcomes if outcome.verdict != "told"] == []


@pytest.mark.parametrize("kind", damage.KINDS)
def test_damage_at_both_ends_is_told_with_the_table(root: Path, kind: str) -> None:
    data = root / "data"
    path = next(iter(sorted(data.glob(damage.KINDS[kind]))))
    before = path.read_bytes()
    try:
        for content in (b"\xff" + before[1:], before[:-1] + b"\xff", before[:-1], before + b"\n", b""):
            path.write_bytes(content)
            code, output = check(data)
            assert code == 4, output
            assert "FAILED" in output
            assert "every clip captioned" in output
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_pipe_in_the_place_of_a_file_is_told_and_not_waited_for(root: Path, kind: str) -> None:
    data = root / "data"
    path = next(iter(sorted(data.glob(damage.KINDS[kind]))))
    away = root / "away"
    path.rename(away)
    try:
        os.mkfifo(path)
        assert check(data)[0] == 4
    finally:
        path.unlink()
        away.rename(path)
