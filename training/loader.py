"""Loads batches in worker processes, in the order of training, and prepares them on the device.

A batch, or the error that prevented it, travels from a worker to the training process as a `Parcel`. On the device it
is normalised, padded and mixed with noise.
"""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.process import die_with_parent
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.training.dataset import Batch, whole_batch
from m2dprep.training.signals import WATCHED, ignore_stop_signals, stop_signals_held_back

SHARED_MEMORY = (
    "loading processes got no shared memory (/dev/shm is full). Give it more (in a container: --shm-size 8g), or use "
    "fewer --loader-workers or a smaller --batch-size; --loader-workers 0 needs none."
)
OPEN_FILES = (
    "too many open files for so many loading processes; raise the limit (ulimit -n) or use fewer --loader-workers."
)
MEMORY = "loading ran out of memory; use fewer --loader-workers or a smaller --batch-size."
MAX_AUTO_WORKERS = 8
# The number of batches that all workers together prepare ahead, in shared memory; and the maximum for one worker, which
# has at least one.
BATCHES_AHEAD, MAX_BATCHES_PER_WORKER = 8, 4
# How long it may take to notice that a worker has ended, and for a killed worker to be gone.
ENDING_SECONDS, KILLED_SECONDS = 5.0, 10.0
WHY_KILLED = {
    signal.SIGKILL: "most often because memory ran out: use fewer --loader-workers or a smaller --batch-size",
    signal.SIGBUS: "most often because shared memory (/dev/shm) ran out: give it more (in a container: --shm-size 8g), "
    "or use fewer --loader-workers",
}


class Samples(Protocol):
    """A data set that makes a whole batch for a key, such as `training.dataset.Clips`."""

    @property
    def reading(self) -> str | None:
        """The file that was read last, for errors that name no file."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


@runtime_checkable
class Announced(Protocol):
    """A data set that reads files ahead, if it knows for which key a batch will be asked after the next one."""

    def announce(self, key: Any) -> None: ...


class Turn(NamedTuple):
    """The key of a batch, and the key of the one that the same process makes after it; None at the end."""

    key: Any
    after: Any | None

    def made(self, clips: Samples) -> Any:
        """The batch."""
        if self.after is not None and isinstance(clips, Announced):
            clips.announce(self.after)
        return clips[self.key]


class Turns:
    """The keys of an order as turns of ``processes``, which take them one after another."""

    def __init__(self, order: Iterable[Any], processes: int) -> None:
        self._order, self._processes = order, processes

    def __len__(self) -> int:
        return len(self._order)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Turn]:
        waiting: deque[Any] = deque()
        for key in self._order:
            waiting.append(key)
            if len(waiting) > self._processes:
                yield Turn(waiting.popleft(), key)
        while waiting:
            yield Turn(waiting.popleft(), None)


class Parcel:
    """Either a batch, as bytes that name its shared memory, or an error for the training process to raise.

    PyTorch itself turns batches into such bytes in a thread of the worker; an error there is printed, and the batch
    never arrives. Here it happens where errors are caught.
    """

    def __init__(self, content: bytes | tuple[Any, ...] | Exception) -> None:
        self._content = content

    @classmethod
    def pack(cls, clips: Samples, turn: Turn) -> Parcel:
        """The batch of ``turn``, or the error that prevented it."""
        try:
            return cls(bytes(ForkingPickler.dumps(turn.made(clips))))
        except Exception as error:
            return cls(as_user_error(error, clips.reading))

    def open(self) -> Any:
        """The batch. Raises the error that prevented it."""
        if isinstance(self._content, bytes):
            self._content = self._unpacked(self._content)
        if isinstance(self._content, Exception):
            raise self._content
        return self._content

    @staticmethod
    def _unpacked(content: bytes) -> Batch | Exception:
        try:
            return pickle.loads(content)  # noqa: S301 (of our own loading process)
        except EOFError as error:  # the worker that holds the batch is gone
            return ConnectionError(f"a batch could not be fetched: {first_line(error)}")
        except Exception as error:
            return as_user_error(error, None)

    def pin_memory(self) -> Parcel:
        """The same with the batch in pinned memory; PyTorch's loader calls this in a thread of its own."""
        try:
            batch = self.open()
            parts = {name: None if part is None else part.pin_memory() for name, part in batch._asdict().items()}
            return Parcel(type(batch)(**parts))
        except Exception as error:
            return Parcel(as_user_error(error, None))


class Parcels(Dataset[Parcel]):
    """Batches of ``clips`` for worker processes; an error becomes part of a parcel and is never raised."""

    def __init__(self, clips: Samples) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def __getitems__(self, turn: Turn) -> Parcel:
        return Parcel.pack(self._clips, turn)

    __getitem__ = __getitems__


class InTurn(Dataset[Any]):
    """Batches of ``clips`` for a loader without worker processes."""

    def __init__(self, clips: Samples) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def __getitems__(self, turn: Turn) -> Any:
        return turn.made(self._clips)

    __getitem__ = __getitems__


def whole_parcel(parcel: Parcel) -> Parcel:
    """The collate function of a loader whose data set yields parcels."""
    return parcel


def as_user_error(error: Exception, reading: str | None) -> Exception:
    """``error`` with a line that says what to do; ``reading`` is the file that was being read."""
    if isinstance(error, UserError):
        return UserError(str(error))
    text = first_line(error)
    if isinstance(error, MemoryError):
        return UserError(MEMORY)
    if "shared memory" in text or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return UserError(f"{SHARED_MEMORY} ({text})")
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or "ancdata" in text:
        return UserError(OPEN_FILES)
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or text, error.filename or reading)
    where = f" of {reading}" if reading else ""
    return UserError(f"loading{where} failed: {type(error).__name__}: {text}. --loader-workers 0 shows where.")


class ModelInput(NamedTuple):
    """``log_mel`` (B, 1, F, T) normalised, for the encoder; ``clean`` for the target, None if it is the same;
    ``text_embedding`` (B, D); ``noise`` for the masks, of which the share ``hint`` is random. If ``longer`` (B,) says
    which clips are to be fused, log-mels are channels (B, 4, F, T)."""

    log_mel: torch.Tensor
    clean: torch.Tensor | None
    text_embedding: torch.Tensor
    noise: torch.Tensor
    hint: float = 1.0
    longer: torch.Tensor | None = None


def to_model_input(batch: Batch, stats: Normalization, noise_ratio: float, device: torch.device) -> ModelInput:
    """Copy a batch without waiting (from pinned memory) and prepare it. Padding is zero after normalisation: the mean.

    With ``noise_ratio`` r the encoder hears log((1 − r)·e^clip + r·e^background), the sum of mel powers.
    """
    frames = batch.frames if bool((batch.frames < batch.log_mel.shape[-1]).any()) else None  # on the CPU: no waiting
    raw = batch.log_mel.to(device, non_blocking=True).contiguous().float()
    if frames is not None:
        frames = frames.to(device, non_blocking=True)
    log_mel, clean = normalised(raw, frames, stats), None
    if batch.background is not None:
        background = batch.background.to(device, non_blocking=True).contiguous().float()
        clean = log_mel
        log_mel = normalised(mix_powers(raw, background, noise_ratio), frames, stats)
    text_embedding = batch.text_embedding.to(device, non_blocking=True)
    hint = 1.0 if batch.hint is None else float(batch.hint)  # on the CPU: no waiting
    longer = None if batch.longer is None else batch.longer.to(device, non_blocking=True)
    return ModelInput(log_mel, clean, text_embedding, batch.noise.to(device, non_blocking=True), hint, longer)


def mix_powers(log_mel: torch.Tensor, background: torch.Tensor, ratio: float) -> torch.Tensor:
    """Logarithm of (1 − ratio) · e^log_mel + ratio · e^background."""
    if ratio in (0.0, 1.0):
        return background if ratio else log_mel
    return torch.logaddexp(log_mel + math.log1p(-ratio), background + math.log(ratio))


def normalised(log_mel: torch.Tensor, frames: torch.Tensor | None, stats: Normalization) -> torch.Tensor:
    normalised = (log_mel - stats.mean) / stats.std
    if frames is None:
        return normalised
    behind = torch.arange(log_mel.shape[-1], device=log_mel.device) >= frames.view(-1, 1, 1, 1)
    return normalised.masked_fill_(behind, 0.0)


def make_loader(
    dataset: Samples, order: Iterable[Any], workers: int | None, device: torch.device, processes: int = 1
) -> DataLoader[Any]:
    """Batches in the order of ``order``, in pinned memory for a GPU; as parcels if ``workers`` load them.

    ``workers`` None chooses for the device. If this is one of several ``processes``, workers come from a fork server:
    NCCL has started threads by then, and a process forked beside them may hang.
    """
    if workers is None:
        workers = min(MAX_AUTO_WORKERS, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0
    forked_here = processes == 1 and multiprocessing.get_start_method() == "fork"
    return DataLoader(
        Parcels(dataset) if workers else InTurn(dataset),
        batch_sampler=Turns(order, max(1, workers)),  # type: ignore[arg-type]  # has all that a sampler needs
        num_workers=workers,
        collate_fn=whole_parcel if workers else whole_batch,  # type: ignore[arg-type]  # gets what is made of a key
        pin_memory=device.type == "cuda",
        prefetch_factor=batches_per_worker(workers) if workers else None,
        worker_init_fn=partial(_begin_loading, os.getpid() if forked_here else None),
        multiprocessing_context=fork_server() if workers and processes > 1 else None,
        generator=torch.Generator(),  # its own, so that the caller's random state stays as it is
    )


def _begin_loading(parent: int | None, worker: int) -> None:
    """Set up a worker when it starts."""
    ignore_stop_signals()
    die_with_parent(parent)


class Batches:
    """All batches of a loader; a context manager that always ends the workers.

    An error in a worker is raised here as a `UserError` or an `OSError` that names the file; so is a worker's death.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._batches: Any = iter(())
        self._workers: list[Any] = []

    def __enter__(self) -> Batches:
        others = set(multiprocessing.active_children())
        try:
            with stop_signals_held_back():
                self._batches = iter(self._loader)
                self._workers = [child for child in multiprocessing.active_children() if child not in others]
        except BaseException:  # some workers may have been started
            self._workers = [child for child in multiprocessing.active_children() if child not in others]
            self.close()
            raise
        # PyTorch would raise the death of a worker anywhere, even while a checkpoint is being written, from a process's
        # first loader on, whoever made that one. The code that waits for a batch learns of it without this.
        if str(getattr(signal.getsignal(signal.SIGCHLD), "__module__", "")).startswith("torch."):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Any:
        try:
            given = next(self._batches)
            return given.open() if isinstance(given, Parcel) else given
        except StopIteration:
            raise
        except UserError:
            raise
        except Exception as error:
            told = isinstance(error, OSError) and error.filename is not None
            if not told and (ended := self._ended_worker()) is not None:
                raise UserError(ended) from error
            raise

    def _ended_worker(self) -> str | None:
        """A message about a worker that has died. A worker that is ending, and whose batch is lost, gets a moment."""
        ending = wait([worker.sentinel for worker in self._workers], timeout=ENDING_SECONDS)
        for worker in self._workers:
            if worker.sentinel in ending:  # its files are closed just before it can be waited for
                worker.join(KILLED_SECONDS)
            code = worker.exitcode
            if code is None:
                continue
            if code >= 0:
                return f"loading process {worker.pid} ended by itself (exit code {code}); --loader-workers 0 shows why."
            number = signal.Signals(-code)
            why = WHY_KILLED.get(number, "--loader-workers 0 loads without such processes")
            return f"loading process {worker.pid} was killed ({number.name}), {why}."
        return None

    def close(self) -> None:
        """End the workers by killing them, as they ignore SIGTERM and may hang in a read."""
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        for worker in self._workers:
            worker.join(timeout=KILLED_SECONDS)
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
        self._workers, self._batches = [], iter(())


def batches_per_worker(workers: int) -> int:
    """The number of batches that each of ``workers`` (1, 2, …) prepares ahead."""
    return min(-(-BATCHES_AHEAD // workers), MAX_BATCHES_PER_WORKER)


def fork_server() -> BaseContext:
    """A running server that forks processes; it has imported the loading code once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with _stop_signals_ignored():  # a batch system signals the server too, and loading ends if it dies
        forkserver.ensure_running()
    return context


@contextmanager
def _stop_signals_ignored() -> Iterator[None]:
    """Processes started in this block ignore the signals that training watches. Works in Python's main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {watched: signal.signal(watched, signal.SIG_IGN) for watched in WATCHED}
    try:
        yield
    finally:
        for watched, handler in previous.items():
            signal.signal(watched, handler)
