"""`m2dprep embed-audio` as a function: from a checkpoint and sounds to a store of their embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.embeddings.audio_store import CLAP, CONVENTIONAL, NAMES, PARTIAL, AudioStore
from m2dprep.artifacts.embeddings.audio_writer import AudioStoreWriter, SourceRows, StoredSource
from m2dprep.artifacts.embeddings.store import META
from m2dprep.artifacts.errors import FingerprintConflictError, UserError, top_reasons
from m2dprep.artifacts.folders import require_apart
from m2dprep.audioprep.decoding.sound import TRANSIENT
from m2dprep.audioprep.discover import PassedOver
from m2dprep.audioprep.retries import StopIfUnreadable
from m2dprep.evaluation.embedding.rows import STACKED, Numbered, RowMaker, RowRequest, RowSettings, make_here
from m2dprep.evaluation.embedding.sources import checkpoint_file
from m2dprep.evaluation.encoders import FLAT, CheckpointEncoder, note_if_moved_on
from m2dprep.evaluation.tagging.inputs import Item, Reading, find_items, is_one_file, path_text
from m2dprep.evaluation.tagging.opening import shards_of
from m2dprep.evaluation.tagging.sounds import Windows, windows_of
from m2dprep.m2dclap.fusion.kinds import INTERPOLATED, WHOLE

# The longest sound: whole, all patches of it are in memory together.
HOUR, DAY = 3600.0, 24 * 3600.0
# What a run that was killed may leave of a store.
LEFT = {*NAMES, "lock", "lock-file"}
WORKER_DIED = ("worker_died", "the worker died while embedding it, more than once")

# Makes shards elsewhere: gives the rows of each, or of a part of one, in any order.
Runner = Callable[[RowRequest, Iterable[Sequence[Numbered]]], Iterator[list[SourceRows]]]


@dataclass(frozen=True)
class EmbedRequest:
    """What to embed and how: see `RowSettings`; ``hop`` is the window's length if it is None.

    ``length`` and ``positions`` are those of `AudioEncoder`.
    """

    checkpoint: Path | str
    sounds: Sequence[Path]
    output: Path
    contents: str = CLAP
    features: str = STACKED
    window: float | None = None
    hop: float | None = None
    dtype: str = "float16"
    root: Path | None = None
    max_seconds: float | None = None
    ffmpeg: bool | None = None
    read_timeout: float = 120.0
    device: str = "auto"
    batch_size: int = 32
    length: str | None = None
    positions: str = INTERPOLATED
    overwrite: bool = False
    passed_over: PassedOver = field(default_factory=PassedOver)

    @property
    def windows(self) -> Windows | None:
        return windows_of(self.window, self.hop)

    @property
    def longest(self) -> float:
        return self.max_seconds or (HOUR if self.window is None else DAY)

    @property
    def rows(self) -> RowSettings:
        return RowSettings(self.contents, self.features, self.windows, self.dtype, self.read_timeout)


@dataclass
class EmbedReport:
    """``inputs = done + skipped + failed``; sounds whose rows are of an earlier run or store are skipped.

    ``gone`` are the sounds of an earlier store that are no longer there, whose rows were left out.
    """

    output: str
    inputs: int
    done: int
    skipped: int
    failed: int
    gone: int
    rows: int
    dim: int
    reasons: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        line = f"{self.inputs:,} inputs = {self.done:,} done + {self.skipped:,} skipped + {self.failed:,} failed"
        line += f" ({top_reasons(self.reasons)}; see {self.output}/failures.parquet)" if self.failed else ""
        gone = f"; {self.gone:,} of the earlier store are gone, and so are their rows" if self.gone else ""
        return f"{line}; {self.rows:,} rows of {self.dim:,} numbers{gone}"


def embed_audio(request: EmbedRequest, runner: Runner | None = None, *, quiet: bool = False) -> EmbedReport:
    """Make or bring up to date the store ``request.output``; the same call goes on where a killed one stopped.

    ``runner`` makes the rows elsewhere. Raises `UserError` if there is nothing to embed or the model has no head for
    captions but shall make CLAP embeddings, and `FingerprintConflictError` if the store was made with other settings.
    """
    windows = request.windows  # before the model is loaded
    file = checkpoint_file(request.checkpoint)
    wanted = RowRequest(
        file.absolute(), request.rows, request.device, request.batch_size, request.length, request.positions
    )
    encoder = wanted.encoder()
    maker = RowMaker(encoder, request.rows)
    if request.contents != CONVENTIONAL:
        note_if_moved_on(encoder.checkpoint)
    reading = Reading(encoder.checkpoint.front_end, request.longest, request.ffmpeg, request.read_timeout)
    items = _items(request, reading)
    settings = {
        "checkpoint_digest": encoder.digest, "contents": request.contents,
        "features": None if request.contents == CLAP else request.features,
        "window": windows and windows.seconds, "hop": windows and windows.hop,
        "dtype": request.dtype, **_dims(encoder, request),
        "length": encoder.length, "positions": request.positions if encoder.length == WHOLE else None,
        "front_end": asdict(reading.log_mel), "max_seconds": reading.max_seconds, "ffmpeg": reading.ffmpeg,
    }  # fmt: skip
    sources = [StoredSource(item.name, item.stamp) for item in items]
    _require_place(request.output)
    earlier = _names_in(request.output) if not request.overwrite else set()
    if earlier and earlier.isdisjoint(item.name for item in items):
        raise FingerprintConflictError(
            f"{request.output} is of {len(earlier):,} other sounds ({min(earlier)}, for example), and of none of these "
            f"{len(items):,} ({items[0].name}). Name another folder; --overwrite replaces the store."
        )
    with AudioStoreWriter(request.output, settings, sources, overwrite=request.overwrite, retried=TRANSIENT) as writer:
        here = replace(wanted, digest=encoder.digest)
        made = set() if writer.finished else _fill(writer, items, maker, here, runner, quiet)
        if not writer.finished:
            where = [path_text(path.absolute()) for path in request.sounds]
            writer.finish({"checkpoint": str(file.absolute()), "model": encoder.name, "sounds": where})
        failures = writer.failures
    store = AudioStore.open(request.output)
    done = len(made - failures.keys())
    reasons = Counter(reason for reason, _ in failures.values())
    return EmbedReport(
        str(request.output), len(items), done, len(items) - done - len(failures), len(failures),
        len(earlier - {item.name for item in items}), len(store), store.dim, dict(reasons),
    )  # fmt: skip


def _dims(encoder: CheckpointEncoder, request: EmbedRequest) -> dict[str, int | None]:
    parts, config = encoder.parts, encoder.checkpoint.config
    conventional = config.embed_dim if request.features == FLAT else parts[STACKED]
    if request.contents == CONVENTIONAL:
        return {"dim": conventional, "feature_dim": None}
    return {"dim": parts[CLAP], "feature_dim": None if request.contents == CLAP else conventional}


def _items(request: EmbedRequest, reading: Reading) -> list[Item]:
    """The sounds, whose names are relative to what was given; they are opened by absolute paths, also by workers."""
    several = len(request.sounds) > 1
    found: list[Item] = []
    for path in request.sounds:
        require_apart(request.output, path)
        own = find_items([path.absolute()], reading, request.root, request.passed_over)
        if is_one_file(path):
            found += [replace(item, name=path_text(path)) for item in own]
        else:
            before = f"{path_text(path).rstrip('/')}/" if several else ""
            found += [replace(item, name=before + item.name) for item in own]
    return found


def _require_place(folder: Path) -> None:
    """Raise `UserError` for a folder that holds something else than a store: its files would lie among others."""
    if not folder.is_dir() or (folder / META).exists() or (folder / PARTIAL).exists():
        return
    if others := sorted(path.name for path in folder.iterdir() if path.name not in LEFT and path.name[0] != "."):
        raise UserError(
            f"{folder} holds {others[0]}{' and other files' if len(others) > 1 else ''}, but no store of embeddings of "
            "sounds; name a new folder."
        )


def _names_in(folder: Path) -> set[str]:
    """The sounds of the store that is there, if there is one."""
    try:
        return set(AudioStore.open(folder).sources["file"].to_pylist())
    except (UserError, OSError):  # the writer says what is wrong
        return set()


def _fill(
    writer: AudioStoreWriter,
    items: Sequence[Item],
    maker: RowMaker,
    request: RowRequest,
    runner: Runner | None,
    quiet: bool,
) -> set[int]:
    """Make the rows that are missing; returns the numbers of their sounds."""
    missing = writer.missing
    shards = [
        [(number, items[number]) for number in missing[start : start + len(own)]]
        for start, own in shards_of([items[number] for number in missing])
    ]
    pending = [shard for shard in shards if not writer.written([number for number, _ in shard])]
    made = {number for shard in pending for number, _ in shard}
    shown: Progress | nullcontext[None] = (
        nullcontext() if quiet else Progress(len(items), "embed", "sounds", initial=len(items) - len(made))
    )
    with shown as progress:
        rows = make_here(maker, pending) if runner is None else _whole_shards(pending, runner(request, iter(pending)))
        seen = StopIfUnreadable()  # shards of large sounds are so short that no worker sees enough of them
        for own in rows:
            for one in own:
                seen(items[one.number].name, *(one.failure or (None, None)))
            writer.write_shard(own)
            if progress is not None:
                progress.advance(len(own), failed=sum(one.failure is not None for one in own))
    return made


def _whole_shards(
    shards: Sequence[Sequence[Numbered]], parts: Iterator[list[SourceRows]]
) -> Iterator[list[SourceRows]]:
    """The rows of each shard, in the order of its sounds, once all parts of it are there."""
    shard_of = {number: place for place, shard in enumerate(shards) for number, _ in shard}
    waiting: dict[int, dict[int, SourceRows]] = {}
    for part in parts:
        for one in part:
            waiting.setdefault(shard_of[one.number], {})[one.number] = one
        for place in {shard_of[one.number] for one in part}:
            if len(waiting[place]) == len(shards[place]):
                own = waiting.pop(place)
                yield [own[number] for number, _ in shards[place]]


def after_worker_death(lost: Numbered) -> SourceRows:
    """What stands for a sound that killed its worker again and again."""
    return SourceRows(lost[0], failure=WORKER_DIED)
