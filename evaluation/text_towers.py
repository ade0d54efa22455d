"""Which text encoder belongs to a checkpoint, and where it is.

A checkpoint of ours says what encoded its captions, with the digest of the weights: a folder that has moved is found by
that digest, never merely by its path. A checkpoint of the original says it by a letter in its folder's name, and from
stage 2 of 2025 on it holds the encoder itself, whose tokenizer comes from the model of that letter.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.captions.embedding.encoder import TextEncoder, load_encoder
from m2dprep.captions.embedding.model_files import ModelFiles, find_model, require_no_code
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.layouts import TEXT_FOLDER, depth_of, folder_name
from m2dprep.m2dclap.text.tower import POOLINGS, TowerFiles, pretrained_weights, read_tower


class TextTower(Protocol):
    """Encodes captions to float32 (N, dim), before a checkpoint's own projection."""

    @property
    def dim(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...

    def describe(self) -> dict[str, Any]: ...


class LetterRule(NamedTuple):
    """What a letter stands for: a model on the hub, how its tokens become one embedding, and why we cannot load it."""

    model: str
    pooling: str
    refused: str = ""


OTHER_LIBRARY = "its text encoder is OpenAI's CLIP, which is no sentence encoder that this version loads"
# The original's letters (m2d/runtime_audio.py); a folder without one means GTE-base.
LETTERS = {
    "": LetterRule("thenlper/gte-base", "mean"),
    "A": LetterRule("thenlper/gte-base", "mean"),
    "B": LetterRule("google-bert/bert-base-uncased", "cls"),
    "C": LetterRule("openai/clip-vit-large-patch14", "model", OTHER_LIBRARY),
    "E": LetterRule("google-bert/bert-large-uncased", "cls"),
    "L": LetterRule("Alibaba-NLP/gte-large-en-v1.5", "model"),
    "M": LetterRule("answerdotai/ModernBERT-base", "cls"),
    "N": LetterRule("nvidia/NV-Embed-v2", "model"),
    "Q": LetterRule("Alibaba-NLP/gte-Qwen2-7B-instruct", "model"),
    "R": LetterRule("FacebookAI/roberta-base", "cls"),
}
# The original's example code means other models by two of them, of which the length of an embedding tells.
LARGER = {"M": LetterRule("google-bert/bert-large-uncased", "cls"), "Q": LetterRule("FacebookAI/roberta-large", "cls")}
LARGER_DIM = 1024


def trained_with(checkpoint: Checkpoint, *, replaced: bool = False) -> dict[str, Any]:
    """How the captions of a training were encoded: what the checkpoint says, or the letter in its folder's name.

    Empty if neither tells. Raises `UserError` if the letter is unknown or of a model that we cannot use, unless the
    model is going to be ``replaced``.
    """
    if checkpoint.text_model:
        return checkpoint.text_model
    named = folder_name(checkpoint.path)
    if named is None:
        return {}
    if named.letter not in LETTERS and replaced:
        return {}
    if named.letter not in LETTERS:
        raise UserError(
            f"{checkpoint.path}: its folder names the text encoder {named.letter!r}; known letters are "
            f"{', '.join(filter(None, LETTERS))}. --text-model names an encoder."
        )
    larger = named.letter in LARGER and checkpoint.config.off_emb_dim == LARGER_DIM
    rule = LARGER[named.letter] if larger else LETTERS[named.letter]
    if rule.refused and not replaced:
        raise UserError(f"{checkpoint.path} was trained with {rule.model}: {rule.refused}. --text-model names another.")
    return {"model": rule.model, "pooling": rule.pooling, "letter": named.letter}


# Where else to look for folders of text models: names of folders, separated as in PATH.
SEARCH_VARIABLE = "M2DPREP_TEXT_MODELS"
LEVELS = 5
MOST_CANDIDATES = 200
CONFIGURATIONS = ("config.json", "modules.json")


def place_by_digest(trained: Mapping[str, Any], near: Path) -> str | None:
    """A folder with the weights that ``trained`` names by their digest; None if there is none.

    It is looked for where it was; below the folders around ``near`` and those of `SEARCH_VARIABLE`, by its name and
    then by any; in the installed packages; and in the hub's cache.
    """
    wanted = trained.get("weights")
    if not wanted:
        return None
    seen: set[Path] = set()
    for folder in _candidates(trained, near):
        if len(seen) >= MOST_CANDIDATES:
            break
        real = folder.resolve()
        if real in seen or not any((real / name).is_file() for name in CONFIGURATIONS):
            continue
        seen.add(real)
        try:
            if ModelFiles(real.name, real, None).weights_digest() == wanted:
                return str(folder)
        except (UserError, OSError):  # no weights in it, or not readable
            continue
    return None


def _candidates(trained: Mapping[str, Any], near: Path) -> Iterator[Path]:
    was = Path(trained["model_path"]) if trained.get("model_path") else None
    names = list(dict.fromkeys(filter(None, (was.name if was else None, Path(str(trained.get("model") or "")).name))))
    if was is not None:
        yield was
        yield from _in_packages(was)
    around = [*near.resolve().parents][:LEVELS]
    around += [Path(one) for one in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if one]
    for folder in around:
        yield from (folder / name for name in names)
    yield from _in_cache(str(trained.get("model") or ""))
    for folder in around:
        yield from _folders(folder)


def _folders(folder: Path) -> Iterator[Path]:
    try:
        yield folder
        yield from sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return


def _in_packages(was: Path) -> Iterator[Path]:
    """The same folder of an installed package, where this Python has it."""
    parts = was.parts
    for name in ("site-packages", "dist-packages"):
        if name in parts:
            below = Path(*parts[parts.index(name) + 1 :])
            yield from (Path(root) / below for root in (*sys.path, *site.getsitepackages()) if root)


def _in_cache(model: str) -> Iterator[Path]:
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    name = model.replace("/", "--")
    if name:
        yield from sorted(cache.glob(f"models--*{name}/snapshots/*"))


class TowerSource(NamedTuple):
    """A text tower that can be trained or encode: its files, its pooling, and where its weights are.

    ``inside`` are weights that a checkpoint holds; without them they are in ``folder``, and ``digest`` is theirs.
    """

    files: TowerFiles
    pooling: str
    origin: str
    folder: Path
    digest: str | None = None
    inside: Mapping[str, torch.Tensor] | None = None

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the transformer. Raises `UserError` if they cannot be read."""
        if self.inside is None:
            return pretrained_weights(self.folder, self.files.name)
        return {key: value for key, value in self.inside.items() if not key.endswith("position_ids")}


def tower_source(checkpoint: Checkpoint, model: str | None, default: str) -> TowerSource:
    """The text encoder ``model`` (a folder, or a name on the hub), or else the tower in a checkpoint, or ``default``.

    Raises `UserError` if there is no such model, or it needs code of its own.
    """
    if model is None and checkpoint.text_weights:
        return tower_inside(checkpoint)
    found = require_no_code(find_model(model or default))
    files = read_tower(found.folder, found.name)
    return TowerSource(files, "cls", found.name, found.folder, found.weights_digest())


def tower_inside(checkpoint: Checkpoint, model: str | None = None) -> TowerSource:
    """The tower that a checkpoint holds; ``model`` is a folder or hub name with its tokenizer and configuration.

    Without ``model`` these are beside the checkpoint, in the folder `TEXT_FOLDER`, or else those of the model that the
    tower began as, with the sizes of the weights. Raises `UserError` if there are none.
    """
    trained = trained_with(checkpoint, replaced=True)
    beside = checkpoint.path.parent / TEXT_FOLDER
    there = (beside / CONFIGURATIONS[0]).is_file()
    found = require_no_code(find_model(model or (str(beside) if there else _tokenizer_of(checkpoint, trained))))
    try:
        files = read_tower(found.folder, str(trained.get("model") or found.name) if there and not model else found.name)
        if not model and not there:
            files = files._replace(config=_fitted(files.config, checkpoint.text_weights))
    except UserError as error:
        raise UserError(
            f"{checkpoint.path} holds a text tower whose tokenizer cannot be read: {error} --text-model names a folder "
            "with its config.json and tokenizer."
        ) from error
    pooling = str(trained.get("pooling") or "cls")
    pooling = pooling if pooling in POOLINGS else "cls"
    digest = trained.get("weights")
    return TowerSource(files, pooling, f"{checkpoint.path}", found.folder, digest, checkpoint.text_weights)


class TowerInside:
    """The text tower that a checkpoint holds, with the pooling of its training: by default, as in the original, the
    last hidden state at the first token."""

    def __init__(self, checkpoint: Checkpoint, model: str | None, device: torch.device, batch_size: int = 64) -> None:
        """``model`` is a folder or hub name with the tokenizer and configuration, if they are not to be found.

        Raises `UserError` if there is no such model, or its configuration does not fit the weights.
        """
        self._owner, self._batch_size, self._device = checkpoint.path, batch_size, device
        source = tower_inside(checkpoint, model)
        self._source, self._tokenizer = source, source.files.tokenizer
        weights = source.weights()
        try:
            self._tower = source.files.new(source.pooling)
            self._tower.text_encoder.load_state_dict(weights)
        except (UserError, RuntimeError) as error:
            raise UserError(
                f"{checkpoint.path} holds a text tower that the configuration of {source.files.name} does not fit "
                f"({first_line(error)}). --text-model names a folder with its config.json and tokenizer."
            ) from error
        bad = [key for key, value in weights.items() if not bool(value.isfinite().all())]
        if bad:
            raise UserError(f"{checkpoint.path}: weights of its text tower are not finite ({bad[0]} first).")
        self._tower.to(device).eval()
        self._limit = min(checkpoint.text_model.get("max_length") or source.files.max_tokens, source.files.max_tokens)
        self.truncated = 0

    @property
    def dim(self) -> int:
        return self._tower.dim

    def describe(self) -> dict[str, Any]:
        name = f"{self._owner.name}'s own, tokenizer of {self._source.files.name}"
        return {"model": name, "pooling": self._source.pooling, "weights": None}

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, dim). A text of more tokens than the model has positions for is cut, and counted."""
        found = []
        for start in range(0, len(texts), self._batch_size):
            rows = self._tokenizer(list(texts[start : start + self._batch_size]), truncation=False)["input_ids"]
            self.truncated += sum(len(row) > self._limit for row in rows)
            if any(len(row) > self._limit for row in rows):
                part = list(texts[start : start + self._batch_size])
                rows = self._tokenizer(part, truncation=True, max_length=self._limit)["input_ids"]
            lengths = [len(row) for row in rows]
            tokens = torch.full((len(rows), max(lengths)), self._source.files.padding)
            for place, row in zip(tokens, rows, strict=True):
                place[: len(row)] = torch.tensor(row)
            found.append(self._tower(tokens.to(self._device), lengths).float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, self.dim), np.float32)


def _tokenizer_of(checkpoint: Checkpoint, trained: Mapping[str, Any]) -> str:
    """Where the tokenizer of a tower inside a checkpoint is: with the model that the tower began as."""
    return place_by_digest(trained, checkpoint.path) or str(trained.get("model") or LETTERS["B"].model)


# For towers of which the original has no letter. Its loaders refuse this one.
NO_LETTER = "X"


def letter_of(model: str, kind: str) -> str:
    """The original's letter for a text encoder: by its name, or that of its kind of transformer."""
    short = Path(model).name
    for letter, rule in LETTERS.items():
        if letter and short == Path(rule.model).name:
            return letter
    return {"bert": "B", "roberta": "R", "modernbert": "M"}.get(kind, NO_LETTER)


def _fitted(config: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """The configuration of the letter's model with the sizes of these weights."""
    words, first = weights.get("embeddings.word_embeddings.weight"), "encoder.layer.0.intermediate.dense.weight"
    if words is None or first not in weights:
        return config
    config.vocab_size, config.hidden_size = words.shape
    config.num_hidden_layers = depth_of(weights, "encoder.layer.")
    config.intermediate_size = weights[first].shape[0]
    config.max_position_embeddings = weights["embeddings.position_embeddings.weight"].shape[0]
    config.num_attention_heads = max(1, config.hidden_size // 64)
    return config


def load_text_encoder(
    trained: Mapping[str, Any],
    dim: int,
    text_model: str | None,
    owner: str,
    device: str,
    *,
    trust_remote_code: bool = False,
) -> TextEncoder:
    """The text encoder named, or else that of the training (``trained``), with the training's pooling and prefix.

    ``owner`` is the file that says how it was trained, near which a text model that has moved is looked for by the
    digest of its weights. Raises `UserError` if no encoder is known, if its weights are others than those of the
    training (unless ``text_model`` insists), or if its embeddings do not have ``dim`` numbers.
    """
    name = text_model or place_by_digest(trained, Path(owner)) or _named(trained)
    if not name:
        raise UserError(f"{owner} does not say what its captions were encoded with; give --text-model.")
    encoder = load_encoder(
        name,
        device=device,
        normalize=trained.get("normalized") or False,
        pooling=trained.get("pooling") or "mean",
        prefix=trained.get("prefix") or "",
        max_length=trained.get("max_length"),
        revision=None if text_model or Path(name).is_dir() else trained.get("revision"),
        trust_remote_code=trust_remote_code,
        eos=None if "letter" in trained else bool(trained.get("eos")),
    )
    if encoder.dim != dim:
        raise UserError(
            f"{name} makes embeddings of {encoder.dim} numbers, {owner} was trained with {dim}; "
            "give --text-model the one that it was trained with."
        )
    weights = encoder.describe().get("weights")
    if trained.get("weights") not in (None, weights):
        said = f"{name} has other weights than the training's {trained.get('model')}"
        if not text_model:
            raise UserError(f"{said}. --text-model names a folder with the right ones, or insists on these.")
        print(f"note: {said}.", file=sys.stderr)
    return encoder


def _named(trained: Mapping[str, Any]) -> str | None:
    """The path that a training noted, if there is such a folder, else the model's name."""
    path = trained.get("model_path")
    return path if path and (Path(path).is_dir() or not trained.get("model")) else trained.get("model") or path


def text_tower(
    checkpoint: Checkpoint,
    text_model: str | None,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
) -> TextTower:
    """The text tower of a checkpoint: the one inside it, the one that it names, or ``text_model``.

    Raises `UserError` if none is known or found, or its embeddings do not fit.
    """
    if checkpoint.text_weights:
        tower = TowerInside(checkpoint, text_model, device)
        if tower.dim != checkpoint.config.off_emb_dim:
            raise UserError(
                f"{checkpoint.path}: its text tower makes embeddings of {tower.dim} numbers, its audio head "
                f"{checkpoint.config.off_emb_dim}."
            )
        return tower
    trained = trained_with(checkpoint, replaced=text_model is not None)
    return load_text_encoder(
        trained, checkpoint.config.off_emb_dim, text_model, str(checkpoint.path), device.type,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
