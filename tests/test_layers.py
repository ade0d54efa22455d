"""The floors of the house: a module imports only its own floor's package and floors below."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"artifacts": 1, "audioprep": 2, "captions": 2, "m2dclap": 3, "workflows": 4, "cli": 5}
# What an audio worker may import from outside the standard library.
WORKER_MODULES = ["audioprep.convert", "audioprep.decode", "audioprep.logmel", "audioprep.config"]
HEAVY = {"torch", "sentence_transformers", "transformers", "pandas", "pyarrow", "librosa", "dask", "distributed"}


def modules() -> list[Path]:
    return sorted(path for package in FLOORS for path in (ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which floor they reach"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in imported(ast.parse(path.read_text())):
        other = name.split(".")[0]
        if other in FLOORS and other != package:
            assert FLOORS[other] < FLOORS[package], f"{path} imports {name}"


def test_every_floor_has_code() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in modules()} == set(FLOORS)


@pytest.mark.parametrize("path", sorted((ROOT / "cli").glob("*.py")), ids=lambda path: path.name)
def test_commands_import_nothing_heavy_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    names = {name.split(".")[0] for name in imported(top)}
    assert not names & (HEAVY | (set(FLOORS) - {"cli", "artifacts"})), path
