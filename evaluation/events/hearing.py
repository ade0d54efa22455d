"""Hears many recordings by windows, once: what was heard is kept, and a run that was stopped goes on.

```
heard/<model>-<digest>/      the digest is of everything that decides the numbers: weights, windows, sounds
  run.json                   what the digest is of, in words
  000000000.npz, …           some sounds each: counts of windows, their times, and a row of numbers per window
```

Thresholds, names and rules come later, so that trying others needs no sound to be heard again.
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import fingerprint
from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.files import sweep_temporaries, write_bytes
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.json_files import write_object
from m2dprep.artifacts.locks import exclusive
from m2dprep.audioprep.decoding.sound import TRANSIENT, DecodeError
from m2dprep.audioprep.time_limit import Claim
from m2dprep.evaluation.events.ear import Ear
from m2dprep.evaluation.protocols.result import plain
from m2dprep.evaluation.tagging.inputs import Item, Reading, sources_digest
from m2dprep.evaluation.tagging.opening import in_time, reading_threads, shards_of
from m2dprep.evaluation.tagging.sounds import Segment, Sound, Windows

RUN = "run.json"
# Sounds of up to so many windows are made ready by the threads that open them.
READY_WINDOWS = 256
UNREADABLE = "not_a_log_mel"


@dataclass
class Heard:
    """A recording of ``seconds``: ``starts`` and ``ends`` (W,) of its windows, and ``parts``, a row per window each."""

    name: str
    seconds: float
    starts: np.ndarray
    ends: np.ndarray
    parts: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Hearing:
    """Where it lies, and what became of the sounds: ``inputs = done + skipped + failed``."""

    folder: Path
    shards: Sequence[tuple[int, Sequence[Item]]]
    parts: dict[str, int]
    done: int
    skipped: int
    failures: list[Failure]

    @property
    def inputs(self) -> int:
        return sum(len(own) for _, own in self.shards)

    def __iter__(self) -> Iterator[Heard]:
        """All recordings that could be heard, in order."""
        for first, _ in self.shards:
            yield from _read(_path(self.folder, first), self.parts)

    def summary(self) -> str:
        return (
            f"{self.inputs:,} recordings = {self.done:,} heard + {self.skipped:,} heard before + "
            f"{len(self.failures):,} failed"
        )


def hear(
    ear: Ear, items: Sequence[Item], windows: Windows, folder: Path, reading: Reading, *, quiet: bool = False
) -> Hearing:
    """Hear the sounds that ``folder`` does not hold already, by windows; ``items`` were found with ``reading``.

    Raises `UserError` if another run writes there, or a file there is damaged.
    """
    read = {"front_end": asdict(reading.log_mel), "max_seconds": reading.max_seconds, "ffmpeg": reading.ffmpeg}
    wanted = plain({**ear.identity(), **read, "windows": windows._asdict(), "sounds": sources_digest(items)})
    place = folder / f"{ear.encoder.name}-{fingerprint(wanted)[:16]}"
    make_folder(place)
    shards = shards_of(items)
    with exclusive(place):
        sweep_temporaries(place)
        write_object(place / RUN, wanted)
        pending = [(first, own) for first, own in shards if not _is_done(_path(place, first))]
        left = sum(len(own) for _, own in pending)
        _hear_shards(
            partial(_opened, ear=ear, windows=windows, timeout=reading.timeout), ear, pending, place, len(items), quiet
        )
    failures = [failure for first, _ in shards for failure in _failures(_path(place, first))]
    of_pending = {item.name for _, own in pending for item in own}
    done = left - sum(failure.file_name in of_pending for failure in failures)
    return Hearing(place, shards, ear.parts, done, len(items) - done - len(failures), failures)


def _path(place: Path, first: int) -> Path:
    return place / f"{first:09d}.npz"


def _is_done(path: Path) -> bool:
    """Whether a shard is there, and none of its sounds failed by the machine's fault."""
    return path.exists() and not any(failure.reason in TRANSIENT for failure in _failures(path))


def _hear_shards(
    opened: Callable[[Item], _Open],
    ear: Ear,
    shards: Sequence[tuple[int, Sequence[Item]]],
    place: Path,
    inputs: int,
    quiet: bool,
) -> None:
    left = sum(len(own) for _, own in shards)
    shown: Progress | nullcontext[None] = nullcontext() if quiet else Progress(inputs, "hear", initial=inputs - left)
    threads = reading_threads()
    with ThreadPoolExecutor(threads) as pool, shown as progress:
        waiting: deque[Future[_Open]] = deque()
        coming = (item for _, own in shards for item in own)
        try:
            for first, own in shards:
                results: list[Heard | Failure] = []
                for item in own:
                    while len(waiting) <= 2 * threads and (ahead := next(coming, None)) is not None:
                        waiting.append(pool.submit(opened, ahead))
                    results.append(_heard(ear, item, waiting.popleft().result()))
                    if progress is not None:
                        progress.advance(1, failed=int(isinstance(results[-1], Failure)))
                _write(_path(place, first), results, ear.parts)
        finally:
            for future in waiting:
                if not future.cancel() and future.exception() is None:
                    future.result().close()


@dataclass
class _Open:
    """A sound that is open, its windows, and what the model takes for them if it is short; or why it is not."""

    sound: Sound | None = None
    segments: Sequence[Segment] = ()
    ready: list[np.ndarray] | None = None
    failure: tuple[str, str] | None = None

    def close(self) -> None:
        if self.sound is not None:
            self.sound.close()


def _opened(item: Item, ear: Ear, windows: Windows, timeout: float) -> _Open:
    """Runs in a thread."""
    return in_time(
        item, timeout, lambda item, claim: _open(item, claim, ear, windows), lambda failure: _Open(failure=failure)
    )


def _open(item: Item, claim: Claim, ear: Ear, windows: Windows) -> _Open:
    found = _Open()
    try:
        found.sound = item.open()
        claim()
        found.segments = found.sound.segments(windows)
        if len(found.segments) <= READY_WINDOWS:
            found.ready = ear.inputs(found.sound, found.segments)
    except DecodeError as error:
        found.failure = (error.reason, error.message)
    except UserError as error:
        found.failure = (UNREADABLE, str(error))
    except OSError as error:
        found.failure = ("transient", str(error))
    except BaseException:
        found.close()
        raise
    return found


def _heard(ear: Ear, item: Item, opened: _Open) -> Heard | Failure:
    try:
        if opened.failure is not None:
            return Failure(item.name, *opened.failure)
        assert opened.sound is not None
        rows: list[dict[str, np.ndarray]] = []
        for start in range(0, len(opened.segments), READY_WINDOWS):
            part = opened.segments[start : start + READY_WINDOWS]
            rows.append(ear.hear(opened.ready if opened.ready is not None else ear.inputs(opened.sound, part)))
        if not rows:
            return Failure(item.name, "empty", "it holds no samples")
        parts = {name: np.concatenate([one[name] for one in rows]) for name in ear.parts}
        if not all(np.isfinite(part).all() for part in parts.values()):
            return Failure(item.name, "nonfinite", "what the model makes of it is not all finite numbers")
        times = np.array([(one.start_seconds, one.end_seconds) for one in opened.segments], np.float64)
        return Heard(item.name, opened.sound.seconds, times[:, 0], times[:, 1], parts)
    except DecodeError as error:
        return Failure(item.name, error.reason, error.message)
    except UserError as error:
        return Failure(item.name, UNREADABLE, str(error))
    finally:
        opened.close()


def _write(path: Path, results: Sequence[Heard | Failure], parts: dict[str, int]) -> None:
    heard = [one for one in results if isinstance(one, Heard)]
    about: dict[str, Any] = {
        "names": [one.name for one in heard],
        "failures": [list(one) for one in results if isinstance(one, Failure)],
    }
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "seconds": np.array([one.seconds for one in heard], np.float64),
        "counts": np.array([len(one.starts) for one in heard], np.int64),
        "starts": np.concatenate([np.zeros(0), *(one.starts for one in heard)]),
        "ends": np.concatenate([np.zeros(0), *(one.ends for one in heard)]),
    }
    for name, length in parts.items():
        empty = np.zeros((0, length), np.float32)
        arrays[f"part_{name}"] = np.concatenate([empty, *(one.parts[name] for one in heard)])
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_bytes(path, content.getbuffer())


@contextmanager
def _shard(path: Path) -> Iterator[Any]:
    """The arrays of a shard, each read when it is asked for. Raises `UserError` if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is damaged; remove it, and the same command hears its sounds again.") from error


def _failures(path: Path) -> list[Failure]:
    with _shard(path) as file:
        return [Failure(*one) for one in json.loads(file["about"].tobytes())["failures"]]


def _read(path: Path, parts: dict[str, int]) -> list[Heard]:
    with _shard(path) as file:
        ends = np.cumsum(file["counts"]).tolist()
        names, seconds = json.loads(file["about"].tobytes())["names"], file["seconds"].tolist()
        starts, stops, rows = file["starts"], file["ends"], {part: file[f"part_{part}"] for part in parts}
        places = [slice(start, end) for start, end in zip([0, *ends][:-1], ends, strict=True)]
        return [
            Heard(name, length, starts[own], stops[own], {part: values[own] for part, values in rows.items()})
            for name, length, own in zip(names, seconds, places, strict=True)
        ]
