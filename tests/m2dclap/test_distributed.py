"""Two processes under torchrun equal one: losses, gradients, and a whole run whose clips they do not divide evenly.

Clips of all lengths are fused in the run; `tests/training/test_resume.py` has runs of two processes without fusion.
"""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.tables import read_file_list
from m2dprep.m2dclap import distributed
from m2dprep.m2dclap.distributed import DistributedContext, join_processes, raised_on_all
from m2dprep.m2dclap.model import clap_loss
from m2dprep.training.config import DataChoice
from m2dprep.training.log import read_log
from m2dprep.training.signals import StoppedError
from m2dprep.training.train import require_whole_batches, train
from tests.training import two_processes
from tests.training.two_processes import FUSED, OPTIONS, TRAIN


@pytest.mark.slow
def test_torchrun_on_two_processes(tmp_path: Path, make_data: Callable[..., Path], warm_python: str) -> None:
    data = make_data(tmp_path / "data", clips=15, frames=60)
    for clip, name in enumerate(read_file_list(data / "files_made.csv")):
        values = np.random.default_rng(clip).normal(-9.5, 2.5, (1, 80, (20, 48, 60, 150)[clip % 4]))
        write_array(data / name, values.astype(np.float32), durable=False)
    script = Path(two_processes.__file__)
    command = [warm_python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    finished = subprocess.run(
        [*command, str(data), str(tmp_path / "pair")],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("equal") == 1
    assert finished.stderr.count("15 files listed = 15 used") == 2, "of each of two runs, only the first process speaks"
    train(DataChoice(data), tmp_path / "alone", FUSED, TRAIN, OPTIONS)
    pair, alone = (read_log(tmp_path / name / "log.jsonl") for name in ("pair", "alone"))
    assert [line["step"] for line in pair] == [line["step"] for line in alone] == [1, 2, 3, 4]
    for name in ("loss", "loss_m2d", "loss_clap", "grad_norm"):
        assert [line[name] for line in pair] == pytest.approx([line[name] for line in alone], rel=1e-3), name
        assert pair[0][name] == pytest.approx(alone[0][name], rel=1e-5), name


def test_one_process_needs_no_others() -> None:
    with join_processes("cpu", lambda: False) as context:
        assert (context.rank, context.size, context.is_main) == (0, 1, True)
        assert context.broadcast_from_main(lambda: 3) == 3
        assert context.any([True, False]) == [True, False]
        assert context.mean(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("error", "leaves"),
    [
        (None, True),
        (raised_on_all(StoppedError("told to stop")), True),
        (UserError("out of memory, here alone"), False),
        (RuntimeError("a bug"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_a_process_that_fails_alone_does_not_wait_for_the_others(
    error: BaseException | None, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving the group with NCCL may wait forever, and then torchrun never sees a process end."""
    left = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_meet", lambda *_: None)
    monkeypatch.setattr(distributed, "stop_without_parent", lambda *_: None)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: left.append(True))
    with pytest.raises(type(error)) if error else nullcontext(), join_processes("cpu", lambda: False):
        if error is not None:
            raise error
    assert left == [True] * leaves


@pytest.mark.parametrize("error", [UserError("no such folder"), OSError(20, "Not a directory", "file/run")])
def test_what_the_first_process_cannot_do_all_processes_report(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    def broadcast(message: list[Any], **_: Any) -> None:
        sent.extend(message)
        message[:] = pickle.loads(pickle.dumps(sent[:1]))

    def fail() -> None:
        raise error

    monkeypatch.setattr(distributed.dist, "broadcast_object_list", broadcast)
    for rank in (0, 1):
        with pytest.raises(type(error)) as raised:
            DistributedContext(rank, 2, torch.device("cpu")).broadcast_from_main(fail)
        assert str(raised.value) == str(error)
        assert getattr(raised.value, "raised_on_all", False)


def test_batches_that_processes_cannot_share_are_refused() -> None:
    require_whole_batches(100, None, TRAIN, 3)
    with pytest.raises(UserError, match="multiple of 4"):
        require_whole_batches(100, None, TRAIN, 4)


def test_the_originals_gradient_is_one_over_w_of_it() -> None:
    """Gathered without gradient and averaged over W processes, audio learns W times less; see docs/fidelity.md."""
    torch.manual_seed(0)
    audio, text, scale = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8), torch.tensor(2.0)
    (ours,) = torch.autograd.grad(clap_loss(audio, text, scale), audio)
    theirs = torch.zeros_like(audio)
    for rank in range(3):
        own = slice(2 * rank, 2 * rank + 2)
        seen = audio.detach().clone()
        seen[own] = audio[own]
        (gradient,) = torch.autograd.grad(clap_loss(seen, text, scale), audio)
        theirs += gradient / 3
    torch.testing.assert_close(theirs, ours / 3)
    assert not DistributedContext(1, 3, torch.device("cpu")).is_main
