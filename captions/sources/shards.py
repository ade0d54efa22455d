"""Files of one source that are given as files, folders of them, or patterns, read one after another with progress."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from m2dprep.artifacts.console import DELAY_SECONDS, Progress
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, walk
from m2dprep.artifacts.text_files import listing

T = TypeVar("T")


class ShardFile(NamedTuple):
    """A shard, and its path as its captions' ids may have it: in the folder that was given, else its name."""

    path: Path
    relative: str


def expanded(paths: Sequence[Path], suffixes: Sequence[str], purpose: str) -> list[ShardFile]:
    """All shards: files as given, those in folders that end in one of the ``suffixes``, those that a pattern finds.

    They are sorted within a folder or a pattern. Raises `UserError` if something gives no file, or a file comes twice.
    """
    found: list[ShardFile] = []
    for path in paths:
        some = _of(path, suffixes)
        if not some:
            what = f" holds no file that ends in {', '.join(suffixes)}" if path.is_dir() else ": no such file"
            raise UserError(f"{path}{what} ({purpose}).")
        found += some
    if repeated := sorted(str(path) for path, count in Counter(shard.path for shard in found).items() if count > 1):
        raise UserError(f"{listing(repeated, len(repeated))}: given more than once.")
    return found


def _of(path: Path, suffixes: Sequence[str]) -> list[ShardFile]:
    if path.is_dir():
        names = [prefix + entry.name for prefix, entry, is_folder in walk(path) if not is_folder]
        return [ShardFile(path / name, name) for name in sorted(names) if _is_shard(name, suffixes)]
    if path.exists() or not glob.has_magic(str(path)):
        return [ShardFile(path, path.name)] if path.exists() else []
    found = sorted(glob.iglob(str(path), recursive=True))  # noqa: PTH207 (a pattern may be absolute)
    return [ShardFile(Path(name), Path(name).name) for name in found if Path(name).is_file()]


def _is_shard(name: str, suffixes: Sequence[str]) -> bool:
    return name.lower().endswith(tuple(suffixes)) and not name.rpartition("/")[2].startswith(APPLE_DOUBLE_PREFIX)


def read_each(shards: Sequence[ShardFile], read: Callable[[Path], T]) -> Iterator[tuple[ShardFile, T]]:
    """What ``read`` gives for every shard. After the last one raises `UserError` that names all the damaged ones."""
    errors: list[str] = []
    with Progress(len(shards), "reading", "shards", delay=DELAY_SECONDS) as progress:
        for shard in shards:
            try:
                result = read(shard.path)
            except UserError as error:
                errors.append(str(error))
            else:
                if not errors:
                    yield shard, result
            progress.advance(1)
    if errors:
        rest = len(errors) - 1
        more = f" And {rest:,} more: {listing(errors[1:], rest)}" if rest else ""
        such = "the files" if rest else "the file"
        raise UserError(f"{errors[0]}{more} Nothing was written: get {such} again, or leave {such} out.")
