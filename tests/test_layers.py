"""The plan of the house: floors import only what lies below them, nothing goes in a circle, and no room is crowded.

Modules, and the rooms (folders) that they lie in, are held to it with all imports: also those inside functions, and
those that only type checkers see.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
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
    "m2dclap.fusion.kinds",
]
HEAVY = {"torch", "sentence_transformers", "transformers", "pandas", "pyarrow", "librosa", "dask", "distributed"}
# What commands say of themselves for recipes: light enough to be imported with every command.
STAGES = ["workflows.recipe.declare", "workflows.recipe.data_directory"]
LIGHT = (*DECLARATIONS, *STAGES)
MODULES_PER_ROOM = 17
LINES_PER_MODULE = 400


@cache
def modules() -> tuple[Path, ...]:
    return tuple(sorted(path for package in FLOORS for path in (ROOT / package).rglob("*.py")))


@cache
def others() -> tuple[Path, ...]:
    """What is written in Python beside the package."""
    return tuple(path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """``artifacts/clips/clip_id.py`` → ``artifacts.clips.clip_id``; a package is its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# An import begins a line of formatted code: (indentation, module, names) or (indentation, "", "", modules).
IMPORT = re.compile(
    r"^([ \t]*)(?:from +([.\w]+) +import +(\((?:[^)#]|#[^\n]*)*\)|[^\n]+)|import +([\w.]+[^\n]*))", re.MULTILINE
)
BINDING = re.compile(r"^[ \t]*(?:(?:async def|def|class) +(\w+)|(\w+(?:, \w+)*)(?:: [^=\n]+)? = )", re.MULTILINE)


@dataclass(frozen=True)
class Import:
    """A statement: ``from module import names``, or ``import names`` with no module."""

    at_top: bool
    module: str
    names: tuple[tuple[str, str], ...]
    """(name, the name that it gets here)."""

    def full_names(self) -> Iterator[str]:
        """Of everything that it imports, without the ``m2dprep.`` of our own."""
        assert not self.module.startswith("."), "relative imports hide which floor they reach"
        module = self.module.removeprefix("m2dprep.")
        if module:
            yield module
        for name, _ in self.names:
            yield f"{module}.{name}" if module else name.removeprefix("m2dprep.")

    def roots(self) -> set[str]:
        """The first parts of the names of modules, as they are written."""
        return {name.split(".")[0] for name in ([self.module] if self.module else [name for name, _ in self.names])}


def imports_in(text: str) -> list[Import]:
    """Every import of a source, also inside functions, under ``if`` and in scripts that are written as strings.

    Looked for in the text: trees of a whole house take seconds to make. A slow test compares both.
    """
    found = []
    for indentation, module, names, modules in IMPORT.findall(text):
        listed = re.sub(r"#[^\n]*", "", names or modules).strip("() \n").split(",")
        pairs = [one.split() for one in listed if one.strip()]
        found.append(Import(not indentation, module, tuple((pair[0], pair[-1]) for pair in pairs)))
    return found


@cache
def source(path: Path) -> str:
    return path.read_text()


@cache
def imports_of(path: Path) -> list[Import]:
    return imports_in(source(path))


@cache
def imported(path: Path, *, at_top: bool = False) -> frozenset[str]:
    """Full names of everything that a file imports."""
    return frozenset(name for one in imports_of(path) if one.at_top or not at_top for name in one.full_names())


@cache
def bound(path: Path) -> frozenset[str]:
    """Every name that a module binds at any depth."""
    own = {name for one, several in BINDING.findall(source(path)) for name in (one or several).split(", ")}
    return frozenset(own.union(*({name for _, name in one.names} for one in imports_of(path))))


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """Of every module the modules of ours that it imports. Packages hold a docstring and nothing to import."""
    paths = {name_of(path): path for path in modules() if path.name != "__init__.py"}
    return {name: set(imported(path) & set(paths)) for name, path in paths.items()}


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
        "from m2dprep.cli import (\n    main,  # of (all)\n    other as another,\n)\n"
        "import m2dprep.training.loop, io as i\n"
        "if TYPE_CHECKING:\n    from m2dprep.cli.main import x\n"
        "def f():\n    from torch import nn\n"
    )
    names = {"cli", "cli.main", "cli.other", "training.loop", "io", "cli.main.x", "torch", "torch.nn"}
    assert {name for one in imports_in(text) for name in one.full_names()} == names
    assert circles({"a.x": {"b.y"}, "b.y": {"c.z"}, "c.z": {"a.x"}, "d": {"a.x"}}) != []
    assert circles({"a.x": {"b.y"}, "b.y": {"c.z"}, "c.z": set()}) == []
    assert rooms_of({"a.x": {"a.b.y"}, "a.b.y": {"a.z"}, "a.z": set()}) == {"a": {"a.b"}, "a.b": {"a"}}


@pytest.mark.slow
def test_imports_are_found_as_python_finds_them() -> None:
    """In every fourth file, as that takes long enough."""
    for path in [*modules(), *others()][::4]:
        nodes = [node for node in ast.walk(ast.parse(source(path))) if isinstance(node, ast.Import | ast.ImportFrom)]
        written = {
            (node.module or "" if isinstance(node, ast.ImportFrom) else "", one.name, one.asname or one.name)
            for node in nodes
            for one in node.names
        }
        assert written <= {(one.module, *names) for one in imports_of(path) for names in one.names}, path


def test_packages_hold_a_docstring_alone() -> None:
    packages = [path for path in modules() if path.name == "__init__.py"]
    assert packages
    assert [path for path in packages if len(ast.parse(source(path)).body) != 1] == []


def test_the_house_is_read_whole(arrows: dict[str, set[str]]) -> None:
    assert {name.split(".")[0] for name in arrows} == set(FLOORS)
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()} == {
        *FLOORS, "m2dprep"
    }  # fmt: skip
    seen = {other.split(".")[0] for others in arrows.values() for other in others}
    used = [package for package in FLOORS if package in seen]
    assert used == list(FLOORS), "a floor that nothing is seen to import is a floor whose imports are not seen"


def test_imports_go_down_only() -> None:
    for path in modules():
        package = path.relative_to(ROOT).parts[0]
        for name in imported(path):
            other = name.split(".")[0]
            if other in FLOORS and other != package:
                assert FLOORS[other] < FLOORS[package], f"{path} imports {name}"
                assert other not in BY_COMMANDS_ONLY.get(package, ()), f"{path} imports {name}"


def test_our_own_modules_are_imported_by_their_full_names() -> None:
    """``import cli`` would import a user's cli.py, or another distribution's."""
    for path in [*modules(), *others()]:
        assert not {root for one in imports_of(path) for root in one.roots()} & set(FLOORS), path


def test_no_module_and_no_room_takes_part_in_a_circle(arrows: dict[str, set[str]]) -> None:
    assert circles(arrows) == []
    assert circles(rooms_of(arrows)) == []


def test_no_room_is_crowded() -> None:
    for folder in {path.parent for path in modules()}:
        found = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(found) <= MODULES_PER_ROOM, folder


def test_modules_fit_a_reader() -> None:
    for path in modules():
        assert len(source(path).splitlines()) <= LINES_PER_MODULE, path
        assert source(path).startswith(('"""', 'r"""')), f"the first line of {path} says which idea it has"


def test_commands_import_nothing_heavy_at_the_top() -> None:
    for path in (path for path in modules() if ROOT / "cli" in path.parents):
        names = {name.split(".")[0] for name in imported(path, at_top=True) if not name.startswith(LIGHT)}
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
        path /= "__init__.py"
        for other in imported(path if path.exists() else path.parent.with_suffix(".py"), at_top=True):
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
    for path in others():
        own = [one for one in imports_of(path) if one.module.startswith("m2dprep.")]
        for module, name in ((one.module, name) for one in own for name, _ in one.names):
            home = ROOT / Path(*module.split(".")[1:])
            if home.is_dir():
                assert (home / f"{name}.py").exists() or (home / name).is_dir(), f"{path}: {name}"
            else:
                assert name in bound(home.with_suffix(".py")), f"{path}: {module}.{name}"
