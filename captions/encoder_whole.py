"""Is a model whole? Libraries load one without its vocabulary, or with random weights for missing ones, and go on."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from artifacts.errors import UserError
from captions.model_files import EXPORTS, ModelFiles

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
# Embedding tables have some rows that no token has, to suit a GPU; a tokenizer without its vocabulary knows a handful.
LEAST_VOCABULARY = 0.5  # of the rows
MOST_UNKNOWN = 0.5  # of the tokens of a sample of captions
HEADS = {"pooler"}  # weights that embeddings do not depend on
NAMED = 3


def require_tokenizer_files(files: ModelFiles) -> None:
    """Raise `UserError` where a folder has nothing that a tokenizer could be made of."""
    for pattern in TOKENIZER_FILES:
        for path in (*files.folder.glob(pattern), *files.folder.glob(f"*/{pattern}")):
            if path.parent.name not in EXPORTS:
                return
    raise UserError(
        f"{files.folder} cannot be loaded as a text encoder: it holds no tokenizer (tokenizer.json, vocab.txt, …). "
        "Copy the files of the model's tokenizer beside its weights."
    )


def require_vocabulary(files: ModelFiles, tokenizer: Any, transformer: Any) -> None:
    """Raise `UserError` where a tokenizer knows far fewer tokens than the transformer has embeddings for."""
    try:
        known, rows = len(tokenizer), int(transformer.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError, TypeError):  # no table of tokens
        return
    if known < LEAST_VOCABULARY * rows:
        raise UserError(
            f"{files.folder}: its tokenizer knows {known:,} tokens, its model {rows:,}. Files of the tokenizer "
            "(tokenizer.json, vocab.txt, …) are missing, or belong to another model."
        )


@contextlib.contextmanager
def missing_weights() -> Iterator[set[str]]:
    """The names of weights that transformers, in the block, does not find in a model's files and makes up."""
    from transformers import PreTrainedModel

    missing: set[str] = set()
    plain = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: type, *given: Any, output_loading_info: bool = False, **named: Any) -> Any:
        model, info = plain.__func__(cls, *given, output_loading_info=True, **named)
        missing.update(info["missing_keys"])
        return (model, info) if output_loading_info else model

    # Nobody passes the option through sentence-transformers, which expects the model alone.
    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]
    try:
        yield missing
    finally:
        PreTrainedModel.from_pretrained = plain  # type: ignore[method-assign]


def require_weights(files: ModelFiles, missing: Collection[str]) -> None:
    """Raise `UserError` where ``missing`` names weights that embeddings depend on."""
    needed = sorted(name for name in missing if not HEADS & set(name.split(".")))
    if needed:
        raise UserError(
            f"{files.folder} lacks {len(needed):,} of the weights of its model: {', '.join(needed[:NAMED])}"
            f"{', …' if len(needed) > NAMED else ''}; they would be random. Save the whole model anew, under the names "
            "that save_pretrained gives."
        )


def require_known_words(name: str, unknown: float) -> None:
    """Raise `UserError` where the share ``unknown`` of a sample's tokens stands for words that the tokenizer lacks."""
    if unknown > MOST_UNKNOWN:
        raise UserError(
            f"the tokenizer of {name} does not know {unknown:.0%} of the tokens of these captions; their embeddings "
            "would tell nothing. Is its vocabulary whole, and the model one for their language?"
        )
