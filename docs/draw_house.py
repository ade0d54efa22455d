"""Draws the picture of the house in README.md from the imports of the code: ``python docs/draw_house.py``.

Boxes are folders with what the first line of their ``__init__.py`` says and the number of their modules; an arrow leads
from a folder to one that it imports. Arrows that follow from others are left out. A test compares README with it.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the ground up.
FLOORS = ("artifacts", "audioprep", "captions", "m2dclap", "evaluation", "training", "workflows", "cli")
IMPORT = re.compile(r"^ *from m2dprep\.([\w.]+) import ", re.MULTILINE)
BEGIN, END = "<!-- the house: drawn by docs/draw_house.py -->", "<!-- the end of the house -->"


def rooms() -> dict[str, list[Path]]:
    """The modules of every room, by names such as ``audioprep.decoding``."""
    found: dict[str, list[Path]] = {}
    for floor in FLOORS:
        for package in sorted((ROOT / floor).rglob("__init__.py")):
            name = ".".join(package.parent.relative_to(ROOT).parts)
            found[name] = sorted(path for path in package.parent.glob("*.py") if path != package)
    return found


def imported_rooms(paths: list[Path], names: set[str]) -> set[str]:
    """Every room that modules of these files lie in and that is imported by them."""
    modules = {module for path in paths for module in IMPORT.findall(path.read_text())}
    return {module if module in names else module.rpartition(".")[0] for module in modules} & names


def without_detours(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that say something: not those to a room that is reached through another one as well."""
    reached: dict[str, set[str]] = {}

    def reach(room: str) -> set[str]:
        if room not in reached:
            reached[room] = arrows[room].union(*(reach(other) for other in arrows[room]))
        return reached[room]

    return {
        room: {other for other in others if not any(other in reach(third) for third in others - {other})}
        for room, others in arrows.items()
    }


def picture() -> str:
    """The lines of README between `BEGIN` and `END`: a Mermaid flow chart."""
    modules = rooms()
    arrows = {name: imported_rooms(paths, set(modules)) - {name} for name, paths in modules.items()}
    lines = [BEGIN, "", "```mermaid", "flowchart TB"]
    for floor in reversed(FLOORS):
        inside = [name for name in modules if name.split(".")[0] == floor]
        lines.append(f"  subgraph {floor}_floor [{floor}/]")
        lines += [f'    {_key(name)}["{_label(name)}<br>{len(modules[name])} modules"]' for name in inside]
        lines.append("  end")
    for name, others in without_detours(arrows).items():
        lines += [f"  {_key(name)} --> {_key(other)}" for other in sorted(others)]
    return "\n".join([*lines, "```", "", END])


def _key(name: str) -> str:
    return name.replace(".", "_")


def _label(name: str) -> str:
    return name.rpartition(".")[2]


def redrawn(readme: str) -> str:
    """README's text with the picture as it has to be."""
    before, _, rest = readme.partition(BEGIN)
    return before + picture() + rest.partition(END)[2]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(redrawn(path.read_text()))
