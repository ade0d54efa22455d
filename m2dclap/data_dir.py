"""A data directory opened for training: what is in it, what can be used, and what is left out and why."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from artifacts.atomic import write_text
from artifacts.errors import UserError
from artifacts.fingerprint import differing_keys, fingerprint
from artifacts.layout import DataLayout, LmsLayout, inside, require_file, require_folder
from artifacts.lms_array import open_lms
from artifacts.lms_store import read_config
from artifacts.progress import Progress
from artifacts.tables import read_file_list
from audioprep.config import PRESETS, ConvertConfig, LogMelConfig
from m2dclap.config import ModelConfig, TrainConfig
from m2dclap.dataset import DEAL_STREAM, Clips
from m2dclap.frames import NormStats
from m2dclap.pairing import NO_CAPTIONS, CaptionRows, CaptionSource, common_text_model, deal_wrongly, match_files

DEFAULT_FRONT_END = "16k"
# Opening headers waits for the file system more than it computes.
HEADER_THREADS = 16


@dataclass(frozen=True)
class DataChoice:
    """Which parts of a data directory to train on; empty means all file lists and all embedding stores there.

    ``dictionaries`` are the original's pickled ``capemb_*.npy`` files, which are read only when they are named here.
    """

    root: Path
    file_lists: tuple[Path, ...] = ()
    stores: tuple[Path, ...] = ()
    dictionaries: tuple[Path, ...] = ()


class Skipped(NamedTuple):
    """A listed file that is left out: ``reason`` is ``no_captions`` or ``unreadable``."""

    file_name: str
    reason: str
    message: str


@dataclass(frozen=True)
class TrainingData:
    """Everything that training takes from a data directory.

    ``text_model`` says how a text becomes an embedding (None: unknown); ``identity`` is what a resumed run must share.
    """

    choice: DataChoice
    file_names: pa.Array
    clips: np.ndarray
    captions: CaptionRows
    stats: NormStats
    front_end: LogMelConfig
    text_model: dict[str, Any] | None
    skipped: list[Skipped]
    identity: dict[str, Any]

    def dataset(self, model: ModelConfig, config: TrainConfig) -> Clips:
        """The samples for a model; with ``shuffle_captions`` every clip gets another clip's captions."""
        clips = self.clips
        if config.shuffle_captions:
            clips = deal_wrongly(clips, np.random.default_rng((DEAL_STREAM, config.seed)))
        return Clips(self.choice.root, self.file_names, clips, self.captions, self.stats, model, config.seed)

    def summary(self) -> str:
        """``input = used + skipped`` in one line."""
        reasons = Counter(skipped.reason for skipped in self.skipped)
        used = len(self.file_names)
        return (
            f"{used + len(self.skipped):,} files listed = {used:,} used + {reasons['no_captions']:,} without captions "
            f"+ {reasons['unreadable']:,} unreadable"
        )


def open_training_data(choice: DataChoice, n_mels: int) -> TrainingData:
    """Open ``choice.root``, match files with captions and look at every file's header, before training starts.

    Raises `UserError` where a part is missing or cannot be used, or no listed file is left.
    """
    layout = DataLayout(require_folder(choice.root, "a data directory"))
    stats = read_norm_stats(layout.norm_stats)
    listed = _listed_files(layout, choice.file_lists)
    sources = _caption_sources(layout, choice)
    text_model = common_text_model(sources)
    captions = CaptionRows(sources)
    clips = match_files(listed, captions.clip_ids)
    skipped = _without_captions(listed, clips, sources, captions.clip_ids)
    listed, clips = _select(listed, clips, clips != NO_CAPTIONS)
    problems = _unreadable(layout.root, listed, n_mels)
    skipped += [Skipped(name, "unreadable", problem) for name, problem in problems.items()]
    used, clips = _select(listed, clips, np.array([name not in problems for name in listed]))
    return TrainingData(
        choice=replace(choice, root=choice.root.resolve()),
        file_names=pa.array(used, pa.string()),
        clips=clips,
        captions=captions,
        stats=stats,
        front_end=_front_end(layout.root, used),
        text_model=text_model,
        skipped=skipped,
        identity={
            "clips": len(used),
            "file_names": fingerprint({"names": used}),
            "embeddings": [source.fingerprint for source in sources],
            "norm_stats": list(stats),
        },
    )


def read_norm_stats(path: Path) -> NormStats:
    """``mean`` and ``std`` of a ``norm_stats.json``. Raises `UserError` where they are missing or make no sense."""
    require_file(path, "normalisation statistics; `m2dprep stats` makes them")
    try:
        values = json.loads(path.read_text())
        stats = NormStats(float(values["mean"]), float(values["std"]))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{path} holds no mean and std ({type(error).__name__}: {error}).") from error
    if not (np.isfinite(stats.mean) and np.isfinite(stats.std) and stats.std > 0):
        raise UserError(f"{path}: mean {stats.mean} and std {stats.std} cannot normalise anything.")
    return stats


def write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """The files that are left out, one row each, with the reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Skipped._fields)
    writer.writerows(skipped)
    write_text(path, text.getvalue())


def _listed_files(layout: DataLayout, chosen: Sequence[Path]) -> list[str]:
    """Paths in the file lists, each once, in the order of the lists."""
    lists = list(chosen) or layout.file_lists()
    if not lists:
        raise UserError(f"{layout.root} has no files_<name>.csv; `m2dprep melspec` writes one beside its log-mels.")
    file_names = list(dict.fromkeys(name for path in lists for name in read_file_list(path)))
    if not file_names:
        raise UserError(f"{', '.join(map(str, lists))} lists no files.")
    return file_names


def _caption_sources(layout: DataLayout, choice: DataChoice) -> list[CaptionSource]:
    stores = list(choice.stores)
    if not stores and not choice.dictionaries:
        stores = layout.embedding_stores()
    if not stores and not choice.dictionaries:
        raise UserError(f"{layout.root} has no capemb_<model>/ folder; `m2dprep embed-captions` makes one.")
    sources = [CaptionSource.from_store(store) for store in stores]
    sources += [CaptionSource.from_dictionary(path) for path in choice.dictionaries]
    if empty := [source.name for source in sources if not len(source.embeddings)]:
        raise UserError(f"{', '.join(empty)} holds no embeddings.")
    return sources


def _without_captions(
    listed: Sequence[str], clips: np.ndarray, sources: Sequence[CaptionSource], clip_ids: Sequence[str]
) -> list[Skipped]:
    """The files without captions. Raises `UserError` where that is all of them."""
    names = ", ".join(source.name for source in sources)
    if (clips == NO_CAPTIONS).all():
        raise UserError(
            f"none of the {len(listed):,} listed files has captions in {names}; for example {listed[0]!r}, "
            f"against clip ids like {clip_ids[0]!r}. File names and clip ids of a set must belong together."
        )
    without = np.flatnonzero(clips == NO_CAPTIONS)
    return [Skipped(listed[index], "no_captions", f"none of its ids is in {names}") for index in without.tolist()]


def _select(listed: Sequence[str], clips: np.ndarray, keep: np.ndarray) -> tuple[list[str], np.ndarray]:
    return [listed[index] for index in np.flatnonzero(keep).tolist()], clips[keep]


def _unreadable(root: Path, file_names: Sequence[str], n_mels: int) -> dict[str, str]:
    """What is wrong with each file that is not a whole log-mel of ``n_mels`` bins. Reads headers, not values.

    Raises `UserError` where that is all of them.
    """
    problems: dict[str, str] = {}
    with Progress(len(file_names), "looking at log-mels") as progress, ThreadPoolExecutor(HEADER_THREADS) as pool:
        found = pool.map(partial(_problem, root, n_mels=n_mels), file_names)
        for name, problem in zip(file_names, found, strict=True):
            if problem is not None:
                problems[name] = problem
            progress.advance(failed=int(problem is not None))
    if len(problems) == len(file_names):
        raise UserError(f"none of the {len(problems):,} captioned log-mels can be read: {problems[file_names[0]]}")
    return problems


def _problem(root: Path, file_name: str, *, n_mels: int) -> str | None:
    path = inside(root, file_name)
    try:
        open_lms(path, n_mels=n_mels)
    except UserError as error:
        return str(error)
    return None


def _front_end(root: Path, file_names: Sequence[str]) -> LogMelConfig:
    """The front end that the log-mels' own configurations record; the original's 16 kHz one where none does."""
    found: dict[str, LogMelConfig] = {}
    for folder in sorted({name.partition("/")[0] for name in file_names}):
        if (config := read_config(LmsLayout(root / folder))) is not None:
            found[folder] = ConvertConfig.from_dict(config["config"]).log_mel
    first, *others = found or [""]
    for other in others:
        if lines := differing_keys(asdict(found[first]), asdict(found[other])):
            raise UserError(
                f"log-mels of different front ends cannot be mixed: {first} and {other} ({'; '.join(lines)}). "
                "Choose one of their file lists with --files."
            )
    return found[first] if found else PRESETS[DEFAULT_FRONT_END]
