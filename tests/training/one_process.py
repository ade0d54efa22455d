"""What one process of `test_gpu` does: every exchange of several, with itself."""

from __future__ import annotations

import torch
import torch.distributed as dist

from m2dprep.m2dclap.distributed import averaging, backend_of, gather_rows
from m2dprep.m2dclap.model import M2DCLAP
from tests.tiny import TINY


def gradients(device: torch.device, *, distributed: bool) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    config = TINY
    model = M2DCLAP(config).to(device).train()
    forward = averaging(model, device) if distributed else model
    log_mel, text = torch.randn(6, 1, *config.input_size), torch.randn(6, 16)
    noise = torch.rand(6, config.num_patches)
    output = forward(log_mel.to(device), text.to(device), noise.to(device), None, gather=distributed)
    output.loss.backward()
    return float(output.loss), [value.grad for value in model.parameters() if value.grad is not None]


def compare(name: str) -> None:
    device = torch.device(name, 0) if name == "cuda" else torch.device("cpu")
    dist.init_process_group(backend_of(device))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        assert "nccl" in dist.get_backend_config()
    ours, alone = gradients(device, distributed=True), gradients(device, distributed=False)
    assert abs(ours[0] - alone[0]) < 1e-5 * abs(alone[0]), (ours[0], alone[0])
    for one, other in zip(ours[1], alone[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    rows = torch.arange(6.0, device=device).reshape(3, 2).requires_grad_()
    gathered = gather_rows(rows)
    assert gathered.equal(rows)
    gathered.square().sum().backward()
    assert rows.grad is not None and rows.grad.equal(2 * rows)
    votes = torch.tensor([0, 1])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)  # through the CPU, beside NCCL
    message = [("words", 3)]
    dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
    assert votes.tolist() == [0, 1] and message == [("words", 3)]
    dist.destroy_process_group()
