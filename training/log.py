"""The log of a run: JSON lines, TensorBoard events and optionally Weights & Biases; a check for non-finite losses.

Also the proof that a run's files are as they were written, which needs its log.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from m2dprep.artifacts.digests import digest_of, fingerprint
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import write_bytes
from m2dprep.artifacts.json_files import is_proven, read_object
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.reading import read_file
from m2dprep.artifacts.tables import list_digest_path, verify_export
from m2dprep.m2dclap.checkpoint_file import ARGS, CHECKPOINT_NAME, checkpoints_in, require_whole
from m2dprep.m2dclap.proof import proven_place
from m2dprep.training.run_folder import BEFORE, CONFIG, MODEL_PREFIX, WEIGHTS, RunFolder

DIGEST = "digest"
RUN = "run"
OF_RUN = re.compile(rb'"run": "([0-9a-f]{16})", "digest"')
TAIL = re.compile(rb', "digest": "([0-9a-f]{16})"\}\n\Z')
LIKE_A_DIGEST = re.compile(rb'[0-9a-f]{16}"\}\n\Z')
FILES_SHOWN = 8
Metrics = dict[str, float | int | None]


class NonFiniteLossError(UserError):
    """Training has diverged, or an array in the batch is not finite."""

    exit_code = 1


class LossTracker:
    """The losses since the last line of the log; they stay on the device until a line or a checkpoint is due.

    ``names`` are the names of the K losses; ``reduce`` averages a tensor over processes, on the CPU. A checkpoint
    includes the losses since the last line, so a resumed run writes the same lines.
    """

    def __init__(
        self, names: Sequence[str], reduce: Callable[[torch.Tensor], torch.Tensor], unlogged: torch.Tensor
    ) -> None:
        self._names, self._reduce, self._settled = names, reduce, unlogged
        self._fresh: list[torch.Tensor] = []

    def add(self, losses: torch.Tensor) -> None:
        """Remember a step's losses (K,) without a transfer from the device."""
        self._fresh.append(losses)

    def settle(self) -> torch.Tensor:
        """All losses since the last line (n, K), averaged over processes; non-finite ones stay non-finite."""
        if self._fresh:
            self._settled = torch.cat([self._settled, self._reduce(torch.stack(self._fresh))])
            self._fresh.clear()
        return self._settled

    def take(self) -> dict[str, float]:
        """The means of these losses by name; then the count starts again."""
        means = self.settle().double().mean(dim=0).tolist()
        self._settled = self._settled[:0]
        return dict(zip(self._names, means, strict=True))


def first_non_finite(losses: torch.Tensor) -> int | None:
    """The row of the first losses (n, K) that are not finite."""
    finite = losses.isfinite().all(dim=1)
    return None if bool(finite.all()) else int((~finite).int().argmax())


class RunLog:
    """Writes lines to a run's ``log.jsonl`` and its TensorBoard events, and passes every line to ``also``.

    Lines after ``step`` of an earlier run are dropped when the log is opened.
    """

    def __init__(self, path: Path, step: int, also: Callable[[Metrics, int], None] | None = None) -> None:
        self._also, self._path = also, path
        self._owner = {} if (run := _run_of(path.parent)) is None else {RUN: run}
        _truncate(path, step)
        self._file = path.open("a")
        self._hook, threading.excepthook = threading.excepthook, self._thread_failed
        try:
            with naming(path.parent / "events.out.tfevents"):
                self._events = SummaryWriter(str(path.parent), purge_step=step + 1)
        except BaseException:
            threading.excepthook = self._hook
            self._file.close()
            raise

    def write(self, step: int, epoch: float, metrics: Metrics) -> Metrics:
        """Write the line after ``step`` steps. Infinity and NaN, which are not JSON, become null."""
        line: Metrics = {"step": step, "epoch": round(epoch, 6)}
        line |= {name: value if value is None or math.isfinite(value) else None for name, value in metrics.items()}
        with naming(self._path):
            self._file.write(proven(json.dumps({**line, **self._owner})) + "\n")
            self._file.flush()
        with naming(self._path.parent / "events.out.tfevents"):
            for name, value in line.items():
                if name != "step" and value is not None:
                    self._events.add_scalar(name, value, step)
        if self._also is not None:
            self._also(line, step)
        return line

    def sync(self) -> None:
        """Make the lines survive a power cut, before the checkpoint that follows them is written."""
        with naming(self._path):
            os.fsync(self._file.fileno())
        with naming(self._path.parent / "events.out.tfevents"):
            self._events.flush()

    def __enter__(self) -> RunLog:
        return self

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """The next call raises any error of the thread that writes events, so it is not printed as well."""
        if getattr(failure.thread, "exception", None) is not failure.exc_value:
            self._hook(failure)

    def __exit__(self, *exception: object) -> None:
        """After an error, writing the rest of the log may fail too; that failure must not hide the error."""
        try:
            for close in (self._file.close, self._events.close):
                with suppress(OSError) if exception[0] is not None else naming(self._path):
                    close()
        finally:
            threading.excepthook = self._hook


def proven(line: str) -> str:
    """A JSON object on one line, with one more key: the digest of the line without it."""
    return f'{line.removesuffix("}")}, "{DIGEST}": "{digest_of(line.encode())}"}}'


def read_log(path: Path, damaged: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The whole lines of a ``log.jsonl``; none if there is no file. A last line that a kill cut off is ignored.

    Raises `UserError`, naming the line, if one is not a line of a log or not as it was written; if ``damaged`` is
    given, it skips the line and passes the message to ``damaged``. Lines of earlier versions have no digest.
    """
    return [line for number, raw in _lines(path) if (line := _parsed(path, number, raw, damaged)) is not None]


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """The numbered whole lines of a log."""
    content = read_file(path).tobytes() if path.exists() else b""
    return [(number, raw) for number, raw in enumerate(content.splitlines(keepends=True), 1) if raw.endswith(b"\n")]


def _parsed(path: Path, number: int, raw: bytes, damaged: Callable[[str], None] | None) -> dict[str, Any] | None:
    try:
        tail = TAIL.search(raw)
        if tail is not None and digest_of(raw[: tail.start()] + b"}") != tail[1].decode():
            raise ValueError("its digest is not that of its bytes")
        line = json.loads(raw)
        if not isinstance(line, dict) or not isinstance(line.get("step"), int) or "epoch" not in line:
            raise ValueError("it has no step and epoch")
        if tail is None and (DIGEST in line or LIKE_A_DIGEST.search(raw)):
            raise ValueError("its digest is damaged")
    except (ValueError, RecursionError) as error:
        words = f"{path}, line {number} is damaged: {first_line(error)}"
        if damaged is None:
            raise UserError(f"{words}. Remove the line; the others stay.") from error
        damaged(words)
        return None
    checked: dict[str, Any] = line
    for key in (DIGEST, RUN):
        checked.pop(key, None)
    return checked


def _run_of(root: Path) -> str | None:
    """The fingerprint of a run's settings, which tells its files from those of others."""
    return (read_object(root / CONFIG) or {}).get("fingerprint")


def proofs_of_run(root: Path, quick: bool = False) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """The files of a run, each with a function that compares it with its digests and returns False if it has none.

    The functions raise `UserError` if a file is damaged or missing. Without ``quick``, checkpoints are among the files.
    """
    config = root / CONFIG
    yield config, lambda: is_proven(require_file(config, "the run's settings"))
    for path in (root / "train.yaml", root / "skipped.csv"):
        if path.exists() or list_digest_path(path).exists():
            yield path, partial(verify_export, path)
    checkpoints = [path for folder in sorted(root.glob(f"{MODEL_PREFIX}*-*")) for path in checkpoints_in(folder)]
    yield root / "log.jsonl", lambda: _reaches(root, checkpoints)
    weights = sorted(root.glob(f"{MODEL_PREFIX}*-*/{WEIGHTS}"))
    for path in () if quick else (*checkpoints, *weights):
        yield path, partial(_is_in_place, root, path)
    for path in (root / "result.json", *sorted(root.glob(f"{MODEL_PREFIX}*-*/{ARGS}"))):
        if path.exists():
            yield path, partial(is_proven, path)
    if (root / BEFORE / CONFIG).exists():
        yield from proofs_of_run(root / BEFORE, quick)


def _is_in_place(root: Path, path: Path) -> bool:
    """Whether a digest proves a checkpoint of this run. Raises `UserError` if it is damaged, or another's."""
    place = proven_place(path)
    if place is None:
        return require_whole(path)
    run = _run_of(root)
    if run is not None and place != f"{path.name} {run}":
        name, _, other = place.partition(" ")
        whose = f"was written as {name}" if other == run else f"is of another run than {CONFIG}"
        raise UserError(f"{path} is whole, but {whose}.")
    return True


def _reaches(root: Path, checkpoints: Sequence[Path]) -> bool:
    """Raise `UserError` unless all lines of a log are whole and it reaches the last checkpoint, which follows its line.

    A log may end within a line only if the run was stopped.
    """
    path = root / "log.jsonl"
    lines, run = read_log(path), _run_of(root)
    others = set(OF_RUN.findall(path.read_bytes() if path.exists() else b"")) - {str(run).encode()}
    if others and run is not None:
        raise UserError(f"{path} is the log of another run, or {CONFIG} is that of another run.")
    names = [CHECKPOINT_NAME.fullmatch(checkpoint.name) for checkpoint in checkpoints]
    epochs = max((int(match[1]) for match in names if match), default=0)
    if epochs and (not lines or float(lines[-1]["epoch"]) < epochs):
        raise UserError(f"{path} ends before epoch {epochs}, of which there is a checkpoint: lines are missing.")
    wanted = (read_object(root / CONFIG) or {}).get("settings", {}).get("train", {}).get("epochs")
    if epochs and epochs == wanted and not path.read_bytes().endswith(b"\n"):
        raise UserError(f"{path} ends within a line, although the run is done: its end is damaged.")
    return True


def _truncate(path: Path, step: int) -> None:
    """Keep the lines up to ``step`` as they are, including damaged ones, which are reported."""
    kept = []
    for number, raw in _lines(path):
        line = _parsed(path, number, raw, lambda words: print(f"train: {words}; going on", file=sys.stderr))
        if line is None or line["step"] <= step:
            kept.append(raw)
    write_bytes(path, b"".join(kept))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to an error of the system that names no file; turn a name in bytes into text."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, bytes):
            error.filename = os.fsdecode(error.filename)
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def open_wandb(project: str, run: RunFolder) -> Iterator[Callable[[Metrics, int], None]]:
    """A function that sends a line and its step to Weights & Biases.

    The run's identity follows from its settings and folder, so a resumed run continues there as well. Raises
    `UserError` if wandb is not installed.
    """
    try:
        import wandb  # optional, so it is imported only here
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install 'm2dprep[wandb]'.") from error
    identity = fingerprint({"settings": run.settings, "folder": str(run.root.resolve())})
    remote = wandb.init(
        project=project, name=run.root.name, id=identity, resume="allow", config=run.settings, dir=str(run.root)
    )
    remote.define_metric("*", step_metric="step")
    try:
        yield lambda line, _: remote.log({name: value for name, value in line.items() if value is not None})
    finally:
        remote.finish()
