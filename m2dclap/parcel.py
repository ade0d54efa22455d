"""A batch on its way from a loading process to the training one, or the reason why there is none."""

from __future__ import annotations

import errno
import pickle
from multiprocessing.reduction import ForkingPickler

from torch.utils.data import Dataset

from artifacts.errors import UserError, first_line
from m2dclap.dataset import Batch, Clips
from m2dclap.order import BatchKey

SHARED_MEMORY = (
    "loading processes got no shared memory (/dev/shm is full). Give it more (in a container: --shm-size 8g), or use "
    "fewer --workers or a smaller --batch-size; --workers 0 needs none."
)
OPEN_FILES = "too many open files for so many loading processes; raise the limit (ulimit -n) or use fewer --workers."
MEMORY = "loading ran out of memory; use fewer --workers or a smaller --batch-size."


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
    return UserError(f"loading{where} failed: {type(error).__name__}: {text}. --workers 0 shows where.")
