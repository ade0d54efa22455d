"""What begins with a checkpoint that fuses: fine-tuning on labels, and a text tower. Both hear channels, as it does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.log_mels.store import find_log_mels
from m2dprep.artifacts.tables import read_file_list
from m2dprep.audioprep.config import PRESETS as FRONT_ENDS
from m2dprep.evaluation.protocols.result import Result
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.fusion.channels import ChannelRule, channels_of
from m2dprep.m2dclap.fusion.patches import FusedPatchEmbed
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.reuse.classifier import load_head
from m2dprep.training.config import DataChoice, RunOptions, TrainConfig
from m2dprep.training.dataset import BatchKey as StepKey
from m2dprep.training.fine_tuning.clips import BatchKey, EpochOrder, FusedLogMels, LabelledClips
from m2dprep.training.fine_tuning.settings import FineTuneConfig
from m2dprep.training.second_generation.plan import TextClapPlan
from m2dprep.training.train import train
from tests.evaluation.made_clips import write_tones
from tests.tiny import TINY_INFERABLE
from tests.training.fine_tuning.made import SMALL, fine_tune, label_data, lines_of, newest_checkpoint, write_labels
from tests.training.tiny_tower import make_tower

pytestmark = pytest.mark.slow

MakeData = Callable[..., Path]
CPU = torch.device("cpu")
# The frames of clips in turn, of which 48 are the model's, and which of them are longer.
LENGTHS = (1, 20, 48, 49, 60, 150, 400)
FEW = ("--frames", 48, "--epochs", 2)
SILENCE = float(np.log(FRONT_ENDS["16k"].eps))


class Made:
    """A data directory of clips of all lengths, labels of them, and a checkpoint that fuses, with its gate open."""

    def __init__(self, root: Path, make_data: MakeData) -> None:
        self.root = root
        self.data = make_data(root / "data", clips=35, frames=60)
        rng = np.random.default_rng(0)
        self.names = read_file_list(self.data / "files_made.csv")
        for clip, name in enumerate(self.names):
            values = rng.normal(-9.5, 2.5, (1, 80, LENGTHS[clip % 7])).astype(np.float32)
            write_array(self.data / name, values, durable=False)
        self.labels = label_data(self.data, root / "labels.csv", test_from=24)
        torch.manual_seed(1)
        model = M2DCLAP(replace(TINY_INFERABLE, fusion="aff"))
        assert isinstance(model.patch_embed, FusedPatchEmbed)
        assert model.patch_embed.gate is not None
        torch.nn.init.normal_(model.patch_embed.gate)
        self.checkpoint = root / "m2d_clap_vit_tiny-80x48p16x16p16kpN-fused" / "checkpoint-1.pth"
        self.checkpoint.parent.mkdir()
        args = {"model_config": model.config.to_dict(), "front_end": asdict(FRONT_ENDS["16k"])}
        torch.save({"model": model.state_dict(), "args": args}, self.checkpoint)

    def clips(self, **changes: Any) -> LabelledClips:
        """All of them, as fine-tuning has them."""
        config = FineTuneConfig(batch_size=12, epochs=2, warmup_epochs=0.0, mixup=0.4, mask_ratio=0.4)
        source = FusedLogMels(find_log_mels(self.data, self.names), ChannelRule(48), SILENCE)
        targets = np.arange(len(self.names)) % 4
        return LabelledClips(source, self.names, targets, 4, replace(config, **changes), (5, 3))

    def log_mel(self, clip: int) -> np.ndarray:
        found: np.ndarray = np.load(self.data / self.names[clip])
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> Made:
    return Made(tmp_path_factory.mktemp("made"), make_data)


def test_clips_that_are_judged_have_their_parts_in_the_middle_of_runs(made: Made) -> None:
    batch = made.clips()[BatchKey(0, np.arange(7))]
    assert batch.longer is not None
    assert batch.longer.tolist() == [False, False, False, True, True, True, True]
    for clip, frames in enumerate(LENGTHS):
        expected, filled = channels_of(made.log_mel(clip)[0], ChannelRule(48))
        expected[:, :, filled.frames :] = SILENCE
        assert filled.longer == (frames > 48)
        assert np.array_equal(batch.log_mel[clip].numpy(), expected)


def test_batches_follow_from_seed_epoch_and_place_in_any_number_of_processes(made: Made) -> None:
    clips = made.clips()
    alone = list(EpochOrder(35, clips.config))
    halves = [list(EpochOrder(35, clips.config, rank=rank, world_size=2)) for rank in (0, 1)]
    for number, key in enumerate(alone):
        whole, one, other = clips[key], *(made.clips()[half[number]] for half in halves)
        for name in ("log_mel", "target", "longer", "boxes", "visible"):
            assert getattr(whole, name).equal(torch.cat([getattr(one, name), getattr(other, name)])), name
    again = alone[0]._replace(epoch=1)
    assert not made.clips(mixup=0.0)[again].log_mel.equal(made.clips(mixup=0.0)[alone[0]].log_mel)


def test_a_clip_that_is_mixed_with_a_longer_one_is_longer(made: Made) -> None:
    key = BatchKey(0, np.array([0, 2, 5]), np.arange(3), np.array([1, 2, 0]), np.array([2, 5, 0]))
    mixed, plain = made.clips()[key], made.clips(mixup=0.0)[key._replace(partner_places=None, partners=None)]
    assert plain.longer is not None
    assert mixed.longer is not None
    assert (plain.longer.tolist(), mixed.longer.tolist()) == ([False, False, True], [False, True, True])
    share = float(mixed.target[1, 2])  # clips 2 and 5 have the labels 2 and 1
    torch.testing.assert_close(mixed.log_mel[1], share * plain.log_mel[1] + (1 - share) * plain.log_mel[2])


@pytest.fixture(scope="module")
def finished(made: Made) -> Path:
    out = made.root / "fine-tuned"
    result = run(made, out)
    assert "fusion aff, EVAR cannot read weights_*.pth" in result
    assert "log-mels of 48 frames, longer ones fused" in result
    return out


def run(made: Made, out: Path, *more: object) -> str:
    begin = (made.checkpoint, made.labels, made.data, *SMALL, *FEW, "--save-every", 1, "--keep", 0)
    result = fine_tune(*begin, "-o", out, *more)
    assert result.exit_code == 0, result.output
    return result.stderr


def test_fine_tuning_learns_from_the_parts_and_is_judged_as_clips_are_encoded(made: Made, finished: Path) -> None:
    """By the flat file of the best weights too, which says by its names that it fuses."""
    weights = next(finished.rglob("weights_*.pth"))
    for path in (weights, newest_checkpoint(finished)):
        checkpoint = Checkpoint.read(path)
        assert (checkpoint.config.fusion, checkpoint.config.input_size) == ("aff", (80, 48))
        before = Checkpoint.read(made.checkpoint).weights
        for name in ("gate", "mel_conv2d.weight", "fusion_model.local_att.0.weight"):
            assert not checkpoint.weights[f"patch_embed.{name}"].equal(before[f"patch_embed.{name}"]), name
    result, checkpoint = Result.read(finished / "result.json"), Checkpoint.read(weights)
    encoder = AudioEncoder(checkpoint.load_audio_model(CPU), checkpoint.norm_stats)
    assert encoder.length == "fused"
    clips = [np.load(made.data / name) for name in result.details["files"]]
    features = encoder.encode([one for one in clips if one.shape[-1] >= 48]).flat  # shorter ones get silence behind
    predicted = load_head(checkpoint, CPU)(features).argmax(dim=1).tolist()
    pairs = zip(result.details["predicted"], clips, strict=True)
    assert predicted == [label for label, one in pairs if one.shape[-1] >= 48]


def test_a_run_that_was_stopped_goes_on_bit_for_bit(made: Made, finished: Path, tmp_path: Path) -> None:
    """Also in another process that loads the clips."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for path in [*out.rglob("checkpoint-2.pth"), out / "result.json"]:
        path.unlink()
    run(made, out, "--loader-workers", 1)
    one, other = (torch.load(newest_checkpoint(place), weights_only=True)["model"] for place in (out, finished))
    assert all(value.equal(other[key]) for key, value in one.items())
    assert lines_of(out)[-1]["loss"] == lines_of(finished)[-1]["loss"]


def test_sounds_become_log_mels_first(made: Made, tmp_path: Path) -> None:
    names = write_tones(tmp_path / "sounds", 24)
    labels = write_labels(tmp_path / "labels.csv", [(name, f"tone {n % 3}") for n, name in enumerate(names)])
    begin = (made.checkpoint, labels, tmp_path / "sounds", *SMALL, *FEW, "-o", tmp_path / "run")
    refused = fine_tune(*begin, "--inputs", "waveforms")
    assert refused.exit_code == 2
    assert "choose --inputs log-mels or leave it out" in refused.stderr
    result = fine_tune(*begin, "--head", "probe", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "log-mels of 48 frames, longer ones fused" in result.stderr


@pytest.mark.parametrize(("frames", "words"), [(8, "fewer than one patch"), (47, "needs 3 patches along time")])
def test_crops_that_are_too_short_are_refused(made: Made, tmp_path: Path, frames: int, words: str) -> None:
    begin = (made.checkpoint, made.labels, made.data, *SMALL)
    result = fine_tune(*begin, "--frames", frames, "-o", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_a_text_tower_learns_beside_an_encoder_that_fuses(made: Made, tmp_path: Path) -> None:
    """The frozen side is what the base checkpoint makes of whole clips, and so is the checkpoint that comes out."""
    (made.data / "norm_stats.json").unlink(missing_ok=True)
    config = TrainConfig(
        objective="text-clap", epochs=1, batch_size=8, warmup_epochs=0, text_model=str(make_tower(tmp_path / "tower"))
    )
    options = RunOptions(init=made.checkpoint, log_every=1, loader_workers=0)
    plan = TextClapPlan(ModelConfig(), config, options)
    data = plan.open(DataChoice(made.data))
    model = plan.model(data)
    objective = plan.make(model, data)
    objective.begin_with(made.checkpoint)
    inputs = objective.prepare(data.dataset(model, config)[StepKey(0, np.arange(7), 0)])
    assert inputs.log_mel.shape == (7, 4, 80, 48)
    assert inputs.longer.tolist() == [frames > 48 for frames in LENGTHS]
    result = train(DataChoice(made.data), tmp_path / "run", ModelConfig(), config, options)
    checkpoint, base = Checkpoint.read(Path(result.checkpoint)), Checkpoint.read(made.checkpoint)
    assert checkpoint.config.fusion == "aff"
    fusion = [key for key in base.weights if key.startswith("patch_embed.")]
    assert len(fusion) > 5
    assert all(checkpoint.weights[key].equal(base.weights[key]) for key in fusion), "it is frozen"
    encoder = AudioEncoder(checkpoint.load_audio_model(CPU), checkpoint.norm_stats)
    clips = [made.log_mel(clip) for clip in (2, 4, 6)]  # of the model's width, and longer: padding is of whole inputs
    channels = torch.stack([torch.from_numpy(channels_of(one[0], ChannelRule(48))[0]) for one in clips])
    objective.load_weights(torch.load(result.checkpoint, weights_only=True)["model"])
    given = inputs._replace(
        log_mel=(channels - base.norm_stats.mean) / base.norm_stats.std, longer=torch.tensor([False, True, True]),
        input_ids=inputs.input_ids[:3], lengths=inputs.lengths[:3], visible=None,
    )  # fmt: skip
    with torch.inference_mode():
        audio = F.normalize(objective.embed(given).audio, dim=-1)
    torch.testing.assert_close(torch.from_numpy(encoder.embed(clips)), audio, atol=1e-5, rtol=1e-5)
