"""The files of text encoders are read in the ordinary way, whatever their libraries do with them.

These map weights: a page that the disk cannot read ends the process (SIGBUS) without a word, for as long as the model
is used. And they take a small file that the system fails to read for one that is missing, or of another kind of model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from artifacts.errors import UserError
from artifacts.steady import named, steadily
from captions.model_files import ModelFiles

T = TypeVar("T")


def surely(load: Callable[[], T], *folders: Path | str) -> T:
    """What ``load`` makes of a model in ``folders`` (other names are passed over), which may fail for a moment.

    Where it fails all files are read: one that cannot be is an `OSError` with its name. If all can be, it was for a
    moment, or it is their content: ``load`` is tried once more, and then raises what it raises.
    """
    try:
        return load()
    except torch.OutOfMemoryError:
        raise
    except (UserError, OSError, ValueError, KeyError, ImportError):
        for folder in map(Path, folders):
            if folder.is_dir():
                ModelFiles(folder.name, folder, None).require_readable()
    return load()


@contextmanager
def weights_are_read() -> Iterator[None]:
    """For the block, whatever safetensors and PyTorch load for other libraries is read."""
    # Imported here since it takes seconds.
    import safetensors.torch
    from transformers import modeling_utils

    plain = torch.load

    def load(*given: Any, **options: Any) -> Any:
        return plain(*given, **{**options, "mmap": False})  # transformers asks for a map

    with (
        _replaced(safetensors.torch, "safe_open", ReadTensors),
        _replaced(modeling_utils, "safe_open", ReadTensors),
        _replaced(torch, "load", load),
    ):
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    plain = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, plain)


class ReadTensors:
    """What `safetensors.safe_open` gives, of a file that was read. Raises `OSError`, naming it, where it cannot be."""

    def __init__(self, filename: Any, framework: str = "pt", device: Any = "cpu", **_: Any) -> None:
        from safetensors.torch import load

        path = Path(filename)
        try:
            content = steadily(path.read_bytes)
        except OSError as error:
            raise named(error, path) from error
        self._tensors = load(content)  # refuses what is no such file
        self._header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        self._device = device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensors = {}

    def metadata(self) -> dict[str, str] | None:
        return self._header.get("__metadata__")

    def keys(self) -> list[str]:
        return list(self._tensors)

    def offset_keys(self) -> list[str]:
        """In the order of the file."""
        return sorted(self._tensors, key=lambda name: self._header[name]["data_offsets"])

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].to(self._device)

    def get_tensors(self) -> dict[str, torch.Tensor]:
        return {name: self.get_tensor(name) for name in self._tensors}

    def get_slice(self, name: str) -> TensorSlice:
        return TensorSlice(self.get_tensor(name), self._header[name]["dtype"])


class TensorSlice:
    """What safetensors calls a slice: a tensor that is still to be indexed."""

    def __init__(self, tensor: torch.Tensor, dtype: str) -> None:
        self._tensor, self._dtype = tensor, dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._tensor[index]

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """As safetensors names it, ``F32``."""
        return self._dtype
