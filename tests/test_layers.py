"""The plan of the house: floors import only what lies below them, nothing goes in a circle, and no room is crowded.

Modules, and the rooms (folders) that they lie in, are held to it with all imports: also those inside functions, and
those that only type checkers see.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A floor may import those of lower numbers, not its neighbours.
FLOORS = {
    "artifacts": 1,
    "audioprep": 2,
    "captions": 2,
    "m2dclap": 3,
    "evaluation": 4,
    "training": 5,
    "workflows": 6,
    "cli": 7,
}
# What has its own processes for training and evaluation, and starts those by commands.
BY_COMMANDS_ONLY = {"workflows": {"m2dclap", "evaluation", "training"}}
# What an audio worker may import from outside the standard library.
WORKER_MODULES = ["audioprep.convert", "audioprep.decode", "audioprep.logmel", "audioprep.config"]
HEAVY = {"torch", "sentence_transformers", "transformers", "pandas", "pyarrow", "librosa", "dask", "distributed"}
# A table without code, from which `captions add` has its options.
TABLE_OF_SOURCES = "captions.sources.kinds"
MODULES_PER_ROOM = 17
LINES_PER_MODULE = 400


def modules() -> list[Path]:
    return sorted(path for package in FLOORS for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """``artifacts/clips/clip_id.py`` → ``artifacts.clips.clip_id``; a package is its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything that is imported anywhere, without the ``m2dprep.`` of our own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("m2dprep.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which floor they reach"
            module = (node.module or "").removeprefix("m2dprep.")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """Of every module the modules of ours that it imports. Packages hold a docstring and nothing to import."""
    texts = {name_of(path): path.read_text() for path in modules() if path.name != "__init__.py"}
    return {name: set(imported(ast.parse(text))) & set(texts) for name, text in texts.items()}


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """A path back to where it began for every module that has one."""
    found = []
    for start in arrows:
        before: dict[str, str] = {}
        waiting = [start]
        while waiting and start not in before:
            name = waiting.pop()
            for other in arrows.get(name, ()):
                if other not in before:
                    before[other] = name
                    waiting.append(other)
        if start in before:
            path = [start, before[start]]
            while path[-1] != start:
                path.append(before[path[-1]])
            found.append(path[::-1])
    return found


def rooms_of(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same arrows between rooms."""
    rooms: dict[str, set[str]] = {}
    for name, others in arrows.items():
        room = name.rpartition(".")[0]
        rooms.setdefault(room, set()).update({other.rpartition(".")[0] for other in others} - {room})
    return rooms


def test_what_these_tests_look_for_is_found() -> None:
    """Imports of every form, and circles, in a made-up house: none of these tests passes because it sees nothing."""
    text = (
        "from m2dprep.cli import main\nimport m2dprep.training.loop\n"
        "if TYPE_CHECKING:\n    from m2dprep.cli.main import x\n"
        "def f():\n    import torch\n"
    )
    assert {"cli.main", "training.loop", "torch"} <= set(imported(ast.parse(text)))
    assert circles({"a.x": {"b.y"}, "b.y": {"c.z"}, "c.z": {"a.x"}, "d": {"a.x"}}) != []
    assert circles({"a.x": {"b.y"}, "b.y": {"c.z"}, "c.z": set()}) == []
    assert rooms_of({"a.x": {"a.b.y"}, "a.b.y": {"a.z"}, "a.z": set()}) == {"a": {"a.b"}, "a.b": {"a"}}


@pytest.mark.parametrize("path", [path for path in modules() if path.name == "__init__.py"], ids=name_of)
def test_packages_hold_a_docstring_alone(path: Path) -> None:
    assert len(parsed(path).body) == 1


def test_the_house_is_read_whole(arrows: dict[str, set[str]]) -> None:
    assert {name.split(".")[0] for name in arrows} == set(FLOORS)
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()} == {
        *FLOORS, "m2dprep"
    }  # fmt: skip
    seen = {other.split(".")[0] for others in arrows.values() for other in others}
    used = [package for package in FLOORS if package in seen]
    assert used == list(FLOORS), "a floor that nothing is seen to import is a floor whose imports are not seen"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in imported(parsed(path)):
        other = name.split(".")[0]
        if other in FLOORS and other != package:
            assert FLOORS[other] < FLOORS[package], f"{path} imports {name}"
            assert other not in BY_COMMANDS_ONLY.get(package, ()), f"{path} imports {name}"


def test_our_own_modules_are_imported_by_their_full_names() -> None:
    """``import cli`` would import a user's cli.py, or another distribution's."""
    for path in [*modules(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(parsed(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(FLOORS), f"{path}: {names}"


def test_no_module_and_no_room_takes_part_in_a_circle(arrows: dict[str, set[str]]) -> None:
    assert circles(arrows) == []
    assert circles(rooms_of(arrows)) == []


def test_no_room_is_crowded() -> None:
    for folder in {path.parent for path in modules()}:
        found = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(found) <= MODULES_PER_ROOM, folder


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_fit_a_reader(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_PER_MODULE
    assert ast.get_docstring(ast.parse(text)), "its first line says which idea it has"


@pytest.mark.parametrize("path", sorted((ROOT / "cli").glob("*.py")), ids=lambda path: path.name)
def test_commands_import_nothing_heavy_at_the_top(path: Path) -> None:
    tree = parsed(path)
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    names = {name.split(".")[0] for name in imported(top) if not name.startswith(TABLE_OF_SOURCES)}
    assert not names & (HEAVY | (set(FLOORS) - {"cli", "artifacts"})), path


def test_the_table_of_sources_imports_nothing_of_ours(arrows: dict[str, set[str]]) -> None:
    assert arrows[TABLE_OF_SOURCES] == set()


def test_audio_workers_import_nothing_heavy(arrows: dict[str, set[str]]) -> None:
    """At the top of anything that they import, however far away."""
    seen: set[str] = set()
    waiting = list(WORKER_MODULES)
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = ROOT / Path(*name.split("."))
        tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        for other in imported(top):
            assert other.split(".")[0] not in HEAVY, f"{name} imports {other}"
            if other in arrows and other not in seen:
                waiting.append(other)
    assert len(seen) > len(WORKER_MODULES)


def names_in(path: Path) -> set[str]:
    """Every name that a module binds at any depth."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_what_benchmarks_and_tests_import_is_there() -> None:
    """Also inside functions, which a type checker does not read there."""
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("m2dprep."):
                continue
            home = ROOT / Path(*(node.module or "").split(".")[1:])
            for alias in node.names:
                if home.is_dir():
                    assert (home / f"{alias.name}.py").exists() or (home / alias.name).is_dir(), f"{path}: {alias.name}"
                else:
                    assert alias.name in names_in(home.with_suffix(".py")), f"{path}: {node.module}.{alias.name}"
