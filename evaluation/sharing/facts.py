"""What a run says about its data, its training and its scores, for a model card: only what is written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.embeddings.store import META, EmbeddingStore
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.layout import DataLayout
from m2dprep.artifacts.tables import read_captions
from m2dprep.evaluation.protocols.result import Result
from m2dprep.m2dclap.checkpoint import Checkpoint

RUN_CONFIG, RUN_RESULT = "config.json", "result.json"
# Settings of a training that a card names, in its order.
PROTOCOL = ("epochs", "batch_size", "lr", "base_lr", "weight_decay", "warmup_epochs", "seed")
MODEL = ("input_size", "patch_size", "embed_dim", "depth", "mask_ratio", "masking", "loss_m2d", "loss_clap", "sem_mode")


@dataclass(frozen=True)
class RunFacts:
    """``data``, ``protocol`` are (what, value); ``results`` are those of this checkpoint; ``untold`` is what is not
    known, in words."""

    data: Sequence[tuple[str, str]] = ()
    protocol: Sequence[tuple[str, str]] = ()
    results: Sequence[Result] = ()
    untold: Sequence[str] = field(default_factory=list)


def facts_of(checkpoint: Checkpoint, run: Path, results: Iterable[Path]) -> RunFacts:
    """What the run that ``checkpoint`` is of, and the ``results`` (files, or folders of `evaluate all`), say.

    Raises `UserError` if a result is of another checkpoint.
    """
    folder = run if run.is_dir() else checkpoint.path.parent.parent
    config = (read_object(folder / RUN_CONFIG) if (folder / RUN_CONFIG).is_file() else None) or {}
    settings = config.get("settings", {}) if isinstance(config.get("settings"), Mapping) else {}
    untold = []
    data = _data(settings.get("data", {}), config)
    if not data:
        untold.append("which data the model was trained on")
    train = settings.get("train", {})
    protocol = [(name, _text(train[name])) for name in PROTOCOL if train.get(name) is not None]
    if not protocol:
        untold.append("how the model was trained")
    model = checkpoint.config.to_dict()
    protocol += [(name, _text(model[name])) for name in MODEL if model.get(name) is not None]
    if text := checkpoint.text_model.get("model"):
        protocol.append(("text encoder of the captions", str(text)))
    found = list(_results(checkpoint, results))
    if (own := _own_result(folder)) is not None:
        if own.digests.get("checkpoint") == file_digest(checkpoint.path):
            found.append(own)
        else:
            untold.append(f"how {checkpoint.path.name} scores: {RUN_RESULT} is of other weights of the run")
    elif not found:
        untold.append("how the model scores")
    return RunFacts(data, protocol, found, untold)


def _own_result(folder: Path) -> Result | None:
    """The result that a fine-tuning ends with."""
    return Result.read(folder / RUN_RESULT) if (folder / RUN_RESULT).is_file() else None


def _data(identity: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Counts of clips, and of captions by source as far as those of the training are still there. No path is told."""
    found = []
    if isinstance(identity.get("task"), str):  # of a fine-tuning
        found.append(("task", identity["task"]))
    if isinstance(identity.get("clips"), int):
        found.append(("clips", f"{identity['clips']:,}"))
    if isinstance(stats := identity.get("norm_stats"), list) and len(stats) == 2:
        found.append(("mean and standard deviation of the log-mels", f"{stats[0]:.4f}, {stats[1]:.4f}"))
    trained, root = identity.get("embeddings"), config.get("data")
    if isinstance(trained, list) and trained and isinstance(root, str):
        counts = [_sources(DataLayout(Path(root)), str(digest)) for digest in trained]
        if all(counts):
            total = sum(counts, Counter[str]())
            ordered = sorted(total.items(), key=lambda one: (-one[1], one[0]))
            found.append(("captions", ", ".join(f"{count:,} of {source}" for source, count in ordered)))
    return found


def _sources(layout: DataLayout, digest: str) -> Counter[str]:
    """How many captions of each source a store with this fingerprint has, or a table with this digest; none if neither
    is there any more."""
    for folder in layout.embedding_stores():
        if (read_object(folder / META) or {}).get("fingerprint") == digest:
            return _counted(EmbeddingStore.open(folder).index()["source"])
    if layout.captions.is_file() and file_digest(layout.captions)[: len(digest)] == digest:
        return _counted(read_captions(layout.captions, ["source"])["source"])
    return Counter()


def _counted(sources: pa.ChunkedArray) -> Counter[str]:
    return Counter({one["values"]: one["counts"] for one in pc.value_counts(sources).to_pylist()})


def _text(value: object) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _results(checkpoint: Checkpoint, paths: Iterable[Path]) -> Iterable[Result]:
    own = file_digest(checkpoint.path)
    for path in paths:
        files = sorted(path.glob("results/*.json")) or sorted(path.glob("*.json")) if path.is_dir() else [path]
        found = [one for file in files if (one := _read(file, named=not path.is_dir())) is not None]
        if not found:
            raise UserError(f"{path} holds no result of `m2dprep evaluate`.")
        for one in found:
            digest = one.digests.get("checkpoint")
            if digest != own:
                raise UserError(
                    f"{path}: its result of {one.protocol} {one.task} is of another checkpoint (digest "
                    f"{str(digest)[:16]}) than {checkpoint.path} ({own[:16]})."
                )
            yield one


def _read(path: Path, *, named: bool) -> Result | None:
    """A result; None for another JSON file that merely lies in a folder."""
    try:
        return Result.read(path)
    except UserError:
        if named:
            raise
        return None
