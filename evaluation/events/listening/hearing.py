"""Hears many recordings by windows, once: what was heard is kept, and a run that was stopped goes on.

```
heard/<model>-<digest>/      the digest is of what decides the numbers: weights, windows, the folder of the sounds
  run.json                   what the digest is of, in words
  <digest>.npz, …            what was heard of some sounds each (`kept`)
```

Thresholds, names and rules come later, so that trying others needs no sound to be heard again; and of a set that has
changed, only what is new or has changed is heard.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import fingerprint
from m2dprep.artifacts.errors import Failure, MachineLostError, UserError
from m2dprep.artifacts.files import sweep_temporaries
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.json_files import write_object
from m2dprep.artifacts.locks import exclusive
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.retries import StopIfUnreadable
from m2dprep.audioprep.time_limit import Claim
from m2dprep.evaluation.events.listening.ear import Ear
from m2dprep.evaluation.events.listening.kept import Heard, Kept
from m2dprep.evaluation.protocols.result import plain
from m2dprep.evaluation.tagging.inputs import Item, Reading, named_items
from m2dprep.evaluation.tagging.opening import in_time, reading_threads, shards_of
from m2dprep.evaluation.tagging.sounds import Segment, Sound, Windows

RUN = "run.json"
# Sounds of up to so many windows are made ready by the threads that open them.
READY_WINDOWS = 256
UNREADABLE = "not_a_log_mel"


@dataclass(frozen=True)
class Hearing:
    """What became of the sounds, and where it is kept: ``inputs = done + skipped + failed``."""

    items: Sequence[Item]
    kept: Kept
    done: int
    skipped: int
    failures: list[Failure]

    @property
    def inputs(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Heard]:
        """All recordings that could be heard, in order."""
        return (self.kept.read(item) for item in self.items if self.kept.failure(item) is None)

    def counts(self) -> dict[str, int]:
        """What does not depend on how often the run was stopped."""
        return {"recordings": self.inputs, "failed": len(self.failures)}

    def summary(self) -> str:
        return (
            f"{self.inputs:,} recordings = {self.done:,} heard + {self.skipped:,} heard before + "
            f"{len(self.failures):,} failed"
        )


def hear(
    ear: Ear,
    names: Sequence[str],
    root: Path,
    windows: Windows,
    reading: Reading,
    folder: Path,
    *,
    quiet: bool = False,
) -> Hearing:
    """Hear the sounds of these names below ``root`` that ``folder`` does not hold already, by windows.

    Raises `UserError` if another run writes there, or a file there is damaged.
    """
    items = list(named_items(names, root, reading))
    wanted = plain(
        {
            **ear.identity(),
            "front_end": asdict(reading.log_mel),
            "max_seconds": reading.max_seconds,
            "ffmpeg": reading.ffmpeg,
            "windows": windows._asdict(),
            "root": os.path.relpath(root.resolve(), folder.resolve()),
        }
    )
    place = folder / f"{ear.encoder.name}-{fingerprint(wanted)[:16]}"
    make_folder(place)
    with exclusive(place):
        sweep_temporaries(place)
        write_object(place / RUN, wanted)
        kept = Kept(place, ear.parts)
        pending = [item for item in items if not kept.has(item)]
        opened = partial(_opened, ear=ear, windows=windows, timeout=reading.timeout)
        _hear_shards(opened, ear, pending, kept, len(items), quiet)
        kept.sweep(items)
        kept.note_use(items)
    failures = {item.name: failure for item in items if (failure := kept.failure(item)) is not None}
    done = len(pending) - sum(item.name in failures for item in pending)
    return Hearing(items, kept, done, len(items) - done - len(failures), list(failures.values()))


def _hear_shards(
    opened: Callable[[Item], _Open], ear: Ear, pending: Sequence[Item], kept: Kept, inputs: int, quiet: bool
) -> None:
    initial = inputs - len(pending)
    shown: Progress | nullcontext[None] = nullcontext() if quiet else Progress(inputs, "hear", initial=initial)
    threads = reading_threads()
    with ThreadPoolExecutor(threads) as pool, shown as progress:
        waiting: deque[Future[_Open]] = deque()
        coming, seen = iter(pending), StopIfUnreadable()
        try:
            for _, own in shards_of(pending):
                results: list[Heard | Failure] = []
                for item in own:
                    while len(waiting) <= 2 * threads and (ahead := next(coming, None)) is not None:
                        waiting.append(pool.submit(opened, ahead))
                    results.append(heard := _heard(ear, item, waiting.popleft().result()))
                    seen(item.name, *(heard[1:] if isinstance(heard, Failure) else (None, None)))
                    if progress is not None:
                        progress.advance(1, failed=int(isinstance(results[-1], Failure)))
                kept.write(own, results)
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
    except MachineLostError:
        found.close()
        raise
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
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(opened.segments), READY_WINDOWS):
            part = opened.segments[start : start + READY_WINDOWS]
            inputs = opened.ready if opened.ready is not None else ear.inputs(opened.sound, part)
            for one in inputs:
                digest.update(np.ascontiguousarray(one).data)
            rows.append(ear.hear(inputs))
        if not rows:
            return Failure(item.name, "empty", "it holds no samples")
        parts = {name: np.concatenate([one[name] for one in rows]) for name in ear.parts}
        if not all(np.isfinite(part).all() for part in parts.values()):
            return Failure(item.name, "nonfinite", "what the model makes of it is not all finite numbers")
        times = np.array([(one.start_seconds, one.end_seconds) for one in opened.segments], np.float64)
        return Heard(item.name, opened.sound.seconds, times[:, 0], times[:, 1], parts, digest.hexdigest())
    except DecodeError as error:
        return Failure(item.name, error.reason, error.message)
    except UserError as error:
        return Failure(item.name, UNREADABLE, str(error))
    finally:
        opened.close()
