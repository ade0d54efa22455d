"""What is done of a run of tagging: a folder beside the output, with a file for every few sounds, until it is whole.

```
tags.jsonl             the output, which appears whole
tags.jsonl.json        how it was made: settings, model, counts; the same command then has nothing left to do
tags.jsonl.partial/    while it is being made: run.json, and <first sound>.jsonl for every shard that is done
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import differing_keys, plain_digest
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.files import sweep_temporaries, write_text
from m2dprep.artifacts.folders import make_folder, remove_folder
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.locks import exclusive
from m2dprep.audioprep.decoding.sound import TRANSIENT
from m2dprep.evaluation.tagging.rows import Row, to_line

PARTIAL, SIDECAR = ".partial", ".json"
RUN = "run.json"
SOUNDS = "sounds"


class Journal:
    """The shards of a run; shard n begins with the sound number ``n``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def done(self, first: int) -> list[Row] | None:
        """The rows of a shard; None if it is not done, or a sound of it failed by the machine's fault."""
        if not self._path(first).exists():
            return None
        rows = self.read(first)
        return None if any(row.get("reason") in TRANSIENT for row in rows) else rows

    def write(self, first: int, rows: Sequence[Row]) -> None:
        write_text(self._path(first), "".join(to_line(row) + "\n" for row in rows))

    def read(self, first: int) -> list[Row]:
        path = self._path(first)
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        except ValueError as error:
            raise UserError(f"{path} is damaged; remove it, and the same command tags its sounds again.") from error

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:09d}.jsonl"


def partial_of(output: Path) -> Path:
    return output.with_name(output.name + PARTIAL)


def sidecar_of(output: Path) -> Path:
    return output.with_name(output.name + SIDECAR)


def finished(output: Path, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """What is known of a finished output of the same settings; None if there is work to do.

    Raises `FingerprintConflictError` if there is another output, or one that nobody vouches for.
    """
    if overwrite or not output.exists():
        return None
    known = read_object(sidecar_of(output))
    begun = read_object(partial_of(output) / RUN)
    if begun is not None and not differing_keys(begun.get("settings", {}), dict(settings)):
        return None
    if known is None or known.get("output_digest") != plain_digest(output):
        raise FingerprintConflictError(
            f"{output} is there already, and is no result of `m2dprep tag`, or was changed since. Choose another "
            "--output, or --overwrite to replace it."
        )
    if lines := differing_keys(known["settings"], dict(settings)):
        raise FingerprintConflictError(f"{output} was made with other settings: {'; '.join(_told(lines))}.")
    if begun is None:
        _remove_remains(partial_of(output))
    return known


def _remove_remains(folder: Path) -> None:
    """Remove what `finish` has left of a journal because it was killed; nothing that another run is writing."""
    if folder.is_dir():
        with suppress(UserError), exclusive(folder):
            remove_folder(folder)


def _told(lines: Sequence[str]) -> list[str]:
    """The differences, with what a digest of all sounds means."""
    return ["sounds are new, changed or gone" if line.startswith(f"{SOUNDS}:") else line for line in lines] + [
        "--overwrite makes it anew"
    ]


@contextmanager
def begun(output: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Iterator[Journal]:
    """The journal of a run: continued if it was begun with the same settings.

    Raises `UserError` if another run writes it, and `FingerprintConflictError` if it was begun with other settings.
    """
    folder = partial_of(output)
    make_folder(output.absolute().parent)
    make_folder(folder)
    with exclusive(folder):
        sweep_temporaries(folder)
        sweep_temporaries(output.absolute().parent, shared=True)
        there = read_object(folder / RUN)
        if there is not None and (lines := differing_keys(there.get("settings", {}), dict(settings))):
            if not overwrite:
                raise FingerprintConflictError(f"{folder} was begun with other settings: {'; '.join(_told(lines))}.")
            there = None
        if there is None:
            for path in folder.glob("*.jsonl"):
                path.unlink()
            write_object(folder / RUN, {"settings": dict(settings)})
        yield Journal(folder)


def finish(output: Path, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Vouch for the output, and remove the journal."""
    write_object(sidecar_of(output), {"settings": dict(settings), **about, "output_digest": plain_digest(output)})
    (partial_of(output) / RUN).unlink()  # from now on, what is left of the journal is nothing to go on with
    remove_folder(partial_of(output))
