"""The picture of the house in README is the one that the imports give."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_house", ROOT / "docs/draw_house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_in_readme_is_that_of_the_code(drawing: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == drawing.redrawn(readme), "run python docs/draw_house.py"


def test_the_picture_shows_every_folder(drawing: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    packages = {
        path.parent.relative_to(ROOT) for floor in drawing.FLOORS for path in (ROOT / floor).rglob("__init__.py")
    }
    assert len(packages) > 10
    for package in packages:
        assert f'    {"_".join(package.parts)}["' in readme


def test_arrows_that_follow_from_others_are_left_out(drawing: ModuleType) -> None:
    arrows = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert drawing.without_detours(arrows) == {"a": {"b"}, "b": {"c"}, "c": set()}
