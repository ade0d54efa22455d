"""Loads a text encoder with sentence-transformers, and makes sure that it is complete.

Loading chooses the device, the precision, and the fastest attention that the model offers.

The libraries map a model's weights, so a page that the disk cannot read ends the process (SIGBUS) without a message,
for as long as the model is in use; here the files are read in the ordinary way. The libraries also take a small file
that the system fails to read for a missing one, or for another kind of model, and they load a model without its
vocabulary, or with random weights in place of missing ones, and carry on; here such models are refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch
from torch import nn

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.process import BF16_CAPABILITY
from m2dprep.artifacts.reading import named, with_retries
from m2dprep.captions.embedding.model_files import EXPORTS, UNLIMITED_TOKENS, ModelFiles, refusal

T = TypeVar("T")


def surely(load: Callable[[], T], *folders: Path | str) -> T:
    """Call ``load``, which loads a model from ``folders`` (other names are ignored) and may fail temporarily.

    If it fails, all files are read; if one cannot be, an `OSError` with its name is raised. If their content is to
    blame, that was it; otherwise the failure may have been temporary, so ``load`` is tried once more, and raises its
    own error.
    """
    try:
        return load()
    except (torch.OutOfMemoryError, MissingWeightsError):
        raise
    except (UserError, OSError, ValueError, KeyError, ImportError):
        for folder in map(Path, folders):
            if folder.is_dir():
                files = ModelFiles(folder.name, folder, None)
                files.require_readable()
                if files.is_broken():
                    raise
    return load()


class MissingWeightsError(UserError):
    """The weights of a model, which were read, are not all there."""


@contextmanager
def weights_are_read() -> Iterator[None]:
    """In this block, files that safetensors and PyTorch load for other libraries are read instead of mapped."""
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
    """Stands in for `safetensors.safe_open` on a file that was read. Raises `OSError`, naming the file, on failure."""

    def __init__(self, filename: Any, framework: str = "pt", device: Any = "cpu", **_: Any) -> None:
        from safetensors.torch import load

        path = Path(filename)
        try:
            content = with_retries(path.read_bytes)
        except OSError as error:
            raise named(error, path) from error
        self._tensors = load(content)  # refuses files of another kind
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
        """The keys in the order of the file."""
        return sorted(self._tensors, key=lambda name: self._header[name]["data_offsets"])

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].to(self._device)

    def get_tensors(self) -> dict[str, torch.Tensor]:
        return {name: self.get_tensor(name) for name in self._tensors}

    def get_slice(self, name: str) -> TensorSlice:
        return TensorSlice(self.get_tensor(name), self._header[name]["dtype"])


class TensorSlice:
    """A tensor that is still to be indexed, which safetensors calls a slice."""

    def __init__(self, tensor: torch.Tensor, dtype: str) -> None:
        self._tensor, self._dtype = tensor, dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._tensor[index]

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """The type by safetensors' name, such as ``F32``."""
        return self._dtype


TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
# Embedding tables have some rows without tokens, to suit a GPU; a tokenizer without its vocabulary knows a handful.
MIN_VOCABULARY = 0.5  # of the rows
MAX_UNKNOWN = 0.5  # of the tokens of a sample of captions
HEADS = {"pooler"}  # weights that embeddings do not depend on
NAMED = 3


def require_tokenizer_files(files: ModelFiles) -> None:
    """Raise `UserError` if a folder has no file from which a tokenizer could be made."""
    for pattern in TOKENIZER_FILES:
        for path in (*files.folder.glob(pattern), *files.folder.glob(f"*/{pattern}")):
            if path.parent.name not in EXPORTS:
                return
    raise UserError(
        f"{files.folder} cannot be loaded as a text encoder: it holds no tokenizer (tokenizer.json, vocab.txt, …). "
        "Copy the files of the model's tokenizer beside its weights."
    )


def require_vocabulary(files: ModelFiles, tokenizer: Any, transformer: Any) -> None:
    """Raise `UserError` if a tokenizer knows far fewer tokens than the transformer has embeddings for."""
    try:
        known, rows = len(tokenizer), int(transformer.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError, TypeError):  # no table of tokens
        return
    if known < MIN_VOCABULARY * rows:
        raise UserError(
            f"{files.folder}: its tokenizer knows {known:,} tokens, its model {rows:,}. Files of the tokenizer "
            "(tokenizer.json, vocab.txt, …) are missing, or belong to another model."
        )


@contextlib.contextmanager
def missing_weights() -> Iterator[set[str]]:
    """The names of weights that transformers, in this block, initialises because a model's files lack them."""
    from transformers import PreTrainedModel

    missing: set[str] = set()
    plain = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: type, *given: Any, output_loading_info: bool = False, **named: Any) -> Any:
        model, info = plain.__func__(cls, *given, output_loading_info=True, **named)
        missing.update(info["missing_keys"])
        return (model, info) if output_loading_info else model

    # sentence-transformers has no way to pass this option on, and expects only the model in return.
    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]
    try:
        yield missing
    finally:
        PreTrainedModel.from_pretrained = plain  # type: ignore[method-assign]


def require_weights(files: ModelFiles, missing: Collection[str]) -> None:
    """Raise `MissingWeightsError` if ``missing`` names weights that embeddings depend on."""
    needed = sorted(name for name in missing if not HEADS & set(name.split(".")))
    if needed:
        raise MissingWeightsError(
            f"{files.folder} lacks {len(needed):,} of the weights of its model: {', '.join(needed[:NAMED])}"
            f"{', …' if len(needed) > NAMED else ''}; they would be random. Save the whole model anew, under the names "
            "that save_pretrained gives."
        )


def require_known_words(name: str, unknown: float) -> None:
    """Raise `UserError` if the tokenizer lacks too many words: ``unknown`` is their share of a sample's tokens."""
    if unknown > MAX_UNKNOWN:
        raise UserError(
            f"the tokenizer of {name} does not know {unknown:.0%} of the tokens of these captions; their embeddings "
            "would tell nothing. Is its vocabulary whole, and the model one for their language?"
        )


FP16_CAPABILITY = (7, 0)  # of a GPU: Volta
DTYPE_SINCE = (4, 56)  # the first such release of transformers; before, the option was torch_dtype
FLASH_CAPABILITY = (8, 0)  # of FlashAttention 2
ATTENTION_WORDS = ("attention", "attn", "sdpa", "flash")

Pooling = Literal["mean", "cls", "last", "model"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> str:
    """Resolve ``auto``: a GPU if there is one. Raises `UserError` if the device is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: this machine has no CUDA GPU that torch can use; try --device cpu.")
    return device


def resolve_precision(precision: str, device: str) -> str:
    """Resolve ``auto``: fp32 on a CPU, bf16 on a GPU that has it, fp16 on older ones."""
    if precision not in (*DTYPES, "auto"):
        raise UserError(f"--precision {precision}: choose auto, {', '.join(DTYPES)}.")
    if precision != "auto":
        return precision
    if not device.startswith("cuda"):
        return "fp32"
    capability = torch.cuda.get_device_capability(device)
    return "bf16" if capability >= BF16_CAPABILITY else "fp16" if capability >= FP16_CAPABILITY else "fp32"


def load_model(
    files: ModelFiles, device: str, precision: str, *, trust_remote_code: bool = False, attention: str | None = None
) -> nn.Sequential:
    """The sentence-transformers model in ``precision``, whatever type its weights are stored in.

    ``attention`` None takes the fastest that the model supports and that works on this device. Raises `UserError` if
    the model cannot be loaded, is incomplete, or needs code of its own that ``trust_remote_code`` does not allow;
    `torch.OutOfMemoryError` if it does not fit.
    """
    from transformers.utils import logging as transformers_logging

    require_tokenizer_files(files)
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        for choice in [attention, None] if attention else [*_attentions(device, precision), None]:
            model = None
            try:
                model = _loaded(files, device, precision, trust_remote_code, choice)
                _try_out(model, device)
                return model.eval()
            except (UserError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # broken or foreign folders make the libraries raise any kind of error
                # Some kinds of attention load and then fail to compute on this device.
                due = model is not None or any(word in str(error).lower() for word in ATTENTION_WORDS)
                if choice is None or not due:
                    raise UserError(refusal(files, error)) from error
    finally:
        if had_bar:
            transformers_logging.enable_progress_bar()
    raise AssertionError("the last choice returns or raises")


def _loaded(
    files: ModelFiles, device: str, precision: str, trust_remote_code: bool, attention: str | None
) -> nn.Sequential:
    # Imported here since it takes seconds, which a wrong model name should not cost.
    from sentence_transformers import SentenceTransformer

    settings: dict[str, Any] = {dtype_option(): DTYPES[precision]}
    if attention is not None:
        settings["attn_implementation"] = attention
    with weights_are_read(), missing_weights() as missing:
        model: nn.Sequential = SentenceTransformer(
            str(files.folder),
            device=device,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            model_kwargs=settings,
        )
    require_weights(files, missing)
    # Not the transformer: the parts that it keeps in float32 (rotary frequencies, some layers of T5) must stay so.
    for module in list(model)[1:]:
        module.to(DTYPES[precision])
    return model


def dtype_option() -> str:
    """The name that transformers gives the option for the type of loaded weights."""
    from transformers import __version__

    return "dtype" if tuple(map(int, __version__.split(".")[:2])) >= DTYPE_SINCE else "torch_dtype"


@torch.inference_mode()
def _try_out(model: nn.Sequential, device: str) -> None:
    """Compute one text. Raises the libraries' errors; skips a model of anything but texts."""
    transformer: Any = next(iter(model), None)
    tokenizer = getattr(transformer, "tokenizer", None)
    if not callable(tokenizer) or not hasattr(transformer, "auto_model"):
        return
    rows = tokenizer(["a"], padding=False)
    features = {name: rows[name] for name in ("input_ids", "token_type_ids") if name in rows and rows[name][0]}
    features = features or {"input_ids": [[0]]}
    features["attention_mask"] = [[1] * len(features["input_ids"][0])]
    transformer.eval()({name: torch.tensor(values, device=device) for name, values in features.items()})


def _attentions(device: str, precision: str) -> list[str]:
    """Kinds of attention, the fastest first."""
    flash = device.startswith("cuda") and precision != "fp32" and find_spec("flash_attn") is not None
    flash = flash and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    return [*(["flash_attention_2"] if flash else []), "sdpa", "eager"]


def attention_of(transformer: Any) -> str:
    """The kind of attention of a loaded transformer, as its configuration names it."""
    return str(getattr(getattr(transformer.auto_model, "config", None), "_attn_implementation", None) or "its own")


def own_pooling(model: nn.Sequential) -> str:
    """The model's own pooling, and the modules after it: ``mean``, ``cls``, ``lasttoken``, ``mean+Dense``, …"""
    names = []
    modules: list[Any] = list(model)[1:]
    for module in modules:
        name = type(module).__name__
        if name == "Pooling":
            mode = getattr(module, "pooling_mode", None) or module.get_pooling_mode_str()  # before release 6
            name = mode if isinstance(mode, str) else "+".join(mode)
        names.append(name)
    return "+".join(name for name in names if name != "Normalize") or "none"


def max_tokens_of(model: nn.Sequential, transformer: Any, asked: int | None, special: int, name: str) -> int | None:
    """The number of tokens that a text is cut to: ``asked``, else the model's own limit; None if it has none.

    Raises `UserError` if the model cannot take as many as ``asked``, or if ``special`` tokens leave room for less than
    one.
    """
    own = getattr(model, "max_seq_length", None)
    own = own if own is not None and own < UNLIMITED_TOKENS else None
    possible = positions(transformer.auto_model)
    if asked is None:
        return min((limit for limit in (own, possible) if limit is not None), default=None)
    if asked < special + 1 or (possible is not None and asked > possible):
        raise UserError(
            f"--max-length {asked}: {name} takes texts of {special + 1} to {possible or 'any number of'} tokens."
        )
    return asked


def positions(transformer: nn.Module) -> int | None:
    """The most tokens that a transformer's position table or configuration allows; None if neither says."""
    table = getattr(getattr(transformer, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    config = getattr(transformer, "config", None)
    for part in (config, getattr(config, "text_config", None)):  # of a model around a language model
        limit = part.get("max_position_embeddings") if isinstance(part, dict) else None
        limit = limit or getattr(part, "max_position_embeddings", None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None
