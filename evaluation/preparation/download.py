"""The audio files of a download by their names: exactly, in other case, or with the suffix of another format.

Nothing outside the download is looked at, apart from lists that the user fetched into a folder of their own.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from m2dprep.artifacts.clips.clip_id import KNOWN_SUFFIXES, suffix_of
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, walk
from m2dprep.artifacts.layout import leads_out, require_folder
from m2dprep.evaluation.preparation.rule import Rule, Source, Template

# A folder of more sub-folders than this is a data set, not a folder around one.
MOST_FOLDERS = 20
AS_NAMED, OTHER_CASE, OTHER_FORMAT = "as named", "in another case", "in another format"


def bare(name: str) -> str:
    """A path without the suffix of an audio file or log-mel, if it has one."""
    return name.rpartition(".")[0] if suffix_of(name) in KNOWN_SUFFIXES else name


def folded(name: str) -> str:
    """The same for names that differ in case or in how accents are coded."""
    return unicodedata.normalize("NFC", name).casefold()


@dataclass(frozen=True)
class Download:
    """A downloaded data set: its folder, the folder of fetched lists, and the audio files (sorted relative paths)."""

    root: Path
    lists: Path | None
    files: tuple[str, ...]
    unnamed: tuple[str, ...] = ()
    other: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def scan(cls, root: Path, lists: Path | None = None) -> Download:
        """All files below ``root``; names that are not UTF-8 (``unnamed``) can stand in no table."""
        require_folder(root, "the downloaded data set")
        if lists is not None:
            require_folder(lists, "the folder of fetched lists")
        audio, other, unnamed = [], [], []
        for prefix, entry, is_folder in walk(root):
            name = prefix + entry.name
            if is_folder or entry.name.startswith(APPLE_DOUBLE_PREFIX):
                continue
            if not _is_text(name):
                unnamed.append(os.fsencode(name).decode(errors="backslashreplace"))
            elif suffix_of(entry.name) in KNOWN_SUFFIXES:
                audio.append(name)
            else:
                other.append(name)
        return cls(root, lists, tuple(sorted(audio)), tuple(sorted(unnamed)), tuple(sorted(other)))

    def folders(self) -> list[Download]:
        """Its sub-folders, each as a download of its own."""
        parts: dict[str, tuple[list[str], list[str], list[str]]] = {}
        for kind, names in enumerate((self.files, self.unnamed, self.other)):
            for name in names:
                folder, _, rest = name.partition("/")
                if rest:
                    parts.setdefault(folder, ([], [], []))[kind].append(rest)
        return [Download(self.root / name, self.lists, *map(tuple, parts[name])) for name in sorted(parts)]

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(self.files)

    @cached_property
    def _folded(self) -> dict[str, list[str]]:
        return _grouped(self.files, folded)

    @cached_property
    def _bare(self) -> dict[str, list[str]]:
        return _grouped(self.files, lambda name: folded(bare(name)))

    @cached_property
    def _tables(self) -> frozenset[str]:
        return frozenset(self.other)

    def audio(self, name: str) -> tuple[str, str] | None:
        """The audio file that a table calls ``name``, and how it was found; None if there is none, or no single one."""
        if name in self._exact:
            return name, AS_NAMED
        for there, key, how in (
            (self._folded, folded(name), OTHER_CASE),
            (self._bare, folded(bare(name)), OTHER_FORMAT),
        ):
            if len(found := there.get(key, [])) == 1:
                return found[0], how
        return None

    def table(self, places: tuple[str, ...]) -> Path | None:
        """The first of these tables that there is, in the download, else by its name in the folder of lists."""
        for place in places:
            if leads_out(place):
                raise UserError(f"the task's metadata names {place!r}, which leads out of the download.")
            if place in self._tables:
                return self.root / place
        for place in places:
            if self.lists is not None and (self.lists / Path(place).name).is_file():
                return self.lists / Path(place).name
        return None

    def matching(self, names: re.Pattern[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
        """The audio files whose path without suffix matches, with their groups; of equal paths, a .wav or the first."""
        taken: dict[str, str] = {}
        for name in self.files:
            if bare(name) not in taken or suffix_of(name) == "wav":
                taken[bare(name)] = name
        for path, name in taken.items():
            if match := names.fullmatch(path):
                yield name, {key: value or "" for key, value in match.groupdict().items()}

    def keys(self, names: re.Pattern[str], key: Template) -> dict[str, str]:
        """The audio file of each key; the first of several."""
        found: dict[str, str] = {}
        for name, groups in self.matching(names):
            found.setdefault(key(groups), name)
        return found

    def has(self, source: Source) -> bool:
        """Whether the rows of a source can be read."""
        if source.names is not None:
            return next(self.matching(source.names), None) is not None
        return self.table(source.places) is not None

    def suits(self, rule: Rule) -> bool | None:
        """Whether this looks like the download that the rule is for; None if only fetched lists could tell."""
        fetched = set(rule.fetched)
        own = [one for one in rule.sources if not fetched & set(one.places) or self._tables & set(one.places)]
        there = [self.has(source) for source in own]
        if not own:
            return None if self.files else False
        return any(there) if all(source.optional for source in own) else all(there)


def candidates(download: Download, rule: Rule, title: str) -> list[Download]:
    """The download itself, or the only one of its sub-folders, that suits the rule; several if only the files that
    fetched lists name can tell.

    Raises `UserError`, saying what was looked for and what is there, if there is none.
    """
    suits = download.suits(rule)
    if suits:
        return [download]
    folders = download.folders()
    if suits is None:
        return [download, *(folders if len(folders) <= MOST_FOLDERS else [])]
    found = [folder for folder in folders if folder.suits(rule)]
    if len(found) == 1:
        return found
    if found:
        several = ", ".join(folder.root.name for folder in found)
        raise UserError(f"{download.root} holds several copies of {title} ({several}); give one of them.")
    wanted = "; ".join(dict.fromkeys(source.looked_for for source in rule.sources))
    there = sorted({name.partition("/")[0] for name in (*download.files, *download.other)})
    shown = ", ".join(there[:8]) + (", …" if len(there) > 8 else "")
    raise UserError(
        f"{download.root} does not look like {title} as it is downloaded: looked for {wanted}, in it and in its "
        f"sub-folders; it holds {shown or 'no files'}."
    )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\n" not in name and "\r" not in name


def _grouped(values: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for value in values:
        found.setdefault(key(value), []).append(value)
    return found
