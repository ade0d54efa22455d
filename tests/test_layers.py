"""The plan of the house: floors import only what lies below them, nothing goes in a circle, and no room is crowded.

Modules, and the rooms (folders) that they lie in, are held to it with all imports: also those inside functions, and
those that only type checkers see.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
# Declarations of settings, from which commands make their flags. They import only the standard library.
DECLARATIONS = [
    "training.config",
    "training.fine_tuning.settings",
    "training.recipes.second_generation",
    "m2dclap.config",
]
HEAVY = {"torch", "sentence_transformers", "transformers", "pandas", "pyarrow", "librosa", "dask", "distributed"}
# What commands say of themselves for recipes: light enough to be imported with every command.
STAGES = ["workflows.recipe.declare", "workflows.recipe.data_directory"]
LIGHT = (*DECLARATIONS, *STAGES)
MODULES_PER_ROOM = 17
LINES_PER_MODULE = 400


def modules() -> list[Path]:
    return sorted(path for package in FLOORS for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """``artifacts/clips/clip_id.py`` → ``artifacts.clips.clip_id``; a package is its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@dataclass(frozen=True)
class Source:
    """What these tests ask of a file. Trees of a whole house are slow to keep and to walk, so each is walked once."""

    lines: int
    docstring: str | None
    statements: int
    imports_at_top: tuple[ast.stmt, ...]
    imports: frozenset[str]
    own_imports: tuple[tuple[str, str], ...]
    """(module, name) of every ``from m2dprep.… import …``."""
    roots: frozenset[str]
    """The first parts of the names that are imported, as they are written."""
    names: frozenset[str]
    """Every name that the module binds at any depth."""


@cache
def parsed(path: Path) -> Source:
    text = path.read_text()
    tree = ast.parse(text)
    own, roots, names = [], set(), set()
    nodes = list(walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            written = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            roots |= {name.split(".")[0] for name in written}
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("m2dprep."):
                own += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    top = tuple(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    return Source(
        lines=len(text.splitlines()),
        docstring=ast.get_docstring(tree),
        statements=len(tree.body),
        imports_at_top=top,
        imports=frozenset(imported(nodes)),
        own_imports=tuple(own),
        roots=frozenset(roots),
        names=frozenset(names),
    )


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """As ``ast.walk``, in half its time: a node and everything below it."""
    waiting = [node]
    while waiting:
        yield (node := waiting.pop())
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                waiting += [one for one in value if isinstance(one, ast.AST)]
            elif isinstance(value, ast.AST):
                waiting.append(value)


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Full names of everything that these nodes import, without the ``m2dprep.`` of our own."""
    for node in nodes:
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
    paths = {name_of(path): path for path in modules() if path.name != "__init__.py"}
    return {name: set(parsed(path).imports & set(paths)) for name, path in paths.items()}


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
    assert {"cli.main", "training.loop", "torch"} <= set(imported(walk(ast.parse(text))))
    assert circles({"a.x": {"b.y"}, "b.y": {"c.z"}, "c.z": {"a.x"}, "d": {"a.x"}}) != []
    assert circles({"a.x": {"b.y"}, "b.y": {"c.z"}, "c.z": set()}) == []
    assert rooms_of({"a.x": {"a.b.y"}, "a.b.y": {"a.z"}, "a.z": set()}) == {"a": {"a.b"}, "a.b": {"a"}}


@pytest.mark.parametrize("path", [path for path in modules() if path.name == "__init__.py"], ids=name_of)
def test_packages_hold_a_docstring_alone(path: Path) -> None:
    assert parsed(path).statements == 1


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
    for name in parsed(path).imports:
        other = name.split(".")[0]
        if other in FLOORS and other != package:
            assert FLOORS[other] < FLOORS[package], f"{path} imports {name}"
            assert other not in BY_COMMANDS_ONLY.get(package, ()), f"{path} imports {name}"


def test_our_own_modules_are_imported_by_their_full_names() -> None:
    """``import cli`` would import a user's cli.py, or another distribution's."""
    for path in [*modules(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        assert not parsed(path).roots & set(FLOORS), path


def test_no_module_and_no_room_takes_part_in_a_circle(arrows: dict[str, set[str]]) -> None:
    assert circles(arrows) == []
    assert circles(rooms_of(arrows)) == []


def test_no_room_is_crowded() -> None:
    for folder in {path.parent for path in modules()}:
        found = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(found) <= MODULES_PER_ROOM, folder


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_fit_a_reader(path: Path) -> None:
    assert parsed(path).lines <= LINES_PER_MODULE
    assert parsed(path).docstring, "its first line says which idea it has"


@pytest.mark.parametrize("path", sorted((ROOT / "cli").rglob("*.py")), ids=lambda path: path.name)
def test_commands_import_nothing_heavy_at_the_top(path: Path) -> None:
    others = [name for name in imported(parsed(path).imports_at_top) if not name.startswith(LIGHT)]
    names = {name.split(".")[0] for name in others}
    assert not names & (HEAVY | (set(FLOORS) - {"cli", "artifacts"})), path


def imported_at_the_top(names: list[str], arrows: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Modules, and everything that they or those of ours that they import import, however far away."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = ROOT / Path(*name.split("."))
        source = parsed(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
        for other in imported(source.imports_at_top):
            yield name, other
            if other in arrows:
                waiting.append(other)
    assert len(seen) > len(names)


def test_audio_workers_import_nothing_heavy(arrows: dict[str, set[str]]) -> None:
    for name, other in imported_at_the_top(WORKER_MODULES, arrows):
        assert other.split(".")[0] not in HEAVY, f"{name} imports {other}"


def test_declarations_of_stages_import_nothing_heavy(arrows: dict[str, set[str]]) -> None:
    for name, other in imported_at_the_top(STAGES, arrows):
        assert other.split(".")[0] not in {*HEAVY, "numpy", "yaml"}, f"{name} imports {other}"


def test_declarations_of_settings_import_only_the_standard_library(arrows: dict[str, set[str]]) -> None:
    for name, other in imported_at_the_top(DECLARATIONS, arrows):
        assert other.split(".")[0] in {*sys.stdlib_module_names, *FLOORS}, f"{name} imports {other}"


def test_what_benchmarks_and_tests_import_is_there() -> None:
    """Also inside functions, which a type checker does not read there."""
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        for module, name in parsed(path).own_imports:
            home = ROOT / Path(*module.split(".")[1:])
            if home.is_dir():
                assert (home / f"{name}.py").exists() or (home / name).is_dir(), f"{path}: {name}"
            else:
                assert name in parsed(home.with_suffix(".py")).names, f"{path}: {module}.{name}"
