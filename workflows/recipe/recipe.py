"""A recipe: stages with their settings, in an order that follows from the files that they read and write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.recipe.commands import StageKind, normal
from m2dprep.workflows.recipe.declare import Given, Role, Values, absolute
from m2dprep.workflows.recipe.entries import Entry, did_you_mean, expand, read_recipe_file

STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")
# Keys at the top of a recipe, beside the stages, that are settings for every stage that has them.
SHARED = ("data", "seed", "workers")
# Settings that place workers on other machines.
ELSEWHERE = {"cluster", "scheduler", "scheduler_file"}


@dataclass(frozen=True)
class Stage:
    """One stage: the absolute paths that it ``reads`` and ``writes``, and the stages that it ``needs`` to be done.

    ``servers`` are the addresses that it reads, with their secrets. ``how`` are files that must exist, but do not
    affect the result.
    """

    name: str
    kind: StageKind
    values: Values
    where: Entry
    writes: tuple[Path, ...] = ()
    reads: tuple[Path, ...] = ()
    servers: tuple[str, ...] = ()
    how: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """The stage's name in the names of its log and its result."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read. ``stages`` are in the order in which they run; ``makers`` has them by output."""

    file: Path
    data: Path
    stages: tuple[Stage, ...]
    makers: dict[Path, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The recipe's folder, which relative paths start from."""
        return self.file.parent

    def shown(self, path: Path) -> str:
        """``path``, relative to the recipe's folder if it lies in it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises `UserError`, with the nearest name, if there is none."""
        names = {stage.name: stage for stage in self.stages}
        if name not in names:
            raise UserError(f"{self.file} has no stage {name!r}{did_you_mean(name, names)}")
        return names[name]

    def needed_by(self, name: str) -> set[str]:
        """The stage itself and all stages that it waits for, directly or not."""
        found = {self.stage(name).name}
        for stage in reversed(self.stages):
            found |= set(stage.needs) if stage.name in found else set()
        return found

    def waiting_for(self, name: str) -> set[str]:
        """The stage itself and all stages that wait for it, directly or not."""
        found = {self.stage(name).name}
        for stage in self.stages:
            found |= {stage.name} if found & set(stage.needs) else set()
        return found

    def makers_of(self, path: Path) -> set[str]:
        """The stages that make ``path`` or a folder that it lies in."""
        return {self.makers[made] for made in (path, *path.parents) if made in self.makers}


def read_recipe(
    path: Path, kinds: Mapping[str, StageKind], variables: Mapping[str, Callable[[], str]] | None = None
) -> Recipe:
    """Read the recipe in the YAML file ``path``, which may use ``variables`` besides ``data`` and the environment.

    Raises `UserError`, naming file and line, if a key is unknown, a value has the wrong type, or stages write the same
    file or wait for each other.
    """
    path = absolute(Path.cwd(), str(path))
    top = read_recipe_file(path)
    entries = top.mapping("a recipe", [*SHARED, "cluster", "stages"])
    names = dict(variables or {})
    if "data" not in entries:
        raise top.error("a recipe needs data: the data directory that its stages fill.")
    data = expand(entries["data"], names).text("data")
    names["data"] = lambda: data
    entries = {key: expand(entry, names) for key, entry in entries.items()}
    shared = {key: entries[key] for key in SHARED if key in entries}
    if "cluster" in entries:
        known = {option.key for kind in kinds.values() for option in kind.options if option.of_cluster}
        cluster = {normal(key): entry for key, entry in entries["cluster"].mapping("cluster").items()}
        shared |= replace(entries["cluster"], value=cluster).mapping("cluster", known)
    for key, entry in shared.items():  # also those that no stage of this recipe has
        option = next((option for kind in kinds.values() if (option := kind.option(key)) is not None), None)
        if option is not None and entry.value is not None:
            option.texts(entry)
    if "stages" not in entries or not entries["stages"].mapping("stages"):
        raise top.error("a recipe needs stages: names with settings.")
    written = {
        name: dict(entry.mapping(f"stage {name}")) for name, entry in entries["stages"].mapping("stages").items()
    }
    after = {name: settings.pop("after", None) for name, settings in written.items()}
    stages = [
        _stage(name, entries["stages"].value[name], settings, shared, kinds) for name, settings in written.items()
    ]
    return _ordered(Recipe(path, absolute(path.parent, data), tuple(stages)), after)


def _stage(
    name: str, where: Entry, settings: dict[str, Entry], shared: Mapping[str, Entry], kinds: Mapping[str, StageKind]
) -> Stage:
    if not STAGE_NAME.fullmatch(name):
        raise where.error(f"{name!r} is no name of a stage: letters, digits, spaces and . _ - are.")
    given = settings.pop("stage", None)
    word = name if given is None else given.text("stage")
    kind = {_plain(known): kind for known, kind in kinds.items()}.get(_plain(word))
    if kind is None and given is None:
        hint = did_you_mean(word, kinds)
        raise where.error(f"{name!r} is no kind of stage{hint} A name of one's own needs stage: KIND under it.")
    if kind is None:
        raise given.error(f"there is no stage {word!r}{did_you_mean(word, kinds)}")  # type: ignore[union-attr]
    return Stage(name, kind, kind.values({**settings, **_of_all_stages(settings, shared, kind)}, where), where)


def _of_all_stages(settings: Mapping[str, Entry], shared: Mapping[str, Entry], kind: StageKind) -> dict[str, Entry]:
    """The settings for all stages that a stage takes: those that it has and does not set itself.

    A stage with its own ``workers``, or its own place for them, does not use the common cluster. On a cluster, the
    common ``workers`` do not apply, because they are processes of this machine; nor do they if the stage's workers are
    not one per core.
    """
    own = {option.key: entry for key, entry in settings.items() if (option := kind.option(key)) is not None}
    options = {key: option for key in shared if (option := kind.option(key)) is not None and option.key not in own}
    if own.keys() & {"workers", *ELSEWHERE}:
        options = {key: option for key, option in options.items() if not option.of_cluster}
    elsewhere = any(own[key].value is not None for key in own.keys() & ELSEWHERE) or options.keys() & ELSEWHERE
    if elsewhere or kind.declared.own_workers:
        options.pop("workers", None)
    return {option.key: shared[key] for key, option in options.items()}


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


def _ordered(recipe: Recipe, after: Mapping[str, Entry | None]) -> Recipe:
    """The recipe with the files of every stage, and the stages as close to the recipe's order as their needs allow.

    Raises `UserError` if two stages write one path, or share a log, or stages wait for each other.
    """
    files: dict[str, str] = {}
    makers: dict[Path, Stage] = {}
    for stage in recipe.stages:
        if (other := files.setdefault(stage.file_name, stage.name)) != stage.name:
            raise stage.where.error(f"{stage.name!r} and {other!r} would share a log; give one another name.")
        for path in stage.kind.writes(Given(stage.values, recipe.root)):
            if (maker := makers.setdefault(path, stage)) is not stage:
                raise stage.where.error(f"{stage.name} and {maker.name} both write {path}.")
    recipe = replace(recipe, makers={path: stage.name for path, stage in makers.items()})
    waiting = [_with_files(recipe, stage, makers, after[stage.name]) for stage in recipe.stages]
    ordered: list[Stage] = []
    while waiting:
        done = {stage.name for stage in ordered}
        ready = next((stage for stage in waiting if done.issuperset(stage.needs)), None)
        if ready is None:
            lines = "; ".join(f"{stage.name} waits for {', '.join(stage.needs)}" for stage in waiting)
            raise waiting[0].where.error(f"stages wait for each other: {lines}.")
        ordered.append(ready)
        waiting.remove(ready)
    return replace(recipe, stages=tuple(ordered))


def _with_files(recipe: Recipe, stage: Stage, makers: Mapping[Path, Stage], after: Entry | None) -> Stage:
    """The stage with its files, and with its needs: the makers of what it reads, and the stages that it is after."""
    names = [other.name for other in recipe.stages]
    others = {path: maker.kind.name for path, maker in makers.items() if maker is not stage}
    given = Given(stage.values, recipe.root, others)
    reads = stage.kind.reads(given)
    for path in set(reads) & set(stage.kind.writes(given)):
        raise stage.where.error(f"{stage.name} both reads and writes {path}; give its output another name.")
    needs = {maker for path in reads for maker in recipe.makers_of(path)} - {stage.name}
    for item in after.items() if after is not None else ():
        if (name := item.text("after")) not in names:
            raise stage.where.error(f"{stage.name} is after {name!r}, which is no stage{did_you_mean(name, names)}")
        needs.add(name)
    return replace(
        stage,
        writes=tuple(stage.kind.writes(given)),
        reads=tuple(reads),
        servers=tuple(stage.kind.servers(given)),
        how=tuple(stage.kind.paths(given, Role.SETTING)),
        needs=tuple(sorted(needs, key=names.index)),
    )
