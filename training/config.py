"""Every setting of a training run, declared once; the named sizes; and the YAML file that holds a run's settings.

A field made by `option` is a flag of ``m2dprep train`` and a key of its settings files and of ``train.yaml``, and it is
checked by its annotation wherever it comes from. Fields of `ModelConfig` and `TrainConfig` decide the result, so a run
can only go on with the same ones; those of `RunOptions` may change, except ``model`` and ``init``. `DataChoice` is
compared by what it finds. The flags are made in `cli.train_options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import (
    Declared,
    OneOf,
    Range,
    check,
    declared,
    kinds_of,
    option,
    recorded,
    settings_text,
    typed,
    values_of,
)
from m2dprep.m2dclap.config import ModelConfig, Share, plain_values
from m2dprep.training.recipes.second_generation import MASKED, TEXT, TEXT_GROUP, TextTowerSettings

# What is trained for, by the names that users choose from: what makes the `Objective` (module:name; it imports torch)
# from a `ModelConfig`, a `TrainConfig` and the statistics of the data.
# It may also be a `Plan`, which opens data of its own.
OBJECTIVES = {
    MASKED: "m2dprep.training.objectives:MaskedClap.make",
    TEXT: "m2dprep.training.second_generation.plan:TextClapPlan",
}
SIZES = ("tiny", "small", "base", "large")
# Titles of the groups of settings, in the order of help and of a run's train.yaml.
DATA, MODEL, OPTIMISATION, LOCATION = "Data", ModelConfig.GROUP, "Optimisation", "Where it runs"
SAVING, VALIDATION = "Saving and logging", "Validation"
GROUPS = (DATA, MODEL, OPTIMISATION, TEXT_GROUP, LOCATION, SAVING, VALIDATION)
LIST_COLUMNS = "The column file_name is read, or else source or path; names are relative to DATA."
THE_MODELS = "the model's"

Clips = Annotated[int, Range(2, 2**20)]
Beta = Annotated[float, Range(0, 1, below=True)]
# What is counted in epochs, steps and files: no run comes near the limit.
Count = Annotated[int, Range(1, 1_000_000_000)]
CountOrNever = Annotated[int, Range(0, 1_000_000_000)]


@dataclass(frozen=True)
class TrainConfig(TextTowerSettings):
    """How a model is trained. The defaults are the original trainer's, for one process.

    It holds only settings that change the result: not the number of processes or workers, nor how often to log or save.
    """

    GROUP: ClassVar[str] = OPTIMISATION

    epochs: Annotated[int, Range(1, 1_000_000)] = option(300, "Train for this many epochs.")
    # The number of processes changes nothing.
    batch_size: Clips = option(512, "Use this many clips per step, over all processes and accumulated parts.")
    accumulate: Annotated[int, Range(1, 2**20)] = option(
        1, "Compute a step in this many parts, one after another; captions are contrasted within a part."
    )
    # The peak is blr * batch_size / 256.
    blr: Annotated[float, Range(0, 1e3, above=True)] = option(
        3e-4, "Use this learning rate for a batch of 256; it is scaled to the batch size."
    )
    min_lr: Annotated[float, Range(0, 1e3)] = option(0.0, "Let the learning rate fall to this number.")
    warmup_epochs: Annotated[float, Range(0, 1_000_000)] = option(
        20.0, "Let the learning rate rise over this many epochs.", shown="the model's share of the epochs"
    )
    betas: tuple[Beta, Beta] = option((0.9, 0.95), "AdamW's decay of its two moments.", flag=False)
    weight_decay: Annotated[float, Range(0, 1e3)] = option(
        0.05, "Decay weights by this much, but not biases, norms and the logit scale."
    )
    clip_grad: Annotated[float, Range(0, 1e9, above=True)] = option(
        3.0, "Scale gradients down to this norm if theirs is larger."
    )
    ema_decay_init: Share = option(0.99995, "Decay of the target's weights in the first step.", flag=False)
    ema_decay_end: Share = option(0.99999, "Decay of the target's weights in the last step.", flag=False)
    amp: Annotated[str, OneOf(("auto", "none", "bf16", "fp16"))] = option(
        "auto",
        "Compute matrix products in this arithmetic. auto is bf16 on a GPU (fp16 before Ampere) and float32 on a CPU.",
    )
    seed: Annotated[int, Range(0, 2**32 - 1)] = option(0, "Use this seed for everything random.")
    # The target sees the clean clip.
    noise_ratio: Share = option(0.0, "Give the background sound this share of the sum of mel powers.", group=DATA)
    weighted: bool = option(
        False,
        "Draw clips in proportion to the column weight of the lists, instead of each once per epoch.",
        group=DATA,
    )
    draws: Count | None = option(
        None,
        "Draw this many clips per epoch instead of every one. An epoch is then as many clips long.",
        group=DATA,
        shown="as many as there are",
        later=True,
    )
    distinct: bool = option(
        False, "With --weighted and --draws, draw no clip twice within an epoch.", group=DATA, later=True
    )
    # A model that still learns to match them betrays a leak.
    shuffle_captions: bool = option(False, "Give every clip the captions of another one, as a control.", group=DATA)
    objective: Annotated[str, OneOf(OBJECTIVES)] = option(
        MASKED,
        "Train for this. masked-clap is M2D-CLAP of 2024 and stage 1 of 2025: predict masked patches, and tell clips "
        "apart by embeddings of captions. text-clap is stages 2 and 2.1 of 2025: train a text encoder on captions "
        "against the frozen audio encoder of --init.",
        group=MODEL,
        later=True,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size % self.accumulate or self.batch_size // self.accumulate < 2:
            raise UserError(
                f"accumulate {self.accumulate} does not divide the batch of {self.batch_size} into parts of 2 or more."
            )
        if self.distinct and not (self.weighted and self.draws):
            raise UserError("distinct needs weighted and draws: every clip comes once anyway without them.")
        if self.warmup_epochs > self.epochs:
            raise UserError(f"warmup_epochs {self.warmup_epochs:g} must be within the {self.epochs} epochs.")
        self.require_used(self.objective)
        if self.objective == TEXT and self.noise_ratio:
            raise UserError(f"noise_ratio is {self.noise_ratio}; the objective {TEXT} mixes no noise in.")
        if self.ema_decay_init > self.ema_decay_end:
            raise UserError(
                f"ema_decay_init {self.ema_decay_init} must not be above ema_decay_end {self.ema_decay_end}."
            )

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.blr * self.batch_size / 256

    def epoch_clips(self, clips: int) -> int:
        """How many of ``clips`` an epoch holds; with weights, some of them may come more than once."""
        return self.draws or clips

    def to_dict(self) -> dict[str, Any]:
        return plain_values(recorded(self))


@dataclass(frozen=True)
class DataChoice:
    """The parts of a data directory to train on; empty means all its file lists and all its embedding stores.

    ``dictionaries`` are the original's pickled ``capemb_*.npy`` files, which are read only if they are named here. The
    files in ``held_out`` lists are validated on and never trained on, even if a list to train on has them as well;
    those in ``backgrounds`` lists are mixed in as noise. ``weighted`` reads a ``weight`` column from the lists to train
    on.
    """

    GROUP: ClassVar[str] = DATA

    root: Path = option(MISSING, "The data directory, which is the argument DATA.", key="data", flag=False)
    file_lists: tuple[Path, ...] = option(
        (),
        f"Train on the log-mels that this CSV file lists. {LIST_COLUMNS}",
        key="files",
        shown="all files_*.csv of DATA",
    )
    stores: tuple[Path, ...] = option(
        (), "Train with this store of embeddings.", key="embeddings", shown="all capemb_*/ of DATA"
    )
    dictionaries: tuple[Path, ...] = option(
        (),
        "Train with this pickled capemb_*.npy of the original; nothing but plain arrays in it is read.",
        key="m2d_embeddings",
    )
    captions: Path | None = option(
        None, "Train a text encoder (--objective text-clap) on the captions of this table.",
        shown="captions.parquet of DATA",
    )  # fmt: skip
    held_out: tuple[Path, ...] = option(
        (),
        "Validate on the log-mels of this list, which is like one of --files, and never train on them.",
        key="valid_files",
    )
    backgrounds: tuple[Path, ...] = option(
        (),
        "Mix background sounds into the clips, from this list, which is like one of --files.",
        key="noise_files",
    )
    weighted: bool = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class SavePlan:
    """When to save: every so many epochs, and optionally steps or minutes; the newest ``keep`` files stay."""

    GROUP: ClassVar[str] = SAVING

    every_epochs: Count = option(1, "Save a checkpoint every N epochs.", key="save_every", shown=THE_MODELS)
    every_steps: Count | None = option(None, "Also save a checkpoint every N steps.", key="save_steps", shown="never")
    every_minutes: Annotated[float, Range(0, 1e9, above=True)] | None = option(
        None,
        "Also save a checkpoint when this many minutes have passed since the last one.",
        key="save_minutes",
        shown="never",
    )
    keep: CountOrNever = option(3, "Keep this many checkpoints, the newest ones. 0 keeps all.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ValidationOptions:
    """What to measure between epochs, and how often."""

    GROUP: ClassVar[str] = VALIDATION

    valid_every: CountOrNever = option(1, "Validate on --valid-files every N epochs. 0 never does.")
    features_every: CountOrNever = option(10, "Measure the rank of the features every N epochs. 0 never does.")
    probe: Path | None = option(
        None,
        "Measure the model between epochs on this task, a folder of `m2dprep evaluate prepare`: zero-shot, or by "
        "retrieval if it has captions.",
        later=True,
    )
    probe_clips: Path | None = option(
        None,
        "Classify the clips of this CSV file zero-shot between epochs. The columns file_name and label are read, or "
        "else those that `m2dprep zero-shot` would read.",
    )
    probe_root: Path | None = option(
        None, "Look for the files of --probe-clips relative to this folder.", shown="the CSV's folder", role="place"
    )
    probe_every: CountOrNever = option(5, "Measure --probe and --probe-clips every N epochs. 0 never does.")
    probe_text_model: str | None = option(
        None,
        "Encode the captions of the probe with this text encoder: a name on the Hugging Face hub, or a folder.",
        shown="the one of the embeddings",
        role="model",
    )
    probe_template: str = option("{label} can be heard", "Use this caption for a class in the probe.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class HowToRun:
    """Where and how to run. None of this changes the result.

    If ``loader_workers`` is None, the training process loads the data on a CPU, and several worker processes do on a
    GPU.
    """

    GROUP: ClassVar[str] = LOCATION

    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = option(
        "auto", "Compute on this device. auto takes a GPU if there is one."
    )
    loader_workers: Annotated[int, Range(0, 1024)] | None = option(
        None, "Load data in this many processes. 0 loads in the training process.", shown="8 with a GPU, else 0"
    )
    compile: bool = option(False, "Compile the transformer blocks with torch.compile.")
    save: SavePlan = field(default_factory=SavePlan)
    log_every: Count = option(10, "Write a line of the log every N steps.", group=SAVING)
    wandb: str | None = option(
        None, "Also send the log to this project of Weights & Biases.", group=SAVING, metavar="PROJECT"
    )
    overwrite: bool = False


@dataclass(frozen=True)
class RunOptions(HowToRun):
    """How to run. None of this changes the result, except ``init``, a checkpoint whose weights training starts from.

    ``size`` is the model's name in its folder.
    """

    size: Annotated[str, OneOf(SIZES)] = option("base", "Train a model of this size.", key="model", group=MODEL)
    init: Path | None = option(
        None,
        "Begin with the weights of this checkpoint or run folder, ours or the original's.",
        group=MODEL,
        shown="random weights",
    )
    validation: ValidationOptions = field(default_factory=ValidationOptions)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Preset:
    """A named size: a model, its training settings, and how often it is saved."""

    model: ModelConfig
    train: TrainConfig
    save_every: int
    """Epochs between checkpoints."""

    def following(self, recipe: Mapping[str, Any]) -> Preset:
        """The same with the settings of a named recipe, by key."""
        values = dict(recipe)
        every = values.pop("save_every", self.save_every)
        model, train = self.with_changes(values)
        return Preset(model, train, every)

    def with_changes(self, changes: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
        """Model and training with the settings in ``changes``; None keeps the preset's value.

        If ``epochs`` changes and the warm-up does not, the warm-up keeps its share of the run. Unknown settings are
        refused.
        """
        asked = {name: value for name, value in changes.items() if value is not None}
        if "epochs" in asked:
            epochs = typed(kinds_of(TrainConfig)["epochs"], asked["epochs"], "epochs")
            asked = {"warmup_epochs": self.train.warmup_epochs * epochs / self.train.epochs, **asked}
        of_model, of_train = ({field.name for field in fields(config)} for config in (self.model, self.train))
        if unknown := sorted(set(asked) - of_model - of_train):
            raise UserError(f"unknown settings: {', '.join(unknown)}.")
        return (
            replace(self.model, **{name: value for name, value in asked.items() if name in of_model}),
            replace(self.train, **{name: value for name, value in asked.items() if name in of_train}),
        )


PRESETS = {
    "base": Preset(ModelConfig(), TrainConfig(), save_every=5),
    # ViT-S and ViT-L, with 64 dimensions per head and 32 in the predictor, as in the base model.
    "small": Preset(
        replace(ModelConfig(), embed_dim=384, num_heads=6, decoder_embed_dim=256, decoder_num_heads=8),
        TrainConfig(),
        save_every=5,
    ),
    "large": Preset(replace(ModelConfig(), embed_dim=1024, depth=24, num_heads=16), TrainConfig(), save_every=5),
    # Learns the demo's classes on two CPU cores in minutes. There are few steps, so warm-up and target are quick, and
    # captions weigh as much as patches, since there is no time to learn from masking first.
    "tiny": Preset(
        replace(
            ModelConfig(),
            input_size=(80, 208),
            embed_dim=192,
            depth=4,
            num_heads=3,
            decoder_embed_dim=96,
            decoder_depth=2,
            decoder_num_heads=3,
            loss_clap=1.0,
        ),
        replace(
            TrainConfig(),
            epochs=30,
            batch_size=32,
            blr=8e-3,
            warmup_epochs=3.0,
            ema_decay_init=0.99,
            ema_decay_end=0.999,
        ),
        save_every=10,
    ),
}


def preset(name: str) -> Preset:
    """The preset of a named size; a `UserError` lists the names if there is no such size."""
    if name not in PRESETS:
        raise UserError(f"unknown model {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]


PARTS = (RunOptions, DataChoice, ModelConfig, TrainConfig)
SETTINGS = {
    one.key: one
    for one in sorted((one for part in PARTS for one in declared(part)), key=lambda one: GROUPS.index(one.group))
}


def default_of(setting: Declared) -> Any:
    """The value of a setting that nobody sets; None if it depends on the model."""
    parts = [part for size in PRESETS.values() for part in (size.model, size.train)]
    values = {getattr(part, setting.field) for part in parts if type(part) is setting.owner} or {setting.default}
    return values.pop() if len(values) == 1 else None


def recipe_text(choice: DataChoice, out: Path, model: ModelConfig, config: TrainConfig, options: RunOptions) -> str:
    """Every setting of a run under its key for ``--config``; paths are absolute, so the file works from any folder."""
    found = {"output": out, **values_of(choice), **values_of(model), **values_of(config), **values_of(options)}
    return settings_text({key: found[key] for key in ("data", "output", *SETTINGS)})
