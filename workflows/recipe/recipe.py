"""A recipe: stages and their settings, in an order that follows from the files that they read and write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.recipe.order import Order, Uses, absolute, find_order, reads_of_data, uses
from m2dprep.workflows.recipe.schema import Entry, StageKind, Values, did_you_mean, expand, normal, read_recipe_file

STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")
# Keys at the top of a recipe, beside the stages, that are settings for every stage that has them.
SHARED = ("data", "seed", "workers")
TOP = (*SHARED, "cluster", "stages")
# Settings that place workers on other machines.
WHERE = {"cluster", "scheduler", "scheduler_file"}
# Kinds whose workers are not one per core, but processes with a text encoder each.
OTHER_WORKERS = {"embed-captions"}


@dataclass(frozen=True)
class Stage:
    """One stage. ``reads`` are all paths that it reads, and ``needs`` the stages that it waits for.

    Several stages may write a file one after another. For each such file, ``versions`` names the stage whose version
    this stage sees; None means the file as it was before all of them.
    """

    name: str
    kind: StageKind
    values: Values
    uses: Uses
    reads: tuple[Path, ...]
    needs: tuple[str, ...]
    versions: dict[Path, str | None]
    where: Entry

    @property
    def writes(self) -> list[Path]:
        return [*self.uses.writes, *self.uses.changes]

    @property
    def file_name(self) -> str:
        """The stage's name in the names of its log and its result."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read. ``stages`` are in the order in which they run."""

    file: Path
    data: Path
    stages: tuple[Stage, ...]
    makers: dict[Path, list[str]] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The recipe's folder, which relative paths start from."""
        return self.file.parent

    def shown(self, path: Path) -> str:
        """``path``, relative to the recipe's folder if it lies in it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises `UserError`, with the nearest name, if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise UserError(f"{self.file} has no stage {name!r}{did_you_mean(name, names)}")

    def needed_by(self, name: str) -> set[str]:
        """The stage itself and all stages that it waits for, directly or not."""
        found = {self.stage(name).name}
        for stage in reversed(self.stages):
            if stage.name in found:
                found |= set(stage.needs)
        return found

    def waiting_for(self, name: str) -> set[str]:
        """The stage itself and all stages that wait for it, directly or not."""
        found = {self.stage(name).name}
        for stage in self.stages:
            if found & set(stage.needs):
                found.add(stage.name)
        return found


@dataclass(frozen=True)
class _Written:
    """A stage as the file has it, before the outputs of the other stages are known."""

    name: str
    kind: StageKind
    values: Values
    uses: Uses
    after: tuple[str, ...]
    where: Entry


def read_recipe(
    path: Path, kinds: Mapping[str, StageKind], variables: Mapping[str, Callable[[], str]] | None = None
) -> Recipe:
    """Read the recipe in the YAML file ``path``, which may use ``variables`` besides ``data`` and the environment.

    Raises `UserError`, naming file and line, if a key is unknown, a value has the wrong type, or stages write the same
    file or wait for each other.
    """
    path = absolute(Path.cwd(), str(path))
    top = read_recipe_file(path)
    entries = _known(top, "a recipe", TOP)
    names = dict(variables or {})
    if "data" not in entries:
        raise top.error("a recipe needs data: the data directory that its stages fill.")
    data = expand(entries["data"], names).text("data")
    names["data"] = lambda: data
    shared = {key: expand(entries[key], names) for key in SHARED if key in entries}
    cluster = expand(entries["cluster"], names) if "cluster" in entries else None
    shared |= _cluster(cluster, kinds) if cluster is not None else {}
    _require_known_somewhere(shared, kinds)
    stages = entries["stages"].mapping("stages") if "stages" in entries else {}
    if not stages:
        raise top.error("a recipe needs stages: names with settings.")
    written = [_written(name, expand(entry, names), shared, kinds, path.parent) for name, entry in stages.items()]
    return _ordered(path, absolute(path.parent, data), written)


def _known(entry: Entry, what: str, keys: Iterable[str]) -> dict[str, Entry]:
    entries = entry.mapping(what)
    for key, value in entries.items():
        if key not in keys:
            raise value.error(f"{what} has no {key!r}{did_you_mean(key, keys)}")
    return entries


def _cluster(entry: Entry, kinds: Mapping[str, StageKind]) -> dict[str, Entry]:
    """The settings under ``cluster``, for every stage that has them."""
    known = {option.key for kind in kinds.values() for option in kind.options if option.of_cluster}
    entries = {normal(key): value for key, value in entry.mapping("cluster").items()}
    for key, value in entries.items():
        if key not in known:
            raise value.error(f"cluster has no {key!r}{did_you_mean(key, known)}")
    return entries


def _require_known_somewhere(shared: Mapping[str, Entry], kinds: Mapping[str, StageKind]) -> None:
    """Check the types of the settings for all stages, including settings that no stage of this recipe has."""
    for key, entry in shared.items():
        options = [option for kind in kinds.values() if (option := kind.option(key)) is not None]
        if options and entry.value is not None:
            options[0].texts(entry)


def _written(
    name: str, entry: Entry, shared: Mapping[str, Entry], kinds: Mapping[str, StageKind], root: Path
) -> _Written:
    if not STAGE_NAME.fullmatch(name):
        raise entry.error(f"{name!r} is no name of a stage: letters, digits, spaces and . _ - are.")
    entries = dict(entry.mapping(f"stage {name}"))
    kind = _kind(name, entries.pop("stage", None), entry, kinds)
    after = _after(entries.pop("after", None))
    values = kind.values(_with_shared(entries, shared, kind), entry)
    path_keys = [option.key for option in kind.options if option.is_path]
    return _Written(name, kind, values, uses(kind.name, values, root, path_keys), after, entry)


def _with_shared(entries: dict[str, Entry], shared: Mapping[str, Entry], kind: StageKind) -> dict[str, Entry]:
    """``entries`` completed with the settings for all stages.

    A stage with its own ``workers``, or its own place for them, does not use the common cluster. On a cluster, the
    common ``workers`` do not apply, because they are processes of this machine.
    """
    own = {option.key: entry for key, entry in entries.items() if (option := kind.option(key)) is not None}
    options = {key: option for key in shared if (option := kind.option(key)) is not None and option.key not in own}
    if own.keys() & {"workers", *WHERE}:
        options = {key: option for key, option in options.items() if not option.of_cluster}
    elsewhere = any(own[key].value is not None for key in own.keys() & WHERE) or bool(options.keys() & WHERE)
    if elsewhere or kind.name in OTHER_WORKERS:
        options.pop("workers", None)
    return {**entries, **{option.key: shared[key] for key, option in options.items()}}


def _kind(name: str, given: Entry | None, where: Entry, kinds: Mapping[str, StageKind]) -> StageKind:
    word = name if given is None else given.text("stage")
    by_plain_name = {_plain(known): kind for known, kind in kinds.items()}
    if (kind := by_plain_name.get(_plain(word))) is not None:
        return kind
    hint = did_you_mean(word, kinds)
    if given is None:
        raise where.error(f"{name!r} is no kind of stage{hint} A name of one's own needs stage: KIND under it.")
    raise given.error(f"there is no stage {word!r}{hint}")


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


def _after(entry: Entry | None) -> tuple[str, ...]:
    if entry is None or entry.value is None:
        return ()
    items = entry.value if isinstance(entry.value, list) else [entry]
    return tuple(item.text("after") for item in items)


def _ordered(path: Path, data: Path, written: list[_Written]) -> Recipe:
    """The recipe with its stages in order, each with the files that it reads and the stages that it waits for."""
    files: dict[str, str] = {}
    for stage in written:
        if (other := files.setdefault(stage.name.replace(" ", "-"), stage.name)) != stage.name:
            raise stage.where.error(f"{stage.name!r} and {other!r} would share a log; give one another name.")
    kinds = {made: stage.kind.name for stage in written for made in _makes(stage)}
    names = [stage.name for stage in written]
    order = Order()
    for stage in written:
        for other in stage.after:
            if other not in names:
                raise stage.where.error(
                    f"{stage.name} is after {other!r}, which is no stage{did_you_mean(other, names)}"
                )
        reads = [*stage.uses.reads, *reads_of_data(stage.kind.name, stage.values, path.parent, kinds)]
        reads += [made for made in kinds if any(made.is_relative_to(root) for root in stage.uses.below)]
        order.add(
            stage.name, list(dict.fromkeys(reads)), stage.uses.writes, stage.uses.changes, stage.after, stage.where
        )
    found = find_order(order)
    by_name = {stage.name: stage for stage in written}
    stages = tuple(
        Stage(
            name=name,
            kind=by_name[name].kind,
            values=by_name[name].values,
            uses=by_name[name].uses,
            reads=tuple(order.reads[name]),
            needs=tuple(sorted(found.needs[name], key=names.index)),
            versions=found.versions[name],
            where=by_name[name].where,
        )
        for name in found.sequence
    )
    return Recipe(path, data, stages, order.makers)


def _makes(stage: _Written) -> Iterator[Path]:
    yield from stage.uses.writes
    yield from stage.uses.changes
