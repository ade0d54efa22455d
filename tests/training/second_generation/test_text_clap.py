"""Stages 2 and 2.1: a text tower is trained on captions, killed, gone on with, by two processes, and evaluated."""

from __future__ import annotations

import os
import pickle
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner, Result
from pyarrow import parquet

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_captions
from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.layouts import TEXT_FOLDER, folder_name
from m2dprep.m2dclap.text.model import TextClap
from m2dprep.m2dclap.text.tower import length_buckets
from m2dprep.m2dclap.vit import interpolate_pos_embed
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig
from m2dprep.training.dataset import BatchKey
from m2dprep.training.log import read_log
from m2dprep.training.second_generation.clips import PatchMasks
from m2dprep.training.second_generation.plan import TextClapPlan
from m2dprep.training.speed import TIMING_METRICS
from m2dprep.training.train import train
from tests.forks import ended, run_together, start
from tests.tiny import TINY, state_of
from tests.training.second_generation import two_processes
from tests.training.tiny_tower import make_other, make_tower

pytestmark = pytest.mark.slow
MakeData = Callable[..., Path]
BASE_MODEL = replace(TINY, sem_mode=2)
CONFIG = TrainConfig(objective="text-clap", epochs=3, batch_size=8, accumulate=2, blr=0.03, warmup_epochs=1, seed=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in processes of their own, whose runs are compared with those made here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Made:
    """A data directory, a base checkpoint of stage 1, and a tower of the captions' words."""

    def __init__(self, root: Path, make_data: MakeData) -> None:
        self.root = root
        self.data = make_data(root / "data", clips=33, frames=60)
        (self.data / "norm_stats.json").unlink()
        self.tower = make_tower(root / "tower")
        folder = root / "m2d_clap_vit_tiny-80x48p16x16p16kpN-stage1"
        folder.mkdir()
        torch.manual_seed(1)
        self.base = folder / "checkpoint-300.pth"
        state_of(BASE_MODEL).save(self.base, 300, {"model_config": BASE_MODEL.to_dict()}, {})

    def options(self, **changes: Any) -> RunOptions:
        values = {"init": self.base, "log_every": 1, "save": SavePlan(every_steps=3), "loader_workers": 0, **changes}
        return RunOptions(**values)

    def config(self, **changes: Any) -> TrainConfig:
        return replace(CONFIG, text_model=str(self.tower), **changes)

    def train(self, out: Path, init: Path | None = None, workers: int = 0, **changes: Any) -> Path:
        """The checkpoint of a finished run."""
        options = self.options(init=init or self.base, loader_workers=workers)
        result = train(DataChoice(self.data), out, ModelConfig(sem_mode=1), self.config(**changes), options)
        return Path(result.checkpoint)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> Made:
    return Made(tmp_path_factory.mktemp("made"), make_data)


@pytest.fixture(scope="module")
def finished(made: Made) -> Path:
    """The checkpoint of a run of stage 2 that nothing disturbed."""
    return made.train(made.root / "finished")


def model_of(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return found


def log_of(run: Path) -> list[dict[str, Any]]:
    hidden = {*TIMING_METRICS, "run", "digest"}
    return [{key: value for key, value in line.items() if key not in hidden} for line in read_log(run / "log.jsonl")]


def test_what_learns_and_what_stays(made: Made, finished: Path) -> None:
    after, base = model_of(finished), model_of(made.base)
    for key, value in base.items():
        if key.startswith(("cls_token", "patch_embed.", "blocks.", "norm.", "norm_stats")):
            assert after[f"backbone.{key}"].equal(value), f"{key} is frozen"
    assert "backbone.audio_proj.sem_blocks.0.norm1.weight" in after
    assert "backbone.audio_proj.sem_blocks.1.norm1.weight" not in after, "a fresh head of one block"
    assert "backbone.text_proj.weight" not in after, "captions have the width of audio"
    assert 0 < float(after["logit_scale"]) < 4.6052
    from transformers import AutoModel

    before = AutoModel.from_pretrained(made.tower).state_dict()
    for key, value in before.items():
        same = after[f"text_encoder.text_encoder.{key}"].equal(value)
        assert same == key.startswith("pooler."), f"{key}: all of the tower learns but the pooler"
    named = folder_name(finished)
    assert named is not None
    assert (named.letter, named.text_inside, named.input_size) == ("B", True, (80, 48))


def test_a_run_is_the_same_with_loading_processes_and_after_its_own_settings(made: Made, finished: Path) -> None:
    other = made.train(made.root / "workers", workers=1)
    assert log_of(made.root / "workers") == log_of(made.root / "finished")
    assert all(value.equal(model_of(other)[key]) for key, value in model_of(finished).items())
    again = CliRunner().invoke(m2dprep, ["train", "--config", str(made.root / "finished/train.yaml")])
    assert again.exit_code == 0, again.output


def test_loading_processes_of_a_fork_server_get_clips_that_make_the_same_batches(made: Made) -> None:
    plan = TextClapPlan(ModelConfig(sem_mode=1), made.config(), made.options())
    data = plan.open(DataChoice(made.data))
    clips = data.dataset(plan.model(data), plan.config)
    key = BatchKey(1, np.arange(6), 4)
    for one, other in zip(clips[key], pickle.loads(pickle.dumps(clips))[key], strict=True):
        assert one is other is None or torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_dropout_follows_from_seed_and_step_alone(made: Made) -> None:
    plan = TextClapPlan(ModelConfig(sem_mode=1), made.config(), made.options())
    data = plan.open(DataChoice(made.data))
    model = plan.model(data)
    objective = plan.make(model, data)
    clips = data.dataset(model, plan.config)
    first, same = (objective.prepare(clips[BatchKey(0, np.arange(6), 4)]) for _ in range(2))
    later = objective.prepare(clips[BatchKey(0, np.arange(6), 5)])
    one, again = (objective.train().losses(inputs)["loss"].item() for inputs in (first, same))
    torch.manual_seed(99)
    assert one == again == objective.losses(first)["loss"].item()
    assert first.seed != later.seed
    assert objective.losses(first._replace(seed=first.seed + 1))["loss"].item() != one, "dropout is on"


def _train_and_die(made: Made, out: Path, steps: int) -> None:
    clamp = TextClap.clamp_logit_scale
    left = [steps]

    def counted(self: TextClap) -> None:
        clamp(self)
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    TextClap.clamp_logit_scale = counted  # type: ignore[method-assign]
    made.train(out)


def test_killed_and_started_again_it_is_the_undisturbed_run(made: Made, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    for steps in (4, 1, 5, 10**6):
        code = ended(start(_train_and_die, made, out, steps))
        assert code == (0 if steps == 10**6 else -signal.SIGKILL), steps
    assert log_of(out) == log_of(made.root / "finished")
    assert find_checkpoint(out).read_bytes() == finished.read_bytes()


def test_two_processes_train_what_one_does(made: Made, tmp_path: Path) -> None:
    """The tower has no dropout here: each process draws its own, as one process draws another for all clips."""
    still = make_tower(made.root / "calm", dropout=0.0)
    arguments = (made.data, made.base, still, tmp_path)
    codes = run_together(two_processes.compare, [arguments] * 2, tmp_path / "written")
    assert codes == [0, 0], (tmp_path / "written").read_text()[-3000:]


def test_stage_2_1_goes_on_with_heads_temperature_and_tower_of_stage_2(made: Made, finished: Path) -> None:
    config = replace(CONFIG, heads="restored", audio_mask=0.0, blr=1e-9, epochs=1, warmup_epochs=0.0)
    result = train(
        DataChoice(made.data), made.root / "stage2.1", ModelConfig(sem_mode=1), config, made.options(init=finished)
    )
    before, after = model_of(finished), model_of(Path(result.checkpoint))
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)


def test_a_head_that_is_restored_is_no_other_one(made: Made, finished: Path) -> None:
    config = replace(made.config(), heads="restored", audio_mask=0.0)
    with pytest.raises(UserError, match=r"sem_mode is 2, but the audio head .* is that of sem_mode 1"):
        TextClapPlan(ModelConfig(sem_mode=2), config, made.options(init=finished))


def test_positions_are_interpolated_as_by_the_original(made: Made) -> None:
    longer = model_of(made.train(made.root / "longer", audio_frames=96, epochs=1))
    table = model_of(made.base)["pos_embed"]
    expected = interpolate_pos_embed(table, (5, 3), (5, 6), always=True)
    assert longer["backbone.pos_embed"].equal(expected)
    assert "80x96p16x16" in find_checkpoint(made.root / "longer").parent.name
    assert Checkpoint.read(find_checkpoint(made.root / "longer")).config.input_size == (80, 96)


def test_a_tower_of_another_width_gets_a_layer_to_that_of_audio(made: Made) -> None:
    wide = make_tower(made.root / "wide", hidden_size=48)
    config = replace(CONFIG, text_model=str(wide), text_pooling="mean", epochs=1)
    result = train(DataChoice(made.data), made.root / "wider", ModelConfig(sem_mode=1), config, made.options())
    path = Path(result.checkpoint)
    assert model_of(path)["backbone.text_proj.weight"].shape == (32, 48)
    assert CheckpointEncoder(path).encode_texts(["kind 1"]).shape == (1, 32)


def test_captions_are_encoded_for_evaluation_as_in_training(made: Made, finished: Path) -> None:
    """The tokenizer is that beside the checkpoint; the training's text model is not needed."""
    assert sorted(path.name for path in (finished.parent / TEXT_FOLDER).iterdir())[0] == "config.json"
    texts = ["kind 1, said in way 0", "the sound of kind 2", "said " * 40]
    found = CheckpointEncoder(finished).encode_texts(texts)
    plan = TextClapPlan(ModelConfig(sem_mode=1), made.config(), made.options())
    data = plan.open(DataChoice(made.data))
    objective = plan.make(plan.model(data), data).eval()
    objective.load_weights(model_of(finished))
    tokens = data.captions._tokenizer(texts)  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = objective.model.text_encoder(tokens.input_ids, tokens.lengths.tolist())  # type: ignore[union-attr]
    assert tokens.lengths.tolist()[2] == 24
    np.testing.assert_allclose(found, torch.nn.functional.normalize(expected, dim=1).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init": None}, "--init names the checkpoint"),
        ({"text_tokens": 100}, "text_tokens is 100; tower takes at most 24"),
        ({"audio_frames": 8}, "input_size has 8 frames"),
        ({"text_model": "/nowhere/at/all"}, "is no folder with a text encoder"),
        ({"text_model": "{data}"}, "holds no text encoder"),
        ({"noise_ratio": 0.1}, "mixes no noise in"),
        ({"random_mask": True, "audio_mask": 0.0}, "random_mask needs an audio_mask above 0"),
    ],
)
def test_what_cannot_be_trained_is_said(made: Made, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    changes = {key: str(made.data) if value == "{data}" else value for key, value in changes.items()}
    with pytest.raises(UserError, match=said):
        options = made.options(**({"init": changes.pop("init")} if "init" in changes else {}))
        config = replace(made.config(), **changes)
        train(DataChoice(made.data), tmp_path / "run", ModelConfig(sem_mode=1), config, options)


@pytest.mark.parametrize(
    ("kind", "pooling", "said"),
    [
        ("gpt2", "cls", "other reads from left to right, .* --text-pooling mean"),
        ("t5", "cls", "other is no text encoder that can be trained"),
        ("t5", "mean", "other is no text encoder that can be trained"),
    ],
)
def test_models_that_make_no_embeddings_of_captions_are_refused(
    made: Made, tmp_path: Path, kind: str, pooling: str, said: str
) -> None:
    config = replace(CONFIG, text_model=str(make_other(tmp_path / "other", kind)), text_pooling=pooling)
    with pytest.raises(UserError, match=said):
        train(DataChoice(made.data), tmp_path / "run", ModelConfig(sem_mode=1), config, made.options())


def test_a_model_without_a_token_for_padding_learns_from_averages(made: Made, tmp_path: Path) -> None:
    other = make_other(tmp_path / "other", "gpt2")
    config = replace(CONFIG, text_model=str(other), text_pooling="mean", epochs=1, warmup_epochs=0)
    result = train(DataChoice(made.data), tmp_path / "run", ModelConfig(sem_mode=1), config, made.options())
    path = Path(result.checkpoint)
    assert "kpXpTI" in path.parent.name, "the original has no letter for it"
    encoder = CheckpointEncoder(path)
    together = encoder.encode_texts(["kind 1", "the sound of kind 2 can be heard"])
    np.testing.assert_allclose(together[:1], encoder.encode_texts(["kind 1"]), atol=1e-5)


def test_captions_without_text_are_left_out(made: Made, tmp_path: Path) -> None:
    """A clip that has others keeps those; one that has none is skipped."""
    table = read_captions(made.data / "captions.parquet")
    clips = table["clip_id"].to_pylist()
    blank = {clips.index(clips[0]), *(row for row, clip in enumerate(clips) if clip == clips[-1])}
    said = ["  \t" if row in blank else text for row, text in enumerate(table["caption"].to_pylist())]
    plan = TextClapPlan(ModelConfig(sem_mode=1), made.config(), made.options())
    whole = plan.open(DataChoice(made.data))
    opened = plan.open(DataChoice(made.data, captions=with_captions(table, said, tmp_path / "some.parquet")))
    assert len(opened) == len(whole) - 1
    assert any(f"; {len(blank)} without text are left out" in note for note in opened.notes)
    with pytest.raises(UserError, match="holds no captions with text"):
        plan.open(DataChoice(made.data, captions=with_captions(table, [""] * len(said), tmp_path / "none.parquet")))


def with_captions(table: pa.Table, said: list[str], path: Path) -> Path:
    column = table.schema.get_field_index("caption")
    parquet.write_table(table.set_column(column, table.schema.field("caption"), pa.array(said)), path)
    return path


def command(made: Made, out: Path, *arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, ["train", str(made.data), "-o", str(out), *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input-size", "80x32"], "takes the audio encoder of --init as it is"),
        (["--embeddings", "capemb_made"], "not on --embeddings"),
        (["--captions", "none.parquet"], "none.parquet: no such file"),
        (["--objective", "masked-clap"], "heads|audio_frames|text_model"),
    ],
)
def test_options_that_say_nothing_here_are_refused(made: Made, tmp_path: Path, arguments: list[str], said: str) -> None:
    recipe = ["--recipe", "m2d-clap-2025-stage2", "--init", made.base, "--text-model", made.tower, "--batch-size", 8]
    result = command(made, tmp_path / "run", *recipe, *arguments)
    assert result.exit_code == 2, result.output
    assert re.search(said, result.output)


def test_buckets_hold_every_caption_once_the_longest_first() -> None:
    lengths = np.random.default_rng(0).integers(3, 90, 200).tolist()
    buckets = length_buckets(lengths)
    assert sorted(row for bucket in buckets for row in bucket) == list(range(200))
    assert len(buckets) > 3
    longest = [max(lengths[row] for row in bucket) for bucket in buckets]
    assert longest == sorted(longest, reverse=True)
    padded = sum(len(bucket) * top for bucket, top in zip(buckets, longest, strict=True))
    assert padded < 0.7 * 200 * max(lengths)
    assert length_buckets([5, 60, 7]) == [[1, 2, 0]], "few captions go together"


def test_bucketed_embeddings_are_those_of_captions_alone(made: Made) -> None:
    from m2dprep.m2dclap.text.tower import read_tower

    tower = read_tower(made.tower, "tower").new("mean").eval()
    lengths = [3, 20, 5, 24, 9] * 8
    tokens = torch.randint(5, 20, (40, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([tower(tokens[row : row + 1, :count], [count]) for row, count in enumerate(lengths)])
        assert len(length_buckets(lengths)) == 2
        torch.testing.assert_close(tower(tokens, lengths), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("at_random", "inverted"), [(False, False), (False, True), (True, False)])
def test_masks_show_equally_much_of_every_clip(at_random: bool, inverted: bool) -> None:
    masks = PatchMasks((5, 62), 0.3, at_random, inverted)
    counts = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        visible = masks.visible(rng.uniform(size=(4, masks.numbers)), float(rng.uniform()))
        assert all(len(set(row.tolist())) == visible.shape[1] for row in visible)
        counts.add(310 - visible.shape[1])
    assert counts == ({310 - int(310 * 0.7)} if at_random else {95, 86, 124})


def test_masks_of_a_step_hide_as_much_in_all_its_parts(made: Made) -> None:
    plan = TextClapPlan(ModelConfig(sem_mode=1), made.config(audio_frames=96), made.options())
    data = plan.open(DataChoice(made.data))
    clips = data.dataset(plan.model(data), plan.config)
    sizes = set()
    for step in range(12):
        parts = [clips[BatchKey(0, part, step)].visible for part in (np.arange(4), np.arange(4, 8))]
        assert parts[0] is not None and parts[1] is not None
        assert parts[0].shape == parts[1].shape
        sizes.add(parts[0].shape[1])
    assert len(sizes) > 1, "steps differ"


def test_every_caption_of_a_clip_is_drawn(made: Made) -> None:
    plan = TextClapPlan(ModelConfig(sem_mode=1), made.config(), made.options())
    data = plan.open(DataChoice(made.data))
    clips = data.dataset(plan.model(data), plan.config)
    drawn = {tuple(clips[BatchKey(epoch, np.array([5]))].input_ids[0].tolist()) for epoch in range(12)}
    assert len(drawn) == 2, "the two captions of the clip"
