"""How a run of stage 2 or 2.1 is prepared: the base checkpoint, the text tower, and the captions."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from m2dprep.artifacts.digests import differing_keys
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.layout import DataLayout, require_folder
from m2dprep.evaluation.text_towers import letter_of, tower_source
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.layouts import TEXT_FOLDER
from m2dprep.m2dclap.text.model import MAX_LOGIT_SCALE, TRAINED_HEADS, TextClap
from m2dprep.m2dclap.text.tower import CLS, TextTower
from m2dprep.m2dclap.vit import interpolate_pos_embed
from m2dprep.training.config import PRESETS, DataChoice, RunOptions, TrainConfig
from m2dprep.training.data_dir import TrainingData, open_training_data
from m2dprep.training.objectives import Objective, Plan
from m2dprep.training.recipes.second_generation import DEFAULT_TEXT_MODEL, RESTORED, TEXT
from m2dprep.training.second_generation.captions import RawCaptions, Tokenizer
from m2dprep.training.second_generation.clips import CaptionedData
from m2dprep.training.second_generation.objective import TextClapObjective

# What a user may say of the model; the rest is that of the base checkpoint.
FREE = ("sem_mode", "off_emb_dim")


class TextClapPlan(Plan):
    """The audio encoder is that of ``options.init``, of any layout, and so are its front end and statistics."""

    def __init__(self, model: ModelConfig, config: TrainConfig, options: RunOptions) -> None:
        super().__init__(model, config, options)
        if options.init is None:
            raise UserError(
                f"the objective {TEXT} trains a text encoder against a frozen audio encoder; --init names the "
                "checkpoint that has it."
            )
        _require_model_of_the_base(model, options)
        self._base = Checkpoint.read(find_checkpoint(options.init))
        self._restored = config.heads == RESTORED
        if self._restored:
            self._base.require_clap_head()
            _require_mode_of_the_base(model.sem_mode, self._base)
        self._source = tower_source(self._base, config.text_model, DEFAULT_TEXT_MODEL)
        self._pooling = config.text_pooling or self._source.pooling
        limit = self._source.files.max_tokens
        if config.text_tokens is not None and config.text_tokens > limit:
            raise UserError(f"text_tokens is {config.text_tokens}; {self._source.files.name} takes at most {limit}.")
        self._max_tokens = config.text_tokens or limit

    def open(self, choice: DataChoice) -> TrainingData:
        if choice.stores or choice.dictionaries:
            raise UserError(f"the objective {TEXT} trains on captions as they are written, not on --embeddings.")
        layout = DataLayout(require_folder(choice.root, "a data directory"))
        tokenizer = Tokenizer(self._source.files, self._max_tokens)
        captions = RawCaptions.read(choice.captions or layout.captions, tokenizer)
        base = self._base
        data = open_training_data(choice, base.config.input_size[0], captions, base.norm_stats)
        if lines := differing_keys(asdict(base.front_end), asdict(data.front_end)):
            raise UserError(f"{base.path} is of another front end than the log-mels ({'; '.join(lines)}).")
        own = {one.name: getattr(data, one.name) for one in fields(data)}
        own["text_model"] = self._text_model()
        own["identity"] = {**data.identity, "text_tower": {**self._text_model(), "model_path": None}}
        blank = f"; {captions.blank:,} without text are left out" if captions.blank else ""
        own["notes"] = [
            *data.notes,
            f"{len(captions):,} captions of {captions.names[0]}, at most {self._max_tokens} tokens of each, for "
            f"{self._source.files.name}{blank}",
        ]
        return CaptionedData(**own)

    def model(self, data: TrainingData) -> ModelConfig:
        base, frames = self._base.config, self.config.audio_frames
        return replace(
            base,
            input_size=(base.input_size[0], frames or base.input_size[1]),
            off_emb_dim=int(self._source.files.config.hidden_size),
            sem_mode=base.sem_mode if self._restored else self._asked.sem_mode,
        )

    def size(self) -> str:
        """The named size that the base checkpoint's encoder has, or its width and depth."""
        base = self._base.config
        for name, known in PRESETS.items():
            if (known.model.embed_dim, known.model.depth) == (base.embed_dim, base.depth):
                return name
        return f"{base.embed_dim}x{base.depth}"

    def letter(self) -> str:
        return f"{letter_of(self._source.files.name, self._source.files.config.model_type)}pTI"

    def make(self, model: ModelConfig, data: TrainingData) -> Objective:
        tower = self._source.files.new(self._pooling)
        _require_encoder(tower, self._source.files.name, Tokenizer(self._source.files, self._max_tokens))
        made = TextClap(model, data.stats, self._base.front_end, tower)
        return TextClapObjective(made, data.stats, self._load, pads_raw=self.config.strict_original)

    def write_beside(self, folder: Path) -> None:
        """Configuration and tokenizer of the text tower, which encode captions for evaluation."""
        place = folder / TEXT_FOLDER
        if place.is_dir():
            return
        unfinished = folder / f".{TEXT_FOLDER}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._source.files.save(unfinished)
        unfinished.replace(place)

    def _text_model(self) -> dict[str, Any]:
        """How captions become embeddings; ``weights`` are those that the tower began with."""
        return {
            "model": self._source.files.name,
            "weights": self._source.digest,
            "pooling": self._pooling,
            "normalized": False,
            "prefix": "",
            "max_length": self._max_tokens,
        }

    def _load(self, model: TextClap, path: Path) -> str:
        """Take the encoder of the base checkpoint, its heads if they are to be restored, and the tower's weights."""
        base = self._base
        given = _encoder_of(base, model)
        new = []
        if self._restored:
            given |= _heads_of(base, model)
            if base.scale is not None:
                model.logit_scale.data.copy_(base.logit_scale.clamp(0.0, MAX_LOGIT_SCALE))
        else:
            new = ["audio_proj", "logit_scale"]
        base.require_finite(key for key in given if key in base.weights)
        model.backbone.load_state_dict(given, strict=False)
        _load_tower(model, self._source.weights(), self._source.files.name)
        words = [f"the audio encoder of {base.path}", f"the text encoder of {self._source.origin}"]
        return "; ".join([*words, f"new ones: {', '.join(new)}" if new else "its heads"])


def _require_encoder(tower: TextTower, name: str, tokenizer: Tokenizer) -> None:
    """Raise `UserError` if a tower makes no embeddings of captions, or the same one of all that begin alike."""
    tokens = tokenizer(["a", "a b c d"])
    tower.eval()
    try:
        with torch.no_grad():
            one, other = tower(tokens.input_ids, tokens.lengths.tolist())
    except Exception as error:  # a foreign model raises any kind of error
        raise UserError(f"{name} is no text encoder that can be trained: {first_line(error)}") from error
    tower.train()
    if tower.pooling == CLS and torch.allclose(one, other, rtol=0, atol=1e-5):
        raise UserError(
            f"{name} reads from left to right, so its first token knows nothing of the rest of a caption; "
            "--text-pooling mean takes the average over tokens."
        )


def _require_model_of_the_base(model: ModelConfig, options: RunOptions) -> None:
    """Raise `UserError` if a setting of the model is set that the base checkpoint decides."""
    usual = PRESETS[options.size].model
    for one in fields(ModelConfig):
        if one.name not in FREE and getattr(model, one.name) != getattr(usual, one.name):
            raise UserError(
                f"{one.name} is {getattr(model, one.name)}, but the objective {TEXT} takes the audio encoder of --init "
                "as it is (--audio-frames fits it to other crops, --audio-mask hides patches)."
            )


def _require_mode_of_the_base(sem_mode: int, base: Checkpoint) -> None:
    """Raise `UserError` if an audio head is to be restored and another one is asked for; 0 is what nobody asked for."""
    if sem_mode not in (ModelConfig.sem_mode, base.config.sem_mode):
        raise UserError(
            f"sem_mode is {sem_mode}, but the audio head to be restored from {base.path} is that of sem_mode "
            f"{base.config.sem_mode}; --heads fresh begins with a new one."
        )


def _encoder_of(base: Checkpoint, model: TextClap) -> dict[str, torch.Tensor]:
    own = model.backbone.state_dict()
    wanted = [key for key in own if not key.startswith(TRAINED_HEADS) and key != "norm_stats"]
    missing = [key for key in wanted if key not in base.weights]
    if missing:
        raise UserError(f"{base.path} lacks {len(missing)} weights of its encoder: {', '.join(missing[:5])} ….")
    given = {key: base.weights[key] for key in wanted}
    table = base.weights["pos_embed"].float()
    given["pos_embed"] = interpolate_pos_embed(table, base.config.grid_size, model.config.grid_size, always=True)
    for key in wanted:
        if given[key].shape != own[key].shape:
            raise UserError(f"{base.path}: {key} is {list(given[key].shape)}, its model needs {list(own[key].shape)}.")
    return given


def _heads_of(base: Checkpoint, model: TextClap) -> dict[str, torch.Tensor]:
    """The heads for captions of a checkpoint. Raises `UserError` if they do not fit the model's."""
    own = model.backbone.state_dict()
    found = {}
    for key in (key for key in own if key.startswith(TRAINED_HEADS)):
        if key not in base.weights or base.weights[key].shape != own[key].shape:
            raise UserError(
                f"{base.path} has no {key} of the shape {list(own[key].shape)} to restore; --heads fresh begins with "
                "new ones."
            )
        found[key] = base.weights[key]
    return found


def _load_tower(model: TextClap, weights: Mapping[str, torch.Tensor], name: str) -> None:
    bad = [key for key, value in weights.items() if not bool(value.isfinite().all())]
    if bad:
        raise UserError(f"{name}: weights of the text encoder are not finite ({bad[0]} first).")
    try:
        model.text_encoder.text_encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{name}: its weights do not fit its configuration: {first_line(error)}") from error
