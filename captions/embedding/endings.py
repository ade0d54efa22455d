"""The token that ends a text: language models that were trained to embed a text at it miss it if it is not there.

Some tokenizers append it themselves. Others leave it to the caller: NV-Embed's authors put it behind every text, and
releases of transformers differ in whether they follow ``add_eos_token`` in a tokenizer's configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.captions.embedding.model_files import ModelFiles

# Types of models whose authors' code appends the token to every text, whatever the tokenizer's configuration says.
APPENDING_TYPES = frozenset({"nvembed"})


class Ending(NamedTuple):
    """A token that is put behind every text: its number, and how texts write it."""

    number: int
    text: str


def ending_of(files: ModelFiles, tokenizer: Any, asked: bool | None) -> Ending | None:
    """The token to put behind every text; None if none is wanted, or the tokenizer appends it.

    ``asked`` None follows the model: the type in its configuration, and ``add_eos_token`` of its tokenizer. Raises
    `UserError` if it is asked for, and the tokenizer has none.
    """
    number, text = getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "eos_token", None)
    if asked is None:
        asked = number is not None and _is_wanted(files.folder)
    if not asked:
        return None
    if number is None:
        raise UserError(f"--eos: the tokenizer of {files.name} knows no token that ends a text.")
    appends = tokenizer(["a"], padding=False)["input_ids"][0][-1:] == [number]
    return None if appends else Ending(int(number), str(text))


def _is_wanted(folder: Path) -> bool:
    model, tokenizer = (_settings(folder / name) for name in ("config.json", "tokenizer_config.json"))
    return model.get("model_type") in APPENDING_TYPES or tokenizer.get("add_eos_token") is True


def _settings(path: Path) -> dict[str, Any]:
    return read_json_object(path, "a configuration of a text encoder", any_number=True) if path.is_file() else {}
