"""Opens a data directory for training: what it contains, what can be used, and what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m2dprep.artifacts.clips.matching import NO_CLIP, FileMatches, match_files
from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import differing_keys, fingerprint
from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.layout import LMS_SUFFIX, DataLayout, LmsLayout, inside, require_file, require_folder
from m2dprep.artifacts.log_mels.array import lms_form
from m2dprep.artifacts.log_mels.records import read_config
from m2dprep.artifacts.log_mels.store import LogMels, find_log_mels
from m2dprep.artifacts.tables import read_csv_columns, read_file_list, verify_file_list, write_proven_csv
from m2dprep.artifacts.training_lists import lists_to_train_on
from m2dprep.audioprep.config import PRESETS, ConvertConfig, LogMelConfig
from m2dprep.m2dclap.config import Hints, ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.training.config import DataChoice, TrainConfig
from m2dprep.training.dataset import DEAL_STREAM, Clips
from m2dprep.training.pairing import CaptionRows, RowsByClip, caption_sources, derange_captions

DEFAULT_FRONT_END = "16k"
# Opening headers is bound by the file system rather than by computation.
HEADER_THREADS = 16


class CaptionedFiles(NamedTuple):
    """Log-mels that have captions; ``clips`` (n,) holds the number of each log-mel's clip within the captions."""

    log_mels: LogMels
    clips: np.ndarray


@dataclass(frozen=True)
class TrainingData:
    """Everything that training takes from a data directory.

    ``weights`` (n,) belong to ``training``, or are None. ``text_model`` says how a text becomes an embedding (None:
    unknown); ``identity`` is what a resumed run must share; ``notes`` are lines about what is used.
    """

    choice: DataChoice
    training: CaptionedFiles
    weights: np.ndarray | None
    held_out: CaptionedFiles | None
    backgrounds: LogMels | None
    captions: RowsByClip
    stats: Normalization
    front_end: LogMelConfig
    text_model: dict[str, Any] | None
    skipped: list[Failure]  # listed files that are left out: no_captions, shared_name or unreadable
    identity: dict[str, Any]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.training.log_mels)

    def dataset(self, model: ModelConfig, config: TrainConfig) -> Clips:
        """The samples for a model; with ``shuffle_captions``, every clip gets another clip's captions."""
        clips = self.dealt(config)
        assert isinstance(self.captions, CaptionRows)
        noise = self.backgrounds if config.noise_ratio > 0 else None
        hints = Hints.of(model, config.epochs)
        return Clips(self.training.log_mels, clips, self.captions, model, config.seed, noise, hints)

    def dealt(self, config: TrainConfig) -> np.ndarray:
        """The number of each log-mel's clip within the captions (n,); shuffled, those of another log-mel."""
        if not config.shuffle_captions:
            return self.training.clips
        return derange_captions(self.training.clips, np.random.default_rng((DEAL_STREAM, config.seed)))

    def held_out_dataset(self, model: ModelConfig, config: TrainConfig) -> Clips | None:
        """The held-out clips with their own captions, without noise; None if none were chosen."""
        if self.held_out is None:
            return None
        assert isinstance(self.captions, CaptionRows)
        hints = Hints.of(model, config.epochs)
        return Clips(self.held_out.log_mels, self.held_out.clips, self.captions, model, config.seed, None, hints)

    def summary(self) -> str:
        """``input = used + skipped`` in one line."""
        reasons = Counter(skipped.reason for skipped in self.skipped)
        held_out = 0 if self.held_out is None else len(self.held_out.log_mels)
        others = f" + {held_out:,} held out" if self.held_out is not None else ""
        shared = f" + {reasons['shared_name']:,} of shared names" if reasons["shared_name"] else ""
        backgrounds = f"; {len(self.backgrounds):,} backgrounds" if self.backgrounds is not None else ""
        return (
            f"{len(self) + held_out + len(self.skipped):,} files listed = {len(self):,} used{others} "
            f"+ {reasons['no_captions']:,} without captions{shared} + {reasons['unreadable']:,} unreadable{backgrounds}"
        )


def open_training_data(
    choice: DataChoice, n_mels: int, texts: RowsByClip | None = None, stats: Normalization | None = None
) -> TrainingData:
    """Open ``choice.root``, match files with captions and check every file's header before training starts.

    With ``texts``, clips are matched with those instead of with embeddings; with ``stats``, log-mels are normalised by
    those instead of by the data directory's. Raises `UserError` if a part is missing or unusable, or if no listed file
    is left.
    """
    layout = _data_layout(choice.root)
    own_stats = stats is None
    stats = read_norm_stats(layout.norm_stats) if stats is None else stats
    lists, in_place = (list(choice.file_lists), []) if choice.file_lists else lists_to_train_on(layout)
    weights, held_names = _listed_files(layout, lists, choice.weighted), _names_in(choice.held_out)
    captions, text_model, notes = texts, None, list[str]()
    if captions is None:
        sources, text_model, notes = caption_sources(layout, choice.stores, choice.dictionaries)
        captions = CaptionRows(sources)
    listed = [name for name in weights if name not in held_names]
    if not listed:
        raise UserError("every file that is listed for training is held out; choose other lists with --files.")
    front_end = recorded_front_end(layout.root, [*listed, *held_names])
    strange = require_own_statistics(layout, listed) if own_stats else []
    pairs = match_files([*listed, *held_names], captions.clip_ids)
    without = _without_captions([*listed, *held_names], pairs, captions)
    training, skipped = _usable(layout.root, listed, pairs.clip[: len(listed)], without, n_mels)
    held_out, more = _held_out(layout.root, list(held_names), pairs.clip[len(listed) :], without, n_mels)
    skipped += more
    backgrounds, more = _backgrounds(layout.root, choice.backgrounds, n_mels)
    used = training.log_mels.file_names.to_pylist()
    drawn = _weights_of(used, weights) if choice.weighted else None
    return TrainingData(
        choice=replace(choice, root=choice.root.resolve()),
        training=training,
        weights=drawn,
        held_out=held_out,
        backgrounds=backgrounds,
        captions=captions,
        stats=stats,
        front_end=front_end,
        text_model=text_model,
        skipped=skipped + more,
        identity={
            "clips": len(used),
            "file_names": fingerprint({"names": used}),
            captions.kind: captions.fingerprints,
            "norm_stats": list(stats),
            "weights": None if drawn is None else fingerprint({"weights": drawn.tolist()}),
            **_others_identity(held_out, backgrounds),
        },
        notes=[
            f"files listed in {', '.join(path.name for path in lists)}",
            *in_place,
            *_edited([*lists, *choice.held_out, *choice.backgrounds]),
            *strange,
            *notes,
            *pairs.lines([*listed, *held_names], captions.clip_ids),
        ],
    )


def _data_layout(root: Path) -> DataLayout:
    """The layout of a data directory. Raises `UserError` if ``root`` is none, or the folder of its log-mels."""
    layout = DataLayout(require_folder(root, "a data directory"))
    if LmsLayout(root).melspec.is_dir() or (root.name.endswith(LMS_SUFFIX) and not layout.file_lists()):
        raise UserError(f"{root} is a folder of log-mels; DATA is the folder that it lies in: {LmsLayout(root).data}.")
    return layout


def _held_out(
    root: Path, names: list[str], clips: np.ndarray, without: dict[str, Failure], n_mels: int
) -> tuple[CaptionedFiles | None, list[Failure]]:
    """The held-out files that can be used, None if none were named, and those that cannot."""
    if not names:
        return None, []
    found, skipped = _usable(root, names, clips, without, n_mels)
    if len(found.clips) < 2:
        raise UserError("only one held-out clip can be used; captions are contrasted, so at least 2 are needed.")
    return found, skipped


def _others_identity(held_out: CaptionedFiles | None, backgrounds: LogMels | None) -> dict[str, Any]:
    """What identifies the files that are not trained on."""
    return {
        "held_out": _names_fingerprint(held_out.log_mels if held_out is not None else None),
        "backgrounds": _names_fingerprint(backgrounds),
    }


def _weights_of(names: list[str], weights: Mapping[str, float]) -> np.ndarray:
    """The weights (N,) of the clips that can be used. Raises `UserError` if all of them are 0."""
    drawn = np.array([weights[name] for name in names])
    if not drawn.any():
        raise UserError("the weights of all clips that can be used are 0.")
    return drawn


def _names_fingerprint(log_mels: LogMels | None) -> str | None:
    return None if log_mels is None else fingerprint({"names": log_mels.file_names.to_pylist()})


def read_norm_stats(path: Path) -> Normalization:
    """``mean`` and ``std`` of a ``norm_stats.json``. Raises `UserError` if they are missing or not usable."""
    require_file(path, "normalisation statistics; `m2dprep stats` makes them")
    try:
        values = read_object(path) or {}
        stats = Normalization(float(values["mean"]), float(values["std"]))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} holds no mean and std ({type(error).__name__}: {error}).") from error
    if not (np.isfinite(stats.mean) and np.isfinite(stats.std) and stats.std > 0):
        raise UserError(f"{path}: mean {stats.mean} and std {stats.std} cannot normalise anything.")
    return stats


def require_own_statistics(layout: DataLayout, listed: Sequence[str]) -> list[str]:
    """A warning if ``norm_stats.json`` comes from a folder that is not here, such as that of another data set.

    Raises `UserError` if it comes from a folder of the data directory that is not ``listed``, or from an earlier
    conversion of a listed one.
    """
    stats = read_object(layout.norm_stats) or {}
    folder, computed = stats.get("folder"), stats.get("fingerprint")
    folders = sorted({name.partition("/")[0] for name in listed})
    if folder is None:
        return []
    anew = f"`m2dprep stats {layout.root / folders[0]}` computes it anew."
    if folder not in folders:
        if (layout.root / str(folder)).is_dir():
            raise UserError(
                f"{layout.norm_stats} is that of {folder}, and files of {', '.join(folders)} are trained on. {anew}"
            )
        return [f"{layout.norm_stats.name} is that of {folder}, which is not here; {anew}"]
    config = read_config(LmsLayout(layout.root / folder))
    if config is not None and computed not in (None, config["fingerprint"]):
        raise UserError(f"{layout.norm_stats} is that of an earlier conversion of {folder}. {anew}")
    return []


def _edited(lists: Iterable[Path]) -> list[str]:
    """A line about each of the ``lists`` that is no longer as it was written; all are used as they are."""
    lines = []
    for path in lists:
        try:
            verify_file_list(path)
        except UserError as error:
            lines.append(f"used all the same: {error}")
    return lines


def write_skipped(path: Path, skipped: Iterable[Failure]) -> None:
    """Write the files that are left out, one row per file, with the reason."""
    write_proven_csv(path, Failure._fields, skipped)


def _listed_files(layout: DataLayout, lists: Sequence[Path], weighted: bool) -> dict[str, float]:
    """Paths in the lists to train on with their weights, each once, in the order of the lists."""
    if not lists:
        raise UserError(f"{layout.root} has no files_<name>.csv; `m2dprep melspec` writes one beside its log-mels.")
    listed: dict[str, float] = {}
    for path in lists:
        names = read_file_list(path)
        for name, weight in zip(names, _weights_in(path) if weighted else [1.0] * len(names), strict=True):
            if listed.setdefault(name, weight) != weight:
                raise UserError(f"{path}: {name} has the weight {weight:g} here and {listed[name]:g} before.")
    if not listed:
        raise UserError(f"{', '.join(map(str, lists))} lists no files.")
    return listed


def _weights_in(path: Path) -> list[float]:
    """The ``weight`` column of a file list. Raises `UserError` if it is missing, negative or not finite."""
    weights = []
    for row, text in enumerate(read_csv_columns(path, ["weight"], "a file list with weights")["weight"], start=2):
        try:
            weight = float(text)
        except ValueError:
            weight = float("nan")
        if not 0 <= weight < float("inf"):
            raise UserError(f"{path}, row {row}: weight {text!r} is no number from 0.")
        weights.append(weight)
    return weights


def _names_in(lists: Sequence[Path]) -> dict[str, None]:
    """Paths in some file lists, each once. Raises `UserError` if lists are given but list nothing."""
    names = dict.fromkeys(name for path in lists for name in read_file_list(path))
    if lists and not names:
        raise UserError(f"{', '.join(map(str, lists))} lists no files.")
    return names


def _usable(
    root: Path, listed: list[str], clips: np.ndarray, without: dict[str, Failure], n_mels: int
) -> tuple[CaptionedFiles, list[Failure]]:
    """The ``listed`` files that have captions and can be read, and the reasons why the others are left out."""
    skipped = [without[name] for name in listed if name in without]
    if len(skipped) == len(listed):
        raise UserError(f"none of {len(listed):,} listed files has captions: {skipped[0].message}.")
    listed, clips = _select(listed, clips, clips != NO_CLIP)
    log_mels = find_log_mels(root, listed)
    problems = unreadable_log_mels(log_mels, n_mels)
    skipped += [Failure(name, "unreadable", problem) for name, problem in problems.items()]
    kept = np.flatnonzero([name not in problems for name in listed])
    return CaptionedFiles(log_mels.take(kept), clips[kept]), skipped


def _backgrounds(root: Path, lists: Sequence[Path], n_mels: int) -> tuple[LogMels | None, list[Failure]]:
    names = list(_names_in(lists))
    if not names:
        return None, []
    log_mels = find_log_mels(root, names)
    problems = unreadable_log_mels(log_mels, n_mels)
    kept = np.flatnonzero([name not in problems for name in names])
    return log_mels.take(kept), [Failure(name, "unreadable", problem) for name, problem in problems.items()]


def _without_captions(listed: Sequence[str], pairs: FileMatches, captions: RowsByClip) -> dict[str, Failure]:
    """The files without captions, by name. Raises `UserError` if none of the files has captions."""
    names, clip_ids = ", ".join(captions.names), captions.clip_ids
    if (pairs.clip == NO_CLIP).all():
        raise UserError(
            f"none of the {len(listed):,} listed files has captions in {names}; for example {listed[0]!r}, "
            f"against clip ids like {clip_ids[0]!r}. File names and clip ids of a set must belong together; "
            "`captions add --id-pattern` takes out of longer ids what both have. "
            + " ".join(pairs.lines(listed, clip_ids))
        )
    without = [listed[index] for index in np.flatnonzero(pairs.clip == NO_CLIP).tolist()]
    skipped = {name: Failure(name, "no_captions", f"none of its ids is in {names}") for name in without}
    for row, wanted in zip(pairs.shared.tolist(), pairs.wanted.tolist(), strict=True):
        clip = repr(clip_ids[wanted]) if wanted != NO_CLIP else "one of several clips"
        skipped[listed[row]] = Failure(listed[row], "shared_name", f"may be {clip}, but another may be it as well")
    return skipped


def _select(listed: Sequence[str], clips: np.ndarray, keep: np.ndarray) -> tuple[list[str], np.ndarray]:
    return [listed[index] for index in np.flatnonzero(keep).tolist()], clips[keep]


def unreadable_log_mels(log_mels: LogMels, n_mels: int) -> dict[str, str]:
    """The problem of each file that is not a whole log-mel of ``n_mels`` bins. Reads headers, not values.

    Packed log-mels were checked when they were packed. Raises `UserError` if every file has a problem.
    """
    names, bins = log_mels.file_names.to_pylist(), log_mels.packed_bins
    other = np.flatnonzero((bins != 0) & (bins != n_mels)).tolist()
    problems = {names[row]: f"its pack has {bins[row]} mel bins, not {n_mels}." for row in other}
    files = [names[row] for row in np.flatnonzero(bins == 0).tolist()]
    with Progress(len(files), "looking at log-mels") as progress, ThreadPoolExecutor(HEADER_THREADS) as pool:
        found = pool.map(partial(_problem, log_mels.root, n_mels=n_mels), files)
        for name, problem in zip(files, found, strict=True):
            if problem is not None:
                problems[name] = problem
            progress.advance(failed=int(problem is not None))
    if len(problems) == len(names):
        raise UserError(f"none of the {len(problems):,} listed log-mels can be read: {problems[names[0]]}")
    return problems


def _problem(root: Path, name: str, *, n_mels: int) -> str | None:
    try:
        lms_form(inside(root, name), n_mels=n_mels)
    except UserError as error:
        return str(error)
    return None


def recorded_front_end(
    root: Path, file_names: Sequence[str], otherwise: LogMelConfig = PRESETS[DEFAULT_FRONT_END]
) -> LogMelConfig:
    """The front end recorded in the log-mels' own configurations; the original's 16 kHz one if none is recorded."""
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
    return found[first] if found else otherwise
