"""Who waits for whom: worked out from what stages read, write and change, and from their order in the recipe.

A file that one stage writes is there for every stage that reads it, wherever these are written. Where several stages
write a file one after another (captions that are filled, then added to), each takes the version of the one above it,
and so does a stage that reads it in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workflows.recipe_file import Entry


@dataclass
class Order:
    """What the stages use, collected in the order of the recipe."""

    names: list[str] = field(default_factory=list)
    reads: dict[str, list[Path]] = field(default_factory=dict)
    changes: dict[str, list[Path]] = field(default_factory=dict)
    after: dict[str, Sequence[str]] = field(default_factory=dict)
    where: dict[str, Entry] = field(default_factory=dict)
    makers: dict[Path, list[str]] = field(default_factory=dict)
    """The stages that write or change a path, in the order of the recipe."""

    def add(
        self,
        name: str,
        reads: list[Path],
        writes: Sequence[Path],
        changes: list[Path],
        after: Sequence[str],
        where: Entry,
    ) -> None:
        """Note a stage. Raises `UserError` where one above it writes the same path."""
        for path in writes:
            if others := self.makers.get(path):
                raise where.error(f"{name} and {others[0]} both write {path}.")
        for path in [*writes, *changes]:
            self.makers.setdefault(path, []).append(name)
        self.names.append(name)
        self.reads[name], self.changes[name], self.after[name], self.where[name] = reads, changes, after, where

    def maker_for(self, name: str, path: Path) -> str | None:
        """The stage whose version of ``path`` the stage ``name`` sees; None where it is there without any stage."""
        others = [other for other in self.makers.get(path, ()) if other != name]
        place = self.names.index(name)
        above = [other for other in others if self.names.index(other) < place]
        if above:
            return above[-1]
        changed_only = path in self.changes[name]
        return None if changed_only or not others else others[-1]


@dataclass(frozen=True)
class Found:
    """``sequence``: the stages as they run; ``needs``: whom each waits for; ``versions``: as `Stage.versions`."""

    sequence: list[str]
    needs: dict[str, set[str]]
    versions: dict[str, dict[Path, str | None]]


def find_order(order: Order) -> Found:
    """Order the stages, as near to the recipe's order as can be. Raises `UserError` where they wait for each other."""
    needs: dict[str, set[str]] = {name: set(order.after[name]) for name in order.names}
    versions: dict[str, dict[Path, str | None]] = {name: {} for name in order.names}
    waits: dict[str, set[str]] = {name: set() for name in order.names}
    for name in order.names:
        for path in [*order.reads[name], *order.changes[name]]:
            for made in [path, *path.parents]:
                if made in order.makers and (maker := order.maker_for(name, made)) is not None:
                    needs[name].add(maker)
            if _is_versioned(order, path):
                versions[name][path] = maker = order.maker_for(name, path)
                waits_for_reader = _next_changer(order, maker, path)
                if waits_for_reader not in (None, name):
                    waits[str(waits_for_reader)].add(name)  # it would take the version away
    sequence: list[str] = []
    while len(sequence) < len(order.names):
        ready = [
            name for name in order.names if name not in sequence and not (needs[name] | waits[name]) - set(sequence)
        ]
        if not ready:
            stuck = [name for name in order.names if name not in sequence]
            lines = "; ".join(f"{name} waits for {', '.join(sorted(needs[name] | waits[name]))}" for name in stuck)
            raise order.where[stuck[0]].error(f"stages wait for each other: {lines}.")
        sequence.append(ready[0])
    return Found(sequence, needs, versions)


def _is_versioned(order: Order, path: Path) -> bool:
    return len(order.makers.get(path, ())) > 1 or any(path in changes for changes in order.changes.values())


def _next_changer(order: Order, maker: str | None, path: Path) -> str | None:
    """The stage that writes ``path`` after ``maker``; the first one after None."""
    makers = order.makers[path]
    following = makers if maker is None else makers[makers.index(maker) + 1 :]
    return next(iter(following), None)
