"""Training on a GPU equals training on a CPU: the original's values, a whole run, a resumed one, compiled blocks.

A single process also tests the process group with the backend of its device. These tests need nothing that a GPU
machine may lack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m2dprep.m2dclap.checkpoint import find_checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.distributed import DistributedContext, autocast
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.training.config import DataChoice, SavePlan, TrainConfig, ValidationOptions
from m2dprep.training.data_dir import open_training_data
from m2dprep.training.dataset import BatchKey
from m2dprep.training.log import read_log
from m2dprep.training.loop import Trainer
from m2dprep.training.schedule import Schedule
from m2dprep.training.train import compile_blocks, make_state, train
from tests.devices import DEVICES
from tests.forks import run_together
from tests.tiny import TINY
from tests.training import one_process
from tests.training.test_golden import FILES, STEPS, Golden, without_key_biases
from tests.training.two_processes import OPTIONS, TRAIN

pytestmark = pytest.mark.slow

MakeData = Callable[..., Path]
# Maximum relative differences of losses to the original's on a CPU, and minimum cosine of all gradients.
TOLERANCE = {"none": (1e-4, 0.9999), "bf16": (2e-2, 0.99)}


@pytest.fixture(autouse=True)
def plain_float32() -> None:
    """TF32 is a choice of PyTorch's, and not measured here."""
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> Path:
    return make_data(tmp_path_factory.mktemp("set") / "data", clips=16, frames=60)


def flat(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.detach().double().cpu().flatten() for value in values])


@pytest.mark.parametrize("amp", TOLERANCE)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("device", DEVICES)
def test_the_originals_losses_and_gradients(device: str, file: str, amp: str) -> None:
    golden, target = Golden(file), torch.device(device)
    model = golden.model().to(target)
    relative, cosine = TOLERANCE[amp]
    key = f"step{STEPS[0]}/"
    with autocast(target, amp):
        output = model(*(golden[key + name].to(target) for name in ("x", "text_emb", "noise")))
    for name in ("loss", "loss_m2d", "loss_clap"):
        assert getattr(output, name).item() == pytest.approx(golden[key + name].item(), rel=relative), name
    assert output.mask.cpu().equal(golden[key + "mask"])
    output.loss.backward()
    # As in the original's step; only the second generation's gradients are long enough to be clipped.
    torch.nn.utils.clip_grad_norm_(model.parameters(), golden.config["clip_grad"])
    expected = golden.group("grad0/")
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert found.keys() == expected.keys()
    pairs = [[without_key_biases(name, one)[0] for one in (found[name].cpu(), expected[name])] for name in expected]
    ours, theirs = flat([pair[0] for pair in pairs]), flat([pair[1] for pair in pairs])
    assert torch.cosine_similarity(ours, theirs, dim=0) > cosine
    assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=10 * relative)


@pytest.mark.parametrize("amp", TOLERANCE)
@pytest.mark.parametrize("device", DEVICES)
def test_the_originals_encoding(device: str, amp: str) -> None:
    golden, target = Golden(FILES[0]), torch.device(device)
    model = golden.model("final/").eval().to(target)
    with torch.no_grad(), autocast(target, amp):
        latent = model.encode(golden["eval/x"].to(target)).float().cpu()
    expected = golden["eval/latent"]
    assert torch.cosine_similarity(latent.flatten(1), expected.flatten(1)).min() > TOLERANCE[amp][1]
    if amp == "none":
        torch.testing.assert_close(latent, expected, rtol=0, atol=1e-3)


def steps_of(data: Path, device: torch.device, *, compiled: bool = False, amp: str = "none") -> list[float]:
    """The losses of a few steps on the same clips, from the same weights."""
    opened = open_training_data(DataChoice(data), 80)
    config = replace(TRAIN, batch_size=8, amp=amp)
    model_config = TINY
    state = make_state(model_config, config, opened, device)
    if compiled:
        compile_blocks(state.objective)
    trainer = Trainer(state, Schedule(config, 4), DistributedContext(0, 1, device))
    clips = opened.dataset(model_config, config)
    return [float(trainer.step([clips[BatchKey(0, np.arange(8))]])[0][0]) for _ in range(4)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("amp", "relative"), [("none", 1e-4), ("bf16", 2e-2)])
def test_steps_are_those_of_the_processor(data: Path, device: str, amp: str, relative: float) -> None:
    expected = steps_of(data, torch.device("cpu"))
    assert steps_of(data, torch.device(device), amp=amp) == pytest.approx(expected, rel=relative)
    assert expected[-1] < expected[0], "it learns"


@pytest.mark.parametrize("device", [device for device in DEVICES if device.values[0] == "cuda"])
def test_compiled_steps_are_those_that_are_not(data: Path, device: str) -> None:
    """With the real compiler; on a CPU this would take half a minute."""
    target = torch.device(device)
    assert steps_of(data, target, compiled=True) == pytest.approx(steps_of(data, target), rel=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_is_one_that_was_not_interrupted(tmp_path: Path, data: Path, device: str) -> None:
    options = replace(
        OPTIONS,
        device=device,
        loader_workers=0,
        save=SavePlan(every_steps=1, keep=0),
        validation=ValidationOptions(features_every=1),
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for out in (whole, resumed):
        train(DataChoice(data), out, TINY, TRAIN, options)
    for path in resumed.rglob("checkpoint-*.pth"):
        if not path.name.startswith("checkpoint-0"):  # the run goes on in the middle of its first epoch
            path.unlink()
    assert find_checkpoint(resumed).name.startswith("checkpoint-0")
    train(DataChoice(data), resumed, TINY, TRAIN, options)
    logs = [[(line["step"], line["loss"]) for line in read_log(out / "log.jsonl")] for out in (whole, resumed)]
    assert [step for step, _ in logs[0]] == [step for step, _ in logs[1]]
    assert [loss for _, loss in logs[1]] == pytest.approx([loss for _, loss in logs[0]], rel=1e-4)
    one, other = (torch.load(find_checkpoint(out), weights_only=True, map_location="cpu") for out in (whole, resumed))
    for name, value in one["model"].items():
        torch.testing.assert_close(other["model"][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_the_group_of_one_process(device: str, tmp_path: Path) -> None:
    """Averaging, gathering and voting with the backend of the device, NCCL on a GPU, change nothing for one process."""
    written = tmp_path / "written"
    assert run_together(one_process.compare, [(device,)], written) == [0], written.read_text()[-3000:]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_a_step_of_every_size_is_finite(device: str, size: str) -> None:
    from m2dprep.training.config import preset

    if device == "cpu" and size == "base":
        pytest.skip("minutes on a processor")
    chosen = preset(size)
    target = torch.device(device)
    config: ModelConfig = replace(chosen.model, off_emb_dim=32)
    train_config: TrainConfig = chosen.train
    model = M2DCLAP(config).to(target).train()
    with autocast(target, "bf16"):
        output = model(
            torch.randn(2, 1, *config.input_size, device=target),
            torch.randn(2, 32, device=target),
            torch.rand(2, config.num_patches, device=target),
        )
    output.loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train_config.clip_grad)
    assert torch.isfinite(output.loss)
    assert torch.isfinite(norm)
