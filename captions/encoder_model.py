"""Loading a text encoder with sentence-transformers: device, precision, the fastest attention that it offers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from artifacts.errors import UserError, first_line
from captions.encoder_reading import weights_are_read
from captions.encoder_whole import missing_weights, require_tokenizer_files, require_weights
from captions.model_files import ModelFiles

UNLIMITED = 1_000_000  # tokenizers say "no limit" with a number beyond any text
BF16_CAPABILITY, FP16_CAPABILITY = (8, 0), (7, 0)  # of a GPU: Ampere, Volta
DTYPE_SINCE = (4, 56)  # release of transformers; before, the option was torch_dtype
FLASH_CAPABILITY = (8, 0)  # of FlashAttention 2
ATTENTION_WORDS = ("attention", "attn", "sdpa", "flash")

Pooling = Literal["mean", "cls", "model"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> str:
    """``auto`` is a GPU where there is one. Raises `UserError` where the device is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: this machine has no CUDA GPU that torch can use; try --device cpu.")
    return device


def resolve_precision(precision: str, device: str) -> str:
    """``auto`` is fp32 on a CPU, bf16 on a GPU that has it, fp16 on older ones."""
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

    ``attention`` None takes the fastest that the model can do and that computes here. Raises `UserError` where it
    cannot be loaded, is not whole, or needs code of its own that ``trust_remote_code`` does not allow;
    `torch.OutOfMemoryError` where it does not fit.
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
            except Exception as error:  # whatever a broken or foreign folder makes the libraries raise
                # Some attention loads, and only then does not compute on this device.
                due = model is not None or any(word in str(error).lower() for word in ATTENTION_WORDS)
                if choice is None or not due:
                    raise UserError(_refusal(files, error)) from error
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
    # Not the transformer: what it keeps in float32 (rotary frequencies, some layers of T5) it needs so.
    for module in list(model)[1:]:
        module.to(DTYPES[precision])
    return model


def dtype_option() -> str:
    """What transformers calls the type that weights are loaded in."""
    from transformers import __version__

    return "dtype" if tuple(map(int, __version__.split(".")[:2])) >= DTYPE_SINCE else "torch_dtype"


@torch.inference_mode()
def _try_out(model: nn.Sequential, device: str) -> None:
    """Compute one text. Raises what the libraries do; a model of other things than texts is left alone."""
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


def _refusal(files: ModelFiles, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{files.name} brings Python code of its own. Read it in {files.folder}; --trust-remote-code runs it on "
            "this machine."
        )
    return f"{files.folder} cannot be loaded as a text encoder: {first_line(error)}"


def attention_of(transformer: Any) -> str:
    """The kind of attention that a loaded transformer computes with, as its configuration names it."""
    return str(getattr(getattr(transformer.auto_model, "config", None), "_attn_implementation", None) or "its own")


def own_pooling(model: nn.Sequential) -> str:
    """How the model itself pools, and what it does after that: ``mean``, ``cls``, ``lasttoken``, ``mean+Dense``, …"""
    names = []
    modules: list[Any] = list(model)[1:]
    for module in modules:
        name = type(module).__name__
        if name == "Pooling":
            mode = getattr(module, "pooling_mode", None) or module.get_pooling_mode_str()  # before release 6
            name = mode if isinstance(mode, str) else "+".join(mode)
        names.append(name)
    return "+".join(name for name in names if name != "Normalize") or "none"


def most_tokens(model: nn.Sequential, transformer: Any, asked: int | None, special: int, name: str) -> int | None:
    """Tokens a text is cut to: ``asked``, else the model's own limit; None where it has none.

    Raises `UserError` where the model cannot take as many as ``asked``, or less than one beside ``special`` ones.
    """
    own = getattr(model, "max_seq_length", None)
    own = own if own is not None and own < UNLIMITED else None
    possible = positions(transformer.auto_model)
    if asked is None:
        return min((limit for limit in (own, possible) if limit is not None), default=None)
    if asked < special + 1 or (possible is not None and asked > possible):
        raise UserError(
            f"--max-length {asked}: {name} takes texts of {special + 1} to {possible or 'any number of'} tokens."
        )
    return asked


def positions(transformer: nn.Module) -> int | None:
    """The most tokens that a transformer's position table or configuration allows; None where it does not say."""
    table = getattr(getattr(transformer, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    limit = getattr(getattr(transformer, "config", None), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
