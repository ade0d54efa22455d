"""Which sounds several sets share, by their ids at FreeSound and YouTube; and lists of clips to keep out of training.

Evaluation sets and training sets draw on the same sources: ESC-50, UrbanSound8K, FSD50K, Clotho and WavCaps on
FreeSound, AudioCaps, VGGSound and AudioSet on YouTube.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.files import atomic_file
from m2dprep.artifacts.locks import writing_to
from m2dprep.captions.sources.evaluation_sets import (
    KINDS_OF_NAMES,
    WRITTEN,
    Alias,
    EvaluationSet,
    Sound,
    read_evaluation_sets,
)

Keys = dict[tuple[str, str], list[Sound]]


@dataclass(frozen=True)
class Overlap:
    """Two sets that share ``ids``, and how many sounds of each have one of these."""

    first: str
    second: str
    matched_by: str
    ids: int
    sounds_of_first: int
    sounds_of_second: int

    def __str__(self) -> str:
        return (
            f"{self.first} and {self.second} share {self.ids:,} sounds by {self.matched_by}: {self.sounds_of_first:,} "
            f"clips of the first, {self.sounds_of_second:,} of the second."
        )


def sounds_by_key(sets: EvaluationSet) -> Keys:
    """The sounds of a set by their ids: {(kind of id, id): sounds}."""
    found: Keys = {}
    for sound in sets.sounds:
        for key in sound.keys:
            found.setdefault(key, []).append(sound)
    return found


def overlaps(sets: Sequence[EvaluationSet]) -> list[Overlap]:
    """Every pair of sets that share a sound, by each kind of id."""
    keys = {id(one): sounds_by_key(one) for one in sets}
    found = []
    for first, second in combinations(sets, 2):
        mine, other = keys[id(first)], keys[id(second)]
        shared = mine.keys() & other.keys()
        for how in sorted({kind for kind, _ in shared}):
            some = [key for key in shared if key[0] == how]
            counts = [len({sound.name for key in some for sound in of_set[key]}) for of_set in (mine, other)]
            found.append(Overlap(first.title, second.title, how, len(some), *counts))
    return found


def names_to_exclude(
    sets: Sequence[EvaluationSet], trained: Sequence[EvaluationSet]
) -> Iterator[tuple[EvaluationSet, Alias]]:
    """All names of the sounds of ``sets``, and those that the sets in ``trained`` give to the same sounds.

    Names in ``trained`` are of that set alone, as ``Rain.wav`` in Clotho, so the id that both sets have tells.
    """
    own = [sounds_by_key(one) for one in trained]
    for one in sets:
        for alias in one.aliases():
            yield one, alias
        for key, sounds in sounds_by_key(one).items():
            for other, of_other in zip(trained, own, strict=True):
                for sound in of_other.get(key, []):
                    if sound.name not in (key[1], sounds[0].name):
                        yield one, Alias(sound.name, f"{key[0]}, by {other.title}", sounds[0].name)


@dataclass(frozen=True)
class ExcludeListCounts:
    """The sets with their numbers of sounds, what they share, and the rows of the list; ``changed``: it was written."""

    sounds: Mapping[str, int]
    overlaps: tuple[Overlap, ...]
    rows: int
    changed: bool


def read_sets(paths: Sequence[Path]) -> list[EvaluationSet]:
    """The sets that the files describe. Raises `UserError` if a file is given twice or cannot be read."""
    if repeated := {str(path) for path in paths if list(paths).count(path) > 1}:
        raise UserError(f"{', '.join(sorted(repeated))}: given more than once.")
    return [one for path in paths for one in read_evaluation_sets(path)]


def write_exclude_list(
    output: Path,
    paths: Sequence[Path],
    trained: Sequence[Path] = (),
    *,
    by: Sequence[str] = (),
    overwrite: bool = False,
) -> ExcludeListCounts:
    """Write ``output``: a CSV file of the names by which training data may have the sounds of evaluation sets.

    ``by`` are the kinds of names that are wanted (keys of `KINDS_OF_NAMES`; by default all): a name that ``trained``
    gives a sound is of the kind of id that told it. Raises `UserError` if a file cannot be read or no name is left, and
    `FingerprintConflictError` if ``output`` holds something else and ``overwrite`` is not set.
    """
    if any(output.resolve() == path.resolve() for path in (*paths, *trained)):
        raise UserError(f"{output} is an input, and inputs are never changed: write to another file.")
    sets, own = read_sets(paths), read_sets(trained)
    found = dict.fromkeys((alias.clip_id, one.title, *alias[1:]) for one, alias in names_to_exclude(sets, own))
    kinds = tuple(KINDS_OF_NAMES[kind] for kind in by)
    if kinds:
        found = {row: None for row in found if row[2].startswith(kinds)}
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: none of the sounds is known by {' or '.join(kinds)}.")
    table = pa.table({name: pa.array([row[at] for row in found], pa.string()) for at, name in enumerate(WRITTEN)})
    content = io.BytesIO()
    pyarrow.csv.write_csv(table, content)
    changed = _write(output, content.getvalue(), overwrite=overwrite)
    counts = {one.title: len(one.sounds) or len(one.listed) for one in (*sets, *own)}
    return ExcludeListCounts(counts, tuple(overlaps([*sets, *own])), len(found), changed)


def _write(output: Path, content: bytes, *, overwrite: bool) -> bool:
    if output.is_dir():
        raise UserError(f"{output} is a folder; the list is a file, such as {output / 'exclude.csv'}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with writing_to(output):
        if output.exists() and not overwrite:
            if output.read_bytes() == content:
                return False
            raise FingerprintConflictError(
                f"{output} is there already, with other names than these inputs give. Choose another --output, or "
                "--overwrite to replace it."
            )
        with atomic_file(output) as file:
            file.write(content)
    return True
