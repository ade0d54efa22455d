"""What a sentence-transformers model does itself with texts: ``pooling="model"`` does the same, and is held against it.

Besides its pooling, a model's folder may ask for a prompt before every text, leave that prompt out of the pooling, cut
embeddings to fewer numbers, scale them, or strip and lower-case texts. All of it is done here. What it asks for
besides, such as a chat template, shows in `require_same_as_model`, which compares with the library's own ``encode``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from artifacts.errors import UserError
from artifacts.json_text import read_json_object
from captions.model_files import ModelFiles

# Embeddings of length 1: yes, no, or before they were cut to fewer numbers, as a model's own Normalize does it.
Normalized = bool | Literal["before truncation"]
OWN_TYPE = "SentenceTransformer"


@dataclass(frozen=True)
class OwnHead:
    """What follows the transformer of a model, and what its folder says besides.

    ``prompt`` is put before texts, ``prompt_pooled`` says whether its tokens count, ``truncate_dim`` how many numbers
    of an embedding are kept, ``normalizes`` whether the last of ``modules`` scales to length 1.
    """

    modules: tuple[nn.Module, ...]
    prompt: str
    prompt_pooled: bool
    truncate_dim: int | None
    normalizes: bool

    @classmethod
    def of(cls, model: Any) -> OwnHead:
        """That of a loaded sentence-transformers model."""
        modules = tuple(list(model)[1:])
        pooling = [module for module in modules if type(module).__name__ == "Pooling"]
        return cls(
            modules,
            model.prompts.get(model.default_prompt_name) or "" if model.default_prompt_name is not None else "",
            all(getattr(module, "include_prompt", True) for module in pooling),
            getattr(model, "truncate_dim", None),
            bool(modules) and _is_normalize(modules[-1]),
        )

    def normalized(self, asked: Normalized | None) -> Normalized:
        """How embeddings are scaled where ``asked`` None is as the model does it."""
        if asked is None:
            return ("before truncation" if self.truncate_dim else True) if self.normalizes else False
        return asked

    def without_scaling(self, normalized: Normalized | None) -> tuple[nn.Module, ...]:
        """The modules, without a final Normalize where embeddings are to keep their length."""
        return self.modules[:-1] if self.normalizes and normalized is False else self.modules

    def describe(self, prefix: str) -> dict[str, Any]:
        """What metadata say of it besides the modules; nothing for a model that does nothing out of the ordinary."""
        truncated = {} if self.truncate_dim is None else {"truncate_dim": self.truncate_dim}
        return truncated | ({"prompt_pooled": False} if prefix and not self.prompt_pooled else {})


def _is_normalize(module: Any) -> bool:
    output = getattr(module, "module_output_name", None) or "sentence_embedding"
    return type(module).__name__ == "Normalize" and output == "sentence_embedding"


def strips_texts(model: Any, tokenizer: Any) -> bool:
    """Whether the library removes white space around texts, where that makes a difference (it did before release 6)."""
    spaced, plain = " a ", "a"
    ids = [row["input_ids"][0] for row in (tokenizer([spaced], padding=False), tokenizer([plain], padding=False))]
    prepare = getattr(model, "preprocess", None) or model.tokenize
    prepared = prepare([spaced])["input_ids"].reshape(-1).tolist()
    return list(ids[0]) != list(ids[1]) and prepared == list(ids[1])


def lowers_texts(transformer: Any, tokenizer: Any) -> bool:
    """Whether texts are lower-cased before the tokenizer, which does not do it itself (as it does since release 6)."""
    if not getattr(transformer, "do_lower_case", False):
        return False
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer is None or "A" in normalizer.normalize_str("A")


def require_own_type(files: ModelFiles) -> None:
    """Raise `UserError` where a folder's configuration says that it is another kind of model, such as SparseEncoder."""
    path = files.folder / "config_sentence_transformers.json"
    settings = read_json_object(path, "the settings of a text encoder", any_number=True) if path.is_file() else {}
    kind = settings.get("model_type")
    if kind not in (None, OWN_TYPE):
        raise UserError(f"{files.name} is a {kind}, no encoder of sentences, so --pooling model is not possible.")
