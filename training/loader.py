"""Batches loaded by processes of their own, and brought to the device.

A batch on its way from a loading process to the training one, or the reason why there is none.

A batch on its way into the model: copied to the device, normalised there, padded, and mixed with noise.

Batches in the order of training, loaded in processes of their own.
"""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.process import die_with_parent
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.training.dataset import Batch, BatchKey, Clips, TrainOrder, whole_batch
from m2dprep.training.signals import WATCHED, ignore_stop_signals, stop_signals_held_back

SHARED_MEMORY = (
    "loading processes got no shared memory (/dev/shm is full). Give it more (in a container: --shm-size 8g), or use "
    "fewer --loader-workers or a smaller --batch-size; --loader-workers 0 needs none."
)
OPEN_FILES = (
    "too many open files for so many loading processes; raise the limit (ulimit -n) or use fewer --loader-workers."
)
MEMORY = "loading ran out of memory; use fewer --loader-workers or a smaller --batch-size."


class Parcel:
    """Either a batch as bytes that name its shared memory, or an error that the training process is to raise.

    PyTorch turns batches into such bytes in a thread of the loading process, where an error is printed and the batch
    never arrives. Here that happens where errors are caught.
    """

    def __init__(self, content: bytes | Batch | Exception) -> None:
        self._content = content

    @classmethod
    def pack(cls, clips: Clips, key: BatchKey) -> Parcel:
        """The batch of ``key``, or what went wrong with it."""
        try:
            return cls(bytes(ForkingPickler.dumps(clips[key])))
        except Exception as error:
            return cls(as_user_error(error, clips.reading))

    def open(self) -> Batch:
        """The batch. Raises what went wrong with it."""
        if isinstance(self._content, bytes):
            self._content = self._unpacked(self._content)
        if isinstance(self._content, Exception):
            raise self._content
        return self._content

    @staticmethod
    def _unpacked(content: bytes) -> Batch | Exception:
        try:
            batch: Batch = pickle.loads(content)  # noqa: S301 (of our own loading process)
            return batch
        except EOFError as error:  # the process that the batch is to be fetched from is no more
            return ConnectionError(f"a batch could not be fetched: {first_line(error)}")
        except Exception as error:
            return as_user_error(error, None)

    def pin_memory(self) -> Parcel:
        """The same with the batch in pinned memory; PyTorch's loader calls this in a thread of its own."""
        try:
            parts = {name: None if part is None else part.pin_memory() for name, part in self.open()._asdict().items()}
            return Parcel(Batch(**parts))  # type: ignore[arg-type]
        except Exception as error:
            return Parcel(as_user_error(error, None))


class Parcels(Dataset[Parcel]):
    """Batches of ``clips`` for loading processes: they never raise."""

    def __init__(self, clips: Clips) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def __getitems__(self, key: BatchKey) -> Parcel:
        return Parcel.pack(self._clips, key)

    __getitem__ = __getitems__


def whole_parcel(parcel: Parcel) -> Parcel:
    """The collation of a loader whose data set yields parcels."""
    return parcel


def as_user_error(error: Exception, reading: str | None) -> Exception:
    """``error`` as one with a line that says what to do; ``reading`` is the file that was being read."""
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
    """``log_mel`` (B, 1, F, T) normalised, for the encoder; ``clean`` for the target, None where it is the same;
    ``text_embedding`` (B, D); ``noise`` (B, L)."""

    log_mel: torch.Tensor
    clean: torch.Tensor | None
    text_embedding: torch.Tensor
    noise: torch.Tensor


def to_model_input(batch: Batch, stats: Normalization, noise_ratio: float, device: torch.device) -> ModelInput:
    """Copy without waiting (from pinned memory) and prepare. Padding is zero after normalisation: the mean.

    With ``noise_ratio`` r the encoder hears log((1 − r)·e^clip + r·e^background), the sum of mel powers.
    """
    frames = batch.frames if bool((batch.frames < batch.log_mel.shape[-1]).any()) else None  # on the CPU: no waiting
    raw = batch.log_mel.to(device, non_blocking=True).contiguous().float()
    if frames is not None:
        frames = frames.to(device, non_blocking=True)
    log_mel, clean = _normalised(raw, frames, stats), None
    if batch.background is not None:
        background = batch.background.to(device, non_blocking=True).contiguous().float()
        clean = log_mel
        log_mel = _normalised(mix_powers(raw, background, noise_ratio), frames, stats)
    text_embedding = batch.text_embedding.to(device, non_blocking=True)
    return ModelInput(log_mel, clean, text_embedding, batch.noise.to(device, non_blocking=True))


def mix_powers(log_mel: torch.Tensor, background: torch.Tensor, ratio: float) -> torch.Tensor:
    """Logarithm of (1 − ratio) · e^log_mel + ratio · e^background."""
    if ratio in (0.0, 1.0):
        return background if ratio else log_mel
    return torch.logaddexp(log_mel + math.log1p(-ratio), background + math.log(ratio))


def _normalised(log_mel: torch.Tensor, frames: torch.Tensor | None, stats: Normalization) -> torch.Tensor:
    normalised = (log_mel - stats.mean) / stats.std
    if frames is None:
        return normalised
    behind = torch.arange(log_mel.shape[-1], device=log_mel.device) >= frames.view(-1, 1, 1, 1)
    return normalised.masked_fill_(behind, 0.0)


LARGEST_AUTO_WORKERS = 8
# Batches that all workers together have ready or at work, in shared memory; a worker has one at least, and so many of
# them at most.
BATCHES_AHEAD, MOST_OF_A_WORKER = 8, 4
# How long a worker may take to be seen to end, and one that is killed to be gone.
ENDING_SECONDS, KILLED_SECONDS = 5.0, 10.0
WHY_KILLED = {
    signal.SIGKILL: "most often because memory ran out: use fewer --loader-workers or a smaller --batch-size",
    signal.SIGBUS: "most often because shared memory (/dev/shm) ran out: give it more (in a container: --shm-size 8g), "
    "or use fewer --loader-workers",
}


def make_loader(
    dataset: Clips, order: TrainOrder, workers: int | None, device: torch.device, processes: int = 1
) -> DataLoader[Any]:
    """Batches in the order's order, ready in pinned memory for a GPU; as parcels where ``workers`` load them.

    ``workers`` None is a choice for the device. In one of several ``processes`` workers come from a fork server: NCCL
    has threads by then, and what is forked beside them may hang.
    """
    if workers is None:
        workers = min(LARGEST_AUTO_WORKERS, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0
    forked_here = processes == 1 and multiprocessing.get_start_method() == "fork"
    return DataLoader(
        Parcels(dataset) if workers else dataset,
        batch_sampler=order,  # type: ignore[arg-type]  # a key for a whole batch instead of a list
        num_workers=workers,
        collate_fn=whole_parcel if workers else whole_batch,  # type: ignore[arg-type]  # gets what is made of a key
        pin_memory=device.type == "cuda",
        prefetch_factor=batches_of_a_worker(workers) if workers else None,
        worker_init_fn=partial(_begin_loading, os.getpid() if forked_here else None),
        multiprocessing_context=fork_server() if workers and processes > 1 else None,
        generator=torch.Generator(),  # its own, so that the caller's random state stays as it is
    )


def _begin_loading(parent: int | None, worker: int) -> None:
    """What a worker does first."""
    ignore_stop_signals()
    die_with_parent(parent)


class Batches:
    """All batches of a loader; a context that ends its workers in every case.

    What goes wrong in a worker is raised here as a `UserError` or an `OSError` that names the file, and so is the end
    of a worker that was killed.
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
        except BaseException:  # some of them may have been started
            self._workers = [child for child in multiprocessing.active_children() if child not in others]
            self.close()
            raise
        # PyTorch would raise the end of a worker anywhere, also while a checkpoint is being written. Whoever waits for
        # a batch is told as well. It does so from the first loader of a process on, whoever made that.
        if str(getattr(signal.getsignal(signal.SIGCHLD), "__module__", "")).startswith("torch."):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
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
        """What to say of a worker that is no more. One that is ending, so that its batch cannot be fetched, is given a
        moment."""
        ending = wait([worker.sentinel for worker in self._workers], timeout=ENDING_SECONDS)
        for worker in self._workers:
            if worker.sentinel in ending:  # its files are closed, which is a moment before it can be waited for
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
        """End the workers. They ignore being terminated, and may hang in a read: they are killed."""
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        for worker in self._workers:
            worker.join(timeout=KILLED_SECONDS)
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
        self._workers, self._batches = [], iter(())


def batches_of_a_worker(workers: int) -> int:
    """How many batches each of ``workers`` (1, 2, …) has ready or at work."""
    return min(-(-BATCHES_AHEAD // workers), MOST_OF_A_WORKER)


def fork_server() -> BaseContext:
    """A running server that forks processes, with what loads data imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with _stop_signals_ignored():  # a batch system signals the server as well, and without it all loading ends
        forkserver.ensure_running()
    return context


@contextmanager
def _stop_signals_ignored() -> Iterator[None]:
    """What is started in this block ignores the signals that training watches. Only Python's main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {watched: signal.signal(watched, signal.SIG_IGN) for watched in WATCHED}
    try:
        yield
    finally:
        for watched, handler in previous.items():
            signal.signal(watched, handler)
