"""The files of a training run, and the checks that let the same command continue it.

RUN/config.json                            the resolved settings, and what a resumed run must share
RUN/train.yaml, train.yaml.xxh3            the same as a file for --config; the digest of that
RUN/log.jsonl, RUN/events.out.tfevents.*   how it went
RUN/skipped.csv, skipped.csv.xxh3          listed files that are not trained on, and why; the digest of that
RUN/m2d_clap_vit_base-80x608p16x16p16k-…/checkpoint-<epoch>.pth          after so many epochs
RUN/m2d_clap_vit_base-80x608p16x16p16k-…/checkpoint-<epoch>-<steps>.pth  and so many steps of the next one
RUN/m2d_clap_vit_base-80x1001p16x16p16kpBpTI-…/text_encoder/             configuration and tokenizer of a text tower
RUN/earlier-run/                           the run that this one replaces (--overwrite), until this one is done
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import fingerprint, require_same
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import sweep_temporaries
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.m2dclap.checkpoint_file import ARGS, checkpoints_in
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.layouts import TEXT_FOLDER
from m2dprep.training.schedule import LoopConfig

MODEL_PREFIX = "m2d_clap_vit_"
CONFIG, SKIPPED = "config.json", "skipped.csv"
# The folder within a run that holds the earlier run which it replaces.
BEFORE = "earlier-run"
RUN_FILES = (
    "log.jsonl",
    SKIPPED,
    f"{SKIPPED}.xxh3",
    "train.yaml",
    "train.yaml.xxh3",
    "run.png",
    "nonfinite.txt",
    "result.json",
    "classes.csv",
)
# Weights alone, of a fine-tuning, and what lies beside them.
WEIGHTS = "weights_ep*.pth"
BESIDE_WEIGHTS = (WEIGHTS, "classes.txt", ARGS)


def model_name(size: str) -> str:
    """The original's name for a model of a given size: ``base`` → ``m2d_clap_vit_base``."""
    return MODEL_PREFIX + size


def checkpoint_folder_name(
    size: str, model: ModelConfig, train: LoopConfig, sample_rate: int, digest: str, letter: str = ""
) -> str:
    """A folder name from which the original's loaders can read the shapes.

    ``<model>-<F>x<T>p<f>x<t>p<kHz>k[p<letter>]-<anything>``; the letter is that of the text encoder, with ``pTI`` after
    it if the checkpoint holds that too, and the last part is ours: epochs, batch, seed and a digest of all settings, so
    that two runs never share a name.
    """
    shape = f"{_by(model.input_size)}p{_by(model.patch_size)}p{sample_rate // 1000}k{letter and f'p{letter}'}"
    return f"{model_name(size)}-{shape}-e{train.epochs}b{train.batch_size}s{train.seed}-{digest[:8]}"


@dataclass(frozen=True)
class RunFolder:
    """An opened run. ``settings`` are what a resumed run must share, by part: model, train, data.

    ``notes`` were recorded beside the settings when the run began.
    """

    root: Path
    settings: dict[str, Any]
    checkpoints: Path
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path, name: str, settings: dict[str, Any], notes: dict[str, Any]) -> RunFolder:
        """Begin a run in ``root``, or continue the one that is there. ``notes`` are recorded and never compared.

        Raises `FingerprintConflictError`, naming the keys, if a run with other settings was begun there.
        """
        config = root / CONFIG
        if (begun := _read_config(config)) is not None:
            require_same(begun["settings"], settings, root)
            notes = {key: value for key, value in begun.items() if key not in ("settings", "fingerprint")}
        else:
            write_object(config, {"settings": settings, "fingerprint": fingerprint(settings), **notes})
        run = cls(root, settings, root / name, notes)
        run.checkpoints.mkdir(exist_ok=True)
        sweep_temporaries(run.checkpoints)
        sweep_temporaries(root)
        return run

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def recipe(self) -> Path:
        return self.root / "train.yaml"

    @property
    def skipped(self) -> Path:
        return self.root / SKIPPED

    def checkpoint(self, epoch: int, steps: int = 0) -> Path:
        """The path of the checkpoint after ``epoch`` epochs and ``steps`` steps of the next one."""
        return self.checkpoints / f"checkpoint-{epoch}{f'-{steps}' if steps else ''}.pth"

    def newest(self) -> Path | None:
        """The checkpoint to continue from, if there is one."""
        return next(reversed(checkpoints_in(self.checkpoints)), None)

    def keep_newest(self, count: int) -> None:
        """Remove all checkpoints but the newest ``count``; 0 keeps all."""
        for path in checkpoints_in(self.checkpoints)[:-count] if count else ():
            path.unlink(missing_ok=True)


def make_way(root: Path) -> bool:
    """Prepare ``root`` for a new run. Returns whether an earlier run is set aside.

    A run that has checkpoints is set aside until the new run is done; an unfinished run that was to replace one that
    is already set aside is removed.
    """
    before = root / BEFORE
    if _is_set_aside(root) or not ((root / CONFIG).exists() and (before.is_dir() or _has_checkpoints(root))):
        remove_run(root)
        return _is_set_aside(root)
    try:  # the configuration moves last: it marks the set-aside run as whole
        for path in [*_parts_of_run(root), root / CONFIG]:
            _move(path, before / path.relative_to(root))
    except BaseException:
        with suppress(OSError):
            bring_back(root)
        raise
    _remove_empty_folders(root)
    return True


def bring_back(root: Path) -> None:
    """Undo a `make_way` that failed or was killed."""
    before = root / BEFORE
    if before.is_dir() and not _is_set_aside(root):
        for path in _parts_of_run(before):
            _move(path, root / path.relative_to(before))
        _remove_run_folder(before)


def forget_before(root: Path) -> None:
    """The run in ``root`` is done, so remove the run that it replaces."""
    if _is_set_aside(root):
        remove_run(root / BEFORE)
        _remove_run_folder(root / BEFORE)


def remove_run(root: Path) -> None:
    """Remove the files that a run has written to ``root``, and nothing else that may lie there."""
    (root / CONFIG).unlink(missing_ok=True)  # first: without it the rest belongs to no run
    for path in _parts_of_run(root):
        path.unlink(missing_ok=True)
    _remove_empty_folders(root)


def _parts_of_run(root: Path) -> list[Path]:
    """All files of a run except its configuration."""
    checkpoints = [
        path
        for folder in root.glob(f"{MODEL_PREFIX}*-*")
        for path in (*checkpoints_in(folder), *(one for name in BESIDE_WEIGHTS for one in folder.glob(name)))
    ]
    checkpoints += [path for path in root.glob(f"{MODEL_PREFIX}*-*/{TEXT_FOLDER}/*") if path.is_file()]
    others = [path for name in RUN_FILES if (path := root / name).exists()]
    return [*checkpoints, *others, *root.glob("events.out.tfevents.*")]


def _has_checkpoints(root: Path) -> bool:
    return any(checkpoints_in(folder) for folder in root.glob(f"{MODEL_PREFIX}*-*"))


def _is_set_aside(root: Path) -> bool:
    return (root / BEFORE / CONFIG).exists()


def _move(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)


def _remove_empty_folders(root: Path) -> None:
    for folder in root.glob(f"{MODEL_PREFIX}*-*"):
        sweep_temporaries(folder)
        _remove_run_folder(folder)


def _remove_run_folder(folder: Path) -> None:
    """Remove a folder if it holds nothing but empty folders."""
    for inner in (*folder.glob(f"{MODEL_PREFIX}*-*"), *folder.glob(TEXT_FOLDER)):
        _remove_run_folder(inner)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        value = read_object(path)
        if value is None:
            return None
        settings = value["settings"]
        if value["fingerprint"] != fingerprint(settings):
            raise ValueError("its fingerprint is not that of its settings")
    except UserError as error:
        raise UserError(f"{error} --overwrite starts anew.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run's configuration: {error}. --overwrite starts anew.") from error
    return value
